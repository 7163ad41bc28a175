"""Recipes that make their own labels: voters of every kind, corrections, lineage, and voters edited after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub.data.example import content_id
from adapterhub.data.files import read_examples
from adapterhub.errors import ConfigError, DataError, FileMissing, UsageError
from adapterhub.labeling.correct import correct_rows
from adapterhub.labeling.corrections import Correction, append_corrections
from adapterhub.labeling.lineage import write_lineage
from adapterhub.labeling.prompts import read_voters
from adapterhub.labeling.sources import source_hash
from adapterhub.labeling.stale import remember_places, stale_voters
from adapterhub.labeling.votes import write_votes
from adapterhub.pipeline.build import build
from adapterhub.pipeline.check import check_recipe as check
from adapterhub.pipeline.gather import gather
from adapterhub.pipeline.labelled import bare, make_labels
from adapterhub.pipeline.splits import read_splits
from adapterhub.recipe import load_recipe
from adapterhub.registry.store import Registry
from tests.pipeline.toys import write_recipe, write_rows
from tests.training.jobs import Recorder, toy_rows

RULES = """
from adapterhub.labeling import ABSTAIN, labeling_function, pattern

first = pattern("red", "x", name="first")

@labeling_function
def second(example):
    # what it says
    return "blue" if "y" in example.text and len(example.text) < 9 else ABSTAIN
"""
LABELS = ["blue", "red"]


def covered(text: str) -> bool:
    return "x" in text or len(text) < 9


PROMPTS = """
base: {base}
voters:
  - name: prompt
    prompt: "{{text}} It is"
    words: {{{words}}}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))


def raw_recipe(folder: Path, **section: Any) -> Path:
    """Write the toy recipe with training rows that have no labels, and rules that are silent on some."""
    recipe = write_recipe(folder, labels={"voters": ["rules.py"], "names": LABELS, **section})
    write_rows(folder / "train.jsonl", [{"text": row.text} for row in toy_rows(80, 0)])
    (folder / "rules.py").write_text(RULES)
    return recipe


def test_votes_become_soft_labels_and_silence_is_left_out(tmp_path: Path) -> None:
    recipe = load_recipe(raw_recipe(tmp_path))
    made = make_labels(recipe)
    heard = [row for row in toy_rows(80, 0) if covered(row.text)]
    assert [(row.text, row.label) for row in made.examples] == [(row.text, row.label) for row in heard]
    for row in made.examples:
        assert row.probs is not None
        assert sum(row.probs.values()) == pytest.approx(1.0)
        assert row.label == max(row.probs, key=lambda label: row.probs[label])  # type: ignore[index]
        assert row.source == "weak"
    rows = made.labelling["rows"]
    assert (rows["written"], rows["uncovered"]) == (len(heard), 80 - len(heard))
    ids, texts = rows["ids"], rows["texts"]
    write_rows(tmp_path / "train.jsonl", [{"text": row.text + "x"} for row in toy_rows(80, 0)])
    other = make_labels(recipe).labelling["rows"]
    assert other["ids"] != ids
    assert other["texts"] != texts
    assert set(made.labelling["voters"]) == {"first", "second"}
    assert made.labelling["voters"]["second"]["where"].startswith("rules.py:")


def test_gold_labels_of_the_training_file_are_not_looked_at(tmp_path: Path) -> None:
    recipe = load_recipe(raw_recipe(tmp_path))
    bare = make_labels(recipe)
    write_rows(tmp_path / "train.jsonl", [{"text": row.text, "label": "red"} for row in toy_rows(80, 0)])
    told = make_labels(recipe)
    assert [(row.text, row.label, row.probs) for row in told.examples] == [
        (row.text, row.label, row.probs) for row in bare.examples
    ]


