"""What a registry no longer needs: leftovers of killed writes, and deleted versions that nothing was made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adapterhub.errors import AdapterHubError

from .bundle import CARD_FILE, folder_name
from .card import Card
from .disk import TEMPORARY
from .index import Index
from .publish import leftovers
from .ref import is_digest, is_task_name
from .version import Version


@dataclass(frozen=True, slots=True)
class Freed:
    """Something of a task that is not listed: where it is, what it was, its bytes, and a version's digest."""

    path: Path
    what: str
    size: int
    digest: str | None = None

    def to_record(self) -> dict[str, object]:
        """Return the JSON record."""
        return {"path": str(self.path.absolute()), "what": self.what, "bytes": self.size}


def ancestors(version: Version) -> Iterator[str]:
    """Yield the digests that a version's card says it was made from."""
    card = version.card()
    for each in (*card.parents, card.training.get("init")):
        if isinstance(each, str) and is_digest(each):
            yield each


def unborn(root: Path) -> Iterator[str]:
    """Yield the tasks whose first publish was killed, so that there is nothing but its leftovers."""
    for path in root.glob(f"{TEMPORARY}*@*"):
        task = path.name.partition("@")[2]
        if is_task_name(task):
            yield task


def garbage(root: Path, task: str, index: Index | None) -> Iterator[Freed]:
    """Yield what may go of a task, whose lock the caller holds: so a hidden folder is nobody's work at hand.

    Whether a listed version was made from one of the versions is for the caller to ask.
    """
    for path in list(leftovers(root, task)):
        yield Freed(path, "an unfinished write", _size(path))
    if index is None:
        return
    for gone in index.deleted:
        path = root / task / folder_name(gone.entry.digest)
        if path.is_dir() and not path.is_symlink():
            what = f"{task}@{gone.entry.version}, deleted at {gone.at}"
            yield Freed(path, what, _size(path), gone.entry.digest)
    known = {folder_name(each.digest) for each in (*index.versions, *(gone.entry for gone in index.deleted))}
    for path in sorted((root / task).iterdir()):
        if path.name not in known and not path.is_symlink() and (digest := _orphan(path)) is not None:
            yield Freed(path, "a version that a killed publish did not come to list", _size(path), digest)


def _orphan(folder: Path) -> str | None:
    """Return the digest on a folder's card, where that is the folder's name; a stranger's folder is left alone."""
    try:
        digest = Card.from_json((folder / CARD_FILE).read_text(encoding="utf-8")).digest
    except (AdapterHubError, OSError, ValueError):
        return None
    return digest if is_digest(digest) and folder_name(digest) == folder.name else None


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file() and not each.is_symlink())
