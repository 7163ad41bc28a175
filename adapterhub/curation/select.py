"""What to label next: rows of a pool that are uncertain, unlike each other, or typical of what is not known yet."""

from __future__ import annotations

import numpy as np

from adapterhub.errors import DataError, UsageError
from adapterhub.heads import fit_head, head_probabilities

from .clusters import cluster, directions, parts
from .early import moments

RULES = ("auto", "uncertainty", "diversity", "typicality", "random")
# Labelled rows a class from which on a head's doubts say something: below it the typical rows are taken.
_WARM = 5
# Of how many times the budget the uncertain ones are spread.
_WIDE = 5
_NEIGHBOURS = 20
_HEAD_ROWS = 20_000


def check_budget(rule: str, budget: int, rows: int) -> None:
    """Raise UsageError for a rule there is not, or a budget that a pool of so many rows does not have."""
    if rule not in RULES:
        raise UsageError(f"there is no rule {rule!r} to select by; there are {', '.join(RULES)}")
    if not rows:
        raise UsageError("the pool has no row that is not known already")
    if not 0 < budget <= rows:
        raise UsageError(f"the budget is {budget}, and the pool has {rows} rows that are not known; name 1 to {rows}")


def select(
    pool: np.ndarray,
    budget: int,
    rule: str = "auto",
    *,
    labelled: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, str]:
    """Return int64 [budget], the rows of `pool` float32 [rows, dim] to label, the first most, and the rule taken.

    `labelled` float32 [known, dim] and their label indices `labels` are what is known. `auto` is uncertainty spread
    over clusters where at least five rows a class are known, else typicality. Raises UsageError for a rule there is not
    or a budget the pool does not have, DataError where uncertainty lacks labelled rows.
    """
    check_budget(rule, budget, len(pool))
    known = np.empty((0, pool.shape[1]), np.float32) if labelled is None else labelled
    given = np.empty(0, np.int64) if labels is None else labels
    classes = len(np.unique(given))
    if rule == "auto" and (classes < 2 or len(given) < _WARM * classes):
        rule = "typicality"
    if rule in ("auto", "uncertainty") and classes < 2:
        raise DataError("uncertainty needs labelled rows of two classes at least; name them with --labelled")
    if rule == "random":
        return np.random.default_rng(seed).permutation(len(pool))[:budget], rule
    if rule == "diversity":
        return _spread(pool, budget, known, seed), rule
    if rule == "typicality":
        return _typical(pool, budget, known, seed), rule
    doubt = _doubt(pool, known, given)
    order = np.argsort(-doubt, kind="stable")
    if rule == "uncertainty" or budget * 2 > len(pool):
        return order[:budget], rule
    wide = order[: min(len(pool), _WIDE * budget)]
    return _one_a_cluster(pool, wide, budget, seed), rule


def _doubt(pool: np.ndarray, known: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return float64 [rows]: minus the margin between a head's two likeliest classes."""
    if len(known) > _HEAD_ROWS:
        rows = np.sort(np.random.default_rng(0).choice(len(known), _HEAD_ROWS, replace=False))
        known, labels = known[rows], labels[rows]
    mean, spread = moments(pool)
    head = fit_head((np.asarray(known) - mean) / spread, labels)
    found = np.empty(len(pool))
    for part in parts(len(pool)):
        likely = np.sort(head_probabilities(head, (pool[part] - mean) / spread, int(labels.max()) + 1), axis=1)
        found[part] = likely[:, -2] - likely[:, -1]
    return found


def _one_a_cluster(pool: np.ndarray, rows: np.ndarray, budget: int, seed: int) -> np.ndarray:
    """Return the first of `rows`, which are in order, in each of `budget` clusters of them; then the next ones.

    Batches that ask the same question many times over are what taking the most uncertain gives (Citovsky et al. 2021).
    """
    _, nearest = cluster(pool[rows], budget, seed)
    _, first = np.unique(nearest, return_index=True)
    taken = np.zeros(len(rows), bool)
    taken[first] = True
    order = np.concatenate([np.flatnonzero(taken), np.flatnonzero(~taken)])
    found: np.ndarray = rows[order[:budget]]
    return found


def _spread(pool: np.ndarray, budget: int, known: np.ndarray, seed: int) -> np.ndarray:
    """Return rows far from what is known and from each other, drawn by squared distance (k-means++)."""
    draw = np.random.default_rng(seed)
    far = np.full(len(pool), np.inf, np.float32)
    for part in parts(len(known), 256):
        _nearer(far, pool, directions(known[part]))
    found: list[int] = []
    for _ in range(budget):
        weight = np.where(np.isinf(far), 1.0, far).astype(np.float64)
        weight[found] = 0.0
        total = weight.sum()
        row = int(draw.choice(len(pool), p=weight / total)) if total > 0 else _first_left(len(pool), found)
        found.append(row)
        _nearer(far, pool, directions(pool[row : row + 1]))
    return np.array(found)


def _nearer(far: np.ndarray, pool: np.ndarray, points: np.ndarray) -> None:
    """Lower `far` [rows] to the squared distance of the pool's directions to the nearest of `points` [k, dim]."""
    for part in parts(len(pool)):
        cosine = (directions(pool[part]) @ points.T).max(axis=1)
        far[part] = np.minimum(far[part], np.maximum(2.0 - 2.0 * cosine, 0.0))


def _first_left(rows: int, taken: list[int]) -> int:
    return int(np.setdiff1d(np.arange(rows), taken)[0])


def _typical(pool: np.ndarray, budget: int, known: np.ndarray, seed: int) -> np.ndarray:
    """Return the densest row of each of the largest clusters without known rows (TypiClust; Hacohen et al. 2022).

    Pool and known rows are clustered together, into as many clusters as there are known rows and rows to choose.
    """
    count = min(budget + len(known), len(pool))
    centres, nearest = cluster(pool, count, seed)
    covered = np.zeros(count, bool)
    if len(known):
        covered[np.unique(_nearest(known, centres))] = True
    sizes = np.bincount(nearest, minlength=count)
    groups = sorted(np.flatnonzero(sizes), key=lambda each: (covered[each], -sizes[each]))
    members = {int(each): np.flatnonzero(nearest == each) for each in groups[:budget]}
    found = [int(rows[_densest(directions(pool[rows]))]) for rows in members.values()]
    if len(found) < budget:  # fewer clusters than asked for have any row
        rest = np.setdiff1d(np.arange(len(pool)), found)
        found += np.random.default_rng(seed).permutation(rest)[: budget - len(found)].tolist()
    return np.array(found)


def _nearest(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    found = [(directions(rows[part]) @ directions(centres).T).argmax(axis=1) for part in parts(len(rows))]
    return np.concatenate(found)


def _densest(vectors: np.ndarray) -> int:
    """Return which of the vectors [rows, dim] has the nearest neighbours; of many, among two thousand."""
    some = vectors[:2000]
    cosines = np.sort(some @ some.T, axis=1)[:, -_NEIGHBOURS - 1 :]
    return int(cosines.mean(axis=1).argmax())
