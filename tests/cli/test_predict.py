"""`predict` and `eval` on a tiny base, as a script would call them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.base.source import Base
from adapterhub.cli.main import run
from adapterhub.registry.store import Registry
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
    publish(found, base, "writer", scratch)
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
    assert [row["label"] for row in from_file] == [row["label"] for row in alone]
    assert from_text == from_file == from_stdin


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
    assert set(metrics) == {"accuracy", "macro_f1"}
    assert record["rows"] == 20


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
