"""The settings a sweep may try: keys of a recipe with lists of values or ranges, as people write them."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapterhub.errors import ConfigError, UsageError
from adapterhub.recipe import parse_yaml

Settings = dict[str, Any]
_RANGE = re.compile(r"(?P<low>[-+.\deE]+)\.\.(?P<high>[-+.\deE]+)(?::(?P<scale>log|int|int-log))?")
# What a sweep may not change: other data or another task would be no comparison.
_FIXED = ("task", "base", "kind", "data", "labels", "curate", "path")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, whole ones or not, drawn evenly or on a logarithmic scale."""

    low: float
    high: float
    log: bool
    whole: bool


@dataclass(frozen=True)
class Space:
    """For each key of a recipe its values, or a range of them."""

    choices: Mapping[str, Sequence[Any]]
    ranges: Mapping[str, Range]

    @classmethod
    def parse(cls, grid: Sequence[str], search: Sequence[str]) -> Space:
        """Read `lora.rank=4,8,16` and `training.learning_rate=1e-4..3e-3:log`. Raises UsageError."""
        choices: dict[str, Sequence[Any]] = {}
        ranges: dict[str, Range] = {}
        for option, texts in (("--grid", grid), ("--search", search)):
            for text in texts:
                key, _, values = text.partition("=")
                if not key or not values:
                    raise UsageError(f"{option} {text}: expected KEY=VALUES, such as lora.rank=4,8,16")
                if key.split(".")[0] in _FIXED:
                    raise UsageError(f"{option} {text}: {key} cannot differ within a sweep; only settings can")
                if key in choices or key in ranges:
                    raise UsageError(f"{option} {text}: {key} is given twice")
                found = _RANGE.fullmatch(values)
                if found is None:
                    choices[key] = _values(option, text, values)
                elif option == "--grid":
                    raise UsageError(f"{option} {text}: a grid has values, not a range; use --search for ranges")
                else:
                    ranges[key] = _range(option, text, found)
        if not choices and not ranges:
            raise UsageError("a sweep needs something to vary: --grid lora.rank=4,8,16, or --search with a range")
        return cls(choices, ranges)

    @property
    def size(self) -> int | None:
        """How many settings there are, None for endlessly many."""
        return None if self.ranges else math.prod(len(values) for values in self.choices.values())

    def places(self) -> list[dict[str, int]]:
        """Return all settings of a grid, each by the places of its values: what `draw` is told with."""
        spans = [range(len(values)) for values in self.choices.values()]
        return [dict(zip(self.choices, places, strict=True)) for places in itertools.product(*spans)]

    def draw(self, trial: Any) -> Settings:
        """Return the settings that an Optuna trial stands for."""
        found: Settings = {}
        for key, values in self.choices.items():
            # By place, since a value may be a list, which Optuna does not take.
            found[key] = values[trial.suggest_categorical(key, list(range(len(values))))]
        for key, each in self.ranges.items():
            if each.whole:
                found[key] = trial.suggest_int(key, int(each.low), int(each.high), log=each.log)
            else:
                # Few digits, so that what is printed is what was tried.
                found[key] = float(f"{trial.suggest_float(key, each.low, each.high, log=each.log):.3g}")
        return found


def _values(option: str, text: str, values: str) -> Sequence[Any]:
    # As in a recipe: a list is what YAML makes of it, and [q_proj, v_proj] may be one of the values.
    try:
        found: list[Any] = parse_yaml(f"[{values}]", f"{option} {text}")
    except ConfigError as error:
        raise UsageError(str(error)) from error
    if len(found) != len({repr(value) for value in found}):
        raise UsageError(f"{option} {text}: a value is given twice")
    return found


def _range(option: str, text: str, found: re.Match[str]) -> Range:
    try:
        low, high = float(found["low"]), float(found["high"])
    except ValueError as error:
        raise UsageError(f"{option} {text}: expected numbers, such as 1e-4..3e-3:log") from error
    scale = found["scale"] or ""
    if not low < high or ("log" in scale and low <= 0):
        raise UsageError(f"{option} {text}: expected a range that rises{', above zero,' if 'log' in scale else ''}")
    return Range(low, high, "log" in scale, "int" in scale)
