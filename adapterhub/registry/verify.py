"""Proof that what lies in a registry is what was published."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from adapterhub.errors import AdapterHubError, CorruptAdapter

from .bundle import ALL_FILES, ATTACHED_FILES, CARD_FILE, README_FILE, folder_name, plain_file, read_attached
from .disk import TEMPORARY
from .index import INDEX_FILE, Index
from .version import Version


@dataclass(frozen=True, slots=True)
class Problem:
    """Something found at `where` (a ref or a folder). A `note` is harmless: a leftover."""

    where: str
    message: str
    note: bool = False

    def to_record(self) -> dict[str, object]:
        """Return the JSON record."""
        return {"where": self.where, "message": self.message, "note": self.note}


def verify_version(version: Version) -> Iterator[Problem]:
    """Yield what is wrong with one version: its folder, its set of files, their bytes, its card."""
    if version.path.is_symlink() or not version.path.is_dir():
        yield Problem(version.ref, f"its folder {str(version.path)!r} is missing or a link")
        return
    surplus = sorted(each.name for each in version.path.iterdir() if each.name not in ALL_FILES)
    if surplus:
        yield Problem(version.ref, f"files that do not belong there: {', '.join(map(repr, surplus))}")
    for check in (_check_files, _check_card, _check_readme):
        try:
            check(version)
        except AdapterHubError as error:
            yield Problem(version.ref, str(error))


def verify_task(folder: Path, index: Index, versions: Iterable[Version]) -> Iterator[Problem]:
    """Yield what is wrong with a task: its versions, its aliases, and what else lies in its folder."""
    for version in versions:
        yield from verify_version(version)
    for name, number in index.aliases.items():
        if index.numbered(number) is None:
            yield Problem(f"{index.task}@{name}", f"points at version {number}, which does not exist")
    known = {INDEX_FILE, *(folder_name(entry.digest) for entry in index.versions)}
    deleted = {folder_name(gone.entry.digest): gone.entry.version for gone in index.deleted}
    for each in sorted(folder.iterdir()):
        if each.name.startswith(TEMPORARY):
            yield unfinished(each)
        elif each.name in deleted:
            yield Problem(f"{index.task}@{deleted[each.name]}", "deleted; gc frees its files", note=True)
        elif each.name not in known and (each / CARD_FILE).is_file():
            yield Problem(str(each), "a whole version that is not listed; publish it again to list it", note=True)
        elif each.name not in known:
            yield Problem(str(each), "belongs to no version; remove it")


def unfinished(path: Path) -> Problem:
    """Return the note for what a killed write left behind."""
    return Problem(str(path), "an unfinished write; the next publish to its task clears it, or gc", note=True)


def _check_files(version: Version) -> None:
    version.check()
    fingerprint = version.spec().base_fingerprint
    if fingerprint != version.base_fingerprint:
        raise CorruptAdapter(f"task.json wants base {fingerprint}, the task is bound to {version.base_fingerprint}")


def _check_card(version: Version) -> None:
    card = version.card()
    if card.digest != version.digest:
        raise CorruptAdapter(f"card.json is that of {card.digest!r}, the index says {version.digest!r}")
    read_attached(version.path, card.files)
    if unnamed := [name for name in ATTACHED_FILES if name not in card.files and (version.path / name).exists()]:
        raise CorruptAdapter(f"{', '.join(unnamed)} lies there, but card.json does not name it; remove it")


def _check_readme(version: Version) -> None:
    plain_file(version.path / README_FILE)
