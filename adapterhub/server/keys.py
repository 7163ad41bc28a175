"""API keys: what a key may do, and the file that keeps them by their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from adapterhub.errors import ConfigError, FileMissing, NameTaken, NotFound, Overloaded, UsageError
from adapterhub.folders import sync_folder
from adapterhub.registry.disk import temporary_name, utc_now

FORMAT = 1
PREFIX = "ah_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")
_LOCK_SECONDS = 30.0


@dataclass(frozen=True)
class Key:
    """A key, by the sha256 of its text; None stands for no limit.

    `tasks` are the names it may ask, the base's own among them where it may ask the base. `tokens_per_day` counts
    prompts and answers of one day in UTC. A revoked key is kept, so that its name in logs can still be looked up.
    """

    id: str
    name: str
    sha256: str
    created_at: str
    tasks: tuple[str, ...] | None = None
    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    admin: bool = False
    revoked_at: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"{self.name[:80]!r} cannot be a key's name: use letters, digits, '.', '_' and '-', at most 64, "
                "starting with a letter or digit"
            )
        for name in ("requests_per_minute", "tokens_per_day"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} of the key {self.name!r} is {value}; it must be at least 1")
        if self.tasks is not None and not self.tasks:
            raise UsageError(f"the key {self.name!r} may ask no task at all; name one, or allow all")

    def may_ask(self, *names: str) -> bool:
        """Say whether the key allows what goes by one of these names."""
        return self.tasks is None or any(name in self.tasks for name in names)

    def to_record(self) -> dict[str, Any]:
        """Return the JSON-able form, as the file holds it."""
        return {**asdict(self), "tasks": None if self.tasks is None else list(self.tasks)}


class KeyFile:
    """The file of keys: JSON, for its owner's eyes only, replaced whole under a lock."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[Key, ...]:
        """Return all keys, revoked ones too; raises FileMissing, and ConfigError naming what is wrong in the file."""
        try:
            text = self.path.read_text("utf-8")
        except FileNotFoundError as error:
            raise FileMissing(
                f"there is no file of keys at {str(self.path)!r}; make one with `adapterhub keys create`"
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self.path} is not UTF-8: {error}") from error
        return _parse(text, self.path)

    def create(self, name: str, **rights: Any) -> tuple[Key, str]:
        """Add a key and return it with its text, which is kept nowhere. `rights` are fields of Key.

        Raises NameTaken where a key that is not revoked has the name, UsageError for rights that make no sense.
        """
        text = PREFIX + secrets.token_urlsafe(32)
        made = Key(secrets.token_hex(8), name, hash_key(text.encode()), utc_now(), **rights)
        with self._locked():
            keys = self.read() if self.path.exists() else ()
            if any(key.name == name and key.revoked_at is None for key in keys):
                raise NameTaken(f"{self.path} has a key {name!r} already; revoke it first, or choose another name")
            self._write((*keys, made))
        return made, text

    def revoke(self, name: str) -> Key:
        """Take a key's rights for good and return it; raises NotFound where no valid key has the name."""
        with self._locked():
            keys = self.read()
            found = next((key for key in keys if key.name == name and key.revoked_at is None), None)
            if found is None:
                valid = ", ".join(repr(key.name) for key in keys if key.revoked_at is None) or "none"
                raise NotFound(f"{self.path} has no valid key {name!r}; valid ones: {valid}")
            gone = replace(found, revoked_at=utc_now())
            self._write([gone if key is found else key for key in keys])
        return gone

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.path.with_name(self.path.name + ".lock")
        try:
            with FileLock(lock, timeout=_LOCK_SECONDS, mode=0o600):
                yield
        except Timeout as error:
            raise Overloaded(f"another process has held {lock} for {_LOCK_SECONDS:.0f} s; try again") from error

    def _write(self, keys: Sequence[Key]) -> None:
        text = json.dumps({"format": FORMAT, "keys": [key.to_record() for key in keys]}, indent=2) + "\n"
        temporary = self.path.with_name(temporary_name())
        try:
            # Never readable by others, not even for the moment between opening and a chmod.
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            temporary.replace(self.path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(self.path.parent)


def hash_key(text: bytes) -> str:
    """Return what the file keeps of a key. Its 256 random bits need no slow hash: nobody can try them all."""
    return hashlib.sha256(text).hexdigest()


def _parse(text: str, path: Path) -> tuple[Key, ...]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or not isinstance(record.get("keys"), list):
        raise ConfigError(f'{path} is no file of keys; expected {{"format": {FORMAT}, "keys": […]}}')
    keys = tuple(_key(entry, f"key {number} of {path}") for number, entry in enumerate(record["keys"], 1))
    names = [key.name for key in keys if key.revoked_at is None]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{path} has two valid keys called {twice!r}; revoke or rename one")
    return keys


_TYPES: Mapping[str, tuple[type, ...]] = {
    "id": (str,),
    "name": (str,),
    "sha256": (str,),
    "created_at": (str,),
    "tasks": (list, type(None)),
    "requests_per_minute": (int, type(None)),
    "tokens_per_day": (int, type(None)),
    "admin": (bool,),
    "revoked_at": (str, type(None)),
}


def _key(entry: Any, where: str) -> Key:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} is {entry!r:.80}; expected an object")
    unknown = sorted(entry.keys() - _TYPES.keys())
    if unknown:
        raise ConfigError(f"{where} has the unknown field {unknown[0]!r}; known ones are {', '.join(_TYPES)}")
    for field in fields(Key):
        value = entry.get(field.name, field.default)
        # Exactly these types: JSON's true is an int to Python, and no limit.
        if type(value) not in _TYPES[field.name]:
            raise ConfigError(f"{where}: {field.name} is {value!r:.80}; see `adapterhub keys create --help`")
    if not _HASH.fullmatch(entry["sha256"]):
        raise ConfigError(f"{where}: sha256 is {entry['sha256']!r:.80}; expected 64 lower-case hex digits")
    tasks = entry.get("tasks")
    if tasks is not None and not all(isinstance(task, str) for task in tasks):
        raise ConfigError(f"{where}: tasks is {tasks!r:.80}; expected names")
    try:
        return Key(**{**entry, "tasks": None if tasks is None else tuple(tasks)})
    except UsageError as error:
        raise ConfigError(f"{where}: {error}") from error
