"""Votes for several labels at once."""

from __future__ import annotations

import numpy as np
import pytest

from adapterhub.errors import DataError, UsageError
from adapterhub.labeling.label_model import fit_multilabel, split_votes
from adapterhub.labeling.votes import NO_VOTE, Votes
from tests.labeling.made import noisy


def cells(yes: dict[str, np.ndarray], row: int) -> str:
    return "|".join(name if says[row] else f"!{name}" for name, says in yes.items())


def test_cells_say_which_labels_apply_and_which_do_not() -> None:
    votes = Votes.of({"one": ["a|!b", None, "b"], "two": ["!a", "c | a", None]}, "123")
    split = split_votes(votes, ["b"])
    assert list(split) == ["b", "a", "c"]
    assert split["a"].matrix.tolist() == [[1, 0], [NO_VOTE, 1], [NO_VOTE, NO_VOTE]]
    assert split["b"].matrix.tolist() == [[0, NO_VOTE], [NO_VOTE, NO_VOTE], [1, NO_VOTE]]
    assert split["a"].labels == ("no", "yes")


def test_each_label_has_a_model_of_its_own() -> None:
    draw = np.random.default_rng(0)
    truth = {"a": draw.random(3000) < 0.5, "b": draw.random(3000) < 0.2}
    columns = {}
    for voter, accuracy in enumerate([0.9, 0.8, 0.75, 0.7]):
        yes = {name: noisy(each.astype(int), accuracy, 2, draw) == 1 for name, each in truth.items()}
        columns[f"v{voter}"] = [cells(yes, row) for row in range(3000)]
    fit = fit_multilabel(Votes.of(columns, map(str, range(3000))), balance={"a": 0.5, "b": 0.2})
    assert fit.labels == ("a", "b")
    for place, name in enumerate(fit.labels):
        assert ((fit.probs[:, place] > 0.5) == truth[name]).mean() > 0.9
        assert np.abs(fit.fits[place].accuracy - [0.9, 0.8, 0.75, 0.7]).max() < 0.03


def test_silence_counts_against_a_label_in_the_balance_only() -> None:
    votes = Votes.of({"one": ["a"] * 2 + ["b"] * 7 + [None], "two": ["a", None] * 5}, map(str, range(10)))
    fit = fit_multilabel(votes)
    assert fit.balance_source == "votes, silence as no"
    assert fit.covered.tolist() == [True] * 9 + [False]
    balance = dict(zip(fit.labels, (each.balance[1] for each in fit.fits), strict=True))
    assert balance["a"] == pytest.approx((6 + 1) / (9 + 2))
    assert fit.probs[9].tolist() == pytest.approx([balance["a"], balance["b"]])


def test_what_a_trusted_voter_does_not_name_does_not_apply() -> None:
    votes = Votes.of({"gold": ["a", None], "rule": ["b", "a|b"], "other": ["!a", "b"]}, "12")
    fit = fit_multilabel(votes)
    assert fit.probs[0].tolist() == [1, 0]
    assert fit.trusted.tolist() == [True, False]
    assert 0 < fit.probs[1, 1] < 1


@pytest.mark.parametrize(("cell", "wrong"), [("a|", "empty label"), ("!", "empty label"), ("a|!a", "'a' twice")])
def test_bad_cells_are_refused(cell: str, wrong: str) -> None:
    with pytest.raises(DataError, match=wrong):
        split_votes(Votes.of({"one": [cell]}, "1"))


def test_no_label_at_all_or_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="no voter names any label"):
        split_votes(Votes.of({"one": [None]}, "1"))
    with pytest.raises(UsageError, match="the balance gives 'b' None"):
        fit_multilabel(Votes.of({"one": ["a|b"]}, "1"), balance={"a": 0.5})
