"""One version as one file: a tar that anybody can open, the same bytes for the same version.

`manifest.json` comes first, with the digest and the sha256 of every file after it; `tar -xf` gives an adapter folder.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from adapterhub.errors import CorruptAdapter, FileMissing, UnsafeAdapter
from adapterhub.folders import sync_folder

from .bundle import ALL_FILES, CARD_FILE, DIGEST_FILES, README_FILE, digest_of, hash_file
from .disk import explained, sync_file, temporary_name
from .verify import verify_version
from .version import Version

MANIFEST = "manifest.json"
FORMAT = 1
_MOST_MANIFEST_BYTES = 1 << 16
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)


def export(version: Version, target: Path) -> str:
    """Write `version` to the file `target`, replacing one that is there; return its sha256 (64 hex digits).

    The files are hashed first: what is not as published is not exported. Raises CorruptAdapter, and AdapterHubError
    where the disk refuses.
    """
    for problem in verify_version(version):
        raise CorruptAdapter(f"{version.ref} does not verify, so it was not exported: {problem.message}")
    names = [*DIGEST_FILES, CARD_FILE, README_FILE, *version.card().files]
    hashes = {name: hash_file(version.path / name) for name in names}
    manifest = {"format": FORMAT, "task": version.task, "digest": version.digest, "files": hashes}
    with explained(f"export {version.ref} to {str(target)!r}"):
        temporary = target.with_name(temporary_name())
        try:
            with temporary.open("xb") as file:
                _write(file, json.dumps(manifest, indent=2, sort_keys=True) + "\n", version.path, names)
            sync_file(temporary)
            temporary.replace(target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(target.absolute().parent)
    return hash_file(target)


def is_archive(path: Path) -> bool:
    """Say whether a path is a file that may be an exported version."""
    with explained(f"read {str(path)!r}"):
        return path.is_file() and not path.is_symlink() and tarfile.is_tarfile(path)


def unpack(archive: Path, folder: Path) -> None:
    """Write the files of an exported version into the empty folder `folder`.

    Nothing but plain files that a version has is taken, and each must have the hash that the manifest says. Raises
    FileMissing, UnsafeAdapter for members that no version has, CorruptAdapter for anything that is not as exported.
    """
    if not is_archive(archive):
        raise FileMissing(f"{str(archive)!r} is no archive that adapterhub registry export wrote")
    try:
        with explained(f"unpack {str(archive)!r}"), tarfile.open(archive, "r:") as tar:
            hashes = _unpack(tar, folder, str(archive), archive.stat().st_size)
    except (tarfile.TarError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptAdapter(f"{str(archive)!r} is damaged ({error}); export it again") from error
    if missing := [name for name in DIGEST_FILES if name not in hashes]:
        raise CorruptAdapter(f"{str(archive)!r} holds no {missing[0]}; export it again")


def _write(file: IO[bytes], manifest: str, folder: Path, names: list[str]) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        data = manifest.encode()
        tar.addfile(_header(MANIFEST, len(data)), io.BytesIO(data))
        for name in names:
            path = folder / name
            with path.open("rb") as content:
                tar.addfile(_header(name, path.stat().st_size), content)


def _header(name: str, size: int) -> tarfile.TarInfo:
    """Return a member that says nothing of when, where and by whom it was written."""
    header = tarfile.TarInfo(name)
    header.size, header.mode, header.mtime = size, 0o644, 0
    return header


def _unpack(tar: tarfile.TarFile, folder: Path, archive: str, size: int) -> Mapping[str, str]:
    manifest = _manifest(tar, archive)
    hashes = {str(name): str(digest) for name, digest in manifest["files"].items()}
    left = set(hashes)
    while (member := tar.next()) is not None:
        if member.name not in ALL_FILES or member.type not in _PLAIN or member.issparse():
            raise UnsafeAdapter(f"{archive!r} holds {member.name!r}, which no version has; nothing of it was taken")
        if member.name not in left:
            raise CorruptAdapter(f"{archive!r} holds {member.name!r} twice, or its manifest does not name it")
        left.remove(member.name)
        # What is not compressed cannot be larger than the archive.
        if member.size > size:
            raise CorruptAdapter(f"{member.name} in {archive!r} is larger than the archive; fetch it again")
        with (folder / member.name).open("xb") as file:
            content = _content(tar, member)
            while block := content.read(1 << 20):
                file.write(block)
        if hash_file(folder / member.name) != hashes[member.name]:
            raise CorruptAdapter(f"{member.name} in {archive!r} is not the one that was exported; fetch it again")
    if left:
        raise CorruptAdapter(f"{archive!r} lacks {', '.join(sorted(left))}; fetch it again")
    found = {name: hashes[name] for name in DIGEST_FILES if name in hashes}
    if len(found) == len(DIGEST_FILES) and digest_of(found) != manifest["digest"]:
        raise CorruptAdapter(f"the files in {archive!r} are not those of its digest {manifest['digest']!r}")
    return hashes


def _manifest(tar: tarfile.TarFile, archive: str) -> dict[str, Any]:
    first = tar.next()
    if (
        first is None
        or first.name != MANIFEST
        or first.type not in _PLAIN
        or first.issparse()
        or first.size > _MOST_MANIFEST_BYTES
    ):
        raise CorruptAdapter(f"{archive!r} does not begin with {MANIFEST}; it is no exported version")
    manifest: dict[str, Any] = json.loads(_content(tar, first).read())
    if manifest["format"] != FORMAT:
        raise CorruptAdapter(f"{archive!r} has format {manifest['format']!r}; this program reads {FORMAT}: upgrade it")
    return manifest


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(member)
    if content is None:
        raise CorruptAdapter(f"{member.name!r} is no plain file")
    return content
