"""Label models: they find what is known, and fall into none of the traps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.errors import UsageError
from adapterhub.labeling.label_model import accuracy_intervals, fit_votes
from adapterhub.labeling.votes import NO_VOTE, Votes
from tests.labeling.made import cloned, independent, named, noisy, right, triplet_accuracies

ACCURACIES = np.linspace(0.55, 0.9, 10)
EVEN = {"a": 0.5, "b": 0.5}
MODELS = ("dawid-skene", "metal")


def even(labels: int) -> dict[str, float]:
    return dict.fromkeys("abcdefghij"[:labels], 1 / labels)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("labels", [2, 4])
def test_known_accuracies_are_recovered(model: str, balanced: bool, labels: int) -> None:
    truth, votes = independent(10_000, ACCURACIES, labels)
    fit = fit_votes(named(votes, labels), model, even(labels) if balanced else None)
    assert np.abs(fit.accuracy - ACCURACIES).mean() <= 0.01
    assert fit.merged == []
    assert right(fit.probs, truth) > right(fit.majority, truth)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("share", [0.3, 0.05])
def test_known_accuracies_are_recovered_of_uneven_labels(model: str, share: float) -> None:
    draw = np.random.default_rng(0)
    truth = (draw.random(10_000) < share).astype(int)
    votes = np.stack([noisy(truth, each, 2, draw) for each in ACCURACIES], axis=1)
    fit = fit_votes(named(votes, 2), model)
    assert np.abs(fit.accuracy - ACCURACIES).mean() <= 0.01
    assert abs(fit.balance[1] - share) < 0.02
    assert right(fit.probs, truth) > right(fit.majority, truth)


@pytest.mark.parametrize("model", MODELS)
def test_known_accuracies_are_recovered_with_abstains_and_an_uneven_balance(model: str) -> None:
    draw = np.random.default_rng(1)
    truth = (draw.random(10_000) < 0.3).astype(int)
    votes = np.stack([noisy(truth, each, 2, draw) for each in ACCURACIES], axis=1)
    votes = np.where(draw.random(votes.shape) < 0.6, votes, NO_VOTE)
    fit = fit_votes(named(votes, 2), model, {"a": 0.7, "b": 0.3} if model == "metal" else None)
    assert np.abs(fit.accuracy - ACCURACIES).mean() <= 0.01
    assert abs(fit.balance[1] - 0.3) < 0.02


@pytest.mark.parametrize("model", MODELS)
def test_errors_fall_as_one_over_the_root_of_the_rows(model: str) -> None:
    errors = []
    for rows in (250, 1000, 4000, 16_000):
        fits = [
            fit_votes(named(independent(rows, ACCURACIES, seed=seed)[1], 2), model, EVEN).accuracy for seed in range(6)
        ]
        errors.append(np.abs(np.array(fits) - ACCURACIES).mean())
    slope = np.polyfit(np.log([250, 1000, 4000, 16_000]), np.log(errors), 1)[0]
    assert -0.65 < slope < -0.4


@pytest.mark.parametrize("model", MODELS)
def test_the_triplet_estimate_agrees(model: str) -> None:
    _, votes = independent(20_000, ACCURACIES)
    fit = fit_votes(named(votes, 2), model, EVEN)
    assert np.abs(fit.accuracy - triplet_accuracies(votes)).max() < 0.02


@pytest.mark.parametrize("model", [*MODELS, "auto"])
@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("clones", [1, 2, 3, 4, 8])
def test_copies_never_cost_more_than_a_point(model: str, noise: float, clones: int) -> None:
    truth, votes = cloned(4000, clones, noise)
    fit = fit_votes(named(votes, 2), model)
    assert right(fit.probs, truth) >= right(fit.majority, truth) - 0.01
    assert right(fit.probs, truth) > 0.82
    assert fit.merged == ([] if clones == 1 else [[f"v{3 + n}" for n in range(clones)]])


@pytest.mark.parametrize("clones", [3, 4, 5, 6, 8])
def test_where_copies_cannot_be_told_auto_falls_back_to_the_majority(clones: int) -> None:
    truth, votes = cloned(4000, clones, noise=0.2, seed=clones)
    fit = fit_votes(named(votes, 2))
    assert (fit.model, fit.clustering.doubtful) == ("majority", True)
    assert "copies" in fit.why
    assert right(fit.probs, truth) == right(fit.majority, truth)


def test_good_voters_are_not_merged_for_two_copies_of_a_weak_one() -> None:
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 2, 4000)
    weak = noisy(truth, 0.6, 2, draw)
    votes = [noisy(truth, 0.88, 2, draw) for _ in range(5)] + [noisy(weak, 0.85, 2, draw) for _ in range(2)]
    fit = fit_votes(named(np.stack(votes, axis=1), 2), "dawid-skene")
    assert fit.merged == [["v5", "v6"]]
    assert right(fit.probs, truth) > 0.98


def test_copies_among_more_labels_and_abstains_are_found() -> None:
    truth, votes = independent(4000, [0.7] * 5, labels=5, coverage=0.5)
    copies = np.stack([votes[:, 4]] * 3, axis=1)
    fit = fit_votes(named(np.column_stack([votes, copies]), 5))
    assert fit.merged == [["v4", "v5", "v6", "v7"]]
    assert right(fit.probs[fit.covered], truth[fit.covered]) >= right(fit.majority[fit.covered], truth[fit.covered])


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 4).flatmap(
        lambda labels: st.tuples(
            st.just(labels),
            st.integers(1, 5).flatmap(
                lambda voters: st.lists(
                    st.lists(st.integers(-1, labels - 1), min_size=voters, max_size=voters), min_size=1, max_size=30
                )
            ),
        )
    ),
    st.sampled_from(["majority", "dawid-skene", "metal", "auto"]),
    st.booleans(),
)
def test_whatever_the_votes(made: tuple[int, list[list[int]]], model: str, balanced: bool) -> None:
    labels, rows = made
    matrix = np.array(rows)
    fit = fit_votes(named(matrix, labels), model, even(labels) if balanced else None)
    assert np.isfinite(fit.probs).all()
    assert np.allclose(fit.probs.sum(axis=1), 1)
    assert ((fit.probs >= 0) & (fit.probs <= 1)).all()
    cast = matrix != NO_VOTE
    assert (np.isnan(fit.accuracy) == ~cast.any(axis=0)).all()
    for row in np.flatnonzero(cast.sum(axis=1) > 1):
        said = set(matrix[row][cast[row]])
        if len(said) == 1:  # unanimous
            assert fit.best[row] in said
            assert fit.probs[row, fit.best[row]] == fit.probs[row].max()
    assert np.allclose(fit.probs[~cast.any(axis=1)], fit.balance)
    assert not fit.differs[~fit.covered].any()


@pytest.mark.parametrize("model", [*MODELS, "majority"])
def test_a_voter_that_never_votes_changes_nothing(model: str) -> None:
    _, votes = independent(500, [0.7, 0.8, 0.75, 0.6], coverage=0.7)
    silent = np.full((500, 1), NO_VOTE)
    with_it = fit_votes(named(np.column_stack([votes, silent]), 2), model)
    without = fit_votes(named(votes, 2), model)
    assert np.isnan(with_it.accuracy[4])
    assert np.isnan(accuracy_intervals(with_it, resamples=3)[4]).all()
    assert np.allclose(with_it.probs, without.probs, atol=1e-4)


@pytest.mark.parametrize("model", ["majority", "dawid-skene", "metal", "auto"])
def test_votes_that_nobody_cast(model: str) -> None:
    fit = fit_votes(named(np.full((3, 2), NO_VOTE), 2), model)
    assert np.allclose(fit.probs, 0.5)
    assert not fit.covered.any()
    assert not fit.tied.any()
    assert np.isnan(accuracy_intervals(fit)).all()


@pytest.mark.parametrize("model", MODELS)
def test_one_sided_voters(model: str) -> None:
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 2, 5000)
    columns = []
    for number in range(10):
        side = number % 2
        fires = draw.random(5000) < np.where(truth == side, 0.4, 0.1)
        columns.append(np.where(fires, side, NO_VOTE))
    fit = fit_votes(named(np.stack(columns, axis=1), 2), model, EVEN)
    seen = fit.covered
    assert np.abs(fit.accuracy - 0.8).max() < 0.06
    assert right(fit.probs[seen], truth[seen]) >= right(fit.majority[seen], truth[seen]) - 0.01


@pytest.mark.parametrize("model", MODELS)
def test_a_constant_voter_says_nothing(model: str) -> None:
    truth, votes = independent(5000, [0.7, 0.75, 0.8, 0.7])
    constant = np.zeros((5000, 2), dtype=int)
    constant[::97, 1] = 1
    fit = fit_votes(named(np.column_stack([votes, constant]), 2), model)
    alone = fit_votes(named(votes, 2), model)
    assert right(fit.probs, truth) >= right(alone.probs, truth) - 0.01
    assert abs(fit.accuracy[4] - 0.5) < 0.05


@pytest.mark.parametrize("model", MODELS)
def test_nothing_depends_on_a_seed_or_on_the_order(model: str) -> None:
    _, votes = independent(1000, [0.6, 0.7, 0.8, 0.75, 0.65], labels=3, coverage=0.6)
    first = fit_votes(named(votes, 3), model)
    np.random.default_rng(1)
    again = fit_votes(named(votes, 3), model)
    assert np.array_equal(first.probs, again.probs)
    rows, voters = np.random.default_rng(2).permutation(1000), [4, 2, 0, 1, 3]
    moved = fit_votes(named(votes[rows][:, voters], 3), model)
    assert np.allclose(moved.probs, first.probs[rows], atol=2e-3)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("balanced", [True, False])
def test_sparse_rules_stay_near_the_majority_vote(model: str, balanced: bool) -> None:
    """Rules of 5% coverage hardly overlap: what a likelihood makes of their votes is far from the truth."""
    draw = np.random.default_rng(3)
    truth = draw.integers(0, 3, 4000)
    topic = draw.integers(0, 8, 4000)  # rules fire by topic, so they are not independent given the label
    columns = []
    for rule in range(12):
        fires = (topic == rule % 8) & (draw.random(4000) < 0.4)
        columns.append(np.where(fires, np.where(draw.random(4000) < 0.8, truth, rule % 3), NO_VOTE))
    fit = fit_votes(named(np.stack(columns, axis=1), 3), model, even(3) if balanced else None)
    seen = fit.covered
    assert right(fit.probs[seen], truth[seen]) >= right(fit.majority[seen], truth[seen]) - 0.01


def test_ties_and_uncovered_rows_are_reported() -> None:
    matrix = np.array([[0, 1], [0, 0], [NO_VOTE, NO_VOTE], [1, NO_VOTE]])
    fit = fit_votes(named(matrix, 2), "majority", {"a": 0.2, "b": 0.8})
    assert fit.tied.tolist() == [True, False, False, False]
    assert fit.covered.tolist() == [True, True, False, True]
    assert np.allclose(fit.probs, [[0.5, 0.5], [1, 0], [0.2, 0.8], [0, 1]])
    assert not fit.differs.any()


def test_auto_takes_metal_with_a_balance_and_dawid_skene_without() -> None:
    votes = named(independent(500, [0.7, 0.8, 0.75, 0.7])[1], 2)
    assert fit_votes(votes, balance=EVEN).model == "metal"
    assert fit_votes(votes).model == "dawid-skene"
    asked = fit_votes(votes, "metal")
    assert (asked.model, asked.balance_source) == ("metal", "estimated by Dawid-Skene")
    assert fit_votes(votes, "dawid-skene", EVEN).balance_source == "given"
    assert fit_votes(votes, "majority").balance_source == "majority vote"


def test_a_trusted_voter_is_believed() -> None:
    truth, votes = independent(400, [0.6, 0.65, 0.6])
    gold = np.where(np.arange(400) < 100, truth, NO_VOTE)
    columns = {f"v{n}": ["ab"[each] for each in votes[:, n]] for n in range(3)}
    told = [None if each == NO_VOTE else "ab"[each] for each in gold]
    by_name = fit_votes(Votes.of({**columns, "gold": told}, map(str, range(400))))
    by_option = fit_votes(Votes.of({"Ann": told, **columns}, map(str, range(400))), gold="Ann")
    for fit, place in ((by_name, 3), (by_option, 0)):
        assert (fit.best[:100] == truth[:100]).all()
        assert (fit.probs[:100].max(axis=1) == 1).all()
        assert fit.accuracy[place] == 1
        assert fit.trusted.tolist() == [True] * 100 + [False] * 300
    assert np.allclose(by_name.probs, by_option.probs)


def test_intervals_hold_the_truth() -> None:
    held = []
    for seed in range(4):
        _, votes = independent(800, [0.6, 0.7, 0.8, 0.75, 0.65], seed=seed)
        limits = accuracy_intervals(fit_votes(named(votes, 2)), resamples=25)
        held.append((limits[:, 0] <= [0.6, 0.7, 0.8, 0.75, 0.65]) & (limits[:, 1] >= [0.6, 0.7, 0.8, 0.75, 0.65]))
        assert (np.diff(limits, axis=1) < 0.2).all()
    assert np.mean(held) >= 0.8


@pytest.mark.parametrize(
    ("model", "balance", "gold", "wrong"),
    [
        ("snorkel", None, None, "no label model 'snorkel'"),
        ("auto", {"a": 1.0}, None, "says nothing of the label 'b'"),
        ("auto", {"a": 0.5, "b": 0.3, "c": 0.2}, None, "names 'c'"),
        ("auto", {"a": 0.5, "b": 0.6}, None, "sum to 1"),
        ("auto", {"a": 1.0, "b": 0.0}, None, "above 0"),
        ("auto", {"a": float("nan"), "b": 0.5}, None, "above 0"),
        ("auto", None, "Ann", "no voter 'Ann'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    model: str, balance: dict[str, float] | None, gold: str | None, wrong: str
) -> None:
    with pytest.raises(UsageError, match=wrong):
        fit_votes(named(np.array([[0, 1]]), 2), model, balance, gold=gold)


def test_one_label_or_one_trusted_voter_is_too_little() -> None:
    with pytest.raises(UsageError, match="the only label is 'a'"):
        fit_votes(named(np.zeros((2, 2)), 1))
    with pytest.raises(UsageError, match="the only voter"):
        fit_votes(named(np.array([[0], [1]]), 2), gold="v0")
