"""Functions of a file on rows: only what changed runs, and errors are told."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from adapterhub.data.example import Example
from adapterhub.errors import AdapterHubError, FileMissing, UsageError
from adapterhub.labeling.answer_cache import AnswerCache
from adapterhub.labeling.apply import Applied, apply, row_hash
from adapterhub.labeling.rules import load_rules
from tests.labeling.test_functions import FakeModels

HEAD = "from adapterhub.labeling import *\n"
# Each call leaves a letter in a file, so that a test sees how often a function ran.
COUNTED = (
    HEAD
    + """
from pathlib import Path
LOG = Path(__file__).with_name("log")

def noted(name):
    with LOG.open("a") as file:
        file.write(name)

@labeling_function
def long(example):
    noted("l")
    return "long" if len(example.text) > 3 else ABSTAIN

@labeling_function
def short(example):
    noted("s")
    print("a word from short")
    return "short" if len(example.text) < 3 else ABSTAIN
"""
)


def rows(*texts: str) -> list[Example]:
    return [Example(str(number), {"text": text}, where=f"f:{number}") for number, text in enumerate(texts, start=1)]


class Bench:
    """A folder with a file of rules, a cache and a log of calls."""

    def __init__(self, folder: Path, source: str = COUNTED) -> None:
        self.path, self.cache = folder / "rules.py", AnswerCache(folder / "cache.sqlite")
        self.log = folder / "log"
        self.path.write_text(source)

    def apply(self, examples: list[Example], **options: object) -> Applied:
        return apply(load_rules(self.path), examples, cache=self.cache, **options)  # type: ignore[arg-type]

    def calls(self) -> str:
        text = "".join(sorted(self.log.read_text())) if self.log.exists() else ""
        self.log.unlink(missing_ok=True)
        return text


@pytest.mark.parametrize("processes", [1, 2])
def test_votes(tmp_path: Path, processes: int, capfd: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path)
    found = bench.apply(rows("abcd", "ab", "abc"), labels=["short", "long"], processes=processes)
    assert found.votes.column("long") == ["long", None, None]
    assert found.votes.column("short") == [None, "short", None]
    assert found.votes.labels == ("short", "long")
    assert [(each.votes, each.abstains, each.errors) for each in found.reports] == [
        ({"long": 1}, 2, 0),
        ({"short": 1}, 2, 0),
    ]
    assert found.reports[0].where == "rules.py:10"
    out, error = capfd.readouterr()
    assert out == ""  # what rules print must not get into a script's JSON
    if processes == 1:
        assert "a word from short" in error


def test_only_what_changed_runs(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    told: list[int] = []
    bench.apply(rows("a", "b"), advance=told.append)
    assert bench.calls() == "llss"
    assert sum(told) == 4
    again = bench.apply(rows("a", "b"))
    assert bench.calls() == ""
    assert [each.cached for each in again.reports] == [2, 2]
    bench.apply(rows("b", "c"))  # other ids, one other text
    assert bench.calls() == "ls"
    bench.path.write_text(COUNTED.replace("> 3", "> 0"))
    changed = bench.apply(rows("a", "b"))
    assert bench.calls() == "ll"
    assert changed.votes.column("long") == ["long", "long"]


def test_whatever_a_row_says_counts_but_not_its_id_or_place() -> None:
    row = Example("1", {"text": "a", "k": 1}, where="f:1")
    assert row_hash(row) == row_hash(replace(row, id="2", where="g:2"))
    others = [replace(row, fields={"text": "a", "k": 2}), replace(row, weight=2.0), replace(row, source="s")]
    assert len({row_hash(each) for each in [row, *others, replace(row, probs={"a": 1.0})]}) == 5


def test_errors_are_counted_and_shown_and_tried_again(tmp_path: Path) -> None:
    source = HEAD + (
        "@labeling_function\ndef bad(example):\n"
        "    if example.text == 'ok': return 'x'\n    return 1 / (len(example.text) - 1)\n"
        "@labeling_function\ndef none(example): pass\n"
        "@labeling_function\ndef leaves(example): raise SystemExit('bye')\n"
    )
    bench = Bench(tmp_path, source)
    for _ in range(2):
        bad, none, leaves = bench.apply(rows("ok", "a", "b", "abc")).reports
        assert (bad.errors, bad.votes, bad.abstains, bad.cached) == (3, {"x": 1}, 0, bad.cached)
        assert [(each.type, each.count, each.where) for each in bad.troubles] == [
            ("ZeroDivisionError", 2, "f:2"),
            ("NoVote", 1, "f:4"),
        ]
        assert "0.5" in bad.troubles[1].message
        assert "return" in none.troubles[0].message
        assert (leaves.troubles[0].type, leaves.troubles[0].message, leaves.errors) == ("SystemExit", "bye", 4)
    assert bad.cached == 1
    found = bench.apply(rows("ok", "a"))
    assert found.failed == ["none", "leaves"]
    assert found.votes.column("bad") == ["x", None]


def test_unknown_labels_are_errors_also_when_they_were_kept(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.apply(rows("abcd"))
    found = bench.apply(rows("abcd"), labels=["short"])
    assert found.votes.column("long") == [None]
    assert found.reports[0].troubles[0].type == "UnknownLabel"
    assert bench.apply(rows("abcd")).votes.column("long") == ["long"]


def test_functions_that_ask_models(tmp_path: Path) -> None:
    source = HEAD + "tone = model('tone', least=0.5)\nnear = nearest([('aa', 'A'), ('b', 'B')], count=1)\n"
    bench = Bench(tmp_path, source)
    found = bench.apply(rows("a", "b"), models=FakeModels())
    assert (found.votes.column("tone"), found.votes.column("near")) == (["a", None], ["A", "B"])
    assert [each.cached for each in bench.apply(rows("a", "b"), models=FakeModels()).reports] == [2, 2]

    class Other(FakeModels):
        def identity(self, kind: str, name: str) -> str:
            return "another version"

        def predict(self, ref: str, texts: object) -> list[tuple[str, float]]:
            raise ValueError("out of order")

    moved = bench.apply(rows("a", "b"), models=Other())
    assert (moved.reports[0].errors, moved.reports[0].troubles[0].message) == (2, "out of order")
    with pytest.raises(UsageError, match="'tone' asks the model"):
        bench.apply(rows("a"))


def test_a_process_that_dies_is_told(tmp_path: Path) -> None:
    source = HEAD + "import os\n@labeling_function\ndef dies(e): os._exit(3)\nfine = keywords('x', ['y'])\n"
    with pytest.raises(AdapterHubError, match=r"died.*dies"):
        Bench(tmp_path, source).apply(rows("a"), processes=2)


def test_a_killed_run_leaves_a_cache_that_serves(tmp_path: Path) -> None:
    source = COUNTED.replace("def short(example):", "def short(example):\n    import time; time.sleep(60)")
    bench = Bench(tmp_path, source)
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "{n:05}"}}\n' for n in range(600)))
    (tmp_path / "votes.csv").write_text("old\n")
    command = [sys.executable, "-m", "adapterhub", "label", "apply", str(bench.path), "--processes", "1"]
    files = ["--data", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "votes.csv")]
    cache = tmp_path / "home"
    environment = {"ADAPTERHUB_CACHE": str(cache), "PYTHONPATH": ":".join(sys.path), "PATH": ""}
    with subprocess.Popen([*command, *files], env=environment, stderr=subprocess.DEVNULL) as process:
        for _ in range(600):
            if bench.log.exists() and len(bench.log.read_text()) >= 600:
                break
            time.sleep(0.05)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "votes.csv").read_text() == "old\n"
    bench.calls()
    bench.path.write_text(COUNTED)
    bench.cache = AnswerCache(cache / "answers" / "functions.sqlite")
    found = bench.apply([Example(str(n), {"text": f"{n:05}"}) for n in range(600)])
    assert found.reports[0].cached >= 512
    assert bench.calls().count("s") == 600


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("x = (\n", r"rules.py:1: the file cannot be loaded: SyntaxError"),
        ("x = 1\ny = x / 0\n", r"rules.py:2: the file cannot be loaded: ZeroDivisionError"),
        ("import sys\nsys.exit()\n", "SystemExit"),
        ("x = 1\n", "no labelling function"),
        (HEAD + "x = [keywords('a', ['b'])]\n", r"x\[0\] has no name"),
        (HEAD + "id = keywords('a', ['b'])\n", "called 'id'"),
        (HEAD + "x = keywords('a', ['b'], name=' y')\n", "called ' y'"),
        (HEAD + "x = keywords('a', ['b'])\ny = keywords('a', ['b'], name='x')\n", "two functions"),
        (HEAD + "\nx = keywords('a', 'b')\n", r"rules.py:3: the words are one text"),
    ],
)
def test_files_that_cannot_be_loaded(tmp_path: Path, source: str, wrong: str) -> None:
    with pytest.raises(UsageError, match=wrong):
        Bench(tmp_path, source).apply(rows("a"))


def test_what_a_file_names(tmp_path: Path) -> None:
    source = HEAD + "one = keywords('a', ['b'])\nagain = one\nmore = (keywords('a', ['b'], name='two'), 3)\n"
    rules = load_rules(Bench(tmp_path, source).path)
    assert list(rules.functions) == ["one", "two"]
    assert rules.where("one") == "rules.py"
    with pytest.raises(FileMissing):
        load_rules(tmp_path / "none.py")
