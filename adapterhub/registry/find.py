"""Which entry of an index a ref means, and what to say when it means none."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from adapterhub.errors import RefNotFound

from .index import Deleted, Entry, Index
from .ref import LATEST, PROD, Ref

_COMPARED = 1000  # names that are compared, so that an unknown ref costs a server little
_LONGEST = 80  # characters of the unknown name that are compared, for the same reason


def choose(index: Index, ref: Ref) -> Entry:
    """Return the entry `ref` means; raises RefNotFound saying what there is."""
    if ref.digest is not None:
        return _by_digest(index, ref.digest)
    number = ref.version
    if ref.alias is not None and ref.alias != LATEST:
        if ref.alias not in index.aliases:
            raise RefNotFound(f"task {index.task!r} has no alias {ref.alias!r}; {offer(ref.alias, index.aliases)}")
        number = index.aliases[ref.alias]
    elif ref == Ref(ref.task):
        number = index.aliases.get(PROD)
    if number is not None:
        return _by_number(index, number)
    if not index.versions:
        raise RefNotFound(f"all versions of task {index.task!r} were deleted; publish one again")
    return index.versions[-1]


def offer(wanted: str, names: Iterable[str]) -> str:
    """Return what to say of the names there are: close ones, else the first few."""
    known = sorted(names)[:_COMPARED]
    if not known:
        return "there are none yet"
    close = difflib.get_close_matches(wanted[:_LONGEST], known, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    more = f" and {len(known) - 5} more" if len(known) > 5 else ""
    return f"known: {', '.join(map(repr, known[:5]))}{more}"


def _by_number(index: Index, number: int) -> Entry:
    entry = index.numbered(number)
    if entry is None:
        for gone in index.deleted:
            if gone.entry.version == number:
                raise RefNotFound(_was_deleted(index, gone))
        if not index.versions:
            raise RefNotFound(f"task {index.task!r} has no version {number}; all it had were deleted")
        first, last = index.versions[0].version, index.versions[-1].version
        has = f"versions {first} to {last}" if first < last else f"version {first} only"
        raise RefNotFound(f"task {index.task!r} has no version {number}; it has {has}")
    return entry


def _by_digest(index: Index, prefix: str) -> Entry:
    found = [entry for entry in index.versions if entry.digest.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    if not found:
        for gone in index.deleted:
            if gone.entry.digest.startswith(prefix):
                raise RefNotFound(_was_deleted(index, gone))
        near = offer(prefix, {entry.digest[: len(prefix)] for entry in index.versions})
        raise RefNotFound(f"task {index.task!r} has no version with digest {prefix!r}; {near}")
    several = ", ".join(f"{index.task}@{entry.version} ({entry.digest[:23]}…)" for entry in found[:5])
    raise RefNotFound(f"{prefix!r} fits {len(found)} versions of task {index.task!r}: {several}; give more digits")


def _was_deleted(index: Index, gone: Deleted) -> str:
    why = f" ({gone.why})" if gone.why else ""
    ref = f"{index.task}@{gone.entry.version}"
    return f"{ref} was deleted at {gone.at}{why}; publish the same adapter again to have it back"
