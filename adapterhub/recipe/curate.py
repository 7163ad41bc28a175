"""The section that says which training rows are worth learning from."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .section import Section
from .values import NonEmpty


class Curate(Section):
    """Which share of the training rows is learnt from, by what, judged by heads on the features of `base`.

    `floor` is the least a class keeps, as a part of what a random share would leave it: 1, but nothing where rows are
    kept by their influence towards the rows of `target`, a file.
    """

    keep: Annotated[float, Field(gt=0, le=1)]
    by: Literal["auto", "random", "easy", "hard", "margin", "loss", "forgetting", "prototype", "influence"] = "auto"
    target: NonEmpty | None = None
    floor: Annotated[float, Field(ge=0, le=1)]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    base: NonEmpty | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        keep = given.get("keep")
        if isinstance(keep, str) and keep.endswith("%"):  # as the command line takes it
            with suppress(ValueError):
                given = {**given, "keep": float(keep[:-1]) / 100}
        if given.get("floor") is None:
            return {**given, "floor": 0.0 if given.get("by") == "influence" else 1.0}
        return given

    @model_validator(mode="after")
    def _target_fits(self) -> Curate:
        if self.by == "influence" and self.target is None:
            raise ValueError("by is 'influence', but no target is named; name a file of rows to be good at")
        if self.by != "influence" and self.target is not None:
            raise ValueError(f"target is {self.target!r}, but by is {self.by!r}; only 'influence' has a target")
        return self
