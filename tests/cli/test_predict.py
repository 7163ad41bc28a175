"""`predict` and `eval` on a tiny base, as a script would call them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapterhub.base import source
from adapterhub.base.source import Base
from adapterhub.cli.main import run
from adapterhub.data.task import Calibration
from adapterhub.registry.store import Registry
from adapterhub.runtime.hub import AdapterHub
from adapterhub.runtime.target import Prediction, Target
from tests.server.publishing import LABELS, make_base, publish

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def registry(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("registry")
    found = Registry(scratch / "registry")
    publish(found, base, "tone", scratch, kind="classification")
    publish(found, base, "topics", scratch, kind="multilabel")
    publish(found, base, "unsure", scratch, kind="classification", calibration=Calibration(4.0, 0.449))
    publish(found, base, "writer", scratch)
    publish(found, base, "search", scratch, kind="embedding")
    return found.root


@pytest.fixture
def cli(base: Base, registry: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            run([*arguments, "--base", str(base.path), "--registry", str(registry)])
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


def rows(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_text_a_file_and_stdin_give_the_same_rows(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["one", "two", "three"]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "in.jsonl").write_text(lines)
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n")
    alone = [rows(cli("predict", "tone", text)[1])[0] for text in texts]
    assert all(set(row) == {"label", "probs"} for row in alone)
    from_file = rows(cli("predict", "tone", "--input", str(tmp_path / "in.jsonl"))[1])
    from_text = rows(cli("predict", "tone", "--input", str(tmp_path / "in.txt"))[1])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    from_stdin = rows(cli("predict", "tone")[1])
    for found in (from_file, from_text, from_stdin):
        assert [row["label"] for row in found] == [row["label"] for row in alone]
        for row, other in zip(found, alone, strict=True):  # Rows that share a batch round a little differently.
            assert row["probs"] == pytest.approx(other["probs"], abs=1e-6)


def test_other_kinds_have_their_own_keys(cli: Cli) -> None:
    (many,) = rows(cli("predict", "topics", "a text")[1])
    assert set(many) == {"labels", "probs"}
    (written,) = rows(cli("predict", "writer", "a text")[1])
    assert set(written) == {"completion"}
    limited = cli("predict", "writer", "a text", "--max-tokens", "3")
    assert len(str(rows(limited[1])[0]["completion"])) <= 3


def test_eval_measures_what_predict_answers(cli: Cli, tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(20)]
    answers = [rows(cli("predict", "tone", text)[1])[0]["label"] for text in texts[:3]]
    gold = [*answers, *([LABELS[0]] * 17)]
    data = tmp_path / "test.jsonl"
    data.write_text("".join(json.dumps({"text": t, "label": g}) + "\n" for t, g in zip(texts, gold, strict=True)))
    (tmp_path / "all.txt").write_text("\n".join(texts))
    said = [row["label"] for row in rows(cli("predict", "tone", "--input", str(tmp_path / "all.txt"))[1])]
    code, out, _ = cli("eval", "tone", "--data", str(data), "--json")
    (record,) = rows(out)
    share = sum(a == g for a, g in zip(said, gold, strict=True)) / 20
    metrics = record["metrics"]
    assert isinstance(metrics, dict)
    assert code == 0
    assert metrics["accuracy"]["value"] == pytest.approx(share)
    assert metrics["accuracy"]["low"] < share < metrics["accuracy"]["high"]
    assert set(metrics) == {"accuracy", "macro_f1", "ece"}
    assert record["rows"] == 20


def test_eval_puts_the_bare_base_beside(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "test.jsonl"
    data.write_text("".join(json.dumps({"text": f"text {i}", "label": LABELS[i % 3]}) + "\n" for i in range(6)))
    asked = ("eval", "tone", "--data", str(data), "--zero-shot", "--few-shot", "3", "--shots", str(data))
    code, out, _ = cli(*asked, "--json")
    assert code == 0
    (record,) = rows(out)
    assert [each["shots"] for each in record["base"]] == [0, 3]  # type: ignore[attr-defined]
    assert all(set(each["metrics"]) == {"accuracy", "macro_f1"} for each in record["base"])  # type: ignore[attr-defined]
    code, _, said = cli(*asked)
    assert code == 0
    assert "told no answers" in said
    assert "after 3 answered rows" in said


def test_shots_need_a_number_and_a_number_needs_shots(cli: Cli, tmp_path: Path) -> None:
    data = tmp_path / "test.jsonl"
    data.write_text(json.dumps({"text": "a", "label": LABELS[0]}) + "\n")
    code, _, said = cli("eval", "tone", "--data", str(data), "--few-shot", "2")
    assert (code, "with --shots" in said) == (2, True)
    code, _, said = cli("eval", "tone", "--data", str(data), "--shots", str(data))
    assert (code, "with --few-shot" in said) == (2, True)


def test_an_unsure_task_says_null_and_eval_measures_that(cli: Cli, tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(20)]
    (tmp_path / "all.txt").write_text("\n".join(texts))
    code, out, _ = cli("predict", "unsure", "--input", str(tmp_path / "all.txt"))
    assert code == 0
    said = rows(out)
    assert '{"label": null, "probs": {' in out
    assert rows(cli("predict", "unsure", texts[0])[1])[0]["label"] == said[0]["label"]
    rejected = sum(row["label"] is None for row in said)
    assert 0 < rejected < 20
    data = tmp_path / "test.jsonl"
    gold = [max(row["probs"], key=row["probs"].get) for row in said]  # type: ignore[attr-defined,arg-type]
    data.write_text("".join(json.dumps({"text": t, "label": g}) + "\n" for t, g in zip(texts, gold, strict=True)))
    asked = ("eval", "unsure", "--data", str(data), "--out-of-scope", str(tmp_path / "all.txt"))
    (record,) = rows(cli(*asked, "--json")[1])
    metrics = record["metrics"]
    assert isinstance(metrics, dict)
    assert (record["out_of_scope"], record["out_of_scope_rows"]) == (str(tmp_path / "all.txt"), 20)
    assert metrics["accuracy"]["value"] == 1.0
    assert metrics["in_scope_accuracy"]["value"] == pytest.approx(1 - rejected / 20)
    assert metrics["oos_recall"]["value"] == pytest.approx(rejected / 20)
    assert metrics["oos_auroc"]["value"] == pytest.approx(0.5, abs=0.02)  # the same texts, in and out
    err = cli(*asked)[2]
    for name in ("ece", "in_scope_accuracy", "oos_recall", "oos_auroc"):
        assert f"  {name} " in err
    code, _, err = cli("eval", "topics", "--data", str(data), "--out-of-scope", str(data))
    assert code != 0
    assert "--out-of-scope: for classification" in err.replace("\n", " ")


def test_a_vector_is_printed_and_measured(cli: Cli, tmp_path: Path) -> None:
    (row,) = rows(cli("predict", "search", "a text")[1])
    assert set(row) == {"vector"}
    vector = row["vector"]
    assert isinstance(vector, list)
    assert len(vector) == 32
    assert sum(value * value for value in vector) == pytest.approx(1.0, abs=1e-5)
    pairs = [{"text": f"text {n}", "positive": f"text {n}!"} for n in range(8)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    code, out, _ = cli("eval", "search", "--data", str(data), "--json")
    (record,) = rows(out)
    assert code == 0
    metrics = record["metrics"]
    assert isinstance(metrics, dict)
    assert set(metrics) == {"recall_at_1", "recall_at_5", "mrr"}
    assert record["rows"] == 8
    code, out, err = cli("predict", "search", "a text", "--max-tokens", "3")
    assert (code != 0, out) == (True, "")
    assert "is an embedding task" in err.replace("\n", " ")


def test_eval_of_a_generation_task_on_preferences(cli: Cli, tmp_path: Path) -> None:
    pairs = [{"prompt": f"text {n}", "chosen": "yes", "rejected": "no"} for n in range(4)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (record,) = rows(cli("eval", "writer", "--data", str(data), "--json")[1])
    assert isinstance(record["metrics"], dict)
    assert set(record["metrics"]) == {"preference_accuracy"}
    code, _, err = cli("eval", "writer", "--data", str(data), "--max-tokens", "3")
    assert code != 0
    assert "--max-tokens: the rows are preferences" in err.replace("\n", " ")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b'{"text": "a", "label": "unheard"}\n', "unheard"),
        (b'{"text": "a"}\n', "label"),
        (b"\xff\xfe\n", "UTF-8"),
        (b"{oops\n", "line"),
    ],
)
def test_bad_data_is_named_and_nothing_is_printed(cli: Cli, tmp_path: Path, content: bytes, words: str) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_bytes(content)
    code, out, err = cli("eval", "tone", "--data", str(data), "--json")
    assert code == 1
    assert out == ""
    assert words in err.replace("\n", " ")
    assert "bad.jsonl" in err


def test_without_standard_input_there_is_nothing_to_answer(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    code, _, err = cli("predict", "tone")
    assert code == 1 or code == 2
    assert "nothing to answer" in err


@pytest.mark.parametrize("option", [("--max-tokens", "3"), ("--temperature", "0"), ("--seed", "1")])
def test_options_of_generation_are_refused_for_other_tasks(cli: Cli, option: tuple[str, str]) -> None:
    code, out, err = cli("predict", "tone", "a text", *option)
    assert code != 0
    assert out == ""
    assert f"{option[0]}: for generation" in err.replace("\n", " ")
    assert cli("predict", "writer", "a text", "--max-tokens", "2", *option)[0] == 0


def test_a_bad_row_is_named_and_the_rows_before_it_are_answered(cli: Cli, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) + "\n" for text in ("one", "two", "x" * 999, "four")]
    (tmp_path / "in.jsonl").write_text("".join(lines))
    code, out, err = cli("predict", "tone", "--input", str(tmp_path / "in.jsonl"))
    assert code == 1
    assert len(rows(out)) == 2
    assert "in.jsonl:3: 999 tokens" in err.replace("\n", " ")
    code, out, err = cli("eval", "tone", "--data", str(tmp_path / "in.jsonl"))
    assert code == 1


def test_an_argument_that_is_not_text_is_refused(cli: Cli) -> None:
    code, out, err = cli("predict", "tone", "a\udcff")
    assert (code, out) == (1, "")
    assert "U+DCFF" in err


def test_eval_gives_completions_room_for_the_longest_gold_one(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    whole = AdapterHub.answers

    def noting(self: AdapterHub, target: Target, inputs: Any, **options: Any) -> Iterator[Prediction]:
        asked.append(options["max_tokens"])
        return whole(self, target, inputs, **{**options, "max_tokens": 2})

    monkeypatch.setattr(AdapterHub, "answers", noting)
    data = tmp_path / "gold.jsonl"
    data.write_text(json.dumps({"prompt": "a", "completion": "c" * 90}) + "\n")
    assert cli("eval", "writer", "--data", str(data))[0] == 0
    assert cli("eval", "writer", "--data", str(data), "--max-tokens", "5")[0] == 0
    assert asked == [99, 5]
    assert cli("eval", "tone", "--data", str(data), "--max-tokens", "5")[0] != 0


def test_a_base_that_is_fetched_first_shows_progress(
    base: Base, registry: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pulling(name: str, *, progress: Any = None) -> Base:
        progress("Fetching it", 0, 5_000_000)
        assert name in (base.public_id, str(base.path))
        return base

    monkeypatch.setattr(source, "open_base", pulling)
    for arguments in ([], ["--base", str(base.path)]):
        with pytest.raises(SystemExit) as ended:
            run(["predict", "tone", "a", "--registry", str(registry), *arguments])
        assert not ended.value.code
        assert "Fetching it (5.0 MB)" in capsys.readouterr().err
