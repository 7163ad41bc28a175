"""Tasks moved to another base: trained anew from what their cards record, and compared with what there was."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    bases: Bases | None = None,
    suffix: str | None = None,
    overrides: Sequence[str] = (),
    changed_data: bool = False,
) -> list[Move]:
    """Return what rebasing would do; what is wrong with refs, names, data or bases is found here, not after training.

    Data are looked for in `folders`, under the path that the recipe had and under their bare name, and must have the
    rows that the card recorded unless `changed_data`. The new task is called TASK-SUFFIX, by default after the base.
    Raises UsageError, FileMissing, DataError, BaseMismatch where the new task is bound to a third base, and what
    reading recipes and bases raises.
    """
    fingerprint, bases = open_base(base).fingerprint, Bases() if bases is None else bases
    if wrong := [each for each in overrides if each.partition("=")[0].strip() in ("task", "base", "init")]:
        raise UsageError(f"--set {wrong[0]}: the task, the base and where it begins are the rebase's own; leave it out")
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
        if isinstance(card.recipe.get("labels"), Mapping):
            # Its voters may be code, and a card may be a stranger's: only a recipe file of one's own runs any.
            raise UsageError(
                f"the labels of {old.ref} were made by voters, which only its recipe may ask again; train that with "
                f"--set base={base} --set task={old.task}-{suffix or _slug(base)}"
            )
        bases.of(old)  # it answers the same rows in the end
        name = check_task_name(f"{old.task}-{suffix or _slug(base)}")
        registry.check_base(name, fingerprint)
        _check_held_out(card, old, overrides, changed_data=changed_data)
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
    for move in moves:
        if move.card.recipe.get("init"):
            progress.stage(
                f"{move.recipe.task}: {move.old.ref} began at {move.card.recipe['init']}; this one begins anew"
            )
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
        was, now = (each.data.get(built.measured_on, {}) for each in (move.card, new.card()))
        same = was.get("sha256") == now.get("sha256")
        metrics = move.card.metrics if same else {}
        before = {name: Metric(each["value"], each["low"], each["high"]) for name, each in metrics.items()}
        return Rebased(old, built, (before, built.metrics), None)
    examples = read_splits(move.recipe).measured[1]
    progress.stage(f"{old.ref} and {new.ref}: answering the same {len(examples)} rows")
    comparison = compare(old.ref, new.ref, examples, registry, bases=bases, watch=watch)
    return Rebased(old, built, comparison.metrics, comparison)


def _recipe(
    card: Card, old: Version, name: str, base: str, folders: Sequence[Path], overrides: Sequence[str]
) -> Recipe:
    """Return the card's recipe for another base, as if it lay where its data are found."""
    record = {**_plain(card.recipe), "task": name, "base": base, "init": None}
    training, lora, data = (_section(record, key, old) for key in ("training", "lora", "data"))
    if training.get("batch_tokens") is not None:
        training.pop("batch_size", None)
    if lora.get("alpha") == 2 * lora.get("rank", 0):
        lora.pop("alpha")  # the default, which follows the rank
    names = [str(each) for each in _names(data) if not str(each).startswith(_PREFIX)]
    home = next((folder for folder in folders if all((folder / each).is_file() for each in names)), None)
    if home is None:
        home, found = Path(), {each: str(_find(each, old, folders)) for each in names}
        if len(set(found.values())) < len(set(names)):
            raise FileMissing(
                f"two of the files that {old.ref} was made from ({', '.join(names)}) are found as one; say where its "
                "data are with --data FOLDER, so that each lies under the path it had"
            )
        data = _replaced(data, found)
    return recipe_from({**record, "training": training, "lora": lora, "data": data}, home / "rebase", overrides)


def _section(record: Mapping[str, Any], key: str, old: Version) -> dict[str, Any]:
    """Return a section of a card's recipe; raises UsageError where a stranger's card has something else there."""
    section = record.get(key) or {}
    if not isinstance(section, dict):
        raise UsageError(f"the recipe on the card of {old.ref} has {key} {section!r:.80}; write a recipe")
    return section


def _check_held_out(card: Card, old: Version, overrides: Sequence[str], *, changed_data: bool) -> None:
    """Raise UsageError where other rows would be held out to judge by than were: the old version learnt from them."""
    data = card.recipe.get("data")
    if not isinstance(data, Mapping) or data.get("validation") is not None or data.get("test") is not None:
        return
    touched = [each for each in overrides if each.partition("=")[0].strip() in ("training.seed", "prompt.template")]
    if changed_data or touched:
        raise UsageError(
            f"{old.ref} held its validation rows out of train, and {touched[0] if touched else '--changed-data'} would "
            "hold out others, which it learnt from; name rows that it did not see, with --set data.test=FILE"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _names(data: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what a recipe's `data` names, out_of_scope too."""
    for name in data.values():
        if isinstance(name, Mapping):
            yield from _names(name)
        elif name is not None:
            yield name


def _replaced(data: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
    return {
        split: _replaced(name, places) if isinstance(name, Mapping) else places.get(name, name)
        for split, name in data.items()
    }


def _find(name: str, old: Version, folders: Sequence[Path]) -> Path:
    """Return where a file lies: under the path it had in any folder, else under its bare name in just one."""
    for folder in folders:
        if (folder / name).is_file():
            return (folder / name).absolute()
    bare = {(folder / Path(name).name).absolute() for folder in folders if (folder / Path(name).name).is_file()}
    if len(bare) == 1:
        return bare.pop()
    looked, where = ", ".join(map(str, folders)), f"in {len(bare)} of" if bare else "in none of"
    raise FileMissing(
        f"{old.ref} was made from {name!r}, which lies {where}: {looked}; say where its data are with --data FOLDER"
    )


def _check_rows(recipe: Recipe, card: Card, old: Version) -> None:
    """Raise DataError where the rows are not those that the version was made from."""
    for split, now in read_splits(recipe).to_record().items():
        was = card.data.get(split)
        if was is not None and was.get("sha256") != now["sha256"]:
            raise DataError(
                f"the {split} rows of {old.ref} are not what they were ({was.get('rows', '?')} then, {now['rows']} now "
                f"in {now['name']}); bring the old file back, or rebase on the rows of now with --changed-data"
            )


def _slug(base: str) -> str:
    """Return a base's name as part of a task's: its last part, in lower case."""
    last = re.split(r"[/\\]", base.partition("@")[0].rstrip("/"))[-1].lower()
    return re.sub(r"[^a-z0-9.-]+", "-", last).strip("-.") or "rebased"
