"""What trainings will take, from a few steps of each; nothing is trained or published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.errors import AdapterHubError
from adapterhub.recipe import Recipe
from adapterhub.registry.store import Registry

from .prepare import prepare

if TYPE_CHECKING:
    from adapterhub.training.job import Progress
    from adapterhub.training.probe import Probe


@dataclass(frozen=True)
class Probed:
    """A task, and what its training will take when it trains alone."""

    task: str
    probe: Probe

    def to_record(self) -> dict[str, Any]:
        """Return what scripts read; the keys are pinned."""
        return {"task": self.task, **asdict(self.probe)}


def probe_all(recipes: Sequence[Recipe], registry: Registry, progress: Progress) -> list[Probed | AdapterHubError]:
    """Return for each recipe what its training will take, or what is wrong with it."""
    found: list[Probed | AdapterHubError] = []
    for recipe in recipes:
        try:
            found.append(_probed(recipe, registry, progress))
        except AdapterHubError as error:
            found.append(error)
    return found


def _probed(recipe: Recipe, registry: Registry, progress: Progress) -> Probed:
    from adapterhub.training.train import Trainer

    prepared = prepare(recipe, registry, progress)
    trainer = Trainer(prepared.base, recipe.training.precision)
    progress.stage(f"{recipe.task}: a few steps")
    try:
        return Probed(recipe.task, trainer.probe(prepared.job(), progress))
    finally:
        trainer.close()
