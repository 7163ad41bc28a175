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
_KNOWN = frozenset({"format", "task", "base", "base_fingerprint", "versions", "aliases"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One version: number, digest, sha256 of its card.json (64 hex digits) and UTC time of publication."""

    version: int
    digest: str
    card_sha256: str
    created_at: str


@dataclass(frozen=True)
class Index:
    """What `index.json` says; versions in rising order, aliases name → version number, sorted.

    `base` is the name the first version was trained under, `base_fingerprint` what every version must share. Keys of a
    later program are kept in `extra` and written back.
    """

    task: str
    base: str
    base_fingerprint: str
    versions: tuple[Entry, ...] = ()
    aliases: Mapping[str, int] = field(default_factory=dict)
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
        """Return an index that holds `digest` (under its old number, or the next), and its entry."""
        old = self.find(digest)
        if old is not None:
            entry = replace(old, card_sha256=card_sha256)
            entries = tuple(entry if each is old else each for each in self.versions)
            return replace(self, versions=entries), entry
        number = self.versions[-1].version + 1 if self.versions else 1
        entry = Entry(number, digest, card_sha256, created_at)
        return replace(self, versions=(*self.versions, entry)), entry

    def with_alias(self, alias: str, version: int | None) -> Index:
        """Return an index whose `alias` points at `version`, or is gone."""
        kept = {name: number for name, number in self.aliases.items() if name != alias}
        return replace(self, aliases=kept if version is None else {**kept, alias: version})

    def to_json(self) -> str:
        """Return the canonical text: equal indexes have equal bytes."""
        record = {
            **self.extra,
            "format": FORMAT,
            "task": self.task,
            "base": self.base,
            "base_fingerprint": self.base_fingerprint,
            "versions": [
                {"version": e.version, "digest": e.digest, "card_sha256": e.card_sha256, "created_at": e.created_at}
                for e in self.versions
            ],
            "aliases": dict(self.aliases),
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
            index = cls(task, str(record["base"]), str(record["base_fingerprint"]), entries, aliases, extra)
        except CorruptAdapter:
            raise
        except Exception as error:  # Whatever a stranger's file makes the reader trip over, it is this file's fault.
            raise CorruptAdapter(f"index.json of task {task!r} is damaged ({error!r}); restore it") from error
        if not entries:
            raise CorruptAdapter(f"index.json of task {task!r} lists no version; restore it")
        numbers = [entry.version for entry in entries]
        if numbers != sorted(set(numbers)) or len({entry.digest for entry in entries}) != len(entries):
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
