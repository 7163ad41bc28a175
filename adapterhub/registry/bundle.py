"""The files of a version, and the digest that is its true identity.

The digest is what `sha256sum adapter_config.json adapter_model.safetensors task.json | sha256sum` prints, so anybody
can check a version without this program.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from adapterhub.errors import AdapterError, CorruptAdapter, FileMissing, UnsafeAdapter

from .disk import sync_file

TASK_FILE = "task.json"
CARD_FILE = "card.json"
README_FILE = "README.md"
DIGEST_FILES = ("adapter_config.json", "adapter_model.safetensors", TASK_FILE)
PROBES_FILE = "probes.jsonl"
ROWS_FILE = "rows.txt"
# What a version may carry beside: its card holds the hash of each that it has.
ATTACHED_FILES = (PROBES_FILE, ROWS_FILE)
ALL_FILES = (*DIGEST_FILES, CARD_FILE, README_FILE, *ATTACHED_FILES)
FOLDER_DIGITS = 16


def folder_name(digest: str) -> str:
    """Return the name of the folder that holds `digest`: its first 16 hex digits."""
    return digest.removeprefix("sha256:")[:FOLDER_DIGITS]


def plain_file(path: Path) -> Path:
    """Return `path` if it is an ordinary file; raises UnsafeAdapter for a link, FileMissing where nothing is."""
    if path.is_symlink():
        raise UnsafeAdapter(f"{str(path)!r} is a symbolic link; an adapter folder holds plain files only")
    if not path.is_file():
        raise FileMissing(f"{str(path)!r} is missing; an adapter folder holds {', '.join(DIGEST_FILES)}")
    return path


def hash_file(path: Path) -> str:
    """Return the sha256 of a file's bytes as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_text(text: str) -> str:
    """Return the sha256 of a text's UTF-8 bytes as 64 hex digits."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def file_hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file the digest covers; raises FileMissing and UnsafeAdapter."""
    return {name: hash_file(plain_file(folder / name)) for name in DIGEST_FILES}


def digest_of(hashes: Mapping[str, str]) -> str:
    """Return the digest of a version with these file hashes."""
    return "sha256:" + hash_text("".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes)))


def digest_folder(folder: Path) -> str:
    """Return "sha256:" and 64 hex digits for an adapter folder; raises FileMissing and UnsafeAdapter."""
    return digest_of(file_hashes(folder))


def copy_bundle(source: Path, target: Path) -> None:
    """Copy the files the digest covers into an existing folder and force them to the disk."""
    for name in DIGEST_FILES:
        shutil.copyfile(plain_file(source / name), target / name)
        sync_file(target / name)


def read_attached(folder: Path, hashes: Mapping[str, str]) -> dict[str, str]:
    """Return the text of each attached file that a card names, by its name.

    Raises CorruptAdapter for a name that no attached file has and for a text that was not published, FileMissing and
    UnsafeAdapter.
    """
    found = {}
    for name, expected in sorted(hashes.items()):
        if name not in ATTACHED_FILES:
            raise CorruptAdapter(f"card.json in {folder} names a file {name!r}; it may be {', '.join(ATTACHED_FILES)}")
        found[name] = read_text(folder / name)
        if hash_text(found[name]) != expected:
            raise CorruptAdapter(f"{name} in {folder} is not the one that was published; restore it")
    return found


def read_text(path: Path) -> str:
    """Return a file's text with its line endings as they are; raises CorruptAdapter where it is not UTF-8."""
    try:
        return plain_file(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise AdapterError(f"cannot read {str(path)!r}: {error.strerror}; get permission to read it") from error
    except UnicodeDecodeError as error:
        raise CorruptAdapter(f"{str(path)!r} is not UTF-8 text: {error}") from error
