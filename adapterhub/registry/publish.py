"""One publish, step by step, so that a stop at any step leaves the old state or the new one.

A version is built whole in a hidden folder (its card last), takes its name by one rename, and counts once `index.json`
lists it. A task's first version is built with its whole task folder. Every step is on the disk before the next begins.
The caller holds the task's lock: hidden folders found here are leftovers of a publish that was killed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from adapterhub.data.task import TaskSpec
from adapterhub.errors import AdapterHubError, Conflict
from adapterhub.folders import sync_folder

from .bundle import (
    CARD_FILE,
    README_FILE,
    copy_bundle,
    digest_folder,
    folder_name,
    hash_file,
    hash_text,
    read_attached,
    read_text,
)
from .card import Card
from .disk import TEMPORARY, remove, replace_file, temporary_name, utc_now, write_file
from .index import INDEX_FILE, Entry, Index
from .model_card import model_card


@dataclass(frozen=True)
class Candidate:
    """What is to be published: the folder with the digest files, the card without a digest yet, and attached texts."""

    task: str
    folder: Path
    card: Card
    spec: TaskSpec
    attached: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The index after a publish, the version's entry in it, and whether that is new."""

    index: Index
    entry: Entry
    created: bool


def leftovers(root: Path, task: str) -> Iterator[Path]:
    """Yield what a killed write to `task` left behind."""
    yield from root.glob(f"{TEMPORARY}*@{task}")
    yield from (root / task).glob(f"{TEMPORARY}*")


def put(root: Path, index: Index | None, candidate: Candidate) -> Outcome:
    """Publish to a task whose index is `index`, None where there is no such task yet; raises Conflict."""
    for path in list(leftovers(root, candidate.task)):
        remove(path)
    if index is None:
        return _put_first(root, candidate)
    return _put_version(root / candidate.task, index, candidate)


def _put_first(root: Path, candidate: Candidate) -> Outcome:
    place = root / candidate.task
    if place.exists() and any(place.iterdir()):
        # Numbering from 1 again would give old numbers a new meaning.
        raise Conflict(f"{str(place)!r} holds files but no {INDEX_FILE}; restore that file, or move the folder away")
    fresh = root / f"{temporary_name()}@{candidate.task}"
    index = Index(candidate.task, str(candidate.card.base["name"]), candidate.spec.base_fingerprint)
    try:
        fresh.mkdir()
        outcome = _put_version(fresh, index, candidate)
        fresh.rename(place)
    except BaseException:
        with suppress(OSError):
            remove(fresh)
        raise
    sync_folder(root)
    return outcome


def _put_version(place: Path, index: Index, candidate: Candidate) -> Outcome:
    staged = place / temporary_name()
    try:
        staged.mkdir()
        copy_bundle(candidate.folder, staged)
        digest = digest_folder(staged)
        return _list(place, index, digest, _stamped(candidate, digest), staged)
    finally:
        with suppress(OSError):
            remove(staged)


def _list(place: Path, index: Index, digest: str, candidate: Candidate, staged: Path) -> Outcome:
    """Make `digest` a listed version: keep what lies there if it is whole, else put `staged` in its place."""
    target = place / folder_name(digest)
    old = index.find(digest)
    gone = next((each.entry for each in index.deleted if each.entry.digest == digest), None)
    _refuse_collision(index, target, digest)
    try:
        if not _is_whole(target, digest, old or gone):
            _finish(staged, candidate)
            _swap(staged, target)
        new, entry = index.with_entry(digest, hash_file(target / CARD_FILE), utc_now())
        if new != index:
            replace_file(place / INDEX_FILE, new.to_json())
    except BaseException:
        with suppress(OSError):
            # The index may have been replaced already, and then the version must stay.
            if digest not in (place / INDEX_FILE).read_text(encoding="utf-8"):
                remove(target)
        raise
    return Outcome(new, entry, created=old is None)


def _stamped(candidate: Candidate, digest: str) -> Candidate:
    card = candidate.card
    files = {name: hash_text(text) for name, text in sorted(candidate.attached.items())}
    card = replace(card, task=candidate.task, digest=digest, created_at=card.created_at or utc_now(), files=files)
    return replace(candidate, card=card)


def _finish(staged: Path, candidate: Candidate) -> None:
    """Write what is derived; the card last, since its existence says that the rest is whole."""
    for name, text in candidate.attached.items():
        write_file(staged / name, text)
    write_file(staged / README_FILE, model_card(candidate.card, candidate.spec))
    replace_file(staged / CARD_FILE, candidate.card.to_json())


def _swap(staged: Path, target: Path) -> None:
    """Give `staged` the name `target`, removing a damaged or unfinished folder that has it."""
    if target.exists() or target.is_symlink():
        remove(target)
    staged.rename(target)
    sync_folder(target.parent)


def _is_whole(target: Path, digest: str, entry: Entry | None) -> bool:
    """Say whether `target` already holds `digest` with its card (the one listed, where one is)."""
    if target.is_symlink() or not target.is_dir():
        return False
    try:
        card = read_text(target / CARD_FILE)
        if digest_folder(target) != digest or not (target / README_FILE).is_file():
            return False
        read_attached(target, Card.from_json(card).files)
        listed = entry is None or entry.card_sha256 == hash_file(target / CARD_FILE)
        return listed and Card.from_json(card).digest == digest
    except AdapterHubError:
        return False


def _refuse_collision(index: Index, target: Path, digest: str) -> None:
    """Raise Conflict where another digest has the same 16 digits: chance does not bring that about."""
    rivals = [entry.digest for entry in index.versions if folder_name(entry.digest) == target.name]
    with suppress(AdapterHubError):
        rivals.append(Card.from_json(read_text(target / CARD_FILE)).digest)
    for rival in rivals:
        if rival != digest:
            raise Conflict(f"{digest} and {rival} would share the folder {str(target)!r}; publish under another task")
