"""`adapterhub data`: what scripts read, what people read, and what lies on disk afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from adapterhub.cli.data import register
from adapterhub.data.example import content_id
from adapterhub.errors import AdapterHubError, DataError, UsageError
from adapterhub.labeling.lineage import read_lineage
from tests.tiny import make_tiny_base

WORDS = {"greet": "hello good morning friend", "part": "goodbye until tomorrow then"}
ROWS = [{"text": f"{word} {n}", "label": label} for n in range(30) for label, word in WORDS.items()]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def base(tmp_path: Path) -> str:
    return str(make_tiny_base(tmp_path / "tiny", "bert"))


def run(*arguments: str) -> Result:
    app = typer.Typer()
    register(app)
    return CliRunner().invoke(app, ["data", *arguments])


def record(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.exception
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def write(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def refused(*arguments: str) -> AdapterHubError:
    result = run(*arguments)
    assert isinstance(result.exception, AdapterHubError), result.output
    return result.exception


def test_dedup() -> None:
    rows = [
        {"text": "One two", "label": "a"},
        {"text": "three", "id": 9},
        {"text": "one two!", "n": 1},
        {"text": "Z", "label": "b"},
    ]
    file, test = write("rows.jsonl", rows), write("test.jsonl", [{"text": "z", "label": "a"}])
    found = record("dedup", file, "--out", "kept.jsonl")
    assert (found["kept"], found["dropped"], found["reasons"]) == (3, 1, {"normalised": 1})
    assert lines("kept.jsonl") == [rows[0], rows[1], rows[3]]
    gone = {"reason": "normalised", "kept_id": content_id(rows[0]), "kept_in": "rows.jsonl"}
    assert lines("kept.jsonl.dropped.jsonl") == [{**gone, **rows[2]}]
    lineage = read_lineage(Path("kept.jsonl"))
    assert lineage is not None
    assert (lineage["made_by"], lineage["dropped"], lineage["source"]["file"]) == ("data dedup", 1, "rows.jsonl")

    found = record("dedup", file, "--against", test, "--no-normalise", "--no-near", "--out", "kept.jsonl")
    assert (found["kept"], found["dropped"]) == (4, 0)
    assert lines("kept.jsonl") == rows
    result = run("dedup", file, "--against", test, "--out", "kept.jsonl", "--json")
    found = json.loads(result.stdout)
    # Rows of the other file are not counted. Alike with another label: not dropped, but told of.
    assert (found["kept"], found["dropped"], found["leaked"], found["conflicts"]) == (3, 1, 0, 1)
    assert "CONFLICT: 1 pairs" in result.stderr
    assert "both kept: 'z' (a) and 'Z' (b)" in result.stderr

    write("test.jsonl", [{"text": "Z", "label": "a", "id": "t1"}])
    result = run("dedup", file, "--against", test, "--out", "kept.jsonl")
    assert result.stdout == ""
    assert "LEAK: 1 rows" in result.stderr
    assert "the second was dropped" in result.stderr
    leak = lines("kept.jsonl.dropped.jsonl")[1]
    assert (leak["reason"], leak["kept_id"], leak["kept_in"], leak["conflict"]) == ("exact", "t1", "test.jsonl", True)


def test_many_conflicts_are_counted() -> None:
    rows = [{"text": "a" * 70, "label": f"l{n}"} for n in range(9)]
    result = run("dedup", write("rows.jsonl", rows), "--out", "kept.jsonl")
    assert "8 pairs" in result.stderr
    assert "and 3 more" in result.stderr
    assert "a" * 59 + "…" in result.stderr


def test_dedup_by_features(base: str) -> None:
    rows = [{"text": "a b"}, {"text": "something else entirely"}, {"text": "a c"}]
    options = ("--features", "--feature-threshold", "0.0", "--base", base, "--pooling", "cls")
    found = record("dedup", write("rows.jsonl", rows), "--out", "kept.jsonl", *options)
    assert found["reasons"].keys() <= {"features"}
    assert found["kept"] + found["dropped"] == 3


def test_embed(base: str) -> None:
    file = write("rows.jsonl", ROWS)
    found = record("embed", file, "--base", base, "--out", "rows.npy")
    assert (found["rows"], found["dim"], found["out"]) == (60, 32, "rows.npy")
    assert np.load("rows.npy").shape == (60, 32)
    result = run("embed", file, "--base", base)
    assert "60 rows, 32 features each" in result.stderr
    assert isinstance(refused("embed", file, "--out", "rows.txt"), UsageError)
    assert isinstance(refused("embed", file, "--kind", "poetry"), UsageError)
    assert "there is no folder" in str(refused("embed", file, "--out", "none/rows.npy"))


def test_what_is_asked_wrongly_is_refused_before_anything_is_read() -> None:
    nowhere = ("none.jsonl", "--out", "o.jsonl")  # were it read first, that would be what is wrong
    assert "there are auto, random, easy, hard" in str(refused("prune", *nowhere, "--keep", "1", "--by", "el2n"))
    assert "prototype, influence" in str(refused("score", *nowhere, "--by", "el2n,beauty"))
    file = write("rows.jsonl", ROWS)
    unread = ("select", file, "--out", "o.jsonl", "--base", "no-such-base")
    assert "there is no rule 'beauty'" in str(refused(*unread, "--by", "beauty"))
    assert "name 1 to 60" in str(refused(*unread, "--budget", "61"))
    assert "is rows.jsonl itself" in str(refused("dedup", file, "--against", file, "--out", "o.jsonl"))


def test_score(base: str) -> None:
    rows = [*ROWS, {"text": "no label"}]
    found = record("score", write("rows.jsonl", rows), "--base", base, "--out", "scored.jsonl")
    assert found["scores"] == ["el2n", "forgetting", "margin", "loss", "prototype"]
    scored = lines("scored.jsonl")
    assert [{k: v for k, v in row.items() if k not in ("scores", "suspect", "suggested")} for row in scored] == rows
    assert scored[0]["scores"].keys() == {*found["scores"]}
    assert scored[-1]["scores"].keys() == {"prototype"}
    assert found["suspect"] == round(sum("suspect" in row for row in scored) / 60, 4)
    page = Path("scored.jsonl.html").read_text()
    assert "Hardest, by el2n" in page
    assert "without a label" in page
    found = record("score", "rows.jsonl", "--by", "prototype", "--base", base, "--out", "s.jsonl", "--page", "p.html")
    assert (found["suspect"], Path("p.html").is_file()) == (None, True)
    write("rows.jsonl", [{"prompt": row["text"], "completion": "x"} for row in ROWS])
    assert record("score", "rows.jsonl", "--base", base, "--out", "s.jsonl")["scores"] == ["prototype"]
    assert isinstance(refused("score", "rows.jsonl", "--by", "loss", "--base", base, "--out", "s.jsonl"), DataError)


def test_a_suspect_row_is_told(base: str) -> None:
    rows = [dict(row) for row in ROWS]
    rows[0]["label"], rows[1]["label"] = rows[1]["label"], rows[0]["label"]
    record("score", write("rows.jsonl", rows), "--base", base, "--out", "scored.jsonl")
    suspects = {row["text"]: row["suggested"] for row in lines("scored.jsonl") if row.get("suspect")}
    assert suspects[ROWS[0]["text"]] == "greet"
    assert suspects[ROWS[1]["text"]] == "part"
    # A verdict of an earlier run does not outlive it.
    record("score", "scored.jsonl", "--by", "prototype", "--base", base, "--out", "again.jsonl")
    assert not any("suspect" in row or "suggested" in row for row in lines("again.jsonl"))


def test_prune(base: str) -> None:
    file = write("rows.jsonl", ROWS)
    found = record("prune", file, "--keep", "0.5", "--by", "easy", "--base", base, "--out", "kept.jsonl", "--seed", "3")
    assert (found["kept"], found["dropped"], found["by"]) == (30, 30, "easy")
    assert found["trial"].keys() == {"random", "easy", "all"}
    kept, dropped = lines("kept.jsonl"), lines("kept.jsonl.dropped.jsonl")
    assert [row for row in ROWS if row in kept] == kept
    assert all(row["reason"] == "easy" and row["score"] > 0 for row in dropped)
    lineage = read_lineage(Path("kept.jsonl"))
    assert lineage is not None
    assert (lineage["by"], lineage["seed"], lineage["keep"]) == ("easy", 3, 0.5)
    result = run("prune", file, "--keep", "50%", "--base", base, "--out", "kept.jsonl")
    assert "accuracy of heads on held-out rows" in result.stderr
    found = record("prune", file, "--keep", "10%", "--by", "random", "--base", base, "--out", "kept.jsonl")
    assert (found["kept"], found["trial"], found["suspect"]) == (6, {}, None)
    for keep in ("0", "150%", "half"):
        assert isinstance(refused("prune", file, "--keep", keep, "--out", "kept.jsonl"), UsageError)
    assert isinstance(refused("prune", file, "--keep", "1", "--out", "rows.jsonl"), UsageError)


def test_hard_rows_first_is_refused_and_can_be_forced(base: str) -> None:
    other = {"greet": "part", "part": "greet"}
    rows = [{**row, "label": other[row["label"]]} if n % 5 == 0 else row for n, row in enumerate(ROWS)]
    options = ("--keep", "0.5", "--by", "hard", "--base", base, "--out", "kept.jsonl")
    arguments = ("prune", write("rows.jsonl", rows), *options)
    assert isinstance(refused(*arguments), DataError)
    assert not Path("kept.jsonl").exists()
    assert record(*arguments, "--force")["kept"] == 30
    assert "WARNING: a random share does better here than hard" in run(*arguments, "--force").stderr


def test_select(base: str) -> None:
    pool = write("pool.jsonl", [{"text": row["text"]} for row in [*ROWS, *ROWS[:5]]])
    known = write("known.jsonl", ROWS[:12])
    found = record("select", pool, "--budget", "10", "--base", base, "--out", "next.jsonl")
    assert (found["selected"], found["pool"], found["by"]) == (10, 65, "typicality")
    assert len({row["text"] for row in lines("next.jsonl")}) == 10
    found = record("select", pool, "--budget", "48", "--labelled", known, "--base", base, "--out", "next.jsonl")
    assert found["by"] in ("auto", "uncertainty")
    assert not {row["text"] for row in lines("next.jsonl")} & {row["text"] for row in ROWS[:12]}
    refused("select", pool, "--budget", "49", "--labelled", known, "--base", base, "--out", "next.jsonl")
    assert (
        "chosen by diversity"
        in run("select", pool, "--by", "diversity", "--budget", "3", "--base", base, "--out", "n.jsonl").stderr
    )


def test_influence_towards_a_target(base: str, tmp_path: Path) -> None:
    decoder = str(make_tiny_base(tmp_path / "decoder"))
    file = write("rows.jsonl", [*ROWS, {"text": "no label"}])
    target = write(
        "target.jsonl", [*[row for row in ROWS if row["label"] == "part"][:5], {"text": "?", "label": "new"}]
    )
    options = ("--target", target, "--decoder", decoder)
    found = record("score", file, "--by", "influence", *options, "--out", "scored.jsonl")
    assert found["scores"] == ["influence"]
    scored = lines("scored.jsonl")
    assert scored[-1]["scores"] == {}
    by_label = {label: [row["scores"]["influence"] for row in scored[:-1] if row["label"] == label] for label in WORDS}
    assert min(by_label["part"]) > max(by_label["greet"])
    assert "Most influence" in Path("scored.jsonl.html").read_text()
    both = record("score", file, "--by", "influence,prototype", *options, "--base", base, "--out", "scored.jsonl")
    assert both["scores"] == ["influence", "prototype"]
    assert lines("scored.jsonl")[0]["scores"].keys() == {"influence", "prototype"}

    pruned = record(
        "prune", file, "--keep", "0.4", "--by", "influence", *options, "--base", base, "--out", "near.jsonl"
    )
    assert (pruned["kept"], pruned["by"], pruned["target"]) == (24, "influence", target)
    assert {row["label"] for row in lines("near.jsonl")} == {"part"}
    assert lines("near.jsonl.dropped.jsonl")[0]["reason"] == "influence"
    lineage = read_lineage(Path("near.jsonl"))
    assert lineage is not None
    assert lineage["base"] == decoder
    # One label of the target's is all that the pool knows: nothing to try.
    assert pruned["trial"] == {}
    again = write("target.jsonl", ROWS[:10])
    tried = run(
        "prune",
        file,
        "--keep",
        "0.5",
        "--by",
        "influence",
        "--target",
        again,
        *options[2:],
        "--base",
        base,
        "--floor",
        "1",
        "--out",
        "near.jsonl",
    )
    assert tried.exit_code == 0, tried.exception
    assert "accuracy of heads on the target's rows" in tried.stderr


def test_a_target_goes_with_influence_alone(tmp_path: Path) -> None:
    file, other = write("rows.jsonl", ROWS), write("other.jsonl", ROWS)
    for command in (("score",), ("prune", "--keep", "0.5")):
        named = (*command, file, "--out", "out.jsonl")
        assert "with --target FILE" in str(refused(*named, "--by", "influence"))
        assert "are for --by influence" in str(refused(*named, "--target", other))
        assert "also read" in str(refused(*command, file, "--by", "influence", "--target", other, "--out", other))
    pairs = write("pairs.jsonl", [{"text": "a", "positive": "b"}])
    assert isinstance(refused("score", pairs, "--by", "influence", "--target", pairs, "--out", "o.jsonl"), UsageError)


def test_coverage_of_fields() -> None:
    def rows(*completions: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"prompt": f"p{place}", "completion": json.dumps(each)} for place, each in enumerate(completions)]

    train = write("train.jsonl", rows(*[{"time": 1}] * 8, {"date": 2}))
    test = write("test.jsonl", rows({"time": 1}, {"date": 2}))
    answers = write("answers.jsonl", [{"completion": '{"time": 1}'}, {"completion": "oh"}])
    found = record("coverage", train, "--test", test, "--answers", answers, "--target", "90%")
    assert found["fields"] == [
        {"field": "date", "train": 1, "measured": 1, "accuracy": 0.0},
        {"field": "time", "train": 8, "measured": 1, "accuracy": 1.0},
    ]
    assert (found["target"], found["usual"], found["rare"]) == (0.9, 4, [{"field": "date", "train": 1, "lacks": 3}])
    told = run("coverage", train, "--test", test, "--answers", answers)
    assert told.stdout == ""
    assert "date                        1 rows, F1 0.0% on 1" in told.stderr
    assert "fields have too few different counts for a curve; half of them have 4 rows or more" in told.stderr
    assert "twice the rows" not in told.stderr  # through two points there is always a line
    Path("answers.jsonl").write_text('{"completion": "{\\"time\\": 1}\u2028"}\n\n{"completion": "oh"}\n', "utf-8")
    assert record("coverage", train, "--test", test, "--answers", answers)["fitted"] is False
    Path("answers.jsonl").write_bytes(b'{"completion": "\xff"}\n{"completion": ""}\n')
    assert "answers.jsonl:1" in str(refused("coverage", train, "--test", test, "--answers", answers))
    unmeasured = run(
        "coverage",
        train,
        "--test",
        write("one.jsonl", rows({"time": 1})),
        "--answers",
        write("a.jsonl", [{"completion": "{}"}]),
    )
    assert "not measured" in unmeasured.stderr
    assert "1 answers to the 2 rows" in str(refused("coverage", train, "--test", test, "--answers", "a.jsonl"))
    for other in ([{"label": "a"}], ["text"]):
        Path("b.jsonl").write_text("".join(json.dumps(each) + "\n" for each in other))
        assert "b.jsonl:1: expected" in str(refused("coverage", train, "--test", test, "--answers", "b.jsonl"))
    assert "no such file" in str(refused("coverage", train, "--test", test, "--answers", "none.jsonl"))
