"""Labelled rows: what a label model says, as a file that recipes train on, with its lineage beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapterhub.data.example import Example, content_id
from adapterhub.data.files import read_examples
from adapterhub.errors import DataError
from adapterhub.registry.disk import replace_file

from .label_model import LabelFit, MultilabelFit
from .lineage import file_hash, read_lineage, write_lineage
from .votes import Votes

WEAK, TRUSTED = "weak", "gold"
_DIGITS = 6
_YES = 0.5


@dataclass(frozen=True)
class Written:
    """How many rows were written; how many were left out since no voter covers them, or since the votes lack them."""

    rows: int
    uncovered: int
    without_votes: int


def write_labelled(
    path: Path, fit: LabelFit | MultilabelFit, votes: Votes, data: Path | None = None, *, keep_uncovered: bool = False
) -> Written:
    """Write one row a line with `id`, `label` (of several labels `labels`) and `probs`, in one step.

    Without `data` every row of the votes is there, in their order; where no voter votes the label is null and `probs`
    are the balance. With `data` its rows go along, in its order, with `source` "weak" ("gold" where a trusted voter
    voted); rows that no voter covers are left out unless `keep_uncovered`, then with the label the balance makes
    likeliest. Rows whose labels tie say `"tie": true`. Raises DataError where a row of the votes is not in `data`.
    """
    if data is None:
        records = [_answer(fit, row, guess=False) for row in range(len(votes.ids))]
        written = Written(len(records), 0, 0)
    else:
        rows = joined(votes.ids, data, "multilabel" if isinstance(fit, MultilabelFit) else "classification")
        kept = [(row, example) for row, example in rows if row is not None and (keep_uncovered or fit.covered[row])]
        named = sum(row is not None for row, _ in rows)
        records = [
            _with_fields(example, _answer(fit, row, guess=True), bool(fit.trusted[row])) for row, example in kept
        ]
        written = Written(len(records), named - len(kept), len(rows) - named)
    replace_file(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return written


def joined(ids: Sequence[str], data: Path, kind: Any) -> list[tuple[int | None, Example]]:
    """Return each row of `data` with the place of its id among `ids`, None where it is not there.

    A row without an id of its own goes by that of its content, with its label or without. Raises DataError where an
    id is that of no row, and what reading raises.
    """
    places = {identity: place for place, identity in enumerate(ids)}
    found: list[tuple[int | None, Example]] = []
    for example in read_examples(data, kind, labelled=False):
        bare = content_id({name: value for name, value in example.fields.items() if name not in ("label", "labels")})
        place = places.pop(example.id, None)
        found.append((places.pop(bare, None) if place is None else place, example))
    if places:
        first = next(iter(places))
        raise DataError(
            f"{data}: {len(places)} rows of the votes are not there, the first with id {first!r}; "
            "give the votes a column id that holds the ids of these rows"
        )
    return found


def matrix_hash(votes: Votes) -> str:
    """Return the sha256 of a vote matrix, 64 hex digits: its rows, voters, labels and every vote."""
    names = json.dumps([votes.ids, votes.voters, votes.labels], ensure_ascii=True, separators=(",", ":"))
    digest = hashlib.sha256(names.encode("ascii"))
    digest.update(np.ascontiguousarray(votes.matrix, dtype="<i4").tobytes())
    return digest.hexdigest()


def rows_hashes(rows: Iterable[Example]) -> dict[str, str]:
    """Return the sha256 of which rows voters saw: of their ids, and of their texts, in their order."""
    ids, texts = hashlib.sha256(), hashlib.sha256()
    for row in rows:
        ids.update(json.dumps(row.id).encode("ascii") + b"\n")
        texts.update(json.dumps(row.text).encode("ascii") + b"\n")
    return {"ids": ids.hexdigest(), "texts": texts.hexdigest()}


def write_fit_lineage(
    path: Path, fit: LabelFit | MultilabelFit, votes: Votes, votes_file: Path, data: Path | None, written: Written
) -> None:
    """Write beside `path` which votes, voters and model it came from; voters with the hashes the votes' lineage has."""
    before = read_lineage(votes_file) or {}
    known: Mapping[str, Any] = before.get("voters") or {}
    record: dict[str, Any] = {
        "step": "label fit",
        "votes": {"file": votes_file.name, "sha256": file_hash(votes_file), "matrix": matrix_hash(votes)},
        "voters": {name: known.get(name, {}) for name in votes.voters},
        "rows": {"written": written.rows, "uncovered": written.uncovered, "without_votes": written.without_votes},
        "label_model": fit_record(fit),
    }
    if data is not None:
        record["data"] = {"file": data.name, "sha256": file_hash(data)}
    if "corrections" in before:
        record["corrections"] = before["corrections"]
    write_lineage(path, record)


