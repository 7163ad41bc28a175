from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from adapterhub.cli.label import register
from adapterhub.cli.label.options import parse_balance
from adapterhub.cli.shared import names_in
from adapterhub.data.files import read_examples
from adapterhub.errors import AdapterHubError, DataError, FileMissing, UsageError
from adapterhub.labeling.lineage import read_lineage, write_lineage
from adapterhub.labeling.votes import Votes, write_votes
from tests.labeling.made import independent

NAMES = ("neg", "pos")


def run(*arguments: str) -> Result:
    app = typer.Typer()
    register(app)
    result = CliRunner().invoke(app, ["label", *arguments])
    if isinstance(result.exception, AdapterHubError):
        raise result.exception
    return result


def told(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 1
    record: dict[str, Any] = json.loads(result.stdout)
    return record


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A file of votes of 300 rows "r0", …, of which the last ten have none, and the truth."""
    truth, votes = independent(300, [0.8, 0.75, 0.7, 0.8], coverage=0.9)
    columns = {
        f"rule {voter}": [
            None if row >= 290 or votes[row, voter] < 0 else NAMES[votes[row, voter]] for row in range(300)
        ]
        for voter in range(4)
    }
    path = tmp_path / "votes.csv"
    write_votes(path, Votes.of(columns, [f"r{row}" for row in range(300)]))
    return path, truth


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    records = [{"id": f"r{row}", "text": f"text {row}", "asked": "by post", "weight": 2} for row in range(300)]
    records.append({"id": "unknown", "text": "nobody voted on me"})
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return path


@pytest.mark.parametrize(
    ("options", "model"),
    [
        (("--model", "majority"), "majority"),
        (("--model", "dawid-skene"), "dawid-skene"),
        (("--model", "metal", "--balance", "neg=0.5,pos=0.5"), "metal"),
        ((), "dawid-skene"),
        (("--balance", "pos=0.5, neg=0.5"), "metal"),
    ],
)
def test_votes_become_labels(made: tuple[Path, np.ndarray], options: tuple[str, ...], model: str) -> None:
    path, truth = made
    out = path.with_name("labels.jsonl")
    record = told("fit", str(path), "--out", str(out), *options)
    found = lines(out)
    assert [row["id"] for row in found] == [f"r{row}" for row in range(300)]
    assert all(sorted(row["probs"]) == ["neg", "pos"] for row in found)
    assert all(abs(sum(row["probs"].values()) - 1) < 1e-5 for row in found)
    assert [row["label"] for row in found[290:]] == [None] * 10
    right = np.mean([row["label"] == NAMES[truth[place]] for place, row in enumerate(found[:290])])
    assert right > 0.8
    assert (record["model"], record["rows"], record["uncovered"], record["written"]) == (model, 300, 10, 300)
    assert record["coverage"] == pytest.approx(290 / 300)
    assert 0 <= record["majority_differs"] < 0.2
    assert record["voters"]["rule 0"]["accuracy"] == pytest.approx(0.8, abs=0.1)
    assert record["majority_differs"] == 0 or model != "majority"
    ties = [row for row in found if row.get("tie")]
    assert len(ties) == record["ties"]
    assert all(row["probs"] == {"neg": 0.5, "pos": 0.5} for row in ties)


def test_with_data_the_output_is_training_data(made: tuple[Path, np.ndarray], rows: Path) -> None:
    out = rows.with_name("train.jsonl")
    record = told("fit", str(made[0]), "--data", str(rows), "--out", str(out))
    examples = list(read_examples(out, "classification", labels=NAMES))
    assert len(examples) == 290
    assert (record["written"], record["left_out"]) == (290, {"uncovered": 10, "without_votes": 1})
    first = examples[0]
    assert (first.id, first.text, first.fields["asked"], first.weight, first.source) == (
        "r0",
        "text 0",
        "by post",
        2.0,
        "weak",
    )
    assert first.probs is not None
    assert first.label == max(first.probs, key=lambda name: (first.probs or {})[name])
    record = told("fit", str(made[0]), "--data", str(rows), "--out", str(out), "--keep-uncovered")
    kept = list(read_examples(out, "classification", labels=NAMES))
    assert (len(kept), record["left_out"]) == (300, {"uncovered": 0, "without_votes": 1})
    assert kept[-1].probs == pytest.approx(record["balance"], abs=1e-6)


def test_rows_without_ids_go_by_their_content(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "fine"}\n{"text": "awful"}\n')
    ids = [example.id for example in read_examples(data, "classification", labelled=False)]
    votes = tmp_path / "votes.csv"
    write_votes(votes, Votes.of({"one": ["pos", "neg"], "two": ["pos", "neg"]}, ids))
    # The same rows with labels have other content, but the texts are the same rows.
    data.write_text('{"text": "awful", "label": "wrong"}\n{"text": "fine", "label": "wrong"}\n')
    told("fit", str(votes), "--data", str(data), "--out", str(tmp_path / "out.jsonl"))
    assert [(row["text"], row["label"]) for row in lines(tmp_path / "out.jsonl")] == [("awful", "neg"), ("fine", "pos")]
    data.write_text('{"text": "fine"}\n')
    with pytest.raises(DataError, match="1 rows of the votes are not there"):
        run("fit", str(votes), "--data", str(data), "--out", str(tmp_path / "out.jsonl"))


def test_lineage_says_what_the_labels_came_from(made: tuple[Path, np.ndarray], rows: Path) -> None:
    path, _ = made
    out = path.with_name("train.jsonl")
    write_lineage(path, {"voters": {"rule 0": {"hash": "ab"}}, "corrections": [{"id": "r1"}]})
    told("fit", str(path), "--data", str(rows), "--out", str(out), "--balance", "neg=0.5,pos=0.5")
    found = read_lineage(out)
    assert found is not None
    assert found["voters"]["rule 0"] == {"hash": "ab"}
    assert found["corrections"] == [{"id": "r1"}]
    assert list(found["voters"]) == [f"rule {n}" for n in range(4)]
    assert found["label_model"]["model"] == "metal"
    assert found["label_model"]["balance_source"] == "given"
    assert found["label_model"]["majority_differs"] >= 0
    assert len(found["votes"]["matrix"]) == 64
    assert found["data"]["file"] == "rows.jsonl"
    first = found["votes"]["matrix"]
    path.write_text(path.read_text().replace("neg", "pos", 1))
    told("fit", str(path), "--out", str(out), "--labels", "neg,pos")
    changed = read_lineage(out)
    assert changed is not None
    assert changed["votes"]["matrix"] != first
    assert changed["voters"]["rule 0"] == {}  # the votes' lineage speaks of them as they were


def test_trusted_votes_are_gold(made: tuple[Path, np.ndarray], rows: Path) -> None:
    path, _ = made
    out = path.with_name("train.jsonl")
    told("fit", str(path), "--data", str(rows), "--out", str(out), "--gold", "rule 1")
    sources = {row["source"] for row in lines(out)}
    assert sources == {"gold", "weak"}
    assert all(max(row["probs"].values()) == 1 for row in lines(out) if row["source"] == "gold")


def test_several_labels(tmp_path: Path) -> None:
    votes = tmp_path / "votes.csv"
    votes.write_text("id,one,two,three\n1,a|b,a,a|!b\n2,!a,!a|b,\n3,,,\n")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"id": str(n), "text": f"t{n}"}) + "\n" for n in (1, 2, 3)))
    out = tmp_path / "out.jsonl"
    record = told("fit", str(votes), "--multilabel", "--out", str(out), "--data", str(data))
    assert record["labels"] == ["a", "b"]
    assert set(record["by_label"]) == {"a", "b"}
    examples = list(read_examples(out, "multilabel"))
    assert [example.id for example in examples] == ["1", "2"]
    assert "a" in (examples[0].labels or ())
    assert "a" not in (examples[1].labels or ())
    assert record["by_label"]["a"]["balance_source"] == record["balance_source"] == "votes, silence as no"
    assert record["by_label"]["a"]["why"] == "its share is counted from the votes"
    given = told("fit", str(votes), "--multilabel", "--out", str(out), "--balance", "a=0.5,b=0.5")
    assert given["by_label"]["a"]["balance_source"] == "given"
    run("fit", str(votes), "--multilabel", "--out", str(out))
    assert lines(out)[2]["labels"] is None
    gold = tmp_path / "gold.jsonl"
    gold.write_text('{"id": "1", "text": "t1", "labels": ["a"]}\n{"id": "2", "text": "t2", "labels": []}\n')
    found = told("report", str(votes), "--one-label", "a", "--gold-file", str(gold))
    assert found["voters"]["two"]["empirical"]["value"] == 1
    with pytest.raises(UsageError, match="no voter names the label 'c'"):
        run("report", str(votes), "--one-label", "c")


def test_people_read_stderr(made: tuple[Path, np.ndarray], rows: Path) -> None:
    path, _ = made
    result = run("fit", str(path), "--data", str(rows), "--out", str(path.with_name("out.jsonl")))
    assert (result.exit_code, result.stdout) == (0, "")
    for piece in ("rule 3", "by dawid-skene", "10 of 300 rows have no vote", "11 without a vote left out"):
        assert piece in result.stderr


def test_copies_and_doubt_are_said(tmp_path: Path) -> None:
    from tests.labeling.made import cloned, named

    for noise, piece in ((0.0, "one vote together, since they say the same: v3, v4, v5"), (0.2, "copies is not clear")):
        _, votes = cloned(4000, 3, noise)
        write_votes(tmp_path / "votes.csv", named(votes, 2))
        result = run("fit", str(tmp_path / "votes.csv"), "--out", str(tmp_path / "out.jsonl"))
        assert piece in result.stderr


def test_only_the_labels_that_are_named_may_be_voted_for(tmp_path: Path) -> None:
    votes, out = tmp_path / "votes.csv", tmp_path / "out.jsonl"
    votes.write_text("v,w\na,b\nb,-1\na,a\n")
    for command in (("fit", str(votes), "--out", str(out)), ("report", str(votes))):
        with pytest.raises(DataError, match="voter 'w' says '-1'"):
            run(*command, "--labels", "a,b")
    with pytest.raises(DataError, match="a voter names '-1', which is no label"):
        run("fit", str(votes), "--out", str(out), "--labels", "a,b", "--multilabel")
    assert not out.exists()
    silent = tmp_path / "silent.csv"
    silent.write_text("v,w\n,\n,\n")
    with pytest.raises(UsageError, match="no voter votes on any row"):
        run("fit", str(silent), "--out", str(out))
    excel = tmp_path / "excel.csv"
    excel.write_text("id;v;w\n1;a;b\n")
    with pytest.raises(DataError, match="separate columns by commas"):
        run("fit", str(excel), "--out", str(out))


def test_what_is_read_is_not_written_over(made: tuple[Path, np.ndarray], rows: Path) -> None:
    votes, _ = made
    before = votes.read_bytes(), rows.read_bytes()
    for out in (votes, rows):
        with pytest.raises(UsageError, match="is what is read here"):
            run("fit", str(votes), "--data", str(rows), "--out", str(out))
    with pytest.raises(FileMissing, match="there is no folder"):
        run("fit", str(votes), "--out", str(votes.parent / "no" / "out.jsonl"))
    with pytest.raises(UsageError, match="is what is read here"):
        run("report", str(votes), "--out", str(votes))
    assert (votes.read_bytes(), rows.read_bytes()) == before


def test_a_voter_that_nearly_always_says_the_same_is_named(tmp_path: Path) -> None:
    votes = tmp_path / "votes.csv"
    lines = "".join(f"{'a' if row % 2 else 'b'},a\n" for row in range(20))
    votes.write_text(f"good,parrot\n{lines}")
    assert told("fit", str(votes), "--out", str(tmp_path / "out.jsonl"))["near_constant"] == ["parrot"]
    said = run("fit", str(votes), "--out", str(tmp_path / "out.jsonl")).stderr
    assert "nearly always the same label, which tells little: parrot" in said


def test_report(made: tuple[Path, np.ndarray]) -> None:
    path, truth = made
    gold, out = path.with_name("gold.jsonl"), path.with_name("report.html")
    gold.write_text(
        "".join(
            json.dumps({"id": f"r{row}", "text": "x", "label": NAMES[truth[row]]}) + "\n" for row in [*range(100), 295]
        )
    )
    record = told("report", str(path), "--gold-file", str(gold), "--out", str(out))
    assert record["uncovered"] == 10
    assert record["uncovered_ids"] == [f"r{row}" for row in range(290, 300)]
    voter = record["voters"]["rule 0"]
    assert voter["accuracy"]["low"] < voter["accuracy"]["value"] < voter["accuracy"]["high"]
    assert voter["empirical"]["low"] < 0.8 < voter["empirical"]["high"]
    assert record["dev"]["rows"] == 100
    assert out.read_text().startswith("<!doctype html>")
    shown = run("report", str(path), "--gold-file", str(gold), "--out", str(out))
    assert shown.stdout == ""
    assert "on gold" in shown.stderr
    assert str(out) in shown.stderr.replace("\n", "")
    assert "on gold" not in run("report", str(path)).stderr


def test_gold_labels_of_other_rows_are_refused(made: tuple[Path, np.ndarray]) -> None:
    gold = made[0].with_name("gold.jsonl")
    gold.write_text('{"id": "other", "text": "x", "label": "pos"}\n')
    with pytest.raises(DataError, match="none of its rows has an id"):
        run("report", str(made[0]), "--gold-file", str(gold))


def test_a_failed_fit_keeps_the_old_file(made: tuple[Path, np.ndarray]) -> None:
    out = made[0].with_name("out.jsonl")
    out.write_text("old\n")
    with pytest.raises(UsageError, match="no label model 'best'"):
        run("fit", str(made[0]), "--out", str(out), "--model", "best")
    with pytest.raises(UsageError, match="--keep-uncovered needs --data"):
        run("fit", str(made[0]), "--out", str(out), "--keep-uncovered")
    assert out.read_text() == "old\n"


def test_balances_and_labels_are_read() -> None:
    assert parse_balance(" ") is None
    assert parse_balance("a=0.25, b c = 0.75") == {"a": 0.25, "b c": 0.75}
    assert parse_balance("a=b=1") == {"a=b": 1.0}
    assert names_in(" a, b,,c ") == ["a", "b", "c"]
    for text in ("a", "a=x", "=1", "a=1,a=2"):
        with pytest.raises(UsageError, match="--balance"):
            parse_balance(text)
