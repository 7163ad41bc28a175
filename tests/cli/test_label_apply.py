"""`adapterhub label apply` as people and scripts call it; models that rules ask are tiny ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adapterhub.cli.main import create_app
from adapterhub.errors import FileMissing, UsageError
from adapterhub.labeling.lineage import read_lineage
from adapterhub.labeling.votes import read_votes
from adapterhub.pipeline.build import build
from adapterhub.pipeline.own_models import OwnModels
from adapterhub.recipe import load_recipe
from adapterhub.registry.store import Registry
from tests.pipeline.toys import write_recipe
from tests.training.jobs import Recorder

ROOT = Path(__file__).parents[2]
RULES = """
from adapterhub.labeling import ABSTAIN, keywords, labeling_function

greets = keywords("hello", ["hi", "hello"])

@labeling_function
def half(example):
    if len(example.text) > 5:
        raise ValueError("[too] long")
    return "short"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rules.py").write_text(RULES)
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "text": "hi"}\n{"id": "b", "text": "hello there"}\n')
    return tmp_path


def invoke(folder: Path, *more: str, rules: str = "rules.py", data: str = "rows.jsonl") -> Result:
    environment = {"ADAPTERHUB_CACHE": str(folder / "cache"), "COLUMNS": "200"}
    arguments = ["label", "apply", str(folder / rules), "--data", str(folder / data), "--out", str(folder / "v.csv")]
    return CliRunner(env=environment).invoke(create_app(), [*arguments, "--processes", "1", *more])


def test_votes_lineage_and_what_people_see(folder: Path) -> None:
    result = invoke(folder)
    assert (result.exit_code, result.stdout) == (0, "")
    assert (folder / "v.csv").read_text() == "id,greets,half\na,hello,short\nb,hello,\n"
    for words in ("2 voters on 2 rows", "half (rules.py:6): ValueError: [too] long (1 rows, first", "rows.jsonl:2"):
        assert words in result.stderr
    record = read_lineage(folder / "v.csv")
    assert record is not None
    assert {name: (each["kind"], each["where"]) for name, each in record["voters"].items()} == {
        "greets": ("function", "rules.py"),
        "half": ("function", "rules.py:6"),
    }
    assert (record["data"]["name"], record["data"]["rows"], len(record["data"]["sha256"])) == ("rows.jsonl", 2, 64)


def test_json_is_one_value(folder: Path) -> None:
    result = invoke(folder, "--json", "--labels", "hello, other")
    assert result.exit_code == 1  # every vote of `half` was an error
    found = json.loads(result.stdout)
    assert found["rows"] == 2
    greets, half = found["functions"]
    assert (greets["votes"], greets["errors"], greets["cached"]) == ({"hello": 2}, 0, 0)
    assert half["errors"] == 2
    assert {each["type"] for each in half["troubles"]} == {"ValueError", "UnknownLabel"}
    assert "half failed on every row" in result.stderr
    assert read_votes(folder / "v.csv").column("greets") == ["hello", "hello"]
    assert json.loads(invoke(folder, "--json").stdout)["functions"][0]["cached"] == 2


def test_many_kinds_of_errors_are_cut_short(folder: Path) -> None:
    (folder / "rules.py").write_text(RULES.replace('"[too] long"', "example.text"))
    (folder / "rows.jsonl").write_text("".join(f'{{"text": "text {n}"}}\n' for n in range(9)))
    result = invoke(folder, "--json")
    assert len(json.loads(result.stdout)["functions"][1]["troubles"]) == 5
    assert "half: 4 more kinds of errors" in result.stderr


@pytest.mark.parametrize(
    ("name", "text", "error"), [("rules.py", "1/0", UsageError), ("rules.py", "x = 1", UsageError)]
)
def test_a_file_that_cannot_be_loaded_leaves_the_old_votes(
    folder: Path, name: str, text: str, error: type[Exception]
) -> None:
    (folder / "v.csv").write_text("old")
    (folder / name).write_text(text)
    assert isinstance(invoke(folder).exception, error)
    assert (folder / "v.csv").read_text() == "old"


