"""Bases load frozen, whole and as stored, in every family; what would be random is refused."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.utils import logging as transformers_logging

from adapterhub.base import load
from adapterhub.base.load import compute_dtype, load_backbone, load_classifier, load_tokenizer, pooling_of
from adapterhub.base.record import Base
from adapterhub.base.source import open_base
from adapterhub.errors import BaseError, ConfigError
from tests.tiny import FAMILIES, byte_tokenizer, make_tiny_base


def tiny_base(tmp_path: Path, family: str = "llama") -> Base:
    return open_base(str(make_tiny_base(tmp_path / family, family)), cache=tmp_path / "cache")


def edit_json(file: Path, **changes: object) -> None:
    record = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizer_is_the_stored_one(tmp_path: Path, family: str) -> None:
    base = tiny_base(tmp_path, family)
    tokenizer = load_tokenizer(base)
    stored = Tokenizer.from_file(str(base.path / "tokenizer.json"))
    text = "Don't cut  12 wörds<|end|> é"
    assert tokenizer(text)["input_ids"] == stored.encode(text).ids
    assert len(tokenizer) == len(byte_tokenizer())
    assert tokenizer.chat_template == byte_tokenizer().chat_template
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)


def test_stored_truncation_and_padding_are_not_applied(tmp_path: Path) -> None:
    base = tiny_base(tmp_path)
    raw = Tokenizer.from_file(str(base.path / "tokenizer.json"))
    raw.enable_truncation(4)
    raw.enable_padding(length=4)
    raw.save(str(base.path / "tokenizer.json"))
    tokenizer = load_tokenizer(base)
    assert len(tokenizer("a longer text")["input_ids"]) == 13
    assert len(tokenizer("a")["input_ids"]) == 1


def test_a_base_without_a_pad_token_needs_one_named(tmp_path: Path) -> None:
    base = tiny_base(tmp_path)
    edit_json(base.path / "tokenizer_config.json", pad_token=None)
    with pytest.raises(BaseError, match=r"no pad token.*pad_token: '<\|end\|>'"):
        load_tokenizer(base)
    assert load_tokenizer(base, require_pad=False).pad_token is None
    tokenizer = load_tokenizer(base, "<|end|>")
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|end|>", 2)
    with pytest.raises(BaseError, match="'<new>' is not in the vocabulary"):
        load_tokenizer(base, "<new>")


def test_a_long_text_is_no_remark(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = tiny_base(tmp_path)
    edit_json(base.path / "tokenizer_config.json", model_max_length=8)
    with caplog.at_level(logging.WARNING, logger="transformers"):
        assert len(load_tokenizer(base)("a text of more than eight tokens")["input_ids"]) == 32
    assert caplog.records == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backbone_is_frozen_and_as_stored(
    tmp_path: Path, family: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    base = tiny_base(tmp_path, family)
    capsys.readouterr()
    caplog.clear()
    model = load_backbone(base, torch.float32)
    out, err = capsys.readouterr()
    assert (out, err, caplog.records) == ("", "", [])
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    state = model.state_dict()
    for name, tensor in load_file(base.path / "model.safetensors").items():
        held = next(
            state[key] for key in (name, name.removeprefix("transformer."), f"transformer.{name}") if key in state
        )
        assert torch.equal(held, tensor), name


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_dtype_and_attention_are_as_asked(tmp_path: Path, family: str, attention: str) -> None:
    model = load_backbone(tiny_base(tmp_path, family), torch.bfloat16, attention=attention)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize("multilabel", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_classifier_has_the_bases_weights_and_a_seeded_head(tmp_path: Path, family: str, multilabel: bool) -> None:
    base = tiny_base(tmp_path, family)

    def load_seeded(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        model: torch.nn.Module = load_classifier(base, 3, multilabel, torch.float32, pad_token_id=0)
        return model

    first, again, other = load_seeded(1).state_dict(), load_seeded(1).state_dict(), load_seeded(2).state_dict()
    heads = {name for name in first if name.startswith(("score.", "classifier."))}
    assert heads
    stored = {tuple(tensor.shape): tensor for tensor in load_file(base.path / "model.safetensors").values()}
    assert any(torch.equal(first[name], stored[tuple(first[name].shape)]) for name in first if name not in heads)
    for name in first:
        assert torch.equal(first[name], again[name]), name
        if not name.endswith("bias"):
            assert torch.equal(first[name], other[name]) == (name not in heads), name
    model = load_seeded(1)
    assert model(torch.tensor([[5, 6, 7]])).logits.shape == (1, 3)
    kind = "multi_label_classification" if multilabel else "single_label_classification"
    config = model.config
    assert isinstance(config.num_labels, int)
    assert (config.num_labels, config.problem_type, config.pad_token_id) == (3, kind, 0)


def test_pooling(tmp_path: Path) -> None:
    for family in FAMILIES:
        base = tiny_base(tmp_path, family)
        expected = "pooler" if family == "bert" else "last"
        assert pooling_of(load_backbone(base, torch.float32)) == expected
        assert pooling_of(load_classifier(base, 2, False, torch.float32, pad_token_id=0)) == expected


def drop(base: Base, prefix: str) -> None:
    file = base.path / "model.safetensors"
    tensors = load_file(file)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    assert len(kept) < len(tensors)
    save_file(kept, file, metadata={"format": "pt"})


def save_encoder(folder: Path, model: Any) -> Base:
    """Save a random encoder of any family with the byte tokenizer, and open it."""
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return open_base(str(folder), cache=folder.parent / "cache")


SHAPE = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "max_position_embeddings": 64, "type_vocab_size": 1, "pad_token_id": 0}


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "camembert"])
def test_a_roberta_is_read_at_its_first_token_and_has_no_random_pooler(tmp_path: Path, family: str) -> None:
    config = AutoConfig.for_model(family, **SHAPE)
    base = save_encoder(tmp_path / family, AutoModelForMaskedLM.from_config(config))
    backbone = load_backbone(base, torch.float32)
    assert backbone.pooler is None
    assert pooling_of(backbone) == "cls"
    with_pooler = save_encoder(tmp_path / "pooled", AutoModel.from_config(config))
    assert load_backbone(with_pooler, torch.float32).pooler is not None
    assert pooling_of(load_backbone(with_pooler, torch.float32)) == "cls"
    for each in (base, with_pooler):
        model = load_classifier(each, 2, False, torch.float32, pad_token_id=0)
        assert pooling_of(model) == "cls"
        assert {"classifier.dense.weight", "classifier.out_proj.weight"} <= set(model.state_dict())


@pytest.mark.parametrize("family", ["electra", "distilbert", "mpnet", "deberta-v2"])
def test_encoders_whose_heads_would_be_served_wrongly_are_refused(tmp_path: Path, family: str) -> None:
    model = AutoModel.from_config(AutoConfig.for_model(family, **SHAPE, dim=32, n_heads=4, n_layers=1, hidden_dim=48))
    base = save_encoder(tmp_path / family, model)
    with pytest.raises(BaseError, match=rf"'{family}' encoders cannot be used for classification.*bert, roberta"):
        load_classifier(replace(base, path=tmp_path / "gone"), 2, False, torch.float32)
    with pytest.raises(BaseError, match="cannot be used for classification"):
        pooling_of(model)


def test_an_encoder_set_up_as_a_decoder_is_no_classifier(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("bert", **SHAPE, is_decoder=True))
    base = save_encoder(tmp_path / "bert", model)
    with pytest.raises(BaseError, match="'bert' used as a decoder"):
        load_classifier(base, 2, False, torch.float32)
    with pytest.raises(BaseError, match="'bert' used as a decoder"):
        pooling_of(model)


def test_an_encoder_without_a_pooler(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "bert")
    drop(base, "pooler.")
    model = load_backbone(base, torch.float32)
    assert model.pooler is None
    with pytest.raises(BaseError, match="stored without its pooler"):
        pooling_of(model)
    assert model(torch.tensor([[1, 2]])).last_hidden_state.shape == (1, 2, 32)
    with pytest.raises(BaseError, match=r"lack bert\.pooler\.dense"):
        load_classifier(base, 2, False, torch.float32, pad_token_id=0)


@pytest.mark.parametrize("prefix", ["lm_head.", "model.layers.1.mlp"])
def test_missing_weights_are_refused(tmp_path: Path, prefix: str) -> None:
    base = tiny_base(tmp_path)
    drop(base, prefix)
    with pytest.raises(BaseError, match=f"lack {prefix}"):
        load_backbone(base, torch.float32)


def test_a_head_that_is_tied_is_not_missing(tmp_path: Path) -> None:
    folder = make_tiny_base(tmp_path / "tied", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model = load_backbone(open_base(str(folder), cache=tmp_path / "cache"), torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_shapes_that_contradict_the_config_are_refused(tmp_path: Path) -> None:
    base = tiny_base(tmp_path)
    edit_json(base.path / "config.json", intermediate_size=40)
    with pytest.raises(BaseError, match="weights of"):
        load_backbone(base, torch.float32)


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    base = tiny_base(tmp_path)
    torch.save(load_file(base.path / "model.safetensors"), base.path / "pytorch_model.bin")
    (base.path / "model.safetensors").unlink()
    with pytest.raises(BaseError, match="cannot be loaded"):
        load_backbone(base, torch.float32)


def test_code_that_comes_with_a_base_is_not_run(tmp_path: Path) -> None:
    base = tiny_base(tmp_path)
    (base.path / "evil.py").write_text("raise SystemExit('code of a base was run')")
    edit_json(
        base.path / "config.json",
        model_type="evil",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    )
    with pytest.raises(BaseError, match="cannot be loaded"):
        load_backbone(base, torch.float32)


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    base = tiny_base(tmp_path)
    edit_json(base.path / "config.json", model_type="nobody-knows")
    with pytest.raises(BaseError, match="nobody-knows"):
        load_backbone(base, torch.float32)


def test_the_librarys_settings_are_as_before(tmp_path: Path) -> None:
    base = tiny_base(tmp_path)
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.enable_progress_bar()
    transformers_logging.set_verbosity_info()
    try:
        load_tokenizer(base)
        assert transformers_logging.get_verbosity() == logging.INFO
        assert transformers_logging.is_progress_bar_enabled()
        with pytest.raises(BaseError):
            load_backbone(replace(base, path=tmp_path / "gone"), torch.float32)
        assert transformers_logging.get_verbosity() == logging.INFO
    finally:
        transformers_logging.set_verbosity_warning()
        if not shown:
            transformers_logging.disable_progress_bar()


def test_compute_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compute_dtype("float32") == torch.float32
    assert compute_dtype("bfloat16") == torch.bfloat16
    for amx, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(load, "_cpu_has_amx", lambda amx=amx: amx)
        assert compute_dtype("auto") == compute_dtype("auto", torch.device("cpu")) == expected
    for fast, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda fast=fast: fast)
        assert compute_dtype("auto", "cuda:0") == expected
    with pytest.raises(ConfigError, match="'float16'"):
        compute_dtype("float16")


def test_what_is_saved_again_loads_the_same(tmp_path: Path) -> None:
    base = tiny_base(tmp_path)
    load_backbone(base, torch.float32).save_pretrained(tmp_path / "again")
    load_tokenizer(base).save_pretrained(tmp_path / "again")
    again = open_base(str(tmp_path / "again"), cache=tmp_path / "cache")
    assert again.fingerprint == base.fingerprint
    ids = torch.tensor([[5, 6, 7]])
    expected = AutoModelForCausalLM.from_pretrained(base.path)(ids).logits
    assert torch.equal(load_backbone(again, torch.float32)(ids).logits, expected)
