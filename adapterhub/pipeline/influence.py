"""How much each row would teach a model of what a target's rows ask: the gradients of both, compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.base.record import Base
from adapterhub.data.example import Example
from adapterhub.data.files import read_examples
from adapterhub.data.prompt import input_text
from adapterhub.errors import UsageError
from adapterhub.recipe import Kind

if TYPE_CHECKING:
    import numpy as np

    from adapterhub.base.vector_store import Report

# The decoder that rows are compared by unless one is named; in a recipe, the recipe's own base.
DEFAULT_DECODER = "smollm2-135m-instruct"
KINDS = ("classification", "multilabel", "generation")


def read_target(path: Path, kind: Kind) -> list[Example]:
    """Return the rows of a target. Raises UsageError for a kind whose rows have no written answer, and as reading."""
    if kind not in KINDS:
        raise UsageError(f"influence is told of answers, which {kind} rows have not; it takes {', '.join(KINDS)}")
    return list(read_examples(path, kind, labelled=False))


def influence_of(
    base: Base,
    pool: Iterable[Example],
    target: Iterable[Example],
    kind: Kind,
    template: str | None = None,
    progress: Report | None = None,
) -> np.ndarray:
    """Return float32 [pool]: the influence of each row towards the target, NaN where a row has no answer.

    Rows stream; their gradients are computed once and kept. `template` says what the base reads of a row. Raises
    DataError for a target without answers, UsageError for a base that is no decoder of the Llama family.
    """
    import numpy as np

    from adapterhub.curation.influence import influence
    from adapterhub.training.gradient_store import stored_gradients

    known: list[int] = []
    total = 0

    def answered() -> Iterator[tuple[str, str]]:
        nonlocal total
        for place, row in enumerate(pool):
            total = place + 1
            if (answer := answer_of(row, kind)) is not None:
                known.append(place)
                yield _asked(row, kind, template), answer

    wanted = [(row, answer) for row in target if (answer := answer_of(row, kind)) is not None]
    towards = stored_gradients(base, ((_asked(row, kind, template), answer) for row, answer in wanted))
    gradients = stored_gradients(base, answered(), progress=progress)
    groups = None if kind == "generation" else [answer for _, answer in wanted]
    found = np.full(total, np.nan, np.float32)
    found[known] = influence(gradients, towards, groups)
    return found


def answer_of(row: Example, kind: Kind) -> str | None:
    """Return a row's answer as text, the likeliest of `probs` where there is no gold one; None where there is none."""
    if kind == "generation":
        return row.completion
    if kind == "multilabel":
        return None if row.labels is None else ", ".join(row.labels) or "none"
    if row.label is None and row.probs:
        return max(sorted(row.probs), key=row.probs.__getitem__)
    return row.label


def _asked(row: Example, kind: Kind, template: str | None) -> str:
    turns = row.prompt_messages if kind == "generation" else None
    return input_text(row, kind, template) if turns is None else "\n".join(turn["content"] for turn in turns)
