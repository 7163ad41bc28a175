"""An audit of a file on a tiny base: planted errors come up, whatever the rows look like."""

from __future__ import annotations

import csv
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from adapterhub.base.source import Base, open_base
from adapterhub.errors import DataError
from adapterhub.pipeline.audit import COLUMNS, audit, text_features, write_queue
from tests.tiny import make_tiny_base

WORDS = {"fruit": ["apple", "pear", "plum", "grape", "cherry"], "tool": ["saw", "drill", "hammer", "file", "chisel"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return open_base(str(make_tiny_base(tmp_path_factory.mktemp("base"))), cache=tmp_path_factory.mktemp("cache"))


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    lines = (json.dumps({"id": f"r{n}", "text": text, "label": label}) for n, (text, label) in enumerate(rows))
    path.write_text("".join(line + "\n" for line in lines))
    return path


def made(count: int, classes: int = 2) -> tuple[list[tuple[str, str]], set[str]]:
    """Return rows of which every eleventh has another label, and the ids of those."""
    draw = np.random.default_rng(0)
    words = dict(list(WORDS.items())[:classes]) | {
        f"kind {n}": [f"{n}w{m}" for m in range(5)] for n in range(classes - 2)
    }
    names, rows, wrong = list(words), [], set()
    for number in range(count):
        label = names[number % classes]
        text = " ".join(draw.choice(words[label], 3)) + f" {number}"
        if number % 11 == 3:
            label = names[(number + 1) % classes]
            wrong.add(f"r{number}")
        rows.append((text, label))
    return rows, wrong


@pytest.mark.parametrize(("count", "classes"), [(120, 2), (400, 20)])
def test_planted_errors_come_first(tmp_path: Path, base: Base, count: int, classes: int) -> None:
    rows, wrong = made(count, classes)
    said: list[str] = []

    def stage(what: str) -> nullcontext[None]:
        said.append(what)
        return nullcontext()

    found = audit(write(tmp_path / "rows.jsonl", rows), base, alike=2.0, stage=stage)
    assert (found.rows, len(found.labels), found.twins) == (count, classes, 0)
    ids = [each.id for each in found.doubts]
    assert len(wrong & set(ids)) > 0.8 * len(wrong)
    assert len(wrong & set(ids[: len(wrong) // 2])) > 0.8 * (len(wrong) // 2)
    assert len(said) == 2
    assert [each.score for each in found.doubts] == sorted((each.score for each in found.doubts), reverse=True)
    again = audit(tmp_path / "rows.jsonl", base, alike=2.0)
    assert again == found


def test_near_duplicates_with_different_labels(tmp_path: Path, base: Base) -> None:
    rows, _ = made(60)
    clean = [(text, "fruit" if text.split()[0] in WORDS["fruit"] else "tool") for text, _ in rows]
    twice = [*clean, (clean[0][0], "tool" if clean[0][1] == "fruit" else "fruit")]
    found = audit(write(tmp_path / "rows.jsonl", twice), base, alike=0.9999)
    assert found.twins == 1
    (pair,) = [each for each in found.doubts if each.twin is not None]
    assert {pair.id, pair.twin} == {"r0", "r60"}
    queue = tmp_path / "queue.csv"
    write_queue(queue, found)
    with queue.open(newline="") as file:
        kept = list(csv.DictReader(file))
    assert tuple(kept[0]) == COLUMNS
    assert [row["id"] for row in kept] == [each.id for each in found.doubts]


def test_a_twin_that_no_head_doubts_follows(tmp_path: Path, base: Base) -> None:
    rows = [(f"apple pear {n}", "fruit") for n in range(20)] + [(f"saw drill {n}", "tool") for n in range(20)]
    found = audit(write(tmp_path / "rows.jsonl", rows), base, alike=-1.0)  # anything is a twin
    assert found.twins > 0
    assert {each.why for each in found.doubts} == {"twin"}
    assert all(each.score < 0 and each.given != each.suggested and each.twin for each in found.doubts)


def test_texts_without_common_words_and_long_ones(tmp_path: Path, base: Base) -> None:
    long = "é" * 2000
    rows = [(letter * 3, "ab"[n % 2]) for n, letter in enumerate("cdefghijkl")]
    found = audit(write(tmp_path / "rows.jsonl", [*rows, (long, "a")]), base)
    assert found.rows == 11
    vectors = text_features(base, [long, long[: base.context_length // 2]])
    assert np.allclose(vectors[0], vectors[1], atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "wrong"),
    [
        ([("a", "x")] * 4, "there are 4 rows"),
        ([(str(n), "x") for n in range(9)], "every row has the label 'x'"),
        ([("a", "y"), *((str(n), "x") for n in range(9))], "the label 'y' has one row"),
    ],
)
def test_what_cannot_be_audited(tmp_path: Path, base: Base, rows: list[tuple[str, str]], wrong: str) -> None:
    with pytest.raises(DataError, match=wrong):
        audit(write(tmp_path / "rows.jsonl", rows), base)