def fit_record(fit: LabelFit | MultilabelFit) -> dict[str, Any]:
    """Return the JSON record of a fit: model, balance, voters' accuracies, copies, coverage and the like."""
    if isinstance(fit, LabelFit):
        return _record(fit)
    rows = max(1, len(fit.covered))
    return {
        "multilabel": True,
        "rows": len(fit.covered),
        "labels": list(fit.labels),
        "coverage": float(fit.covered.mean()),
        "uncovered": int((~fit.covered).sum()),
        "majority_differs": float(np.stack([each.differs for each in fit.fits]).any(axis=0).sum() / rows),
        "balance": {name: float(each.balance[1]) for name, each in zip(fit.labels, fit.fits, strict=True)},
        "balance_source": fit.balance_source,
        "by_label": {name: _record(each) for name, each in zip(fit.labels, fit.fits, strict=True)},
    }


def _record(fit: LabelFit) -> dict[str, Any]:
    names = fit.votes.labels
    cast = fit.votes.matrix >= 0
    voters = {
        name: {
            "accuracy": None if np.isnan(fit.accuracy[place]) else float(fit.accuracy[place]),
            "coverage": float(cast[:, place].mean()),
            "votes": int(cast[:, place].sum()),
        }
        for place, name in enumerate(fit.votes.voters)
    }
    fitted = fit.fitted
    return {
        "model": fit.model,
        "why": fit.why,
        "rows": len(fit.best),
        "labels": list(names),
        "coverage": float(fit.covered.mean()),
        "uncovered": int((~fit.covered).sum()),
        "ties": int(fit.tied.sum()),
        "majority_differs": float(fit.differs.mean()),
        "balance": dict(zip(names, map(float, fit.balance), strict=True)),
        "balance_source": fit.balance_source,
        "voters": voters,
        "gold": fit.gold,
        "gold_rows": int(fit.trusted.sum()),
        "clusters": fit.merged if fit.model != "majority" else [],
        "near_constant": fit.constant,
        "clusters_in_doubt": fit.clustering.doubtful,
        "steps": None if fitted is None else fitted.steps,
        "converged": None if fitted is None else fitted.converged,
    }


def _answer(fit: LabelFit | MultilabelFit, row: int, *, guess: bool) -> dict[str, Any]:
    if isinstance(fit, MultilabelFit):
        probs = fit.probs[row]
        labels = [name for name, each in zip(fit.labels, probs, strict=True) if each >= _YES]
        answer: Any = {"labels": labels if guess or fit.covered[row] else None}
        return {"id": fit.fits[0].votes.ids[row], **answer, "probs": _rounded(fit.labels, probs)}
    label = fit.votes.labels[fit.best[row]] if guess or fit.covered[row] else None
    tie = {"tie": True} if fit.tied[row] else {}
    return {
        "id": fit.votes.ids[row],
        "label": label,
        "probs": _rounded(fit.votes.labels, fit.probs[row]),
        **tie,
    }


def _rounded(names: Sequence[str], probs: np.ndarray) -> dict[str, float]:
    return {name: round(float(each), _DIGITS) for name, each in zip(names, probs, strict=True)}


def _with_fields(example: Example, answer: dict[str, Any], trusted: bool) -> dict[str, Any]:
    fields = {name: value for name, value in example.fields.items() if name not in ("label", "labels")}
    weight = {} if example.weight == 1 else {"weight": example.weight}
    return {**fields, **answer, **weight, "source": TRUSTED if trusted else WEAK}


def read_gold(path: Path, ids: Sequence[str], kind: Any) -> Iterator[tuple[int, Any]]:
    """Yield (place among `ids`, label or labels) of the rows of a labelled file that are among them.

    Rows go by their id, or that of their content. Raises DataError for bad rows, and where not one is among them.
    """
    places = {identity: place for place, identity in enumerate(ids)}
    met = 0
    for example in read_examples(path, kind):
        bare = content_id({name: value for name, value in example.fields.items() if name not in ("label", "labels")})
        place = places.get(example.id, places.get(bare))
        if place is not None:
            met += 1
            yield place, example.label if kind == "classification" else example.labels
    if not met:
        raise DataError(f"{path}: none of its rows has an id that the votes have; ids join them")
