"""MeTaL: each voter's table from how often pairs of voters agree, with a class balance that is known.

Ratner, Hancock, Dunnmon, Sala, Pandey and Ré, "Training complex models with multi-task weak supervision", AAAI 2019;
the form is that of Snorkel's LabelModel. With O = L'L / n of one-hot votes L, P the balance on a diagonal, and mu[ia,
y] = P(voter i says a | the label is y), it minimises

    |(O - mu P mu') off the voters' own blocks|^2 + |mu P 1 - diag O|^2 + pull |mu - mu0|^2

where each row is in units of the square root of how often the vote is cast, so that rare votes count too, and mu0 are
voters who are right 70% of the time. The pull is 1 / n, as weak as the data are many, and for each voter s / (1 - s)
more when it casts the part s of its votes where no other votes, since pairs know nothing of these. It also decides
where pairs cannot: for more than two labels they leave mu open up to a rotation. The minimum is run to from mu0 and
nothing is drawn at random.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment, minimize

from .dawid_skene import Fitted
from .table import LEAST, PRIOR_ROWS, Patterns, cast_rates, expected_table, lone_shares, one_hot

_MOST_STEPS = 5000


def metal(patterns: Patterns, balance: np.ndarray) -> Fitted:
    """Return the tables that agree best with how often pairs of voters say the same; `balance` [labels] is kept."""
    labels, voters = len(balance), patterns.votes.shape[1]
    rows = float(patterns.counts.sum())
    votes = one_hot(patterns.votes, labels, abstain=False)
    together = (votes.T @ votes.multiply(patterns.counts[:, None])).toarray() / rows
    often = cast_rates(patterns, labels)
    live = np.flatnonzero(often.ravel() > 0)
    scale = np.sqrt(often.ravel()[live])
    owner = live // labels
    lone, _ = lone_shares(patterns)
    start = _columns(expected_table(often, balance))[live]
    found = _minimised(
        together[np.ix_(live, live)] / np.outer(scale, scale),
        owner[:, None] != owner[None, :],
        scale,
        balance,
        start / scale[:, None],
        1 / rows + (lone / (1 - lone))[owner][:, None],
    )
    mu = np.zeros((voters * labels, labels))
    mu[live] = found.x.reshape(len(live), labels) * scale[:, None]
    mu = _ordered(mu, balance)
    # What was seen in few rows only is not certain, whatever the pairs say.
    mu[live] = (rows * mu[live] + PRIOR_ROWS * start) / (rows + PRIOR_ROWS)
    table = np.zeros((voters, labels, labels + 1))
    table[:, :, :labels] = mu.reshape(voters, labels, labels).transpose(0, 2, 1)
    table /= np.maximum(table.sum(axis=2, keepdims=True), 1)
    table[:, :, labels] = np.maximum(1 - table.sum(axis=2), 0)
    return Fitted(balance, np.maximum(table, LEAST), int(found.nit), bool(found.success))


def _columns(table: np.ndarray) -> np.ndarray:
    """Return mu [voters * labels, labels] of a table."""
    voters, labels, _ = table.shape
    return table[:, :, :labels].transpose(0, 2, 1).reshape(voters * labels, labels)


def _minimised(
    target: np.ndarray, off: np.ndarray, scale: np.ndarray, balance: np.ndarray, start: np.ndarray, pull: np.ndarray
) -> Any:
    shape = start.shape

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        nu = flat.reshape(shape)
        apart = np.where(off, (nu * balance) @ nu.T - target, 0.0)
        marginal = nu @ balance - scale
        away = nu - start
        value = (apart**2).sum() + (marginal**2).sum() + (pull * away**2).sum()
        slope = 4 * apart @ (nu * balance) + 2 * np.outer(marginal, balance) + 2 * pull * away
        return float(value), slope.ravel()

    bounds = np.stack([np.zeros(start.size), np.repeat(1 / scale, shape[1])], axis=1)
    options = {"maxiter": _MOST_STEPS, "maxfun": 4 * _MOST_STEPS, "ftol": 1e-15, "gtol": 1e-9}
    return minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", bounds=bounds, options=options)


def _ordered(mu: np.ndarray, balance: np.ndarray) -> np.ndarray:
    """Return mu with its columns in the order in which votes are right most often, as far as the balance allows.

    Columns of equally likely labels may change places without any pair of voters noticing.
    """
    labels = len(balance)
    right = mu.reshape(-1, labels, labels).sum(axis=0)  # [said, column]
    allowed = np.isclose(balance[:, None], balance[None, :], atol=1e-9)
    _, column = linear_sum_assignment(np.where(allowed, -right, 1e9))
    return mu[:, column]
