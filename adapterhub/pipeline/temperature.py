"""The temperature of a head: the one number that makes its probabilities say how often it is right."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.data.task import LEAST_TEMPERATURE, MOST_TEMPERATURE, Kind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Table = NDArray[np.float64]

# With fewer rows a single one that is answered otherwise would move the temperature by half of itself.
LEAST_ROWS = 10
# Answers differ in the seventh digit with the batch a row shares; equal trainings shall give equal temperatures.
_DIGITS = 3
_HALVINGS = 50


@dataclass(frozen=True)
class Fit:
    """A temperature, and in words where it comes from."""

    temperature: float
    reason: str


def fit_temperature(logits: Table, targets: Table, weights: Table, kind: Kind) -> Fit:
    """Return the temperature with the least negative log-likelihood, or 1 and why none could be fitted.

    `logits` and `targets` are [rows, labels], targets from 0 to 1 (soft labels), `weights` [rows]. The likelihood is a
    convex function of 1 / temperature, so where its slope changes sign is its only minimum, found by bisection. Guo et
    al., "On calibration of modern neural networks", ICML 2017; for multilabel with a sigmoid for each label.
    """
    rows = len(logits)
    if rows < LEAST_ROWS:
        said = f"{rows} validation row{'' if rows == 1 else 's'}" if rows else "no validation rows"
        return Fit(1.0, f"not fitted: {said}, and it takes {LEAST_ROWS}")
    low, high = 1 / MOST_TEMPERATURE, 1 / LEAST_TEMPERATURE
    if slope(logits, targets, weights, kind, high) <= 0:
        if separates(logits, targets, kind):
            why = f"all {rows} validation rows are answered rightly, and then every lower temperature fits better"
        else:
            why = f"the best on {rows} validation rows lies below {LEAST_TEMPERATURE}"
        return Fit(1.0, f"not fitted: {why}")
    if slope(logits, targets, weights, kind, low) >= 0:
        return Fit(1.0, f"not fitted: on {rows} validation rows the probabilities say nothing about what is right")
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        if slope(logits, targets, weights, kind, middle) < 0:
            low = middle
        else:
            high = middle
    temperature = float(f"{1 / math.sqrt(low * high):.{_DIGITS}g}")
    before, after = (loss(logits, targets, weights, kind, each) for each in (1.0, temperature))
    return Fit(
        temperature, f"fitted on {rows} validation rows: negative log-likelihood {before:.4f} before, {after:.4f} after"
    )


def loss(logits: Table, targets: Table, weights: Table, kind: Kind, temperature: float) -> float:
    """Return the mean negative log-likelihood in nats a row (summed over labels for multilabel), weighted."""
    import numpy as np

    scaled = logits / temperature
    if kind == "multilabel":
        each = (np.logaddexp(0, scaled) - targets * scaled).sum(1)
    else:
        each = (targets * (_log_sum(scaled)[:, None] - scaled)).sum(1)
    return float(weights @ each / weights.sum())


def slope(logits: Table, targets: Table, weights: Table, kind: Kind, inverse: float) -> float:
    """Return the derivative of `loss` by the inverse temperature: what is expected less what is so, times logits."""
    each = (expected(logits, targets, kind, inverse) * logits).sum(1) - (targets * logits).sum(1)
    return float(weights @ each / weights.sum())


def expected(logits: Table, targets: Table, kind: Kind, inverse: float) -> Table:
    """Return the probabilities [rows, labels] at an inverse temperature, those of a row adding up to its targets."""
    import numpy as np

    scaled = logits * inverse
    one = kind == "multilabel"
    probabilities: Table = np.exp(-np.logaddexp(0, -scaled) if one else scaled - _log_sum(scaled)[:, None])
    return probabilities if one else probabilities * targets.sum(1, keepdims=True)


def separates(logits: Table, targets: Table, kind: Kind) -> bool:
    """Say whether every row's certain answer is the one with the highest logit, or on its side of zero."""
    import numpy as np

    if not np.isin(targets, (0.0, 1.0)).all():
        return False
    if kind == "multilabel":
        return bool(((logits > 0) == (targets > 0)).all())
    return bool((logits.argmax(1) == targets.argmax(1)).all())


def confidences(logits: Table, temperature: float) -> Table:
    """Return the probability of each row's likeliest label [rows], as exactly as answers are given: to a float32."""
    import numpy as np

    scaled = logits / temperature
    highest: Table = np.exp(scaled.max(1) - _log_sum(scaled)).astype(np.float32).astype(np.float64)
    return highest


def _log_sum(scaled: Table) -> Table:
    """[rows]: the logarithm of the sum of exponentials of [rows, labels]."""
    import numpy as np

    highest: Table = scaled.max(1)
    sums: Table = np.log(np.exp(scaled - highest[:, None]).sum(1))
    return highest + sums
