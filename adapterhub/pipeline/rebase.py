"""Tasks moved to another base: trained anew from what their cards record, and compared with what there was."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.base.source import open_base
from adapterhub.errors import AdapterHubError, DataError, FileMissing, UsageError
from adapterhub.metrics import Metric
from adapterhub.recipe import Recipe, recipe_from
from adapterhub.registry.card import Card
from adapterhub.registry.ref import check_task_name
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Version

from .bases import Bases
from .build import BuildResult, build_all
from .compare import Comparison, Watch, compare
from .splits import read_splits

if TYPE_CHECKING:
    from adapterhub.training.job import Progress

_PREFIX = "hf:"


@dataclass(frozen=True)
class Rebased:
    """A task on its old base and on the new one.

    `comparison` is None for kinds whose answers are not right or wrong by themselves; both have `metrics`.
    """

    old: Version
    new: BuildResult
    metrics: tuple[Mapping[str, Metric], Mapping[str, Metric]]
    comparison: Comparison | None

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record."""
        sides = {
            name: {
                "ref": version.ref,
                "base": version.base,
                "digest": version.digest,
                "metrics": {key: metric.to_record() for key, metric in metrics.items()},
            }
            for name, version, metrics in zip(("old", "new"), (self.old, self.new.published), self.metrics, strict=True)
        }
        comparison = None if self.comparison is None else self.comparison.to_record()
        return {**sides, "comparison": comparison, "training": self.new.training.to_record()}


@dataclass(frozen=True)
class Move:
    """What is to be done for one task: the version there is, and the recipe for the new base."""

    old: Version
    card: Card
    recipe: Recipe


def plan(
    refs: Sequence[str],
    base: str,
    registry: Registry,
    *,
    folders: Sequence[Path],
    suffix: str | None = None,
    overrides: Sequence[str] = (),
    changed_data: bool = False,
) -> list[Move]:
    """Return what rebasing would do; everything that can be wrong beforehand is found here.

    Data are looked for in `folders`, under the path that the recipe had and under their bare name, and must have the
    rows that the card recorded unless `changed_data`. The new task is called TASK-SUFFIX, by default after the base.
    Raises UsageError, FileMissing, DataError, and what reading recipes and bases raises.
    """
    fingerprint = open_base(base).fingerprint
    moves = []
    for ref in refs:
        old = registry.resolve(ref)
        card = old.card()
        if old.base_fingerprint == fingerprint:
            raise UsageError(f"{old.ref} is on {base!r} already; name another base with --base")
        if not card.recipe:
            raise UsageError(
                f"the card of {old.ref} holds no recipe (it was imported), so it cannot be made anew; write a recipe"
            )
        name = check_task_name(f"{old.task}-{suffix or _slug(base)}")
        recipe = _recipe(card, old, name, base, folders, overrides)
        if not changed_data:
            _check_rows(recipe, card, old)
        moves.append(Move(old, card, recipe))
    names = [move.recipe.task for move in moves]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"two of the refs would become {twice!r}; rebase one version of a task at a time")
    return moves


def rebase(
    moves: Sequence[Move],
    registry: Registry,
    progress: Progress,
    *,
    bases: Bases | None = None,
    watch: Watch = lambda answers, _: answers,
    tell: Callable[[Rebased], None] = lambda _: None,
) -> list[Rebased | AdapterHubError]:
    """Train every planned task on the new base, publish it, and answer the same held-out rows with old and new.

    The new card names the old version's digest as its parent. One that fails does not stop the others.
    """
    parents = {move.recipe.task: move.old.digest for move in moves}
    outcomes = build_all([move.recipe for move in moves], registry, progress, parents=parents)
    found: list[Rebased | AdapterHubError] = []
    for move, outcome in zip(moves, outcomes, strict=True):
        if isinstance(outcome, AdapterHubError):
            found.append(outcome)
            continue
        try:
            rebased = _judge(move, outcome, registry, progress, bases, watch)
        except AdapterHubError as error:
            found.append(error)
        else:
            tell(rebased)
            found.append(rebased)
    return found


def _judge(
    move: Move, built: BuildResult, registry: Registry, progress: Progress, bases: Bases | None, watch: Watch
) -> Rebased:
    old, new = move.old, built.published
    if move.card.kind == "embedding" or move.recipe.kind == "preference":
        before = {name: Metric(**metric) for name, metric in move.card.metrics.items()}
        return Rebased(old, built, (before, built.metrics), None)
    examples = read_splits(move.recipe).measured[1]
    progress.stage(f"{old.ref} and {new.ref}: answering the same {len(examples)} rows")
    comparison = compare(old.ref, new.ref, examples, registry, bases=bases, watch=watch)
    return Rebased(old, built, comparison.metrics, comparison)


def _recipe(
    card: Card, old: Version, name: str, base: str, folders: Sequence[Path], overrides: Sequence[str]
) -> Recipe:
    record = {**_plain(card.recipe), "task": name, "base": base, "init": None}
    record["data"] = _located(record.get("data", {}), old, folders)
    # As if the recipe stood here: where the data are is absolute by now.
    return recipe_from(record, Path(f"{old.ref} (card.json)"), overrides)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _located(data: Mapping[str, Any], old: Version, folders: Sequence[Path]) -> dict[str, Any]:
    """Return a recipe's `data` with the place of each file, in out_of_scope too."""
    found: dict[str, Any] = {}
    for split, name in data.items():
        if isinstance(name, Mapping):
            found[split] = _located(name, old, folders)
        elif name is None or str(name).startswith(_PREFIX):
            found[split] = name
        else:
            found[split] = str(_find(str(name), old, folders))
    return found


def _find(name: str, old: Version, folders: Sequence[Path]) -> Path:
    for folder in folders:
        for place in (folder / name, folder / Path(name).name):
            if place.is_file():
                return place.absolute()
    looked = ", ".join(map(str, folders))
    raise FileMissing(
        f"{old.ref} was made from {name!r}, which lies in none of: {looked}; say where its data are with --data FOLDER"
    )


def _check_rows(recipe: Recipe, card: Card, old: Version) -> None:
    """Raise DataError where the rows are not those that the version was made from."""
    for split, now in read_splits(recipe).to_record().items():
        was = card.data.get(split)
        if was is not None and was["sha256"] != now["sha256"]:
            raise DataError(
                f"the {split} rows of {old.ref} are not what they were ({was['rows']} then, {now['rows']} now in "
                f"{now['name']}); bring the old file back, or rebase on the rows of now with --changed-data"
            )


def _slug(base: str) -> str:
    """Return a base's name as part of a task's: its last part, in lower case."""
    last = re.split(r"[/\\]", base.partition("@")[0].rstrip("/"))[-1].lower()
    return re.sub(r"[^a-z0-9.-]+", "-", last).strip("-.") or "rebased"
