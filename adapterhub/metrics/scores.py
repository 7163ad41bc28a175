"""How good answers are: accuracy, F1, exact match, ranks, calibration and telling in from out, each with an interval.

Intervals are of 95%. Accuracy, recall and exact match are proportions and get the score interval of Wilson, "Probable
inference, the law of succession, and statistical inference", JASA 22 (1927). F1, calibration error, AUROC and a mean of
reciprocal ranks are no proportions, so they get the percentile bootstrap of Efron, "Bootstrap methods: another look at
the jackknife", Annals of Statistics 7 (1979): rows drawn with replacement 1,000 times from a fixed seed, so that equal
inputs give equal intervals. The calibration error of a resample is on average larger than that of the rows it was drawn
from: its interval lies high.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Kind = Literal["classification", "multilabel", "generation"]
RESAMPLES = 1000
BINS = 15
_SEED = 20_260_101
_Z95 = 1.959963984540054  # the 97.5% quantile of the normal distribution
_CHUNK_CELLS = 4_000_000  # bounds the memory of one block of resamples


@dataclass(frozen=True)
class Metric:
    """A value from 0 to 1 with its 95% interval, which always contains it."""

    value: float
    low: float
    high: float

    def to_record(self) -> dict[str, float]:
        """Return value, low and high, ready for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


def evaluate(
    kind: Kind, gold: Sequence[Any], predicted: Sequence[Any], labels: Sequence[str] = ()
) -> dict[str, Metric]:
    """Return the metrics of a kind of task.

    `gold` and `predicted` hold labels for classification (accuracy, macro_f1; a prediction may be None, no label),
    collections of labels for multilabel (micro_f1, macro_f1), completions for generation (exact_match, and field_f1
    where every gold one is a JSON object).
    """
    if kind == "classification":
        return {"accuracy": accuracy(gold, predicted), "macro_f1": macro_f1(gold, predicted, labels)}
    if kind == "multilabel":
        return multilabel_f1(gold, predicted, labels)
    metrics = {"exact_match": exact_match(gold, predicted)}
    if all(isinstance(_parsed(text), dict) for text in gold):
        metrics["field_f1"] = field_f1(gold, predicted)
    return metrics


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Return Spearman's rank correlation of two values of the same things; equal values share the mean of their ranks.

    It is 0 where one side is all alike. Raises ValueError where the numbers of values differ.
    """
    a, b = (_mean_ranks(values) for values in (one, other))
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values cannot be ranked beside {len(b)}")
    if len(set(a)) < 2 or len(set(b)) < 2:
        return 0.0
    import numpy as np

    return float(np.corrcoef(a, b)[0, 1])


def share(successes: int, rows: int, z: float = _Z95) -> Metric:
    """Return a share of rows with Wilson's score interval, of 95% unless `z` is another normal quantile."""
    value = successes / rows
    center = value + z**2 / (2 * rows)
    spread = z * math.sqrt(value * (1 - value) / rows + z**2 / (4 * rows**2))
    scale = 1 + z**2 / rows
    return Metric(
        value, min(value, max(0.0, (center - spread) / scale)), max(value, min(1.0, (center + spread) / scale))
    )


def accuracy(gold: Sequence[Any], predicted: Sequence[Any]) -> Metric:
    """Return the share of rows whose prediction equals the gold label; None, no label given, equals none."""
    check_rows(gold, predicted)
    return share(sum(want == got for want, got in zip(gold, predicted, strict=True)), len(gold))


def exact_match(gold: Sequence[str], predicted: Sequence[str]) -> Metric:
    """Return the share of completions that equal the gold one, spaces around them aside.

    Where both are JSON objects or arrays they are compared as values: the order of keys and spacing do not matter.
    """
    check_rows(gold, predicted)
    return share(sum(map(is_match, gold, predicted)), len(gold))


