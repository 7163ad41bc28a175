"""`index.json`: the versions and aliases of one task, as one immutable value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from adapterhub.errors import CorruptAdapter

from .ref import check_alias_name, is_digest

INDEX_FILE = "index.json"
FORMAT = 1
_KNOWN = frozenset({"format", "task", "base", "base_fingerprint", "versions", "aliases", "history", "deleted"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One version: number, digest, sha256 of its card.json (64 hex digits) and UTC time of publication."""

    version: int
    digest: str
    card_sha256: str
    created_at: str

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record."""
        return {
            "version": self.version,
            "digest": self.digest,
            "card_sha256": self.card_sha256,
            "created_at": self.created_at,
        }


@dataclass(frozen=True, slots=True)
class Move:
    """An alias put on `version`, or removed (None); `before` is what it meant until then, `at` UTC, `why` free text."""

    alias: str
    version: int | None
    before: int | None
    at: str
    why: str = ""

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record."""
        return {"alias": self.alias, "version": self.version, "before": self.before, "at": self.at, "why": self.why}


@dataclass(frozen=True, slots=True)
class Deleted:
    """A version that was taken out of the list, at a UTC time; its number is never given to another."""

    entry: Entry
    at: str
    why: str = ""

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record."""
        return {**self.entry.to_record(), "deleted_at": self.at, "why": self.why}


@dataclass(frozen=True)
class Index:
    """What `index.json` says; versions in rising order, aliases name → version number, sorted.

    `base` is the name the first version was trained under, `base_fingerprint` what every version must share. `history`
    has every move of an alias, oldest first. Keys of a later program are kept in `extra` and written back.
    """

    task: str
    base: str
    base_fingerprint: str
    versions: tuple[Entry, ...] = ()
    aliases: Mapping[str, int] = field(default_factory=dict)
    history: tuple[Move, ...] = ()
    deleted: tuple[Deleted, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def find(self, digest: str) -> Entry | None:
        """Return the entry with exactly this digest."""
        return next((entry for entry in self.versions if entry.digest == digest), None)

    def numbered(self, version: int) -> Entry | None:
        """Return the entry with this number."""
        # Numbers normally run without a gap, so the entry is found without a search.
        if 0 < version <= len(self.versions) and self.versions[version - 1].version == version:
            return self.versions[version - 1]
        return next((entry for entry in self.versions if entry.version == version), None)

    def aliases_of(self, version: int) -> tuple[str, ...]:
        """Return the aliases that point at a version, sorted."""
        return tuple(self._names.get(version, ()))

    @cached_property
    def _names(self) -> dict[int, list[str]]:
        names: dict[int, list[str]] = {}
        for name, number in self.aliases.items():
            names.setdefault(number, []).append(name)
        return names

    def with_entry(self, digest: str, card_sha256: str, created_at: str) -> tuple[Index, Entry]:
        """Return an index that lists `digest`, under the number it has or once had or the next, and its entry."""
        old = self.find(digest)
        if old is not None:
            entry = replace(old, card_sha256=card_sha256)
            return replace(self, versions=tuple(entry if each is old else each for each in self.versions)), entry
        gone = next((each for each in self.deleted if each.entry.digest == digest), None)
        if gone is not None:
            entry = replace(gone.entry, card_sha256=card_sha256)
            versions = tuple(sorted((*self.versions, entry), key=lambda each: each.version))
            return replace(self, versions=versions, deleted=tuple(d for d in self.deleted if d is not gone)), entry
        entry = Entry(self._next, digest, card_sha256, created_at)
        return replace(self, versions=(*self.versions, entry)), entry

    def with_alias(self, alias: str, version: int | None, at: str, why: str = "") -> Index:
        """Return an index whose `alias` points at `version`, or is gone, with that move in its history."""
        kept = {name: number for name, number in self.aliases.items() if name != alias}
        move = Move(alias, version, self.aliases.get(alias), at, why)
        aliases = kept if version is None else {**kept, alias: version}
        return replace(self, aliases=aliases, history=(*self.history, move))

    def without(self, entry: Entry, at: str, why: str = "") -> Index:
        """Return an index that lists `entry` as deleted."""
        kept = tuple(each for each in self.versions if each is not entry)
        return replace(self, versions=kept, deleted=(*self.deleted, Deleted(entry, at, why)))

    @property
    def _next(self) -> int:
        """The number of a version that was never here."""
        numbers = (each.version for each in (*self.versions[-1:], *(gone.entry for gone in self.deleted)))
        return max(numbers, default=0) + 1

    def to_json(self) -> str:
        """Return the canonical text: equal indexes have equal bytes."""
        record = {
            **self.extra,
            "format": FORMAT,
            "task": self.task,
            "base": self.base,
            "base_fingerprint": self.base_fingerprint,
            "versions": [each.to_record() for each in self.versions],
            "aliases": dict(self.aliases),
            "history": [each.to_record() for each in self.history],
            "deleted": [each.to_record() for each in self.deleted],
        }
        return json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, task: str) -> Index:
        """Read what `to_json` wrote for `task`; raises CorruptAdapter where it is anything else."""
        try:
            record = json.loads(text)
            _check_format(record, task)
            entries = tuple(map(_entry, record["versions"]))
            aliases = {check_alias_name(name): int(number) for name, number in sorted(record["aliases"].items())}
            extra = {key: value for key, value in record.items() if key not in _KNOWN}
            # Registries of earlier programs have neither.
            history, deleted = (
                tuple(map(_move, record.get("history", ()))),
                tuple(map(_gone, record.get("deleted", ()))),
            )
            bound = str(record["base"]), str(record["base_fingerprint"])
            index = cls(task, *bound, entries, aliases, history, deleted, extra)
        except CorruptAdapter:
            raise
        except Exception as error:  # Whatever a stranger's file makes the reader trip over, it is this file's fault.
            raise CorruptAdapter(f"index.json of task {task!r} is damaged ({error!r}); restore it") from error
        if not entries and not deleted:
            raise CorruptAdapter(f"index.json of task {task!r} lists no version; restore it")
        numbers, ever = [entry.version for entry in entries], [*entries, *(gone.entry for gone in deleted)]
        twice = any(len({getattr(each, what) for each in ever}) != len(ever) for what in ("version", "digest"))
        if numbers != sorted(numbers) or twice:
            raise CorruptAdapter(
                f"index.json of task {task!r} has a version or digest twice or out of order; restore it"
            )
        return index


def _check_format(record: Mapping[str, Any], task: str) -> None:
    if record["format"] != FORMAT:
        raise CorruptAdapter(
            f"index.json of task {task!r} has format {record['format']!r}; this program reads {FORMAT}: upgrade it"
        )
    if record["task"] != task:
        raise CorruptAdapter(
            f"index.json in folder {task!r} is that of task {record['task']!r}; restore the folder's name"
        )


def _entry(record: Mapping[str, Any]) -> Entry:
    entry = Entry(int(record["version"]), record["digest"], str(record["card_sha256"]), str(record["created_at"]))
    # The digest names a folder: anything but hex digits must never reach a path.
    if not is_digest(entry.digest):
        raise ValueError(f"version {entry.version} has the digest {entry.digest!r}")
    if entry.version < 1:
        raise ValueError(f"version {entry.version} is below 1")
    return entry


def _move(record: Mapping[str, Any]) -> Move:
    version, before = (None if record[key] is None else int(record[key]) for key in ("version", "before"))
    return Move(check_alias_name(record["alias"]), version, before, str(record["at"]), str(record["why"]))


def _gone(record: Mapping[str, Any]) -> Deleted:
    return Deleted(_entry(record), str(record["deleted_at"]), str(record["why"]))
