"""One round of the way back: feedback becomes training rows, the task is trained on, and promoted only if better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from adapterhub.data.example import Example
from adapterhub.data.feedback import Feedback
from adapterhub.data.files import read_examples
from adapterhub.errors import AdapterHubError, ConfigError, DataError, RefNotFound
from adapterhub.recipe import LABELLED, Recipe, recipe_from
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Version

from .bases import Bases
from .build import BuildResult, build_all
from .compare import Comparison, compare
from .feedback import HELD, Lessons, lessons, with_lessons, without
from .labelled import known_labels
from .splits import Splits

if TYPE_CHECKING:
    from adapterhub.training.job import Progress

# Kinds whose answers are right or wrong by themselves.
_KINDS = ("classification", "multilabel", "generation")


@dataclass(frozen=True)
class Improved:
    """What a round came to: `current` is the version there was, if any; `promoted` says whether the alias moved."""

    current: Version | None
    new: BuildResult
    lessons: Lessons
    comparison: Comparison | None
    promoted: bool
    why: str

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record."""
        return {
            "current": None if self.current is None else self.current.ref,
            "new": self.new.published.ref,
            "digest": self.new.published.digest,
            "promoted": self.promoted,
            "why": self.why,
            "feedback": {
                "learnt": len(self.lessons.learnt),
                "held": len(self.lessons.held),
                "skipped": list(self.lessons.skipped),
            },
            "comparison": None if self.comparison is None else self.comparison.to_record(),
        }


def improve(
    recipe: Recipe,
    feedback: Sequence[Feedback],
    registry: Registry,
    progress: Progress,
    *,
    alias: str = "prod",
    fresh: bool = False,
    share: float = HELD,
) -> Improved:
    """Train a task again with what feedback says, from the version that `alias` means; move the alias if it is better.

    Labels that the recipe makes are made again. Both versions answer the recipe's test rows and the feedback that was
    held out; the new one is promoted where it is right on more of them. `fresh` trains from nothing instead of from
    the current version. Raises ConfigError for a kind whose answers are not right or wrong, DataError where there is
    nothing to measure on, Conflict where the alias moved meanwhile, and what training raises.
    """
    if recipe.kind not in _KINDS:
        raise ConfigError(f"{recipe.path}: kind is {recipe.kind!r}; only {', '.join(_KINDS)} can be improved so")
    current = _current(registry, recipe.task, alias)
    found = lessons(feedback, recipe.task, recipe.kind, _labels(recipe, current), share)
    progress.stage(
        f"{recipe.task}: {len(found.learnt)} rows of feedback to learn from, {len(found.held)} to measure on"
        f"{f', {len(found.skipped)} skipped' if found.skipped else ''}"
    )
    record = {**recipe.to_record(), **({} if current is None or fresh else {"init": current.ref})}

    def taught(splits: Splits) -> Splits:
        nonlocal found
        found = _without_measured(found, [*splits.validation, *splits.test], recipe)
        rows = with_lessons(without(splits.train, found.held, recipe.kind), found.learnt, recipe.kind)
        return replace(splits, train=rows)

    (outcome,) = build_all([recipe_from(record, recipe.path)], registry, progress, teach=taught)
    if isinstance(outcome, AdapterHubError):
        raise outcome
    if current is None:
        registry.alias(recipe.task, alias, outcome.published.ref, why="improve: the first version", expected=[None])
        return Improved(None, outcome, found, None, promoted=True, why="there was no version before")
    return _judge(recipe, registry, progress, current, outcome, found, alias)


def _judge(
    recipe: Recipe,
    registry: Registry,
    progress: Progress,
    current: Version,
    outcome: BuildResult,
    found: Lessons,
    alias: str,
) -> Improved:
    new = outcome.published
    if new.digest == current.digest:
        return Improved(current, outcome, found, None, promoted=False, why="training changed nothing")
    kept = _test_rows(recipe, current)
    rows = [*kept, *without(found.held, kept, recipe.kind)]
    if not rows:
        raise DataError(
            f"{recipe.path}: there are neither test rows nor held-out feedback to compare on, so {new.ref} was not "
            "promoted; name data.test"
        )
    progress.stage(f"{recipe.task}: comparing {current.ref} and {new.ref} on {len(rows)} rows")
    comparison = compare(current.ref, new.ref, rows, registry, bases=Bases([recipe.base_name]))
    test = comparison.mcnemar
    told = f"right on {test.gained} rows that {current.ref} was not, wrong on {test.lost} that it was, of {len(rows)}"
    told += f" (p = {test.p:.3f}, McNemar)"
    if test.gained <= test.lost:
        return Improved(current, outcome, found, comparison, promoted=False, why=f"not better: {told}")
    expected = [current.version if alias in current.aliases else None]
    registry.alias(recipe.task, alias, new.ref, why=f"improve: {told}", expected=expected)
    return Improved(current, outcome, found, comparison, promoted=True, why=told)


def _without_measured(found: Lessons, measured: Sequence[Example], recipe: Recipe) -> Lessons:
    """Return lessons without those that ask what validation or test rows ask: learnt, they would flatter themselves."""
    learnt = without(found.learnt, measured, recipe.kind)
    if (gone := len(found.learnt) - len(learnt)) == 0:
        return found
    told = f"{gone} rows ask what validation or test rows ask, and are not learnt from"
    return replace(found, learnt=learnt, skipped=[*found.skipped, told])


def _labels(recipe: Recipe, current: Version | None) -> tuple[str, ...] | None:
    """Return the labels that feedback may name: the recipe's, else the current version's; None for no matter which."""
    if recipe.kind not in LABELLED:
        return None
    known = known_labels(recipe)
    return known if known is not None or current is None else current.spec().labels


def _current(registry: Registry, task: str, alias: str) -> Version | None:
    """Return the version that answers now: the alias's, else the latest; None where there is none."""
    try:
        versions = registry.versions(task)
    except RefNotFound:
        return None
    named = next((each for each in versions if alias in each.aliases), None)
    return named or (versions[-1] if versions else None)


def _test_rows(recipe: Recipe, current: Version) -> list[Example]:
    if recipe.data.test is None:
        return []
    labels = current.spec().labels or None
    return list(read_examples(recipe.resolve(recipe.data.test), recipe.kind, labels=labels))
