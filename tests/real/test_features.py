"""Embeddings of the catalog's bases: the engine gives what the plain forward gives, and they mean something."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapterhub import AdapterHub
from adapterhub.base.features import default_pooling, features
from adapterhub.base.source import open_base

pytestmark = pytest.mark.real
TEXTS = ["a cat on a sofa", "a kitten sits on the couch", "the tax law of 1986, as amended in later years", "Hello!"]


@pytest.mark.parametrize("name", ["all-minilm-l6-v2", "smollm2-135m-instruct"])
@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_embeddings_are_features(name: str, pooling: str, tmp_path: Path) -> None:
    base = open_base(name)
    with AdapterHub(base, tmp_path, precision="float32", threads=1) as hub:
        found = torch.stack([each.vector for each in hub.embed(name, TEXTS, pooling)])
    expected = features(base, TEXTS, pooling)
    # Of the largest value: states of a decoder reach hundreds, of a normalised encoder about one.
    assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


def test_minilm_pools_as_it_was_trained_and_knows_what_is_alike(tmp_path: Path) -> None:
    base = open_base("all-minilm-l6-v2")
    assert default_pooling(base) == "mean"
    with AdapterHub(base, tmp_path, precision="float32", threads=1) as hub:
        query, near, far, _ = (each.vector / each.vector.norm() for each in hub.embed(base.name, TEXTS))
    assert query @ near > 0.5 > 0.2 > query @ far


def test_smollm2_scores_what_is_so_above_what_is_not(tmp_path: Path) -> None:
    with AdapterHub("smollm2-135m-instruct", tmp_path, precision="float32", threads=1) as hub:
        right, wrong = hub.score("smollm2-135m-instruct", "The capital of France is", [" Paris", " seventeen"])
    assert right.logprob > wrong.logprob + 2
