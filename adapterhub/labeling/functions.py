"""Labelling functions: what a plain Python file of rules is made of. Nothing heavy is imported here.

from adapterhub.labeling import ABSTAIN, labeling_function

@labeling_function
def shouts(example):
    return "angry" if example.text.isupper() else ABSTAIN
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, overload

from adapterhub.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from adapterhub.data.example import Example


class Abstain:
    """The type of ABSTAIN, of which there is one."""

    _one: Abstain | None = None

    def __new__(cls) -> Abstain:
        """Return the one there is."""
        if cls._one is None:
            cls._one = super().__new__(cls)
        return cls._one

    def __repr__(self) -> str:
        return "ABSTAIN"

    def __bool__(self) -> bool:
        return False

    def __reduce__(self) -> str:
        return "ABSTAIN"  # unpickled by name, so `is ABSTAIN` holds in other processes too


ABSTAIN: Final = Abstain()
Vote = str | Abstain


class Models(Protocol):
    """What a function may ask of models; the floors above hand in the implementation."""

    def identity(self, kind: str, name: str) -> str:
        """Return what a version ("ref") or base ("base") of that name truly is: a digest or fingerprint."""

    def predict(self, ref: str, texts: Sequence[str]) -> Sequence[tuple[str, float]]:
        """Return for each text the likeliest label of a version, and its probability."""

    def features(self, base: str, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [texts, dim], the features of a base."""


@dataclass(frozen=True, eq=False)
class LabelingFunction:
    """A named function from an example to a label or ABSTAIN. Called, it answers as the function that it wraps.

    `name` None stands until the file is loaded: then it is the name of the variable.
    """

    name: str | None
    function: Callable[[Example], Any]

    def __call__(self, example: Example) -> Any:
        """Return what the function says, unchecked."""
        return self.function(example)


@dataclass(frozen=True, eq=False)
class ModelFunction:
    """A function that asks a model about all texts at once: `ask` gives a vote for each.

    `kind` says what `model` names: a version ("ref") or a base ("base").
    """

    name: str | None
    kind: Literal["ref", "base"]
    model: str
    ask: Callable[[Models, Sequence[str]], Sequence[Vote]]


AnyFunction = LabelingFunction | ModelFunction


@overload
def labeling_function(function: Callable[[Example], Any]) -> LabelingFunction: ...


@overload
def labeling_function(*, name: str | None = None) -> Callable[[Callable[[Example], Any]], LabelingFunction]: ...


def labeling_function(function: Callable[[Example], Any] | None = None, *, name: str | None = None) -> Any:
    """Make a labelling function of a function of an example: `@labeling_function`, or with `(name="…")`.

    Without a name it has that of the function. The example has `text`, `fields` and what else the row says, but
    neither its id nor its place: those may not matter. It returns a label name or ABSTAIN; anything else, None too, is
    counted as an error. Its votes are kept, so it must give the same answer to the same example.
    """

    def wrap(given: Callable[[Example], Any]) -> LabelingFunction:
        if not callable(given):
            raise UsageError(f"@labeling_function stands on {given!r}; it stands on a function of an example")
        own = getattr(given, "__name__", "<lambda>")  # an object that can be called has none
        return LabelingFunction(name or (None if own == "<lambda>" else own), given)

    return wrap if function is None else wrap(function)
