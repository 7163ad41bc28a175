"""The rows of a recipe that makes its own labels: voters vote, people correct, a label model weighs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapterhub.data.example import Example
from adapterhub.data.files import read_examples
from adapterhub.errors import ConfigError, DataError, FileMissing
from adapterhub.labeling.lineage import read_lineage
from adapterhub.recipe import Recipe
from adapterhub.registry.store import Registry

from .gather import SUFFIXES, gather

Tell = Callable[[str], None]
_DATASET = "hf:"


@dataclass(frozen=True)
class Labelled:
    """Training rows with soft labels (`probs`), and how they came by them, for the card."""

    examples: Sequence[Example]
    labelling: Mapping[str, Any]


def make_labels(recipe: Recipe, registry: Registry | None = None, tell: Tell = lambda _: None) -> Labelled:
    """Return the training rows of a recipe with the labels that its voters give them.

    What voters said before is not asked again. Rows that nobody votes on are left out. Raises what `gather` raises, and
    DataError where there is nothing to learn from.
    """
    from adapterhub.labeling.corrections import lineage_of, of_rows, read_corrections, with_gold
    from adapterhub.labeling.label_model import fit_votes
    from adapterhub.labeling.labelled import TRUSTED, WEAK, fit_record, matrix_hash, rows_hashes
    from adapterhub.labeling.votes import GOLD, NO_VOTE

    section = recipe.labelling
    assert section is not None
    data = recipe.resolve(recipe.data.train)
    rows = [bare(example) for example in read_examples(data, recipe.kind, labelled=False)]
    names = known_labels(recipe) or ()
    tell(f"{recipe.task}: {len(section.voters)} file(s) of voters on {len(rows)} rows")
    sources = [voters_file(recipe, name) for name in section.voters]
    watched = _told(recipe.task, tell)
    found = gather(sources, rows, labels=names, base=recipe.base_name, registry=registry, watch=watched)
    for name in found.failed:
        raise DataError(f"voter {name!r} failed on every row; `adapterhub label apply` shows its errors")
    voters, votes = dict(found.voters), found.votes([row.id for row in rows], names)
    if section.corrections is not None:
        corrections = read_corrections(recipe.resolve(section.corrections))
        said = of_rows(corrections, rows)
        votes = with_gold(votes, said)
        voters[GOLD] = lineage_of(recipe.resolve(section.corrections), corrections)
        if others := len({each.id for each in said} - set(votes.ids)):
            tell(f"{recipe.task}: {others} correction(s) of {section.corrections} are of rows that {data.name} has not")
    if not (votes.matrix != NO_VOTE).any():
        raise DataError(f"{data}: no voter votes on any row; there is nothing to learn from")
    fit = fit_votes(votes, section.model, section.balance)
    kept = [row for row in range(len(rows)) if fit.covered[row]]
    tell(
        f"{recipe.task}: {len(kept)} of {len(rows)} rows have a vote; labels by {fit.model} ({fit.why}), the majority "
        f"says otherwise on {fit.differs.mean():.1%}"
    )
    examples = [
        replace(
            rows[row],
            fields={**rows[row].fields, "label": votes.labels[fit.best[row]]},
            probs=dict(zip(votes.labels, map(float, fit.probs[row]), strict=True)),
            source=TRUSTED if fit.trusted[row] else WEAK,
        )
        for row in kept
    ]
    labelling = {
        "votes": {"matrix": matrix_hash(votes)},
        "voters": voters,
        "rows": {"written": len(kept), "uncovered": len(rows) - len(kept), **rows_hashes(rows)},
        "label_model": fit_record(fit),
    }
    return Labelled(examples, labelling)


def labelling_of(recipe: Recipe) -> Mapping[str, Any]:
    """Return how the labels of a recipe's training file were made, where a lineage beside it says so; else nothing."""
    name = recipe.data.train
    if name.startswith(_DATASET):
        return {}
    path = recipe.resolve(name)
    return (read_lineage(path) or {}) if path.is_file() else {}


def known_labels(recipe: Recipe) -> tuple[str, ...] | None:
    """Return the labels that a recipe names, in its list or with its balance; None where it names none."""
    section = recipe.labelling
    return recipe.label_names or (None if section is None or section.balance is None else tuple(section.balance))


def voters_file(recipe: Recipe, name: str) -> Path:
    """Return where a file of voters lies. Raises ConfigError for an unknown kind and FileMissing."""
    path = recipe.resolve(name)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{recipe.path}: labels.voters has {name!r}; voters are {', '.join(SUFFIXES)} files")
    if not path.is_file():
        raise FileMissing(f"{recipe.path}: labels.voters: there is no file {str(path)!r}")
    return path


def bare(example: Example) -> Example:
    """Return a row without the labels it may carry: here they are made, and gold ones would leak into the votes."""
    return replace(example, fields={k: v for k, v in example.fields.items() if k != "label"}, probs=None)


def _told(task: str, tell: Tell) -> Callable[[str, int], Callable[[int], None]]:
    def watch(voters: str, total: int) -> Callable[[int], None]:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            before, done = done, done + count
            if 10 * done // max(1, total) > 10 * before // max(1, total):
                tell(f"{task}: {voters}: {done} of {total} votes")

        return advance

    return watch
