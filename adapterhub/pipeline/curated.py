"""The training rows that a recipe keeps: its section `curate`, and what of it the card records."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.base.source import Base, open_base
from adapterhub.data.example import Example
from adapterhub.data.prompt import input_text
from adapterhub.errors import ConfigError
from adapterhub.labeling.lineage import file_hash
from adapterhub.recipe import Recipe
from adapterhub.recipe.curate import Curate
from adapterhub.registry.provenance import split_record

if TYPE_CHECKING:
    import numpy as np

    from adapterhub.curation.prune import Plan

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Curated:
    """The rows that stay, in their order, and how they were chosen."""

    examples: Sequence[Example]
    curation: Mapping[str, Any]


def curate(recipe: Recipe, train: Sequence[Example], labels: Sequence[str], tell: Tell = lambda _: None) -> Curated:
    """Return what the section `curate` of a recipe leaves of its training rows; all of them where there is none.

    Rows are judged by heads on a base's features, or by gradients on the recipe's own base, as `adapterhub data prune`
    does. Raises UsageError and DataError as that does.
    """
    section = recipe.curate
    if section is None:
        return Curated(train, {})
    import numpy as np

    from adapterhub.base.feature_store import DEFAULT_BASE

    places = {label: place for place, label in enumerate(labels)}
    given = np.array([places.get(str(row.label), -1) for row in train], dtype=np.int64)
    if section.target is not None:
        base = open_base(recipe.base_name, progress=lambda step, *_: tell(step))
        rows = check_target(recipe)
        plan = _by_influence(recipe, section, base, train, rows, given, tell)
        target = {"target": split_record(section.target, rows)}
    else:
        base = open_base(DEFAULT_BASE if section.base is None else section.base, progress=lambda step, *_: tell(step))
        plan = _by_heads(recipe, section, base, train, given, len(labels), tell)
        target = {}
    kept = [row for row, stays in zip(train, plan.stays, strict=True) if stays]
    tell(f"{recipe.task}: {len(kept)} of {len(train)} rows kept by {plan.metric}")
    for line in plan.told():
        tell(f"{recipe.task}: {line}")
    record = {
        "keep": section.keep,
        "by": section.by,
        "metric": plan.metric,
        "floor": section.floor,
        "seed": section.seed,
        "base": base.name,
        "fingerprint": base.fingerprint,
        "kept": len(kept),
        "dropped": len(train) - len(kept),
        "trial": plan.accuracy(),
        "suspect": plan.noise,
        **target,
        "mask": hashlib.sha256("\n".join(sorted(row.id for row in kept)).encode()).hexdigest(),
    }
    return Curated(kept, record)


def check_target(recipe: Recipe) -> list[Example]:
    """Return the rows that training rows are chosen towards, none where there are none to be.

    Raises ConfigError where these are rows that are measured on, and what reading them raises.
    """
    from .influence import read_target

    section = recipe.curate
    if section is None or section.target is None:
        return []
    target = recipe.resolve(section.target)
    rows = read_target(target, recipe.kind)
    for split, source in recipe.data.splits():
        path = recipe.resolve(source)
        if split != "train" and path.is_file() and file_hash(path) == file_hash(target):
            raise ConfigError(
                f"{recipe.path}: curate.target has the rows of data.{split}, which are measured on: rows chosen to be "
                "like them would flatter the task; name other rows"
            )
    return rows


def _by_heads(
    recipe: Recipe,
    section: Curate,
    base: Base,
    train: Sequence[Example],
    labels: np.ndarray,
    classes: int,
    tell: Tell,
) -> Plan:
    from adapterhub.base.feature_store import stored_features
    from adapterhub.curation.prune import make_plan

    tell(f"{recipe.task}: {len(train)} rows through {base.name}, to keep {section.keep:.0%} of them")
    features = stored_features(base, (input_text(row, recipe.kind, recipe.prompt.template) for row in train))
    return make_plan(features, labels, classes, section.by, section.keep, floor=section.floor, seed=section.seed)


def _by_influence(
    recipe: Recipe,
    section: Curate,
    base: Base,
    train: Sequence[Example],
    target: Sequence[Example],
    labels: np.ndarray,
    tell: Tell,
) -> Plan:
    from adapterhub.curation.influence import plan_by_influence

    from .influence import influence_of

    tell(f"{recipe.task}: gradients of {len(train)} rows and {len(target)} of the target on {base.name}")
    values = influence_of(base, train, target, recipe.kind, recipe.prompt.template)
    return plan_by_influence(values, labels, section.keep, floor=section.floor)