def test_missing_files(folder: Path) -> None:
    assert isinstance(invoke(folder, rules="none.py").exception, FileMissing)
    assert isinstance(invoke(folder, data="none.jsonl").exception, FileMissing)
    assert isinstance(invoke(folder, "--out", str(folder / "no" / "v.csv")).exception, FileMissing)


def test_the_sample_rules_cover_half_of_the_sample_rows(tmp_path: Path) -> None:
    arguments = ["label", "apply", str(ROOT / "recipes" / "labels" / "support_tone.py"), "--processes", "0", "--json"]
    rows = ["--data", str(ROOT / "recipes" / "data" / "support-tone" / "train.jsonl"), "--out", str(tmp_path / "v.csv")]
    labels = ["--labels", "calm,frustrated,angry,delighted"]
    result = CliRunner(env={"ADAPTERHUB_CACHE": str(tmp_path)}).invoke(create_app(), [*arguments, *rows, *labels])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert len(found["functions"]) >= 8
    assert all(each["errors"] == 0 and each["votes"] for each in found["functions"])
    covered = (read_votes(tmp_path / "v.csv").matrix >= 0).any(axis=1).mean()
    assert covered > 0.5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAPTERHUB_CACHE", str(folder / "cache"))
        build(load_recipe(write_recipe(folder)), Registry(folder / "registry"), Recorder())
        yield folder


def test_rules_may_ask_published_versions_and_bases(world: Path) -> None:
    # A version made on a folder names it as local, which only whoever has it can open.
    named = ("--registry", str(world / "registry"), "--base", str(world / "base"), "--json")
    rows = [json.loads(line) for line in (world / "test.jsonl").read_text().splitlines()]
    labelled = [(row["text"], row["label"]) for row in rows[:5]]
    (world / "rules.py").write_text(
        "from adapterhub.labeling import model, nearest\n"
        "toy = model('toy')\n"
        f"near = nearest({labelled!r}, base={str(world / 'base')!r}, count=1)\n"
    )
    result = invoke(world, *named, data="test.jsonl")
    assert result.exit_code == 0, result.output
    toy, near = json.loads(result.stdout)["functions"]
    assert (toy["errors"], near["errors"]) == (0, 0)
    votes = read_votes(world / "v.csv")
    assert votes.column("near")[:5] == [label for _, label in labelled]
    assert None not in votes.column("toy")
    again = json.loads(invoke(world, *named, data="test.jsonl").stdout)
    assert [each["cached"] for each in again["functions"]] == [len(rows), len(rows)]


def test_prompts_vote_beside_rules_and_are_asked_once(world: Path) -> None:
    (world / "rules.py").write_text("from adapterhub.labeling import pattern\nred = pattern('red', 'x')\n")
    (world / "prompts.yaml").write_text(
        "voters: [{name: prompt, prompt: '{text} is', words: {red: ' red', blue: ' blue'}}]\n"
    )
    named = ("--base", str(world / "base"), "--json")
    first, again = (
        json.loads(invoke(world, str(world / "prompts.yaml"), *named, data="test.jsonl").stdout) for _ in range(2)
    )
    rows = first["rows"]
    assert (first["models"][0]["asked"], again["models"][0]["asked"]) == (rows, 0)
    assert read_votes(world / "v.csv").voters == ("red", "prompt")
    record = read_lineage(world / "v.csv")
    assert record is not None
    assert record["voters"]["prompt"]["kind"] == "prompt"
    assert record["voters"]["prompt"]["fingerprint"].startswith("sha256:")


def test_only_classifications_vote() -> None:
    with pytest.raises(UsageError, match="'order-fields' is a generation task"):
        OwnModels(Registry(ROOT / "registry")).predict("order-fields", ["a text"])
