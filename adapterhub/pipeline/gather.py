"""Votes of all voters on the same rows: labelling functions, prompts and other models, and files of votes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.base.catalog import DEFAULT_BASE
from adapterhub.base.source import Progress, open_base
from adapterhub.data.example import Example
from adapterhub.errors import DataError, UsageError
from adapterhub.labeling.prompts import PromptVoter, Voter, VoterFile, read_voters
from adapterhub.labeling.sources import source_hash
from adapterhub.registry.store import Registry

from .voters import Cast, cast_votes

if TYPE_CHECKING:
    from adapterhub.labeling.apply import FunctionReport
    from adapterhub.labeling.votes import Votes
    from adapterhub.runtime.hub import AdapterHub

SUFFIXES = (".py", ".yaml", ".yml", ".csv")
Watch = Callable[[str, int], Callable[[int], None]]
"""Told of (voters, how many votes there will be); what it returns is told of so many further ones."""


@dataclass
class Gathered:
    """What voters said of the rows, a column a voter, and `voters`: what each was, for the lineage.

    `functions` and `casts` report on labelling functions and on models.
    """

    columns: dict[str, Sequence[str | None]] = field(default_factory=dict)
    voters: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    functions: list[FunctionReport] = field(default_factory=list)
    casts: list[Cast] = field(default_factory=list)

    def add(self, source: Path, said: Mapping[str, tuple[Sequence[str | None], Mapping[str, Any]]]) -> None:
        """Take the columns of a file's voters, each with what it was; raises UsageError where a name is taken."""
        place = {"file": str(source.resolve()), "source": source_hash(source)}
        for name, (column, record) in said.items():
            if name in self.columns:
                raise UsageError(f"{source}: another voter is called {name!r} already; name each otherwise")
            # Votes that came in a file know where their voter lies; both may be edited.
            own = {"votes_file": place["file"], "votes_source": place["source"]} if "file" in record else place
            self.columns[name], self.voters[name] = column, {**record, **own}

    def votes(self, ids: Sequence[str], labels: Sequence[str] = ()) -> Votes:
        """Return the votes of all; `labels` come first, in their order."""
        from adapterhub.labeling.votes import Votes

        return Votes.of(self.columns, ids, labels)

    @property
    def failed(self) -> list[str]:
        """The functions that failed on every row."""
        rows = len(next(iter(self.columns.values()), ()))
        return [each.name for each in self.functions if each.errors == rows]


def gather(
    sources: Sequence[Path],
    examples: Sequence[Example],
    *,
    labels: Sequence[str] = (),
    base: str | None = None,
    registry: Registry | None = None,
    processes: int = 1,
    progress: Progress | None = None,
    watch: Watch = lambda _, __: lambda _: None,
) -> Gathered:
    """Have the voters of each source vote on the rows: functions (.py), models (.yaml), votes that are there (.csv).

    The code of .py files runs here. `base` is asked by prompts whose file names none. With `labels`, any other is an
    error: of a function it is counted, of other voters it raises. Raises FileMissing, UsageError, ConfigError,
    DataError, and what models raise.
    """
    for source in sources:
        if source.suffix not in SUFFIXES:
            raise UsageError(f"{source}: voters are functions (.py), prompts (.yaml) or votes (.csv)")
    found = Gathered()
    store = registry if registry is not None else Registry(Registry.locate())
    for source in sources:
        if source.suffix == ".py":
            _functions(found, source, examples, labels, base, store, processes, progress, watch)
        elif source.suffix == ".csv":
            _file(found, source, examples)
        else:
            _models(found, source, examples, base, store, progress, watch)
    _check_labels(found, labels)
    return found


def _functions(
    found: Gathered,
    source: Path,
    examples: Sequence[Example],
    labels: Sequence[str],
    base: str | None,
    registry: Registry,
    processes: int,
    progress: Progress | None,
    watch: Watch,
) -> None:
    from adapterhub.labeling.apply import apply
    from adapterhub.labeling.rules import load_rules

    from .own_models import OwnModels

    rules = load_rules(source)
    applied = apply(
        rules,
        examples,
        labels=labels,
        processes=processes,
        models=OwnModels(registry, progress, base),
        advance=watch(source.name, len(examples) * len(rules.functions)),
    )
    records = {each.name: {"kind": "function", "hash": each.hash, "where": each.where} for each in applied.reports}
    found.add(source, {name: (applied.votes.column(name), record) for name, record in records.items()})
    found.functions += applied.reports


def _models(
    found: Gathered,
    source: Path,
    examples: Sequence[Example],
    base: str | None,
    registry: Registry,
    progress: Progress | None,
    watch: Watch,
) -> None:
    file = read_voters(source)
    with _hub(file, base, registry, progress) as hub:
        casts = [_watched(voter, examples, hub, watch) for voter in file.voters]
    found.add(source, {cast.voter: (cast.votes, cast.to_record()) for cast in casts})
    found.casts += casts


def _watched(voter: Voter, examples: Sequence[Example], hub: AdapterHub, watch: Watch) -> Cast:
    advance = watch(voter.name, len(examples))
    done = 0

    def tell(_: str, now: int, total: int) -> None:
        nonlocal done
        # Rows that were known from before count as done once the first others are.
        reached = len(examples) - total + now
        advance(reached - done)
        done = reached

    cast = cast_votes(voter, examples, hub, tell)
    advance(len(examples) - done)
    return cast


@contextmanager
def _hub(file: VoterFile, base: str | None, registry: Registry, progress: Progress | None) -> Iterator[AdapterHub]:
    from adapterhub.runtime.hub import AdapterHub

    named = file.base or base
    if named is None and not any(isinstance(voter, PromptVoter) for voter in file.voters):
        # Adapters bring their base with them.
        refs = [voter.adapter for voter in file.voters if hasattr(voter, "adapter")]
        named = registry.resolve(refs[0]).base if refs else None
    with AdapterHub(open_base(named or DEFAULT_BASE, progress=progress), registry) as hub:
        yield hub


def _file(found: Gathered, source: Path, examples: Sequence[Example]) -> None:
    from adapterhub.labeling.lineage import read_lineage
    from adapterhub.labeling.votes import read_votes

    votes = read_votes(source)
    places = {identity: place for place, identity in enumerate(votes.ids)}
    if not any(example.id in places for example in examples):
        raise DataError(f"{source}: none of its ids is that of a row; the column id joins votes and rows")
    known = (read_lineage(source) or {}).get("voters") or {}
    said = {}
    for name in votes.voters:
        column = votes.column(name)
        joined = [column[places[row.id]] if row.id in places else None for row in examples]
        said[name] = (joined, known.get(name) or {"kind": "file", "hash": _hash(joined)})
    found.add(source, said)


def _check_labels(found: Gathered, labels: Sequence[str]) -> None:
    if not labels:
        return
    for name, column in found.columns.items():
        strange = next((vote for vote in column if vote is not None and vote not in labels), None)
        if strange is not None:
            raise DataError(f"voter {name!r} says {strange!r}, which is no label; the labels are {', '.join(labels)}")


def _hash(column: Sequence[str | None]) -> str:
    return hashlib.sha256(json.dumps(list(column), ensure_ascii=True).encode("ascii")).hexdigest()
