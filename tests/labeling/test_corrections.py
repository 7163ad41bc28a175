"""What people said is kept whatever happens, and goes where it belongs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.data.example import Example
from adapterhub.data.files import read_examples
from adapterhub.errors import DataError, FileMissing
from adapterhub.labeling.correct import correct_rows, correct_votes
from adapterhub.labeling.corrections import (
    Correction,
    append_corrections,
    corrected,
    latest,
    read_corrections,
    with_gold,
)
from adapterhub.labeling.lineage import read_lineage, write_lineage
from adapterhub.labeling.votes import Votes, read_votes, write_votes

WORDS = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: text.strip())


def said(identity: str, label: str, old: str | None = None, text: str | None = None) -> Correction:
    return Correction(identity, old, label, "mara", "2026-01-31T12:00:00Z", text)


@settings(deadline=None, max_examples=40)  # every line is forced to the disk
@given(st.lists(st.tuples(WORDS, st.none() | WORDS, WORDS, st.none() | st.text(st.characters(codec="utf-8")))))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str | None, str, str | None]]
) -> None:
    path = tmp_path_factory.mktemp("c") / "c.jsonl"
    corrections = [said(identity, label, old, text) for identity, old, label, text in rows]
    for each in corrections:
        append_corrections(path, [each])
    assert not rows or read_corrections(path) == corrections


def test_every_cut_of_the_last_line_is_survived(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    append_corrections(path, [said("1", "é", text="ü"), said("2", "b")])
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for end in range(first, len(content)):
        path.write_bytes(content[:end])
        whole = [said("1", "é", text="ü")] + [said("2", "b")] * (end == len(content) - 1)
        assert read_corrections(path) == whole
        append_corrections(path, [said("3", "c")])
        assert read_corrections(path) == [*whole, said("3", "c")]


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("{", "not valid JSON"),
        ("3", "not an object"),
        ('{"id": "1", "label": " ", "by": "m", "at": "t"}', "label is"),
        ('{"id": 1, "label": "a", "by": "m", "at": "t"}', "id is 1"),
        ('{"id": "1", "label": "a", "at": "t"}', "by is null"),
        ('{"id": "1", "label": "a", "by": "m", "at": "t", "old": 3}', "old is 3"),
    ],
)
def test_a_bad_line_is_refused_where_it_is_not_the_last(tmp_path: Path, line: str, wrong: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(DataError, match=rf"c\.jsonl:2: .*{wrong}"):
        read_corrections(path)
    with pytest.raises(FileMissing):
        read_corrections(tmp_path / "none.jsonl")


def test_the_last_word_counts() -> None:
    assert latest([said("1", "a"), said("2", "b"), said("1", "c")])["1"].label == "c"


def test_gold_is_a_voter() -> None:
    votes = Votes.of({"rule": ["a", None]}, ["1", "2"], ["a", "b"])
    once = with_gold(votes, [said("2", "c"), said("9", "a")])
    assert (once.voters, once.labels) == (("rule", "gold"), ("a", "b", "c"))
    assert once.column("gold") == [None, "c"]
    assert with_gold(once, [said("1", "b")]).column("gold") == ["b", "c"]


def test_corrected_rows_lose_their_soft_labels() -> None:
    rows = [Example("1", {"text": "x", "label": "a"}, probs={"a": 1.0}), Example("2", {"text": "y"})]
    first, second = corrected(rows, [said("1", "b")])
    assert (first.id, first.label, first.probs, first.source) == ("1", "b", None, "corrected by mara")
    assert second is rows[1]


def test_files(tmp_path: Path) -> None:
    rows, out, corrections = tmp_path / "rows.jsonl", tmp_path / "out.jsonl", tmp_path / "c.jsonl"
    rows.write_text(
        '{"text": "x", "label": "a", "weight": 2, "more": [1]}\n'
        '{"id": 7, "text": "y", "probs": {"a": 0.5, "b": 0.5}, "source": "rules"}\n'
    )
    first, _ = read_examples(rows, "classification", labelled=False)
    append_corrections(corrections, [said(first.id, "b", "a"), said("unknown", "b")])
    assert correct_rows(rows, corrections, out) == (1, 1)
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        {"id": first.id, "text": "x", "label": "b", "more": [1], "weight": 2.0, "source": "corrected by mara"},
        {"id": "7", "text": "y", "probs": {"a": 0.5, "b": 0.5}, "source": "rules"},
    ]
    record = read_lineage(out)
    assert record is not None
    assert record["data"]["name"] == "rows.jsonl"
    assert record["corrections"]["corrections"][0] == {
        "id": first.id,
        "old": "a",
        "label": "b",
        "by": "mara",
        "at": "2026-01-31T12:00:00Z",
    }


def test_votes_keep_their_lineage(tmp_path: Path) -> None:
    votes, out, corrections = tmp_path / "votes.csv", tmp_path / "out.csv", tmp_path / "c.jsonl"
    write_votes(votes, Votes.of({"rule": ["a"]}, ["1"]))
    write_lineage(votes, {"voters": {"rule": {"kind": "function"}}, "data": {"name": "rows"}})
    append_corrections(corrections, [said("1", "b")])
    assert correct_votes(votes, corrections, out) == (1, 0)
    assert read_votes(out).column("gold") == ["b"]
    record = read_lineage(out)
    assert record is not None
    assert record["voters"]["rule"] == {"kind": "function"}
    assert record["voters"]["gold"]["kind"] == "people"
    assert record["data"] == {"name": "rows"}