def macro_f1(gold: Sequence[str], predicted: Sequence[str | None], labels: Sequence[str] = ()) -> Metric:
    """Return the mean F1 of the labels that occur in `gold` or `predicted`, each counting the same.

    `labels` fixes which names may count; empty means all that occur. None among `predicted` is no label at all.
    """
    given = [() if label is None else (label,) for label in predicted]
    return multilabel_f1([(label,) for label in gold], given, labels)["macro_f1"]


def multilabel_f1(
    gold: Sequence[Collection[str]], predicted: Sequence[Collection[str]], labels: Sequence[str] = ()
) -> dict[str, Metric]:
    """Return micro_f1 (over all decisions) and macro_f1 (mean over labels) of sets of labels.

    A label that occurs in neither `gold` nor `predicted` says nothing and is left out of the mean, in each resample
    too. Where no label occurs at all every decision was right, and F1 is 1.
    """
    import numpy as np

    hits, support = label_counts(gold, predicted, labels)
    micro, macro = both_f1(hits.sum(0)[None], support.sum(0)[None])
    boots = [both_f1(weights @ hits, weights @ support) for weights in resamples(len(gold))]
    return {
        "micro_f1": _with_interval(float(micro[0]), np.concatenate([boot[0] for boot in boots])),
        "macro_f1": _with_interval(float(macro[0]), np.concatenate([boot[1] for boot in boots])),
    }


