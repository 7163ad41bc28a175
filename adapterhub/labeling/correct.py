"""What people said, put into a file of rows or of votes, with the lineage of what comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adapterhub.data.example import Example
from adapterhub.data.files import read_examples
from adapterhub.registry.disk import replace_file

from .corrections import corrected, latest, lineage_of, of_rows, read_corrections, with_gold
from .lineage import file_hash, read_lineage, write_lineage
from .votes import GOLD, read_votes, write_votes


def correct_rows(rows: Path, corrections: Path, out: Path) -> tuple[int, int]:
    """Write the rows with the labels people gave to `out` as JSONL, every row with its id.

    Return how many rows were corrected, and how many corrections are of other rows. Raises FileMissing and DataError.
    """
    said = read_corrections(corrections)
    before = _lineage(rows)
    examples = list(read_examples(rows, "classification", labelled=False))
    found = of_rows(said, examples)
    lines = (json.dumps(_record(each), ensure_ascii=False) + "\n" for each in corrected(examples, found))
    replace_file(out, "".join(lines))
    write_lineage(out, {**before, "corrections": lineage_of(corrections, said)})
    return _counted(said_ids=set(latest(found)), there={each.id for each in examples})


def correct_votes(votes: Path, corrections: Path, out: Path) -> tuple[int, int]:
    """Write the votes with the voter `gold` to `out`; return what `correct_rows` does."""
    said = read_corrections(corrections)
    before = _lineage(votes)
    found = with_gold(read_votes(votes), said)
    write_votes(out, found)
    voters = {**before.get("voters", {}), GOLD: lineage_of(corrections, said)}
    write_lineage(out, {**before, "voters": voters})
    return _counted(said_ids=set(latest(said)), there=set(found.ids))


def _lineage(path: Path) -> dict[str, Any]:
    """Return what is known of where a file came from, else which file it is."""
    known = read_lineage(path) if path.is_file() else None
    if known is not None:
        return known
    return {"data": {"name": path.name, "sha256": file_hash(path)}} if path.is_file() else {}


def _counted(said_ids: set[str], there: set[str]) -> tuple[int, int]:
    return len(said_ids & there), len(said_ids - there)


def _record(example: Example) -> dict[str, Any]:
    aside = {
        "weight": None if example.weight == 1.0 else example.weight,
        "probs": None if example.probs is None else dict(example.probs),
        "source": example.source,
    }
    return {"id": example.id, **example.fields, **{name: value for name, value in aside.items() if value is not None}}
