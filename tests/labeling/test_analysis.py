"""What voters do, counted; and the page that shows it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from adapterhub.labeling.analysis import analyse
from adapterhub.labeling.label_model import fit_votes
from adapterhub.labeling.page import page, short, warnings, write_page
from adapterhub.labeling.votes import Votes
from tests.labeling.made import cloned, independent, named

TABLE = {
    "rule": ["a", "a", None, None, "b"],
    "<prompt>": ["a", "b", "b", None, None],
    "silent $1": [None, None, None, None, None],
}


def test_counts() -> None:
    report = analyse(fit_votes(Votes.of(TABLE, "12345")), {0: "a", 1: "b", 2: "c", 3: "a"})
    rule, prompt, silent = report.voters
    assert (rule.votes, rule.coverage, rule.overlap, rule.conflict) == (3, 0.6, 0.4, 0.2)
    assert (prompt.votes, prompt.overlap, prompt.conflict) == (3, 0.4, 0.2)
    assert (rule.polarity, silent.polarity) == ({"a": 2, "b": 1}, {})
    assert (report.coverage, report.overlap, report.conflict) == (0.8, 0.4, 0.2)
    assert report.by_votes == (1, 2, 2)
    assert report.uncovered == ("4",)
    assert rule.empirical is not None
    assert (rule.empirical.value, rule.dev_rows) == (0.5, 2)
    assert prompt.empirical is not None
    assert prompt.empirical.value == pytest.approx(2 / 3)  # no voter knows of the label c
    assert (silent.accuracy, silent.empirical) == (None, None)
    assert report.dev_rows == 3  # the one that nobody covers says nothing of models
    record = report.to_record()
    assert record["silent"] == ["silent $1"]
    assert record["dev"]["rows"] == 3
    assert record["voters"]["silent $1"]["accuracy"] is None


def test_copies_and_constant_voters_are_named() -> None:
    _, votes = cloned(1000, 3)
    constant = np.zeros((1000, 1), dtype=int)
    report = analyse(fit_votes(named(np.column_stack([votes, constant]), 2)))
    assert report.to_record()["clusters"] == [["v3", "v4", "v5"]]
    assert report.voters[4].copies == ("v3", "v5")
    assert report.to_record()["near_constant"] == ["v6"]
    assert report.to_record()["dev"] is None
    assert np.allclose(report.alike[3:6, 3:6], 1)
    said = " ".join(warnings(report))
    assert "v3, v4, v5" in said
    assert "Nearly always the same label: v6" in said


def test_doubt_is_said() -> None:
    _, votes = cloned(4000, 3, noise=0.2)
    assert "not clear" in " ".join(warnings(analyse(fit_votes(named(votes, 2)))))
    _, votes = independent(400, [0.7, 0.7, 0.7], coverage=0.1)
    assert "no other voter votes" in " ".join(warnings(analyse(fit_votes(named(votes, 2)))))


def test_the_page_holds_all_it_needs(tmp_path: Path) -> None:
    report = analyse(fit_votes(Votes.of(TABLE, "12345")), {0: "a"})
    write_page(tmp_path / "report.html", report, "Votes of <b>")
    text = (tmp_path / "report.html").read_text("utf-8")
    assert text == page(report, "Votes of <b>")
    assert "<td>&lt;prompt&gt;</td>" in text
    assert "Votes of &lt;b&gt;" in text
    assert len(re.findall(r'src="data:image/png;base64,[A-Za-z0-9+/=]{1000,}"', text)) == 4
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert short(None) == "-"