def test_corrections_count_more_than_voters(tmp_path: Path) -> None:
    path = raw_recipe(tmp_path, corrections="corrections.jsonl")
    silent = next(row.text for row in toy_rows(80, 0) if not covered(row.text))
    wrong = next(row.text for row in toy_rows(80, 0) if row.label == "blue" and covered(row.text))
    for text in (silent, wrong):
        said = Correction(content_id({"text": text}), None, "red", "mara", "2026-01-31T12:00:00Z")
        append_corrections(tmp_path / "corrections.jsonl", [said])
    made = make_labels(load_recipe(path))
    by_text = {row.text: row for row in made.examples}
    for text in (silent, wrong):
        assert by_text[text].label == "red"
        assert by_text[text].probs is not None
        assert by_text[text].probs["red"] == pytest.approx(1.0)  # type: ignore[index]
        assert by_text[text].source == "gold"
    assert made.labelling["voters"]["gold"]["kind"] == "people"


@pytest.mark.parametrize("row", [{}, {"label": "blue"}, {"id": "seven"}, {"lang": "en", "label": "red"}])
def test_what_was_served_is_corrected_by_its_text(tmp_path: Path, row: dict[str, str]) -> None:
    path = raw_recipe(tmp_path, corrections="corrections.jsonl")
    texts = [each.text for each in toy_rows(80, 0)]
    silent = next(text for text in texts if not covered(text))
    rows: list[dict[str, Any]] = [{"text": text, **(row if text == silent else {})} for text in texts]
    write_rows(tmp_path / "train.jsonl", rows)
    for text in (silent, "never seen"):  # as `label feedback` writes them
        said = Correction(content_id({"text": text}), None, "red", "mara", "2026-01-31T12:00:00Z")
        append_corrections(tmp_path / "corrections.jsonl", [said])
    told: list[str] = []
    made = make_labels(load_recipe(path), tell=told.append)
    assert [each.label for each in made.examples if each.text == silent] == ["red"]
    assert any("1 correction(s) of corrections.jsonl are of rows that train.jsonl has not" in line for line in told)
    out = tmp_path / "corrected.jsonl"
    assert correct_rows(tmp_path / "train.jsonl", tmp_path / "corrections.jsonl", out) == (1, 1)
    right = [each for each in read_examples(out, "classification", labelled=False) if each.text == silent]
    assert [(each.label, each.source) for each in right] == [("red", "corrected by mara")]


def test_prompts_and_files_of_votes_vote_beside_rules(tmp_path: Path) -> None:
    path = raw_recipe(tmp_path, voters=["rules.py", "prompts.yaml", "votes.csv"])
    words = ", ".join(f"{label}: ' {label}'" for label in LABELS)
    (tmp_path / "prompts.yaml").write_text(PROMPTS.format(base=tmp_path / "base", words=words))
    rows = {content_id({"text": row.text}): row for row in toy_rows(80, 0)}
    lines = "".join(f"{identity},{row.label}\n" for identity, row in rows.items())
    (tmp_path / "votes.csv").write_text(f"id,friend\n{lines}")
    told: list[str] = []
    made = make_labels(load_recipe(path), tell=told.append)
    assert list(made.labelling["voters"]) == ["first", "second", "prompt", "friend"]
    assert len(made.examples) == 80
    assert any("prompt: 80 of 80 votes" in line for line in told)
    again: list[str] = []
    assert make_labels(load_recipe(path), tell=again.append).labelling == made.labelling  # asked once, said twice


def test_from_raw_text_to_a_version_that_knows_its_voters(tmp_path: Path) -> None:
    path = raw_recipe(tmp_path)
    registry = Registry(tmp_path / "registry")
    result = build(load_recipe(path), registry, Recorder())
    version = registry.resolve(result.published.ref)
    card = version.card()
    assert card.labelling["label_model"]["model"] == "dawid-skene"
    assert card.labelling["voters"]["first"]["file"] == "rules.py"  # no folder of this machine in it
    assert card.recipe["labels"]["voters"] == ["rules.py"]

    def stale() -> dict[str, str]:
        return stale_voters(version.task, version.digest, card.labelling, lambda ref: registry.resolve(ref).digest)

    assert stale() == {}
    rules = tmp_path / "rules.py"
    rules.write_text(rules.read_text().replace("# what it says", "# other words, same code"))
    assert stale() == {}
    rules.write_text(rules.read_text() + "\nX = 1\n")
    edited = dict.fromkeys(("first", "second"), "rules.py, or what it imports, was edited since")
    assert stale() == edited
    # Another task's version of the same digest had other voters.
    others = {"voters": {"other": {"kind": "file", "file": str(tmp_path / "train.jsonl"), "source": "0"}}}
    remember_places("another", version.digest, others)
    assert stale() == edited


