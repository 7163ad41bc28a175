"""Recipes that keep a share of their rows: which stay, what the card says, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from adapterhub.errors import ConfigError, DataError
from adapterhub.pipeline.build import build
from adapterhub.pipeline.check import check_recipe
from adapterhub.pipeline.splits import read_splits
from adapterhub.recipe import load_recipe
from adapterhub.registry.store import Registry
from tests.pipeline.toys import write_recipe, write_rows
from tests.training.jobs import Recorder, toy_rows


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))


def curated(folder: Path, **section: object) -> Path:
    return write_recipe(folder, curate={"base": str(folder / "base"), **section})


def test_a_share_of_the_training_rows_stays_and_nothing_else_changes(tmp_path: Path) -> None:
    whole = read_splits(load_recipe(write_recipe(tmp_path)))
    kept = read_splits(load_recipe(curated(tmp_path, keep=0.5, by="easy")))
    assert len(kept.train) == len(whole.train) // 2
    assert {row.id for row in kept.train} < {row.id for row in whole.train}
    assert (kept.validation, kept.test, kept.labels) == (whole.validation, whole.test, whole.labels)
    assert {row.label for row in kept.train} == {"red", "blue"}
    assert (kept.curation["kept"], kept.curation["dropped"], kept.curation["metric"]) == (40, 40, "easy")
    ids = "\n".join(sorted(row.id for row in kept.train))
    assert kept.curation["mask"] == hashlib.sha256(ids.encode()).hexdigest()
    assert whole.curation == {}


def test_a_seed_chooses_the_random_share(tmp_path: Path) -> None:
    def rows(seed: int) -> list[str]:
        return [row.id for row in read_splits(load_recipe(curated(tmp_path, keep=0.3, by="random", seed=seed))).train]

    assert rows(0) == rows(0)
    assert rows(0) != rows(1)


def test_the_card_says_which_rows_made_a_version(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    progress = Recorder()
    result = build(load_recipe(curated(tmp_path, keep=0.5)), registry, progress)
    card = registry.resolve(result.published.ref).card()
    assert card.curation["by"] == "auto"
    assert card.curation["metric"] in ("random", "easy", "hard")
    assert card.data["train"]["rows"] == card.curation["kept"] == 40
    assert card.recipe["curate"]["keep"] == 0.5
    assert any("40 of 80 rows kept by" in line for line in progress.told)


def test_the_record_of_a_recipe_without_it_stays_as_it_was(tmp_path: Path) -> None:
    assert "curate" not in load_recipe(write_recipe(tmp_path)).to_record()


def test_a_share_may_be_written_in_percent(tmp_path: Path) -> None:
    section = load_recipe(curated(tmp_path, keep="30%")).curate
    assert section is not None
    assert section.keep == pytest.approx(0.3)
    for wrong in ("many%", "130%"):
        with pytest.raises(ConfigError, match=r"curate\.keep is"):
            load_recipe(curated(tmp_path, keep=wrong))


def test_what_cannot_be_curated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"curate\.keep is 2"):
        load_recipe(curated(tmp_path, keep=2))
    with pytest.raises(ConfigError, match=r"unknown key 'curate\.metric'"):
        load_recipe(curated(tmp_path, keep=0.5, metric="easy"))
    with pytest.raises(ConfigError, match="curate is given, but kind is 'multilabel'"):
        load_recipe(curated(tmp_path, keep=0.5), ["kind=multilabel"])
    path = curated(tmp_path, keep=0.5, by="hard")
    other = {"red": "blue", "blue": "red"}
    flipped = [
        {"text": row.text, "label": other[str(row.label)] if place % 5 == 0 else row.label}
        for place, row in enumerate(toy_rows(80, 0))
    ]
    write_rows(tmp_path / "train.jsonl", flipped)
    with pytest.raises(DataError, match="of the labels look wrong"):
        read_splits(load_recipe(path))


def test_check_counts_what_will_be_left(tmp_path: Path) -> None:
    whole, half = check_recipe(write_recipe(tmp_path)), check_recipe(curated(tmp_path, keep=0.5))
    assert half.problems == []
    assert whole.estimate is not None
    assert half.estimate is not None
    assert half.estimate.steps < whole.estimate.steps


def test_rows_are_kept_by_their_influence_towards_a_target(tmp_path: Path) -> None:
    path = curated(tmp_path, keep=0.5, by="influence", target="wanted.jsonl", base=None)
    reds = [dict(row.fields) for row in toy_rows(40, 5) if row.label == "red"]
    write_rows(tmp_path / "wanted.jsonl", reds)
    found = read_splits(load_recipe(path))
    assert {row.label for row in found.train} == {"red"}
    assert (found.curation["metric"], found.curation["kept"], found.curation["floor"]) == ("influence", 40, 0.0)
    assert (found.curation["target"]["name"], found.curation["target"]["rows"]) == ("wanted.jsonl", 20)
    assert found.curation["base"] == load_recipe(path).base_name
    # With a floor, every class keeps its share.
    path = curated(tmp_path, keep=0.5, by="influence", target="wanted.jsonl", base=None, floor=1)
    assert sum(row.label == "red" for row in read_splits(load_recipe(path)).train) == 20


def test_a_target_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no target is named"):
        load_recipe(curated(tmp_path, keep=0.5, by="influence"))
    with pytest.raises(ConfigError, match="only 'influence' has a target"):
        load_recipe(curated(tmp_path, keep=0.5, target="wanted.jsonl"))
    with pytest.raises(ConfigError, match="which is measured on"):
        load_recipe(curated(tmp_path, keep=0.5, by="influence", target="test.jsonl"))
    # However it is called, and whatever file it is in.
    (tmp_path / "copy.jsonl").write_bytes((tmp_path / "test.jsonl").read_bytes())
    for name in ("./test.jsonl", "copy.jsonl"):
        path = curated(tmp_path, keep=0.5, by="influence", target=name, base=None)
        (problem,) = check_recipe(path).problems
        assert "curate.target has the rows of data.test, which are measured on" in problem
        with pytest.raises(ConfigError, match=r"curate\.target has the rows of"):
            read_splits(load_recipe(path))
    missing = check_recipe(curated(tmp_path, keep=0.5, by="influence", target="none.jsonl", base=None))
    assert any("none.jsonl" in problem for problem in missing.problems)
    with pytest.raises(ConfigError, match="only classification and multilabel and generation rows"):
        load_recipe(curated(tmp_path, keep=0.5, by="influence", target="wanted.jsonl"), ["kind=embedding"])
