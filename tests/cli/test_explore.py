"""`adapterhub try` with lines piped in, as a script or a person would type them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.base.source import Base
from adapterhub.cli.main import run
from adapterhub.labeling.prompts import PromptVoter, read_voters
from adapterhub.registry.store import Registry
from tests.server.publishing import LABELS, make_base, publish

Try = Callable[..., tuple[int, str, str]]


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
    publish(found, base, "search", scratch, kind="embedding")
    return found.root


@pytest.fixture
def talk(
    base: Base,
    registry: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Try:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))

    def call(lines: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        with pytest.raises(SystemExit) as ended:
            run(["try", *arguments, "--base", str(base.path), "--registry", str(registry)])
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


def test_everybody_answers_side_by_side(talk: Try, tmp_path: Path) -> None:
    shots = tmp_path / "shots.jsonl"
    shots.write_text("".join(json.dumps({"text": f"t {label}", "label": label}) + "\n" for label in LABELS))
    voters = tmp_path / "voters.yaml"
    voters.write_text("voters: [{name: mood, prompt: '{text} I am', words: {calm: ' calm', cross: ' cross'}}]\n")
    asked = ("tone", "topics", "writer", "search", "--shots", str(shots), "--few-shot", "3", "--voters", str(voters))
    code, out, _ = talk("hello\n\nyou again\n", *asked, "--json")
    assert code == 0
    first, second = (json.loads(line) for line in out.splitlines())
    assert (first["text"], second["text"]) == ("hello", "you again")
    who = [each["who"] for each in first["answers"]]
    assert who[1:] == ["base, told the labels", "base, shown 3 rows", "mood", "tone", "topics", "writer", "search"]
    said = {each["who"]: each for each in first["answers"]}
    assert said["tone"]["answer"] in LABELS
    assert 1 / 3 <= said["tone"]["chance"] <= 1
    assert said["search"]["answer"].startswith("a vector of ")
    assert said["writer"]["chance"] is None


def test_what_one_likes_is_kept(talk: Try, tmp_path: Path) -> None:
    voters, gold = tmp_path / "voters.yaml", tmp_path / "gold.jsonl"
    prompts = ":prompt mood {text} It was\n:keep mood\n:prompt other {text} So\n:keep other\n"
    lines = f"so it goes\n:gold calm\n{prompts}:quit\nnot asked\n"
    code, _, said = talk(lines, "tone", "--voters", str(voters), "--gold", str(gold))
    assert code == 0
    assert [json.loads(line) for line in gold.read_text().splitlines()] == [
        {"text": "so it goes", "label": "calm", "source": "gold"}
    ]
    kept = read_voters(voters).voters
    assert [each.name for each in kept] == ["mood", "other"]
    assert isinstance(kept[0], PromptVoter)
    assert kept[0].prompt == "{text} It was"
    assert tuple(kept[0].words) == LABELS
    assert "not asked" not in said


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        (":gold calm\n", "ask about one first"),
        ("a\n:gold happy\n", "there is no label 'happy'; the labels are calm, cross, glad"),
        (":keep x\n", ":keep NAME keeps a prompt"),
        (":prompt x {\n", "is not a field name in braces"),
        (":prompt\n", "write a name, then a template"),
        (":prompt x It was\n", "the template has no field; write {text}"),
        (":prompt x {text} {title}\n:keep x\n", "the template has {title}; write {text}"),
    ],
)
def test_a_wrong_line_is_told_and_the_talk_goes_on(talk: Try, tmp_path: Path, lines: str, wrong: str) -> None:
    voters, gold = tmp_path / "voters.yaml", tmp_path / "gold.jsonl"
    code, _, said = talk(lines + "after all\n:help\n", "tone", "--voters", str(voters), "--gold", str(gold))
    assert code == 0
    assert wrong in said
    assert ":quit" in said
    assert not gold.exists()
    assert not voters.exists()


def test_a_kept_name_is_not_taken_twice_and_a_closed_file_not_broken(talk: Try, tmp_path: Path) -> None:
    voters = tmp_path / "voters.yaml"
    closed = "voters: [{name: mood, prompt: '{text} I am', words: {calm: ' calm', cross: ' cross'}}]\n"
    voters.write_text(closed)
    code, _, said = talk(
        ":prompt mood {text} So\n:keep mood\n:prompt new {text} So\n:keep new\n", "tone", "--voters", str(voters)
    )
    assert code == 0
    assert "a voter 'mood' is there already" in said
    assert "nothing can be added at its end" in said
    assert voters.read_text() == closed


def test_without_anything_that_says_labels_the_base_writes(talk: Try) -> None:
    code, out, _ = talk("hello\n", "writer", "--json")
    assert code == 0
    assert [each["who"].split()[-1] for each in json.loads(out)["answers"]] == ["writes", "writer"]
    code, _, said = talk(":prompt x {text} y\n", "writer")
    assert "nothing says what labels there are; name them with --labels" in said


def test_the_first_prompt_needs_nothing_but_the_names_of_labels(talk: Try, tmp_path: Path) -> None:
    voters = tmp_path / "voters.yaml"
    lines = "hello\n:prompt mood {text} It was\n:keep mood\n"
    code, _, said = talk(lines, "--labels", "good,bad", "--voters", str(voters))
    assert code == 0
    assert "base, told the labels" in said
    (kept,) = read_voters(voters).voters
    assert isinstance(kept, PromptVoter)
    assert tuple(kept.words) == ("good", "bad")
    assert "on many rows it is calibrated by all of them" in said
    code, _, said = talk("hello\n", "--labels", "good")
    assert code == 2
    assert "name two labels or more" in said