def test_an_edit_of_what_rules_import_is_an_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "rules.py": "import words_of_mine\nfrom package_of_mine import deep\n",
        "words_of_mine.py": "from package_of_mine.deep import WORDS\n",
        "package_of_mine/__init__.py": "",
        "package_of_mine/deep.py": "from . import deeper\nWORDS = deeper.WORDS\n",
        "package_of_mine/deeper.py": "WORDS = ['red']\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    rules = tmp_path / "rules.py"
    voter = {"kind": "function", "file": str(rules), "source": source_hash(rules)}

    def stale() -> dict[str, str]:
        return stale_voters("mood", "sha256:0", {"voters": {"rule": voter}}, lambda ref: ref)

    assert stale() == {}
    deeper = tmp_path / "package_of_mine" / "deeper.py"
    deeper.write_text("WORDS = ['red']  # still\n")
    assert stale() == {}
    deeper.write_text("WORDS = ['red', 'crimson']\n")
    assert stale() == {"rule": "rules.py here is not the one that voted"}  # its place is not known on this machine
    link = tmp_path / "elsewhere" / "link.py"  # code runs where it lies, so that is where its imports are
    link.parent.mkdir()
    link.symlink_to(rules)
    assert source_hash(link) == source_hash(rules)


def test_votes_of_a_file_are_as_old_as_the_voters_they_came_from(tmp_path: Path) -> None:
    path = raw_recipe(tmp_path)
    recipe = load_recipe(path)
    rows = [bare(row) for row in read_examples(tmp_path / "train.jsonl", "classification", labelled=False)]
    found = gather([tmp_path / "rules.py"], rows)
    write_votes(tmp_path / "votes.csv", found.votes([row.id for row in rows]))
    write_lineage(tmp_path / "votes.csv", {"voters": found.voters})
    made = make_labels(load_recipe(raw_recipe(tmp_path, voters=["votes.csv"])))
    assert {Path(voter["file"]).name for voter in made.labelling["voters"].values()} == {"rules.py"}
    remember_places(recipe.task, "sha256:1", made.labelling)

    def stale() -> set[str]:
        return set(stale_voters(recipe.task, "sha256:1", made.labelling, lambda ref: ref))

    assert stale() == set()
    (tmp_path / "rules.py").write_text((tmp_path / "rules.py").read_text() + "\nX = 1\n")
    assert stale() == {"first", "second"}
    (tmp_path / "rules.py").write_text(RULES)
    assert stale() == set()
    (tmp_path / "votes.csv").write_text((tmp_path / "votes.csv").read_text() + "\n")
    assert stale() == {"first", "second"}  # what was learnt from are the votes


def test_a_lineage_of_another_machine_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "elsewhere" / "secret.py"
    secret.parent.mkdir()
    secret.write_text("x = 1\n")
    voters = {"rule": {"kind": "function", "file": str(secret), "source": "0"}}
    remember_places("mood", "sha256:1", {"voters": voters})  # not as it voted, so not what voted
    monkeypatch.chdir(tmp_path)
    assert stale_voters("mood", "sha256:1", {"voters": voters}, lambda ref: ref) == {}


def test_prompts_and_adapters_grow_stale_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "a: ' x', b: ' y'"
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "prompts.yaml"
    file.write_text(PROMPTS.format(base="b", words=words))
    digest = read_voters(file).voters[0].vote_hash()
    voters = {
        "prompt": {"kind": "prompt", "hash": digest, "file": str(file)},
        "served": {"kind": "adapter", "adapter": "tone", "digest": "sha256:1"},
    }
    now = "sha256:1"
    assert stale_voters("mood", "sha256:0", {"voters": voters}, lambda _: now) == {}
    now = "sha256:2"
    file.write_text(PROMPTS.format(base="b", words=words + ", c: ' z'"))
    found = stale_voters("mood", "sha256:0", {"voters": voters}, lambda _: now)
    assert found == {"prompt": "prompts.yaml asks otherwise now", "served": "tone is another version now"}
    file.write_text("voters: [{name: other, adapter: x}]")
    assert "no voter of that name" in stale_voters("mood", "sha256:0", {"voters": voters}, lambda _: now)["prompt"]
    file.write_text("nonsense")
    assert "cannot be read" in stale_voters("mood", "sha256:0", {"voters": voters}, lambda _: now)["prompt"]


