"""All functions of a file on all rows: votes, and for each function what it did and what went wrong."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from typing import Any

from adapterhub.data.example import Example, content_id
from adapterhub.errors import UsageError
from adapterhub.folders import cache_root

from .answer_cache import AnswerCache
from .code_hash import code_hash
from .functions import LabelingFunction, ModelFunction, Models
from .rules import Rules
from .run import Failure, Outcome, check_vote, chunks, failure, run_work
from .votes import Votes

# Kinds of errors of one function that are told, the most frequent ones.
SHOWN = 5
Advance = Callable[[int], None]
"""Told of so many further votes."""


@dataclass(frozen=True)
class Trouble:
    """Errors of one function that are alike: how often, what was said, and at which row first."""

    type: str
    message: str
    count: int
    where: str


@dataclass(frozen=True)
class FunctionReport:
    """What one function did; errors stand as abstains in the votes, and are not counted as such here."""

    name: str
    hash: str
    where: str
    votes: dict[str, int]
    abstains: int
    errors: int
    troubles: tuple[Trouble, ...]
    cached: int

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record."""
        return {**vars(self), "troubles": [vars(each) for each in self.troubles[:SHOWN]]}


@dataclass(frozen=True)
class Applied:
    """The votes, a column a function, and a report on each."""

    votes: Votes
    reports: tuple[FunctionReport, ...]

    @property
    def failed(self) -> list[str]:
        """The functions that failed on every row."""
        return [each.name for each in self.reports if each.errors == len(self.votes.ids)]


def apply(
    rules: Rules,
    examples: Sequence[Example],
    *,
    labels: Sequence[str] = (),
    processes: int = 1,
    cache: AnswerCache | None = None,
    models: Models | None = None,
    advance: Advance = lambda _: None,
) -> Applied:
    """Run every function on every example, but for what the cache holds; an error is an abstain that is counted.

    With `labels`, a vote for any other is an error. What an error was is not kept, so it is tried again next time.
    Raises UsageError for functions that ask models where there are none, and what asking raises.
    """
    cache = AnswerCache(cache_root() / "answers" / "functions.sqlite") if cache is None else cache
    rows = [row_hash(example) for example in examples]
    bare = [replace(example, id=row, where="") for example, row in zip(examples, rows, strict=True)]
    hashes = {name: _hash(rules, name, models) for name in rules.functions}
    keys = {name: [f"{each}:{row}" for row in rows] for name, each in hashes.items()}
    known = {name: cache.get(each) for name, each in keys.items()}
    outcomes: dict[str, list[Outcome]] = {name: [known[name].get(key) for key in each] for name, each in keys.items()}
    todo = {name: [place for place, key in enumerate(each) if key not in known[name]] for name, each in keys.items()}
    advance(sum(len(rows) - len(each) for each in todo.values()))

    def done(name: str, places: Sequence[int], said: Sequence[Outcome]) -> None:
        for place, outcome in zip(places, said, strict=True):
            outcomes[name][place] = outcome
        pairs = zip(places, said, strict=True)
        cache.put({keys[name][place]: each for place, each in pairs if not isinstance(each, Failure)})
        advance(len(places))

    plain = [name for name, each in rules.functions.items() if isinstance(each, LabelingFunction)]
    work = [piece for name in plain for piece in chunks(name, todo[name])]
    for piece, said in run_work(rules, work, bare, processes):
        done(piece.name, piece.rows, said)
    for name, each in rules.functions.items():
        if isinstance(each, ModelFunction) and todo[name]:
            done(name, todo[name], _ask(each, [examples[place].text for place in todo[name]], models))
    reports = tuple(
        _report(rules, name, hashes[name], outcomes[name], examples, set(labels), len(rows) - len(todo[name]))
        for name in rules.functions
    )
    columns: dict[str, Sequence[str | None]] = {
        name: [each if isinstance(each, str) else None for each in outcomes[name]] for name in rules.functions
    }
    return Applied(Votes.of(columns, [example.id for example in examples], labels), reports)


def row_hash(example: Example) -> str:
    """Return 16 hex digits of what a row says: all but its id and its place."""
    said = {"fields": dict(example.fields), "weight": example.weight, "source": example.source}
    return content_id({**said, "probs": None if example.probs is None else dict(example.probs)})


def _hash(rules: Rules, name: str, models: Models | None) -> str:
    function, found = rules.functions[name], rules.hash_of(name)
    if isinstance(function, LabelingFunction):
        return found
    return code_hash((found, _given(function, models).identity(function.kind, function.model)))


def _given(function: ModelFunction, models: Models | None) -> Models:
    if models is None:
        raise UsageError(f"function {function.name!r} asks the model {function.model!r}, and none are at hand here")
    return models


def _ask(function: ModelFunction, texts: Sequence[str], models: Models | None) -> list[Outcome]:
    try:
        with redirect_stdout(sys.stderr):
            said = function.ask(_given(function, models), texts)
        return [check_vote(each) for each in said]
    except Exception as error:
        return [failure(error)] * len(texts)


def _report(
    rules: Rules,
    name: str,
    digest: str,
    outcomes: list[Outcome],
    examples: Sequence[Example],
    labels: set[str],
    cached: int,
) -> FunctionReport:
    """Return what became of a function; in `outcomes` votes for unknown labels become errors."""
    votes: Counter[str] = Counter()
    troubles: dict[tuple[str, str], Trouble] = {}
    for place, outcome in enumerate(outcomes):
        if isinstance(outcome, str) and labels and outcome not in labels:
            known = ", ".join(sorted(labels)[:10])
            outcomes[place] = outcome = Failure("UnknownLabel", f"it returned {outcome!r:.80}; the labels are {known}")
        if isinstance(outcome, Failure):
            key = (outcome.type, outcome.message)
            before = troubles.get(key, Trouble(*key, 0, examples[place].where))
            troubles[key] = replace(before, count=before.count + 1)
        elif outcome is not None:
            votes[outcome] += 1
    errors = sum(each.count for each in troubles.values())
    abstains = len(outcomes) - errors - votes.total()
    ranked = tuple(sorted(troubles.values(), key=lambda each: -each.count))
    ordered = dict(sorted(votes.items()))
    return FunctionReport(name, digest, rules.where(name), ordered, abstains, errors, ranked, cached)
