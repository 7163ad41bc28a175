"""`Base`: one frozen foundation model on disk, and what is known of it without loading it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol


class Progress(Protocol):
    """Hears what is being done; a caller that shows nothing passes None instead."""

    def __call__(self, step: str, done: int = 0, total: int = 0) -> None:
        """Take the name of a step, and bytes done of bytes in all where they are known (`total` > 0)."""


@dataclass(frozen=True)
class Base:
    """A base that lies on disk and can be loaded.

    `name` is what was asked for; `public_id` is what an adapter's config says, never a path; `path` is a folder that
    `AutoModel.from_pretrained` loads as it is. `fingerprint` is "sha256:" and 64 hex digits. `parameters` and `bytes`
    count the stored tensors, `context_length` counts tokens. `revision` is the commit of a base from the Hub.
    """

    name: str
    public_id: str
    path: Path
    fingerprint: str
    architecture: str
    model_type: str
    parameters: int
    dtype: str
    bytes: int
    context_length: int
    licence: str | None
    derived_from: str | None
    is_encoder: bool
    revision: str | None = None

    def to_record(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "path": str(self.path)}

    def to_card(self) -> dict[str, Any]:
        """Return what a version's card says of the base it was made on."""
        record = {
            "name": self.name,
            "public_id": self.public_id,
            "fingerprint": self.fingerprint,
            "derived_from": self.derived_from,
        }
        return record if self.revision is None else {**record, "revision": self.revision}
