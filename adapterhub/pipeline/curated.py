"""The training rows that a recipe keeps: its section `curate`, and what of it the card records."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapterhub.base.source import open_base
from adapterhub.data.example import Example
from adapterhub.data.prompt import input_text
from adapterhub.recipe import Recipe

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Curated:
    """The rows that stay, in their order, and how they were chosen."""

    examples: Sequence[Example]
    curation: Mapping[str, Any]


def curate(recipe: Recipe, train: Sequence[Example], labels: Sequence[str], tell: Tell = lambda _: None) -> Curated:
    """Return what the section `curate` of a recipe leaves of its training rows; all of them where there is none.

    Rows are judged by heads on a base's features, as `adapterhub data prune` does. Raises UsageError and DataError as
    that does.
    """
    section = recipe.curate
    if section is None:
        return Curated(train, {})
    import numpy as np

    from adapterhub.base.feature_store import DEFAULT_BASE, stored_features
    from adapterhub.curation.prune import make_plan

    base = open_base(DEFAULT_BASE if section.base is None else section.base, progress=lambda step, *_: tell(step))
    tell(f"{recipe.task}: {len(train)} rows through {base.name}, to keep {section.keep:.0%} of them")
    features = stored_features(base, (input_text(row, recipe.kind, recipe.prompt.template) for row in train))
    places = {label: place for place, label in enumerate(labels)}
    given = np.array([places[str(row.label)] for row in train], dtype=np.int64)
    plan = make_plan(features, given, len(labels), section.by, section.keep, floor=section.floor, seed=section.seed)
    kept = [row for row, stays in zip(train, plan.stays, strict=True) if stays]
    tell(f"{recipe.task}: {len(kept)} of {len(train)} rows kept by {plan.metric}")
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
        "mask": hashlib.sha256("\n".join(sorted(row.id for row in kept)).encode()).hexdigest(),
    }
    return Curated(kept, record)
