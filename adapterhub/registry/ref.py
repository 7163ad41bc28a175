"""How people name a version: `trec6`, `trec6@3`, `trec6@prod`, `trec6@sha256:ab12…`.

Names come from users, URLs and files of strangers, and they end up in paths: everything that passes here is one plain
path component of lower-case ASCII, so joining it can never leave the registry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from adapterhub.errors import NameTaken, RefNotFound, UsageError

LATEST = "latest"
PROD = "prod"
_TASK = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_ALIAS = re.compile(r"[a-z][a-z0-9._-]{0,63}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{4,64})")
_FULL_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FORMS = "TASK, TASK@3, TASK@prod or TASK@sha256:ab12 (4 to 64 lower-case hex digits)"


@dataclass(frozen=True, slots=True)
class Ref:
    """A parsed ref; at most one of `version`, `alias` and `digest` is set, none means `prod` or else the latest.

    `digest` is "sha256:" and 4 to 64 hex digits, possibly a prefix. `alias` may be the computed "latest".
    """

    task: str
    version: int | None = None
    alias: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        chosen = self.version or self.alias or self.digest
        return self.task if chosen is None else f"{self.task}@{chosen}"


def parse_ref(text: str) -> Ref:
    """Read a ref; raises RefNotFound where `text` can name no version, saying what is allowed."""
    task, at, rest = text.partition("@")
    if not _TASK.fullmatch(task):
        raise RefNotFound(
            f"no version is called {text!r}: {task!r} is not a task name (lower-case letters, digits, '.', '_' "
            f"and '-', at most 64, starting with a letter or digit); a ref is {_FORMS}"
        )
    if not at:
        return Ref(task)
    if _VERSION.fullmatch(rest):
        return Ref(task, version=int(rest))
    if _DIGEST.fullmatch(rest):
        return Ref(task, digest=rest)
    if _ALIAS.fullmatch(rest) and not rest.startswith("sha256"):
        return Ref(task, alias=rest)
    raise RefNotFound(f"no version is called {text!r}: {rest!r} is no version number, alias or digest; use {_FORMS}")


def check_task_name(name: str) -> str:
    """Return `name` if a task may be called so; raises UsageError."""
    if not _TASK.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a task's name: use lower-case letters, digits, '.', '_' and '-', at most 64, "
            "starting with a letter or digit"
        )
    return name


def check_alias_name(name: str) -> str:
    """Return `name` if an alias may be called so; raises UsageError, or NameTaken for a reserved name."""
    if name == LATEST:
        raise NameTaken(f"the alias {LATEST!r} is reserved: it always means the newest version; choose another name")
    if name.startswith("sha256"):
        raise NameTaken(f"the alias {name!r} would read as a digest; choose a name that does not start with 'sha256'")
    if not _ALIAS.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be an alias: use lower-case letters, digits, '.', '_' and '-', at most 64, "
            "starting with a letter"
        )
    return name


def is_digest(text: object) -> bool:
    """Say whether `text` is a whole digest: "sha256:" and 64 lower-case hex digits."""
    return isinstance(text, str) and _FULL_DIGEST.fullmatch(text) is not None


def is_task_name(name: str) -> bool:
    """Say whether a task may be called so."""
    return _TASK.fullmatch(name) is not None
