"""The public data sets, read as a user's recipe would read them; skipped where they are absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapterhub.data.example import collect_labels
from adapterhub.data.files import read_examples
from adapterhub.metrics import evaluate

pytestmark = pytest.mark.real
SETS = [("trec6", 6, 4952), ("sst2", 2, 6920), ("banking77", 77, 9003), ("clinc150", 150, 15000), ("subj", 2, 8000)]


@pytest.mark.parametrize(("name", "labels", "rows"), SETS)
def test_classification_sets_read_whole(public_data: Path, name: str, labels: int, rows: int) -> None:
    train = list(read_examples(public_data / name / "train.jsonl", "classification"))
    assert len(train) == rows
    found = collect_labels(train, "classification")
    assert len(found) == labels
    test = list(read_examples(public_data / name / "test.jsonl", "classification", labels=found))
    assert len({example.id for example in train}) == len(train)
    assert all(example.text and example.label in found for example in test)


def test_slots_are_json_and_score_one_against_themselves(public_data: Path) -> None:
    examples = list(read_examples(public_data / "restaurant8k" / "test.jsonl", "generation"))
    gold = [example.completion or "" for example in examples]
    assert len(gold) == 3731
    assert all(isinstance(json.loads(text), dict) for text in gold)
    metrics = evaluate("generation", gold, gold, ())
    assert {name: metric.value for name, metric in metrics.items()} == {"exact_match": 1.0, "field_f1": 1.0}
    spaced = [json.dumps(json.loads(text), indent=1) for text in gold]
    assert evaluate("generation", gold, spaced, ())["exact_match"].value == 1.0
