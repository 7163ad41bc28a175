"""Which rows people are asked about, and the way out to a table and back."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from adapterhub.data.example import Example
from adapterhub.errors import DataError, FileMissing, UsageError
from adapterhub.labeling.corrections import Correction, latest
from adapterhub.labeling.review import Item, labels_of, read_items, read_queue, read_rows, write_items

ROWS = {str(n): Example(str(n), {"text": f"text {n}"}) for n in range(1, 5)}


def test_votes_that_disagree_come_first_and_rows_without_any_last(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    path.write_text("id,x,y,z\n1,a,a,\n2,a,b,b\n3,,,\n4,a,b,\n")
    items = read_queue(path, ROWS)
    assert [(item.id, item.why) for item in items] == [
        ("4", "voters disagree"),
        ("2", "voters disagree"),
        ("3", "no voter"),
    ]
    assert items[1].suggested == (("b", pytest.approx(2 / 3)), ("a", pytest.approx(1 / 3)))
    assert items[0].text == "text 4"
    assert labels_of(items) == ["a", "b"]
    with pytest.raises(UsageError, match="--data"):
        read_queue(path)


def test_soft_labels_by_how_near_the_best_two_are(tmp_path: Path) -> None:
    path = tmp_path / "soft.jsonl"
    lines = [
        {"id": "1", "label": "a", "probs": {"a": 0.9, "b": 0.1}},
        {"id": 2, "label": "b", "text": "its own", "probs": {"a": 0.45, "b": 0.55}},
        {"id": "3", "probs": {"a": 1}},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    items = read_queue(path, ROWS)
    assert [(item.id, item.text, item.given) for item in items] == [
        ("2", "its own", "b"),
        ("1", "text 1", "a"),
        ("3", "text 3", None),
    ]
    assert items[0].suggested[0] == ("b", 0.55)
    assert items[0].score == pytest.approx(0.9)


def test_an_audit(tmp_path: Path) -> None:
    path = tmp_path / "queue.csv"
    path.write_text(
        'id,given,suggested,score,why,twin,where,text\n7,a,b,0.25,model,,f:1,"x, y"\n8,b,a,0.5,twin,7,f:2,z\n'
    )
    second, first = read_queue(path)
    assert (first.id, first.given, first.suggested, first.text) == ("7", "a", (("b", None), ("a", None)), "x, y")
    assert (second.score, second.why) == (0.5, "suspected error")
    path.write_text("id,given,suggested,score\n")
    assert read_queue(path) == []
    path.write_text("id,given,suggested,score\n1,a,b,much\n")
    with pytest.raises(DataError, match=r":2: score is 'much'"):
        read_queue(path)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [("{}", "no soft labels"), ('{"id": "1", "probs": {"a": 2}}', "no soft labels"), ('{"probs": {"a": 1}}', "no id")],
)
def test_what_is_no_queue(tmp_path: Path, line: str, wrong: str) -> None:
    path = tmp_path / "soft.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=wrong):
        read_queue(path, ROWS)
    for name in ("none.csv", "none.jsonl"):
        with pytest.raises(FileMissing):
            read_queue(tmp_path / name)
    with pytest.raises(UsageError, match="expected soft labels"):
        read_queue(tmp_path / "queue.txt")


def test_out_as_a_table_and_back(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    items = [
        Item("1", 'a "quoted"\ntext', "a", (("b", 0.5), ("a", 0.5)), 0.5, "uncertain"),
        Item("2", "y", None, (("b", 1.0),), 0.1, "uncertain"),
        Item("3", "z", "b", (), 0.0, "no voter"),
    ]
    write_items(path, items)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["suggested"] == "b|a"
    assert read_items(path, "mara", ["a", "b"], {}) == []
    for row, label in zip(rows, ["b", "a", ""], strict=True):
        row["label"] = label
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    first, second = read_items(path, "mara", ["a", "b"], {})
    assert (first.id, first.old, first.label, first.by, first.text) == ("1", "a", "b", "mara", 'a "quoted"\ntext')
    assert (second.id, second.old, second.label) == ("2", None, "a")
    assert read_items(path, "mara", [], latest([first, second])) == []
    other = Correction("1", "a", "c", "ben", "t")
    assert [each.id for each in read_items(path, "mara", [], latest([other, second]))] == ["1"]
    with pytest.raises(DataError, match=r":2: unknown label 'b'"):
        read_items(path, "mara", ["a", "c"], {})


@pytest.mark.parametrize(
    ("text", "wrong"), [("name,label\n1,a\n", "no column 'id'"), ("id,label\n,a\n", ":2: the id is empty")]
)
def test_tables_that_are_not_ours(tmp_path: Path, text: str, wrong: str) -> None:
    path = tmp_path / "in.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=wrong):
        read_items(path, "mara", [], {})
    with pytest.raises(FileMissing):
        read_items(tmp_path / "none.csv", "mara", [], {})


def test_rows_by_id(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 3, "text": "x"}\n')
    assert read_rows(path)["3"].text == "x"
