"""Votes in memory and in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.errors import AdapterHubError, DataError, FileMissing, UsageError
from adapterhub.labeling.votes import NO_VOTE, Votes, read_votes, write_votes

CELLS = st.none() | st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=4)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=8))
def test_written_votes_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str | None, str | None]]
) -> None:
    path = tmp_path_factory.mktemp("votes") / "votes.csv"
    columns = {"rules, first": [row[0] for row in rows], 'a "prompt"': [row[1] for row in rows]}
    votes = Votes.of(columns, [f"row {number}" for number in range(len(rows))])
    write_votes(path, votes)
    again = read_votes(path)
    assert (again.ids, again.voters, again.labels) == (votes.ids, votes.voters, votes.labels)
    assert np.array_equal(again.matrix, votes.matrix)
    assert {name: again.column(name) for name in columns} == columns


def test_rows_without_ids_are_numbered(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    path.write_text("a,b\nyes,\n,no\n")
    votes = read_votes(path)
    assert votes.ids == ("1", "2")
    assert votes.labels == ("no", "yes")
    assert votes.matrix.tolist() == [[1, NO_VOTE], [NO_VOTE, 0]]


def test_a_lone_voter_abstains_with_an_empty_line(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    path.write_text("v1\na\nb\n\na\n\n")
    votes = read_votes(path)
    assert votes.ids == ("1", "2", "3", "4")
    assert votes.column("v1") == ["a", "b", None, "a"]
    path.write_text('v1\na\n""\n')  # as tables are written whose last cell is empty
    assert read_votes(path).column("v1") == ["a", None]


def test_a_vote_for_no_label_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    path.write_text("id,v,w\nr1,a,b\nr2,a,-1\n")
    assert read_votes(path).only(["b", "-1", "a"]).voters == ("v", "w")
    with pytest.raises(DataError, match="voter 'w' says '-1' of the row 'r2', which is no label; the labels are a, b"):
        read_votes(path).only(["a", "b"])


def test_given_labels_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    path.write_text("id,a\nx,yes\n")
    assert read_votes(path, ["yes", "no"]).labels == ("yes", "no")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "the file is empty"),
        ("id\n1\n", ":1: there is no voter"),
        ("id,a\n", "there are no rows"),
        ("id,a\n1\n", ":2: the row has 1 cells"),
        ("id,a\n1,x\n1,y\n", ":3: the id '1' is that of line 2"),
        ("id,a\n,x\n", ":2: the id is empty"),
        ("a,a\nx,y\n", "names 'a' twice"),
        ("a,\nx,y\n", "column 2 has no name"),
        ('a\n"x\n', "not valid CSV"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, wrong: str) -> None:
    path = tmp_path / "votes.csv"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_votes(path)
    assert wrong in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileMissing):
        read_votes(tmp_path / "votes.csv")


@pytest.mark.parametrize(
    ("ids", "matrix"),
    [(("1", "1"), [[0], [0]]), (("1",), [[0], [0]]), (("1",), [[2]]), (("1",), [[-2]])],
)
def test_ill_made_votes_are_refused(ids: tuple[str, ...], matrix: list[list[int]]) -> None:
    with pytest.raises(UsageError):
        Votes(ids, ("a",), ("x", "y"), np.array(matrix, dtype=np.int32))


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    path.write_text("a\nx\n")
    lone = Votes.of({"a": ["\ud800"]}, ["1"])
    with pytest.raises((AdapterHubError, UnicodeEncodeError)):
        write_votes(path, lone)
    assert path.read_text() == "a\nx\n"
    assert list(tmp_path.iterdir()) == [path]