def label_counts(
    gold: Sequence[Collection[str]], predicted: Sequence[Collection[str]], labels: Sequence[str] = ()
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return hits, and labels given by either, [rows, labels] both: what `both_f1` takes sums of."""
    import numpy as np

    check_rows(gold, predicted)
    names = sorted(set(labels) or {label for row in (*gold, *predicted) for label in row})
    want, got = _indicators(gold, names), _indicators(predicted, names)
    return (want * got).astype(np.float64), (want + got).astype(np.float64)


def calibration_error(confidences: Sequence[float], right: Sequence[bool]) -> Metric:
    """Return the expected calibration error: how far from its share of right answers a stated probability is.

    `confidences` are the probabilities, 0 to 1, of the likeliest labels; `right` says which of these were right. Rows
    fall into 15 bins of equal width, (k/15, (k+1)/15], and the bins' distances between mean confidence and accuracy
    are averaged by their rows: Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian
    binning", AAAI 2015; 15 bins as in Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    import numpy as np

    check_rows(right, confidences)
    sure = np.asarray(confidences, np.float64)
    bins = np.clip(np.ceil(sure * BINS) - 1, 0, BINS - 1).astype(np.int64)
    gaps = np.zeros((len(sure), BINS))  # each row's part of its bin's distance
    gaps[np.arange(len(sure)), bins] = sure - np.asarray(right, np.float64)
    boots = [np.abs(weights @ gaps).sum(1) / len(sure) for weights in resamples(len(sure))]
    return _with_interval(float(np.abs(gaps.sum(0)).sum() / len(sure)), np.concatenate(boots))


def auroc(higher: Sequence[float], lower: Sequence[float]) -> Metric:
    """Return how likely a value of `higher` is above one of `lower`, ties counted half: the area under the ROC curve.

    The rank form: Hanley and McNeil, "The meaning and use of the area under a receiver operating characteristic (ROC)
    curve", Radiology 143 (1982). Rows of both are resampled together; a resample with rows of one alone says nothing
    and is left out.
    """
    import numpy as np

    if not higher or not lower:
        raise ValueError(f"{len(higher)} values to be higher and {len(lower)} to be lower; expected some of each")
    values = np.concatenate([np.asarray(higher, np.float64), np.asarray(lower, np.float64)])
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))  # where each different value begins
    above = (order < len(higher)).astype(np.float64)

    def area(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """[resamples] of counts [resamples, rows]."""
        drawn = weights[:, order]
        ups = np.add.reduceat(drawn * above, starts, axis=1)  # [resamples, different values]
        downs = np.add.reduceat(drawn * (1 - above), starts, axis=1)
        won = (ups * (downs.cumsum(1) - downs / 2)).sum(1)
        pairs = ups.sum(1) * downs.sum(1)
        shares: NDArray[np.float64] = np.divide(won, pairs, out=np.full(len(won), np.nan), where=pairs > 0)
        return shares

    boots = np.concatenate([area(weights) for weights in resamples(len(values))])
    return _with_interval(float(area(np.ones((1, len(values))))[0]), boots[~np.isnan(boots)])


def rejection_recall(predicted: Sequence[str | None]) -> Metric:
    """Return the share of rows that were given no label; all of them belong to none."""
    check_rows(predicted, predicted)
    return share(sum(label is None for label in predicted), len(predicted))


def field_f1(gold: Sequence[str], predicted: Sequence[str]) -> Metric:
    """Return micro F1 over the (field, value) pairs of completions that are JSON objects.

    Whatever is predicted that is not a JSON object has no pairs; where the gold object has none either, it counts as
    one wrong pair, so that an empty object must be written to be right. Values are compared as JSON.
    """
    import numpy as np

    hits, support = field_counts(gold, predicted)
    value, _ = both_f1(hits.sum(0)[None], support.sum(0)[None])
    boots = [both_f1(weights @ hits, weights @ support)[0] for weights in resamples(len(gold))]
    return _with_interval(float(value[0]), np.concatenate(boots))


def field_counts(gold: Sequence[str], predicted: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return right (field, value) pairs, and pairs in either, [rows, 1] both, as `field_f1` counts them."""
    import numpy as np

    check_rows(gold, predicted)
    want, got = [_pairs(text) for text in gold], [_pairs(text) for text in predicted]
    hits = np.array([len(a & b) for a, b in zip(want, got, strict=True)], np.float64)[:, None]
    counts = [len(a) + len(b) for a, b in zip(want, got, strict=True)]
    wrong = [not count and not isinstance(_parsed(text), dict) for count, text in zip(counts, predicted, strict=True)]
    return hits, np.array(counts, np.float64)[:, None] + np.array(wrong, np.float64)[:, None]


def by_field(gold: Sequence[str], predicted: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Return for each field of completions that are JSON objects: right pairs, gold pairs, predicted pairs."""
    check_rows(gold, predicted)
    found: dict[str, tuple[int, int, int]] = {}
    for want, got in zip(map(_pairs, gold), map(_pairs, predicted), strict=True):
        for place, pairs in enumerate((want & got, want, got)):
            for (name, _), count in pairs.items():
                tally = list(found.get(name, (0, 0, 0)))
                tally[place] += count
                found[name] = (tally[0], tally[1], tally[2])
    return found


def retrieval(places: Sequence[int]) -> dict[str, Metric]:
    """Return recall_at_1, recall_at_5 and mrr (mean reciprocal rank) of `ranks`, the places of the right texts."""
    import numpy as np

    if not places:
        raise ValueError("no ranks; expected some")
    reciprocal = 1 / np.array(places, np.float64)
    boots = [weights @ reciprocal / len(places) for weights in resamples(len(places))]
    return {
        "recall_at_1": share(sum(place <= 1 for place in places), len(places)),
        "recall_at_5": share(sum(place <= 5 for place in places), len(places)),
        "mrr": _with_interval(float(reciprocal.mean()), np.concatenate(boots)),
    }


def ranks(
    queries: NDArray[np.floating[Any]],
    pool: NDArray[np.floating[Any]],
    own: Sequence[int],
    right: Sequence[Collection[int]],
) -> list[int]:
    """Return for each query, 1 being best, at which place its own text of the pool is found by inner product.

    `queries` is [rows, dim], `pool` [texts, dim]; `own` is each query's text, `right` all that are right for it, of
    which others do not count. Texts as near as its own count as nearer, so that equal vectors find nothing.
    """
    found: list[int] = []
    block = max(1, _CHUNK_CELLS // len(pool))
    for start in range(0, len(queries), block):
        near = queries[start : start + block] @ pool.T  # [rows of this block, texts]
        for row, similarities in enumerate(near, start):
            nearer = similarities >= similarities[own[row]]
            found.append(1 + int(nearer.sum()) - int(nearer[[*right[row]]].sum()))
    return found


def check_rows(gold: Sequence[Any], predicted: Sequence[Any]) -> None:
    """Raise ValueError where there are no rows, or not as many answers as gold ones."""
    if len(gold) != len(predicted) or not gold:
        raise ValueError(f"{len(gold)} gold answers and {len(predicted)} predictions; expected as many, and some")


def _with_interval(value: float, boots: NDArray[np.floating[Any]]) -> Metric:
    """Percentile interval; widened to hold the value, which lies outside where few rows make the bootstrap biased."""
    import numpy as np

    low, high = (float(bound) for bound in np.quantile(boots, [0.025, 0.975]))
    return Metric(value, min(low, value), max(high, value))


def both_f1(
    hits: NDArray[np.floating[Any]], support: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """Return micro and macro F1 = 2·hits / (gold + predicted) of counts [resamples, labels]; both [resamples]."""
    import numpy as np

    total = support.sum(1)
    micro = np.where(total > 0, 2 * hits.sum(1) / np.maximum(total, 1), 1.0)
    occurring = (support > 0).sum(1)
    each = 2 * hits / np.maximum(support, 1)
    macro = np.where(occurring > 0, each.sum(1) / np.maximum(occurring, 1), 1.0)
    return micro, macro


def resamples(rows: int) -> Iterator[NDArray[np.float64]]:
    """Yield blocks of how often each row was drawn, [resamples of this block, rows]; RESAMPLES in all.

    As floating point, so that counting a resample's hits and support is one matrix product.
    """
    import numpy as np

    generator = np.random.default_rng(_SEED)
    block = max(1, _CHUNK_CELLS // rows)
    for start in range(0, RESAMPLES, block):
        size = min(block, RESAMPLES - start)
        drawn = generator.integers(rows, size=(size, rows)) + rows * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float64)


def _indicators(rows: Sequence[Collection[str]], names: Sequence[str]) -> NDArray[np.int8]:
    """[rows, labels] of 0 and 1; names that are not among `names` are left out."""
    import numpy as np

    column = {name: index for index, name in enumerate(names)}
    table = np.zeros((len(rows), len(names)), np.int8)
    for index, row in enumerate(rows):
        table[index, [column[name] for name in row if name in column]] = 1
    return table


def _parsed(text: str | None) -> Any:
    """Return the JSON value of a completion, or None where it is not JSON. 1.0 is 1, as in JavaScript."""
    try:
        return json.loads(text or "", parse_float=_number)
    except (ValueError, RecursionError):
        return None


def _number(digits: str) -> int | float:
    value = float(digits)
    return int(value) if value.is_integer() else value


def is_match(gold: str, predicted: str | None) -> bool:
    """Say whether a completion equals the gold one, as `exact_match` has it."""
    if predicted is None:
        return False
    if gold.strip() == predicted.strip():
        return True
    want = _parsed(gold)
    return isinstance(want, (dict, list)) and _canonical(want) == _canonical(_parsed(predicted))


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _pairs(text: str | None) -> Counter[tuple[str, str]]:
    value = _parsed(text)
    return Counter((name, _canonical(inner)) for name, inner in value.items()) if isinstance(value, dict) else Counter()


def _mean_ranks(values: Sequence[float]) -> list[float]:
    places: dict[float, list[int]] = {}
    for place, value in enumerate(sorted(values)):
        places.setdefault(value, []).append(place)
    return [sum(places[value]) / len(places[value]) for value in values]