def test_a_labelled_file_brings_its_lineage(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    write_lineage(tmp_path / "train.jsonl", {"voters": {"rule": {"hash": "ab"}}})
    assert read_splits(load_recipe(path)).labelling["voters"] == {"rule": {"hash": "ab"}}
    (tmp_path / "train.jsonl").write_text((tmp_path / "train.jsonl").read_text() + "\n")
    assert read_splits(load_recipe(path)).labelling == {}


def test_what_is_wrong_is_told_before_anything_trains(tmp_path: Path) -> None:
    def made(**section: Any) -> Any:
        return make_labels(load_recipe(raw_recipe(tmp_path, **section)))

    with pytest.raises(FileMissing, match=r"there is no file .*gone\.py"):
        made(voters=["gone.py"])
    with pytest.raises(ConfigError, match=r"labels\.voters has 'rules\.txt'"):
        made(voters=["rules.txt"])
    with pytest.raises(UsageError, match="another voter is called 'first'"):
        made(voters=["rules.py", "rules.py"])
    raw_recipe(tmp_path)
    (tmp_path / "never.py").write_text(
        "from adapterhub.labeling import keywords\nnever = keywords('red', ['no such word'], name='never')\n"
    )
    with pytest.raises(DataError, match="no voter votes on any row"):
        made(voters=["never.py"])
    (tmp_path / "other.csv").write_text("id,a\nnobody,x\n")
    with pytest.raises(DataError, match="none of its ids is that of a row"):
        made(voters=["other.csv"])
    identity = content_id({"text": toy_rows(1, 0)[0].text})
    (tmp_path / "strange.csv").write_text(f"id,a\n{identity},mauve\n")
    with pytest.raises(DataError, match="voter 'a' says 'mauve', which is no label"):
        made(voters=["strange.csv"])


def test_check_reads_voters_without_running_them(tmp_path: Path) -> None:
    path = raw_recipe(tmp_path, voters=["rules.py", "prompts.yaml", "votes.csv"])
    (tmp_path / "rules.py").write_text("raise SystemExit('this ran')\n")
    (tmp_path / "prompts.yaml").write_text("voters: [{name: a}]\n")
    (tmp_path / "votes.csv").write_text("")
    report = check(path)
    assert [line for line in report.problems if "prompts.yaml" in line]
    assert [line for line in report.problems if "votes.csv" in line]
    assert not [line for line in report.problems if "rules.py" in line]
    (tmp_path / "rules.py").write_text("def\n")
    assert [line for line in check(path).problems if "rules.py:1" in line]
    fine = check(raw_recipe(tmp_path))
    assert fine.problems == []
    assert fine.estimate is not None
    record = json.loads(json.dumps(load_recipe(raw_recipe(tmp_path, names=None)).to_record()))
    assert record["labels"]["names"] is None
    assert "labels.names" in check(raw_recipe(tmp_path, names=None)).note


@pytest.mark.parametrize(
    "labelling", [{}, {"voters": []}, {"voters": {"a": 3}}, {"voters": {"a": {"file": 7}}}, {"rows": 1}]
)
def test_a_strangers_card_may_say_anything_of_voters(labelling: dict[str, Any]) -> None:
    assert stale_voters("mood", "sha256:0", labelling, lambda ref: ref) == {}


def test_a_card_leads_to_no_file_but_one_of_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "rules.py").write_text("x = 1\n")
    voters = {"rule": {"kind": "function", "file": str(tmp_path / "elsewhere" / "rules.py"), "source": "0"}}
    monkeypatch.chdir(tmp_path)
    assert stale_voters("mood", "sha256:0", {"voters": voters}, lambda ref: ref) == {}
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "rule" in stale_voters("mood", "sha256:0", {"voters": voters}, lambda ref: ref)
