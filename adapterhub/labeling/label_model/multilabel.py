"""Several labels at once: one model a label, of votes that it applies or does not.

A cell names the labels that apply, separated by `|`, and with `!` before it one that does not: `billing|!urgent`. Of a
label that it does not name a voter says nothing. A trusted voter's cell is the whole set: what it does not name does
not apply.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from adapterhub.errors import DataError, UsageError
from adapterhub.labeling.votes import NO_VOTE, Votes

from .fit import LabelFit, fit_votes, trusted_voter
from .majority import vote_counts

_NO, _YES = 0, 1


@dataclass(frozen=True, eq=False)
class MultilabelFit:
    """The fits of `labels`, each over "no" and "yes"; `balance_source` says where the shares of yes are from."""

    labels: tuple[str, ...]
    fits: tuple[LabelFit, ...]
    balance_source: str

    @property
    def probs(self) -> np.ndarray:
        """How probable it is that a label applies, float64 [rows, labels]."""
        return np.stack([fit.probs[:, _YES] for fit in self.fits], axis=1)

    @property
    def covered(self) -> np.ndarray:
        """Whether any voter says anything of any label, bool [rows]."""
        covered: np.ndarray = np.any([fit.covered for fit in self.fits], axis=0)
        return covered

    @property
    def trusted(self) -> np.ndarray:
        """Whether the trusted voter says anything, bool [rows]."""
        trusted: np.ndarray = np.any([fit.trusted for fit in self.fits], axis=0)
        return trusted


def split_votes(votes: Votes, labels: Iterable[str] = (), *, gold: str | None = None) -> dict[str, Votes]:
    """Return for each label the votes that it applies, over the labels "no" and "yes".

    Labels are `labels` in their order, then any other that is named, sorted. Raises DataError for a cell that names a
    label twice, and UsageError where no label is named.
    """
    cells = [_parse(cell) for cell in votes.labels]
    given = tuple(dict.fromkeys(labels))
    names = (*given, *sorted({name for cell in cells for name in cell} - set(given)))
    if not names:
        raise UsageError("no voter names any label; name them with --labels")
    trusted = votes.voters.index(gold) if gold is not None else None
    split = {}
    for name in names:
        says = np.array([*(cell.get(name, NO_VOTE) for cell in cells), NO_VOTE], dtype=np.int32)  # NO_VOTE is the last
        matrix = says[votes.matrix]
        if trusted is not None:
            whole = (votes.matrix[:, trusted] != NO_VOTE) & (matrix[:, trusted] == NO_VOTE)
            matrix[whole, trusted] = _NO
        split[name] = Votes(votes.ids, votes.voters, ("no", "yes"), matrix)
    return split


def fit_multilabel(
    votes: Votes,
    model: str = "auto",
    balance: Mapping[str, float] | None = None,
    labels: Iterable[str] = (),
    *,
    gold: str | None = None,
) -> MultilabelFit:
    """Return one fit a label; `balance` gives each label the share of rows that have it, which need not sum to 1.

    Without it, that share is the part of the rows with any vote where more voters say yes than no: silence counts as no
    here, since voters mostly name what applies; "auto" takes MeTaL then too. Raises what `fit_votes` and
    `split_votes` raise.
    """
    trusted = trusted_voter(votes, gold)
    split = split_votes(votes, [*labels, *(balance or ())], gold=trusted)
    if balance is not None:
        for name in split:
            if not 0 < balance.get(name, 0) < 1:
                raise UsageError(f"the balance gives {name!r} {balance.get(name)}; expected a share between 0 and 1")
    heard = (votes.matrix != NO_VOTE).any(axis=1)
    source = "given" if balance is not None else "votes, silence as no"
    fits = []
    for name, each in split.items():
        yes = _share_of_yes(each, heard) if balance is None else balance[name]
        fit = fit_votes(each, model, {"no": 1 - yes, "yes": yes}, gold=trusted)
        counted = model == "auto" and fit.model == "metal" and balance is None
        why = "its share is counted from the votes" if counted else fit.why
        fits.append(replace(fit, balance_source=source, why=why))
    return MultilabelFit(tuple(split), tuple(fits), source)


def _share_of_yes(votes: Votes, heard: np.ndarray) -> float:
    counts = vote_counts(votes.matrix, 2)
    yes = int((counts[:, _YES] > counts[:, _NO]).sum())
    return (yes + 1) / (int(heard.sum()) + 2)


def _parse(cell: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in cell.split("|"):
        name = part.strip()
        says = _NO if name.startswith("!") else _YES
        name = name.removeprefix("!").strip()
        if not name:
            raise DataError(f"the vote {cell!r} names an empty label; write votes as a|b|!c")
        if name in found:
            raise DataError(f"the vote {cell!r} names {name!r} twice; name each label once")
        found[name] = says
    return found
