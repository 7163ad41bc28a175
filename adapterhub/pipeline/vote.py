"""Voters on a file of rows: a file of votes with its lineage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adapterhub.base.source import Progress
from adapterhub.data.files import read_examples
from adapterhub.errors import FileMissing
from adapterhub.labeling.lineage import file_hash, write_lineage
from adapterhub.labeling.votes import Votes, write_votes
from adapterhub.registry.store import Registry

from .gather import Gathered, Watch, gather


def vote(
    sources: Sequence[Path],
    data: Path,
    out: Path,
    *,
    labels: Sequence[str] = (),
    base: str | None = None,
    processes: int = 1,
    registry: Registry | None = None,
    progress: Progress | None = None,
    watch: Watch = lambda _, __: lambda _: None,
) -> tuple[Votes, Gathered]:
    """Have all voters vote on the rows of `data`, and write the votes and their lineage to `out`.

    Raises FileMissing, DataError for rows that are wrong, and what `gather` raises.
    """
    if not out.parent.is_dir():
        raise FileMissing(f"{out}: there is no folder {str(out.parent)!r} to write into; make it first")
    sha256 = file_hash(data) if data.is_file() else ""  # before reading: what changes meanwhile is another file
    examples = list(read_examples(data, "classification", labelled=False))
    found = gather(
        sources,
        examples,
        labels=labels,
        base=base,
        registry=registry,
        processes=processes,
        progress=progress,
        watch=watch,
    )
    votes = found.votes([example.id for example in examples], labels)
    write_votes(out, votes)
    source = {"name": data.name, "rows": len(examples), "sha256": sha256}
    write_lineage(out, {"voters": found.voters, "data": source})
    return votes, found
