"""Features of texts: what transformers' own forward says, one text at a time, however they were batched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from adapterhub.base.features import default_pooling, features, pool
from adapterhub.base.source import Base, open_base
from adapterhub.errors import BaseError, InvalidRequest, PromptTooLong
from tests.tiny import byte_tokenizer, make_tiny_base

TEXTS = ["one", "a much longer text about two things", "x", "three or four words"]
Bases = Callable[[str], Base]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    root = tmp_path_factory.mktemp("bases")
    made: dict[str, Base] = {}

    def base(family: str) -> Base:
        if family not in made:
            made[family] = open_base(str(make_tiny_base(root / family, family)))
        return made[family]

    return base


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "bert", "roberta"])
def test_features_are_pooled_last_hidden_states(bases: Bases, family: str) -> None:
    base = bases(family)
    model = AutoModel.from_pretrained(base.path).eval()
    with torch.inference_mode():
        states = [model(torch.tensor([byte_tokenizer()(text)["input_ids"]])).last_hidden_state[0] for text in TEXTS]
    expected = {
        "mean": torch.stack([each.mean(0) for each in states]),
        "last": torch.stack([each[-1] for each in states]),
        "cls": torch.stack([each[0] for each in states]),
    }
    for pooling, vectors in expected.items():
        for batch_tokens in (1, 60, 4096):
            found = features(base, TEXTS, pooling, batch_tokens=batch_tokens)
            torch.testing.assert_close(found, vectors, rtol=1e-5, atol=1e-5)
    assert torch.equal(features(base, TEXTS), features(base, TEXTS, "mean"))
    assert not torch.allclose(expected["mean"], expected["last"], atol=1e-2)


def test_no_texts_have_no_features(bases: Bases) -> None:
    assert features(bases("bert"), []).shape == (0, 32)


def test_pooling_of_low_precision_is_done_in_float32() -> None:
    states = torch.full((4096, 2), 1.0, dtype=torch.bfloat16)
    states[0] = 256.0
    assert pool(states, "mean").tolist() == [(4095 + 256) / 4096] * 2
    assert pool(states, "cls").dtype == torch.float32
    assert pool(states.double(), "last").dtype == torch.float64


def test_what_cannot_be_pooled_is_refused(bases: Bases) -> None:
    with pytest.raises(InvalidRequest, match="max") as caught:
        features(bases("llama"), ["a"], "max")
    assert caught.value.param == "pooling"
    with pytest.raises(InvalidRequest, match="empty"):
        features(bases("llama"), ["a", ""])
    with pytest.raises(PromptTooLong, match="text 1: 600"):
        features(bases("llama"), ["a", "b" * 600])


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_lasttoken": True, "word_embedding_dimension": 32}, "last"),
    ],
)
def test_a_sentence_encoder_says_how_it_pools(
    tmp_path: Path, bases: Bases, modes: dict[str, object], expected: str
) -> None:
    base = open_base(str(make_tiny_base(tmp_path / "own", "bert")))
    assert default_pooling(base) == default_pooling(bases("llama")) == "mean"
    (base.path / "1_Pooling").mkdir()
    (base.path / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    assert default_pooling(base) == expected
    assert torch.equal(features(base, TEXTS), features(base, TEXTS, expected))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"pooling_mode_max_tokens": true}',
        '{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}',
        "{}",
    ],
)
def test_a_pooling_that_is_not_known_is_not_guessed(tmp_path: Path, text: str) -> None:
    base = open_base(str(make_tiny_base(tmp_path / "own", "bert")))
    (base.path / "1_Pooling").mkdir()
    (base.path / "1_Pooling" / "config.json").write_text(text)
    with pytest.raises(BaseError, match="1_Pooling"):
        default_pooling(base)
    assert features(base, ["a"], "cls").shape == (1, 32)
