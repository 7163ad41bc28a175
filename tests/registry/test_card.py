from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.data.example import Example
from adapterhub.errors import CorruptAdapter, UsageError
from adapterhub.registry.card import Card
from adapterhub.registry.provenance import git_commit, package_versions, split_record
from adapterhub.registry.store import Registry

from .making import FINGERPRINT, make_card, make_folder

TEXTS = st.dictionaries(st.text(), st.text() | st.integers() | st.none(), max_size=3)


@given(
    st.builds(
        Card,
        kind=st.sampled_from(["classification", "multilabel", "generation"]),
        base=TEXTS,
        recipe=TEXTS,
        labels=st.lists(st.text(), max_size=3).map(tuple),
        training=TEXTS,
        calibration=TEXTS,
        description=st.text(),
        license=st.none() | st.text(),
        parents=st.lists(st.text(), max_size=2).map(tuple),
        extra=st.dictionaries(st.text().map("x-{}".format), st.integers(), max_size=2),
    )
)
def test_a_card_survives_its_file_and_keeps_unknown_keys(card: Card) -> None:
    text = card.to_json()
    assert Card.from_json(text) == card
    assert Card.from_json(text).to_json() == text
    assert json.loads(text)["format"] == 1


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"format": 2, "kind": "x", "base": {}}', '{"format": 1, "kind": "x"}', "[" * 100_000),
        '{"format": 1, "kind": "x", "base": {}, "calibration": 2.0}',
        *('{"format": 1, "kind": "x", "base": {}, "labels": "abc"}', '{"format": 1, "kind": "x", "base": [1]}'),
    ],
)
def test_what_is_no_card_is_refused(text: str) -> None:
    with pytest.raises(CorruptAdapter, match=r"card\.json"):
        Card.from_json(text)


def test_nan_never_reaches_the_file() -> None:
    with pytest.raises(UsageError, match="JSON cannot"):
        make_card(metrics={"accuracy": {"value": float("nan"), "low": 0.0, "high": 1.0}}).to_json()


@pytest.mark.parametrize(
    ("name", "public_id", "published"),
    [
        ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-instruct"),
        ("org/name", "org/name", "org/name"),
        ("org/name@v1", "org/name", "org/name@v1"),
        ("/home/ann/models/tiny", "org/name", "org/name"),
        ("models/tiny", "local/tiny", "local/tiny"),
        ("tiny", "local/tiny", "local/tiny"),
        (r"C:\models\tiny", "local/tiny", "local/tiny"),
        ("../tiny", "org/name", "org/name"),
        ("~/tiny", "org/name", "org/name"),
    ],
)
def test_a_base_is_published_under_a_name_that_means_the_same_elsewhere(
    name: str, public_id: str, published: str
) -> None:
    base = {"name": name, "public_id": public_id, "fingerprint": FINGERPRINT}
    card = make_card(base=base, recipe={"base": name}).public()
    assert card.base["name"] == card.recipe["base"] == published


def test_nothing_of_this_machine_is_published(tmp_path: Path) -> None:
    home = str(tmp_path)
    recipe = {
        "base": f"{home}/base",
        "data": {
            "train": f"{home}/train.jsonl",
            "validation": "data/validation.jsonl",
            "test": "hf:trec@test",
            "out_of_scope": {"validation": None, "test": f"{home}/oos.jsonl"},
        },
        "prompt": {"system": "/no_think"},
    }
    base = {"name": f"{home}/base", "public_id": "local/base", "fingerprint": FINGERPRINT}
    card = make_card(base=base, recipe=recipe, data={"train": split_record(f"{home}/train.jsonl", [Example("a", {})])})
    version = Registry(tmp_path / "registry").publish("mail", make_folder(tmp_path / "a"), card)
    for name in ("card.json", "README.md", "../index.json"):
        assert home not in (version.path / name).read_text()
    published = version.card().recipe
    assert published["data"] == {
        "train": "train.jsonl",
        "validation": "data/validation.jsonl",
        "test": "hf:trec@test",
        "out_of_scope": {"validation": None, "test": "oos.jsonl"},
    }
    assert published["prompt"] == {"system": "/no_think"}


def test_split_records_depend_on_what_is_in_them_alone() -> None:
    one, two = Example("a", {"text": "ü", "label": "x"}), Example("b", {"text": "t", "label": "y"})
    record = split_record("/somewhere/train.jsonl", [two, one])
    assert record == split_record("elsewhere/train.jsonl", iter([replace(one, where="l:1", source="web"), two]))
    assert record["name"] == "train.jsonl"
    assert record["rows"] == 2
    for other in (
        replace(one, id="c"),
        replace(one, fields={"text": "ü", "label": "y"}),
        replace(one, weight=2.0),
        replace(one, probs={"x": 0.9, "y": 0.1}),
    ):
        assert record["sha256"] != split_record("train.jsonl", [other, two])["sha256"]
    assert record["sha256"] != split_record("train.jsonl", [one, two, two])["sha256"]
    assert split_record("hf:org/name@test", [])["name"] == "hf:org/name@test"


def test_provenance(tmp_path: Path) -> None:
    assert set(package_versions(["pytest", "no-such-package-here"])) == {"pytest"}
    assert git_commit(tmp_path) is None
    assert git_commit(tmp_path / "missing") is None
