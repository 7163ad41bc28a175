"""A file of labelling functions on a file of rows: a file of votes with its lineage, models answering where asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.base.source import Progress, open_base
from adapterhub.data.files import read_examples
from adapterhub.errors import FileMissing, UsageError
from adapterhub.labeling.apply import Applied, apply
from adapterhub.labeling.lineage import file_hash, write_lineage
from adapterhub.labeling.rules import load_rules
from adapterhub.labeling.votes import write_votes
from adapterhub.registry.store import Registry

from .audit import text_features
from .bases import Bases
from .measure import likeliest

if TYPE_CHECKING:
    import numpy as np

Watch = Callable[[int], Callable[[int], None]]
"""Told how many votes there will be; what it returns is told of so many further ones."""


def vote(
    rules: Path,
    data: Path,
    out: Path,
    *,
    labels: Sequence[str] = (),
    processes: int = 1,
    registry: Registry | None = None,
    progress: Progress | None = None,
    watch: Watch = lambda _: lambda _: None,
) -> Applied:
    """Run the labelling functions of `rules` on the rows of `data` and write the votes, and their lineage, to `out`.

    Raises FileMissing, DataError for rows that are wrong, UsageError for a file of rules that cannot be loaded.
    """
    if not out.parent.is_dir():
        raise FileMissing(f"{out}: there is no folder {str(out.parent)!r} to write into; make it first")
    loaded = load_rules(rules)
    sha256 = file_hash(data) if data.is_file() else ""  # before reading: what changes meanwhile is another file
    examples = list(read_examples(data, "classification", labelled=False))
    found = apply(
        loaded,
        examples,
        labels=labels,
        processes=processes,
        models=OwnModels(registry, progress),
        advance=watch(len(examples) * len(loaded.functions)),
    )
    write_votes(out, found.votes)
    voters = {each.name: {"kind": "function", "hash": each.hash, "where": each.where} for each in found.reports}
    source = {"name": data.name, "rows": len(examples), "sha256": sha256}
    write_lineage(out, {"voters": voters, "data": source})
    return found


class OwnModels:
    """What labelling functions may ask: versions of the registry, and features of bases."""

    def __init__(self, registry: Registry | None, progress: Progress | None = None) -> None:
        """Look versions up in `registry`, else in the usual one."""
        self._registry, self._progress = registry, progress

    def identity(self, kind: str, name: str) -> str:
        """Return the digest of a version or the fingerprint of a base; raises RefNotFound, BaseNotFound."""
        if kind == "base":
            return open_base(name, progress=self._progress).fingerprint
        return self._versions().resolve(name).digest

    def predict(self, ref: str, texts: Sequence[str]) -> list[tuple[str, float]]:
        """Return the likeliest label of each text and its probability; raises UsageError for other kinds of tasks."""
        from adapterhub.runtime.hub import AdapterHub

        version = self._versions().resolve(ref)
        if (kind := version.spec().kind) != "classification":
            raise UsageError(f"{ref!r} is a {kind} task; only a classification can vote for a label")
        with AdapterHub(Bases(progress=self._progress).of(version), self._versions()) as hub:
            return [likeliest(each) for each in hub.predict(ref, list(texts))]

    def features(self, base: str, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [texts, dim]."""
        return text_features(open_base(base, progress=self._progress), texts)

    def _versions(self) -> Registry:
        return Registry(Registry.locate()) if self._registry is None else self._registry
