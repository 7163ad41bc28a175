"""The catalog's bases, for real: pulled, pinned, and what they are said to be."""

from __future__ import annotations

import pytest
import torch

from adapterhub.base.catalog import CATALOG
from adapterhub.base.fingerprint import fingerprint
from adapterhub.base.load import load_backbone, load_classifier, load_tokenizer, pooling_of
from adapterhub.base.source import open_base

pytestmark = pytest.mark.real


@pytest.mark.parametrize("name", CATALOG)
def test_what_lies_in_the_cache_is_what_is_pinned(name: str) -> None:
    base = open_base(name)
    assert base.fingerprint == fingerprint(base.path) == CATALOG[name].fingerprint
    assert base.derived_from == CATALOG[name].derived_from


def test_smollm2_is_what_it_is_said_to_be() -> None:
    base = open_base("smollm2-135m-instruct")
    assert (base.architecture, base.parameters, base.dtype) == ("LlamaForCausalLM", 134_515_008, "bfloat16")
    assert (base.context_length, base.is_encoder) == (8192, False)
    tokenizer = load_tokenizer(base)
    # As the original cuts it: a digit is a token, and the space before a number one of its own.
    assert tokenizer.tokenize("in 2024") == ["in", "Ġ", "2", "0", "2", "4"]
    assert tokenizer.model_max_length == 8192


def test_smollm2_talks() -> None:
    base = open_base("smollm2-135m-instruct")
    tokenizer, model = load_tokenizer(base), load_backbone(base, torch.float32)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    mask = torch.ones_like(ids)
    told = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=12, pad_token_id=2)
    assert "Paris" in tokenizer.decode(told[0, ids.shape[1] :])


def test_minilm_knows_what_is_alike() -> None:
    base = open_base("all-minilm-l6-v2")
    assert (base.architecture, base.parameters, base.dtype) == ("BertModel", 22_713_216, "float32")
    assert (base.context_length, base.is_encoder) == (512, True)
    tokenizer, model = load_tokenizer(base), load_backbone(base, torch.float32)
    assert pooling_of(model) == "pooler"

    def embed(text: str) -> torch.Tensor:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            return torch.nn.functional.normalize(model(ids).last_hidden_state.mean(1), dim=-1)[0]

    query, near, far = (embed(text) for text in ("a cat on a sofa", "a kitten sits on the couch", "tax law of 1986"))
    assert query @ near > 0.5 > 0.2 > query @ far


@pytest.mark.parametrize("name", CATALOG)
def test_classifiers_start_from_the_bases_weights(name: str) -> None:
    base = open_base(name)
    torch.manual_seed(0)
    model = load_classifier(base, 6, False, torch.float32, pad_token_id=load_tokenizer(base).pad_token_id)
    assert pooling_of(model) == ("pooler" if base.is_encoder else "last")
    assert model(torch.tensor([[101, 2054, 102]])).logits.shape == (1, 6)
