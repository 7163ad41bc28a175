"""Pruning: keep a share of the rows, by a metric, with a floor for every class, and a random share beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapterhub.errors import DataError, UsageError
from adapterhub.heads import fit_head, standardise

from .outlook import Outlook, look_out
from .scores import INFLUENCE, score_rows

# Which score each metric goes by, and whether rows with more of it stay (hard first) or go.
_BY: Mapping[str, tuple[str, bool]] = {
    "easy": ("el2n", False),
    "hard": ("el2n", True),
    "margin": ("margin", True),
    "loss": ("loss", True),
    "forgetting": ("forgetting", True),
    "prototype": ("prototype", False),
}
METRICS = ("auto", "random", *_BY)
HARD_FIRST = frozenset(metric for metric, (_, hard) in _BY.items() if hard)
# What `auto` tries besides random.
_TRIED = ("easy", "hard")
# Share of suspect rows from which on hard rows are too likely to be wrong ones: 1 to 9% where data is clean, 12% and
# more where 15% of labels are flipped (benchmarks/RESULTS.md).
NOISY = 0.1
# Rows that a trial looks at, and how often it is made.
_TRIAL_ROWS, _TRIALS = 10_000, 3
_LEAST_ROWS = 50
# By how much a metric must be behind a random share for people to be warned.
_WORSE = 0.01


@dataclass(frozen=True)
class Trial:
    """Accuracy of heads on held-out rows after pruning the others, by metric, a value a repetition; `all` keeps all."""

    accuracy: Mapping[str, Sequence[float]]

    def best(self) -> str:
        """Return the metric that is better than random beyond the spread of its repetitions, or else random."""
        best, least = "random", 0.0
        base = np.array(self.accuracy["random"])
        for metric, values in self.accuracy.items():
            gain = np.array(values) - base
            sure = float(gain.mean() - gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else 0.0
            if metric not in ("random", "all") and sure > least:
                best, least = metric, sure
        return best

    def means(self) -> dict[str, float]:
        """Return each metric's mean accuracy."""
        return {metric: round(float(np.mean(values)), 4) for metric, values in self.accuracy.items()}


@dataclass(frozen=True)
class Plan:
    """Which rows stay, by which metric, and what speaks for it. `noise` is the share of suspect rows, where known."""

    stays: np.ndarray
    metric: str
    trial: Trial | None
    noise: float | None
    values: np.ndarray | None

    def dropped(self) -> list[int]:
        """Return the rows that go."""
        return [int(row) for row in np.flatnonzero(~self.stays)]

    def accuracy(self) -> dict[str, float]:
        """Return what heads reached in the trial, by metric; empty without one."""
        return {} if self.trial is None else self.trial.means()

    def told(self) -> list[str]:
        """Return what people should know of it: how noisy labels look, and what the trial says."""
        lines = [] if self.noise is None else [f"{self.noise:.1%} of the labels are suspect"]
        if accuracy := self.accuracy():
            tried = ", ".join(f"{metric} {value:.1%}" for metric, value in accuracy.items())
            where = "the target's rows" if self.metric == INFLUENCE else "held-out rows"
            lines.append(f"accuracy of heads on {where} after keeping as much: {tried}")
            if accuracy.get(self.metric, 1.0) < accuracy["random"] - _WORSE:
                lines.append(f"WARNING: a random share does better here than {self.metric}; keep by auto or random")
        return lines

    def reason(self, row: int) -> dict[str, object]:
        """Return what is written of a row that goes."""
        if self.values is None:
            return {"reason": self.metric}
        if np.isnan(self.values[row]):
            return {"reason": f"{self.metric}, which tells nothing of a row without an answer"}
        return {"reason": self.metric, "score": round(float(self.values[row]), 5)}


def keep_count(share: float, rows: int) -> int:
    """Return how many rows a share is. Raises UsageError where it is no part of them."""
    if not 0 < share <= 1:
        raise UsageError(f"the share to keep is {share:g}; name one above 0 and up to 1, such as 0.5 or 50%")
    return max(1, round(share * rows))


