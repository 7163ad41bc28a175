"""A published version, as the registry hands it out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub.data.task import TaskSpec
from adapterhub.errors import CorruptAdapter

from .bundle import CARD_FILE, TASK_FILE, digest_folder, hash_text, read_attached, read_text
from .card import Card


@dataclass(frozen=True)
class Version:
    """An immutable published adapter; `path` is its folder, a PEFT adapter folder as it stands.

    `base` is a name or id that means the same on every machine ("local/…" where the base was a folder), and
    `base_fingerprint` what the base must have. `created_at` is UTC, ISO 8601.
    """

    task: str
    version: int
    digest: str
    path: Path
    aliases: tuple[str, ...]
    created_at: str
    base: str
    base_fingerprint: str
    card_sha256: str

    @property
    def ref(self) -> str:
        """The ref that always names exactly this version: "trec6@3"."""
        return f"{self.task}@{self.version}"

    def card(self) -> Card:
        """Read card.json; raises CorruptAdapter where it is not the one that was published."""
        text = read_text(self.path / CARD_FILE)
        if hash_text(text) != self.card_sha256:
            raise CorruptAdapter(f"card.json of {self.ref} ({self.path}) is not the one that was published; restore it")
        return Card.from_json(text)

    def attached(self, name: str) -> str | None:
        """Read an attached file, None where the version has none; raises CorruptAdapter where it is another."""
        files = self.card().files
        return read_attached(self.path, {name: files[name]})[name] if name in files else None

    def spec(self) -> TaskSpec:
        """Read task.json; raises CorruptAdapter."""
        return TaskSpec.from_json(read_text(self.path / TASK_FILE))

    def check(self) -> None:
        """Hash the files again; raises CorruptAdapter where they are not what the digest says."""
        found = digest_folder(self.path)
        if found != self.digest:
            raise CorruptAdapter(
                f"the files of {self.ref} ({self.path}) hash to {found}, not to its digest {self.digest}; "
                "restore them, or publish the same adapter again"
            )

    def to_record(self) -> dict[str, Any]:
        """Return what scripts need, JSON-able; `path` is absolute."""
        return {
            "task": self.task,
            "version": self.version,
            "ref": self.ref,
            "digest": self.digest,
            "path": str(self.path.absolute()),
            "aliases": list(self.aliases),
            "created_at": self.created_at,
            "base": self.base,
            "base_fingerprint": self.base_fingerprint,
        }


@dataclass(frozen=True)
class Published(Version):
    """What publishing gave: `created` is False where the registry had this digest already."""

    created: bool
