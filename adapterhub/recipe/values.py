"""The values that keys of a recipe may have, beyond their types."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

# What is trained. A preference recipe makes a generation task (`data.task.task_kind`); the others make their own kind.
Kind = Literal["classification", "multilabel", "generation", "preference", "embedding"]
LABELLED: frozenset[Kind] = frozenset({"classification", "multilabel"})
TASK_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
DATASET_PREFIX = "hf:"
MAX_RANK = 1024
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.05, 20.0  # as task.json may hold them

# In a prompt template: an escaped brace, a field, or a brace that is neither.
TEMPLATE_PART = re.compile(r"\{\{|\}\}|\{(?P<name>[A-Za-z_][A-Za-z0-9_-]*)\}|(?P<stray>[{}])")


def check_template(template: str) -> str:
    """Return `template` if its braces are fields (`{text}`) or doubled; raises ValueError otherwise."""
    for part in TEMPLATE_PART.finditer(template):
        if part["stray"]:
            around = template[part.start() : part.start() + 20]
            raise ValueError(f"{around!r} is not a field name in braces; write {{{{ and }}}} for braces that stay")
    return template


def check_task(name: str) -> str:
    """Return a task name that may stand in paths and refs; raises ValueError otherwise, as all of these do."""
    if not TASK_NAME.fullmatch(name):
        raise ValueError(
            "must be 1 to 64 lower-case letters, digits, '.', '_' or '-', and begin with a letter or digit"
        )
    return name


def check_unique(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return names of which none is empty or given twice."""
    for index, name in enumerate(names):
        if not name.strip():
            raise ValueError(f"entry {index + 1} is empty; names are not")
        if name in names[:index]:
            raise ValueError(f"{name!r} is given twice")
    return names


def check_targets(value: Any) -> Any:
    """Return "all-linear" or a tuple of module names."""
    if value == "all-linear" or (isinstance(value, list) and value and all(isinstance(item, str) for item in value)):
        return tuple(value) if isinstance(value, list) else value
    raise ValueError("must be 'all-linear' or a list of module names such as [q_proj, v_proj]")


def check_temperature(value: Any) -> Any:
    """Return auto, none or a temperature."""
    if value in ("auto", "none") or (_is_number(value) and LEAST_TEMPERATURE <= value <= MOST_TEMPERATURE):
        return float(value) if _is_number(value) else value
    raise ValueError(f"must be auto, none, or a number from {LEAST_TEMPERATURE} to {MOST_TEMPERATURE}")


def check_reject_below(value: Any) -> Any:
    """Return auto, none or a probability."""
    if value in ("auto", "none") or (_is_number(value) and 0 < value < 1):
        return value
    raise ValueError("must be auto, none, or a probability above 0 and below 1")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_layers(value: Any) -> Any:
    """Return "all", "top-N" or a sorted tuple of layer numbers."""
    if value == "all" or (isinstance(value, str) and re.fullmatch(r"top-[1-9][0-9]{0,3}", value)):
        return value
    if isinstance(value, list) and value and all(type(item) is int and item >= 0 for item in value):
        if len(set(value)) == len(value):
            return tuple(sorted(value))
        raise ValueError("names a layer twice")
    raise ValueError("must be 'all', 'top-N' such as top-8, or a list of layer numbers from 0 such as [6, 7]")


def read_class_weights(value: Any) -> Any:
    """Return "balanced", or weights by label; None for none."""
    if value is None or value in ("none", "balanced"):
        return None if value == "none" else value
    if not isinstance(value, dict) or not value:
        raise ValueError("must be 'balanced', or weights by label such as {spam: 3, ham: 1}")
    for label, weight in value.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError(f"gives {label!r} the weight {weight!r}; expected a number above 0")
    return {label: float(weight) for label, weight in value.items()}


def check_balance(shares: Mapping[str, float] | None) -> Mapping[str, float] | None:
    """Return how common labels are, which together are all there is."""
    if shares is not None and not math.isclose(total := sum(shares.values()), 1.0, abs_tol=0.01):
        raise ValueError(f"the shares add up to {total:g}; they are of all rows, so make them add up to 1")
    return shares


def check_balance_names(shares: Mapping[str, float] | None, labels: Sequence[str] | None) -> None:
    """Raise ValueError where the balance and the labels' names are not about the same labels."""
    if shares is None or labels is None:
        return
    for label in [*shares, *labels]:
        if label not in labels or label not in shares:
            place = "labels.balance" if label in labels else "labels.names"
            raise ValueError(f"{place} lacks {label!r}, which the other has; name the same labels in both")


def check_pattern(ranks: Mapping[str, int]) -> Mapping[str, int]:
    """Return ranks by module names, or the ends of such."""
    for name in ranks:
        if not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", name):
            raise ValueError(f"{name!r} is no module name or end of one, such as down_proj or layers.0.mlp.down_proj")
    return ranks


Names = Annotated[tuple[str, ...], Field(strict=False), AfterValidator(check_unique)]
NonEmpty = Annotated[str, Field(min_length=1)]