def prune(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    metric: str,
    count: int,
    *,
    floor: float = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """Return bool [rows]: which `count` rows stay. Features float32 [rows, dim], label indices [rows], -1 for none.

    Every class keeps at least `floor` times what a random share would leave it, and one row: with less than 1 the
    easy or hard classes crowd out the others, which costs more than a metric gains where there are many. Raises
    UsageError for a metric there is not, DataError where it needs labels and there are too few.
    """
    worth = worth_of(features, labels, classes, metric, seed)[0]
    return chosen(worth, labels, count, floor=_floor(metric, floor))


def check_metric(metric: str, *, towards: bool = False) -> None:
    """Raise UsageError for a metric there is not; influence is one `towards` a target alone."""
    if metric not in (*METRICS, *((INFLUENCE,) if towards else ())):
        if metric == INFLUENCE:
            raise UsageError("influence is told towards rows to be good at; name them as the target")
        raise UsageError(f"there is no metric {metric!r} to prune by; there are {', '.join((*METRICS, INFLUENCE))}")


def worth_of(
    features: np.ndarray, labels: np.ndarray, classes: int, metric: str, seed: int = 0
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return float [rows], more for rows to keep first, and the score it is made from (None for random)."""
    if metric == "random":
        return np.random.default_rng(seed).random(len(labels)), None
    check_metric(metric)
    score = _BY[metric][0]
    scores = score_rows(features, labels, classes, [score], seed=seed)
    return worth_from(scores, metric), scores[score]


def worth_from(scores: Mapping[str, np.ndarray], metric: str, seed: int = 0) -> np.ndarray:
    """Return float [rows], more for rows that a metric keeps first, from scores that are there."""
    if metric == "random":
        return np.random.default_rng(seed).random(len(next(iter(scores.values()))))
    score, hard = _BY[metric]
    found: np.ndarray = np.nan_to_num(scores[score] if hard else -scores[score], nan=-np.inf)
    return found


def chosen(worth: np.ndarray, labels: np.ndarray, count: int, *, floor: float) -> np.ndarray:
    """Return bool [rows]: the `count` rows of most worth, but of every class at least its floor."""
    order = np.lexsort((np.arange(len(worth)), -worth))
    stays = np.zeros(len(worth), bool)
    share = count / len(worth)
    groups = [order[labels[order] == label] for label in np.unique(labels)]
    for group in sorted(groups, key=len):
        least = max(1, int(floor * share * len(group)))
        stays[group[: min(least, count - int(stays.sum()))]] = True
    rest = order[~stays[order]]
    stays[rest[: count - int(stays.sum())]] = True
    return stays


def audit(features: np.ndarray, labels: np.ndarray, classes: int, *, seed: int = 0) -> Outlook:
    """Judge labelled rows, or as many of them as say enough."""
    rows = np.flatnonzero(labels >= 0)
    if len(rows) > _TRIAL_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, _TRIAL_ROWS, replace=False))
    return look_out(features[rows], labels[rows], classes, seed)


def check_regime(metric: str, outlook: Outlook) -> None:
    """Raise DataError where `metric` keeps hard rows first and too many rows are suspect."""
    if metric in HARD_FIRST and outlook.noise >= NOISY:
        raise DataError(
            f"{outlook.noise:.0%} of the labels look wrong (heads that did not see a row say {outlook.accuracy:.0%} of "
            f"them), and {metric!r} would keep those rows first; look at the suspicious rows of `adapterhub data "
            "score`, or keep by auto, easy or random"
        )


def try_out(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    count: int,
    metrics: Sequence[str] = _TRIED,
    *,
    floor: float = 1.0,
    seed: int = 0,
) -> Trial:
    """Prune four fifths of the labelled rows to the same share by each metric, at random and not at all, and compare.

    Heads learn from what stays and answer the last fifth; three times, on at most 10,000 rows. Raises DataError for
    fewer than 50 labelled rows or one class only.
    """
    rows = np.flatnonzero(labels >= 0)
    if len(rows) < _LEAST_ROWS:
        raise DataError(
            f"{len(rows)} labelled rows are too few to try metrics on; bring {_LEAST_ROWS}, or prune by random"
        )
    share = count / len(labels)
    accuracy: dict[str, list[float]] = {metric: [] for metric in ("random", *metrics, "all")}
    for trial in range(_TRIALS):
        drawn = np.random.default_rng([seed, trial]).permutation(rows)[:_TRIAL_ROWS]
        test, train = drawn[: len(drawn) // 5], drawn[len(drawn) // 5 :]
        given, asked = _scaled(features[train], features[test])
        wanted = dict.fromkeys(_BY[metric][0] for metric in metrics)
        scores = score_rows(features[train], labels[train], classes, list(wanted), seed=seed + trial)
        for metric, values in accuracy.items():
            stays = np.ones(len(train), bool)
            if metric != "all":
                worth = worth_from(scores, metric, seed + trial)
                stays = chosen(worth, labels[train], max(2, round(share * len(train))), floor=_floor(metric, floor))
            head = fit_head(given[stays], labels[train][stays])
            values.append(float((head.predict(asked) == labels[test]).mean()))
    return Trial(accuracy)


def _floor(metric: str, floor: float) -> float:
    """Return the floor of a metric: a random share is drawn class by class, the hardest rule there is to beat."""
    return 1.0 if metric == "random" else floor


def _scaled(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    both = standardise(np.concatenate([train, test]))
    return both[: len(train)], both[len(train) :]


def make_plan(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    metric: str,
    share: float,
    *,
    floor: float = 1.0,
    force: bool = False,
    seed: int = 0,
) -> Plan:
    """Choose the rows that stay; `auto` is settled by a trial, and each metric is tried beside a random share.

    Raises UsageError for a metric there is not or auto without labels, DataError where hard rows would be kept first
    although too many labels are suspect, or too few to tell, unless `force`.
    """
    check_metric(metric)
    count = keep_count(share, len(labels))
    enough = int((labels >= 0).sum()) >= _LEAST_ROWS and classes > 1
    if metric == "auto" and not enough:
        raise UsageError(
            f"auto tries metrics on held-out rows and needs {_LEAST_ROWS} labelled ones of two classes; "
            "name random or prototype with --by"
        )
    if metric in HARD_FIRST and not enough and not force:
        raise DataError(
            f"fewer than {_LEAST_ROWS} labelled rows of two classes do not tell how many labels are wrong, and "
            f"{metric!r} would keep wrong ones first; keep by auto, easy or random"
        )
    trial, noise = None, None
    if enough and metric != "random":
        outlook = audit(features, labels, classes, seed=seed)
        noise = round(outlook.noise, 4)
        if not force:
            check_regime(metric, outlook)
        tried = [metric] if metric != "auto" else [each for each in _TRIED if noise < NOISY or each not in HARD_FIRST]
        trial = try_out(features, labels, classes, count, tried, floor=floor, seed=seed)
        metric = trial.best() if metric == "auto" else metric
    worth, values = worth_of(features, labels, classes, metric, seed)
    stays = chosen(worth, labels, count, floor=_floor(metric, floor))
    return Plan(stays, metric, trial, noise, values)
