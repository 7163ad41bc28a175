from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from adapterhub.errors import AdapterHubError, CorruptAdapter, FileMissing, UnsafeAdapter
from adapterhub.registry.archive import MANIFEST, export, is_archive, unpack
from adapterhub.registry.bundle import DIGEST_FILES, hash_file
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Version

from .making import make_card, make_folder

ATTACHED = {"probes.jsonl": "{}\n", "rows.txt": "train a b\n"}


@pytest.fixture
def version(tmp_path: Path) -> Version:
    card = make_card(created_at="2026-01-31T12:00:00Z")
    return Registry(tmp_path / "registry").publish("mail", make_folder(tmp_path / "a"), card, ATTACHED)


@pytest.fixture
def archive(version: Version, tmp_path: Path) -> Path:
    export(version, tmp_path / "mail.tar")
    return tmp_path / "mail.tar"


def members(archive: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(archive) as tar:
        return [(each.name, tar.extractfile(each).read()) for each in tar.getmembers()]  # type: ignore[union-attr]


def rewritten(archive: Path, changed: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in changed:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return archive


def test_an_archive_holds_every_file_of_the_version_after_its_manifest(version: Version, archive: Path) -> None:
    found = members(archive)
    assert found[0][0] == MANIFEST
    assert json.loads(found[0][1])["digest"] == version.digest
    assert dict(found[1:]) == {p.name: p.read_bytes() for p in version.path.iterdir()}


def test_equal_versions_give_equal_bytes(version: Version, archive: Path, tmp_path: Path) -> None:
    card = make_card(created_at="2026-01-31T12:00:00Z")
    other = Registry(tmp_path / "other").publish("mail", make_folder(tmp_path / "again"), card, ATTACHED)
    for path in other.path.iterdir():
        path.chmod(0o600)
    assert export(other, tmp_path / "other.tar") == hash_file(archive)
    assert (tmp_path / "other.tar").read_bytes() == archive.read_bytes()


def test_tar_itself_makes_an_adapter_folder_of_it(version: Version, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xf", str(archive), "-C", str(tmp_path / "out")], check=True)
    assert (tmp_path / "out" / "adapter_config.json").read_bytes() == (
        version.path / "adapter_config.json"
    ).read_bytes()


def test_unpacking_gives_the_files_back(version: Version, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    unpack(archive, out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {p.name: p.read_bytes() for p in version.path.iterdir()}


def test_what_is_not_as_published_is_not_exported(version: Version, tmp_path: Path) -> None:
    (version.path / "task.json").write_text("{}")
    with pytest.raises(CorruptAdapter):
        export(version, tmp_path / "bad.tar")
    assert not (tmp_path / "bad.tar").exists()


def test_a_link_in_a_version_is_not_exported(version: Version, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("key")
    (version.path / "README.md").unlink()
    (version.path / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(CorruptAdapter, match="does not verify, so it was not exported"):
        export(version, tmp_path / "bad.tar")


def test_an_export_that_fails_leaves_the_old_archive(
    version: Version, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = archive.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adapterhub.registry.archive._write", full)
    with pytest.raises(AdapterHubError, match=r"could not export mail@1 .*No space left"):
        export(version, archive)
    assert archive.read_bytes() == before
    assert not any(".tmp-" in path.name for path in archive.parent.iterdir())


def test_one_flipped_bit_is_found(archive: Path, tmp_path: Path) -> None:
    data = archive.read_bytes()
    with tarfile.open(archive) as tar:
        places = [each.offset_data + each.size // 2 for each in tar.getmembers() if each.size]
    for number, place in enumerate(places):
        flipped = bytearray(data)
        flipped[place] ^= 4
        archive.write_bytes(flipped)
        out = tmp_path / f"out-{number}"
        out.mkdir()
        with pytest.raises(CorruptAdapter):
            unpack(archive, out)


@pytest.mark.parametrize("cut", [1, 512, 600, 1500])
def test_an_archive_that_was_cut_off_is_refused(archive: Path, tmp_path: Path, cut: int) -> None:
    archive.write_bytes(archive.read_bytes()[:cut])
    (tmp_path / "out").mkdir()
    with pytest.raises((CorruptAdapter, FileMissing)):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("name", ["../escaped", "/etc/passwd", "evil.bin", "deep/adapter_config.json"])
def test_members_that_no_version_has_are_refused(archive: Path, tmp_path: Path, name: str) -> None:
    rewritten(archive, [*members(archive), (name, b"x")])
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsafeAdapter, match="which no version has"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(archive: Path, tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(archive, "a") as tar:
        header = tarfile.TarInfo("README.md")
        header.type, header.linkname = kind, "/etc/passwd"
        tar.addfile(header)
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsafeAdapter):
        unpack(archive, tmp_path / "out")


def test_a_file_of_holes_is_refused(archive: Path, tmp_path: Path) -> None:
    holes = tmp_path / "README.md"
    with holes.open("wb") as file:
        file.truncate(1 << 30)
    subprocess.run(["tar", "--sparse", "-rf", str(archive), "-C", str(tmp_path), "README.md"], check=True)
    (tmp_path / "out").mkdir()
    with pytest.raises((UnsafeAdapter, CorruptAdapter)):
        unpack(archive, tmp_path / "out")
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < 1 << 20


def test_members_twice_missing_or_unnamed_are_refused(archive: Path, tmp_path: Path) -> None:
    whole = members(archive)
    named = json.loads(whole[0][1])
    del named["files"]["task.json"]
    without = (MANIFEST, json.dumps(named).encode())
    changes = [
        [*whole, whole[1]],
        whole[:-1],
        [without, *whole[1:]],
        [m for m in [without, *whole[1:]] if m[0] != "task.json"],
    ]
    for number, changed in enumerate(changes):
        out = tmp_path / f"out-{number}"
        out.mkdir()
        with pytest.raises(CorruptAdapter):
            unpack(rewritten(archive, changed), out)


@pytest.mark.parametrize("manifest", [b"", b"[]", b"{}", b'{"format": 9}', b'{"format": 1, "files": 3}', b"\xff"])
def test_a_manifest_that_is_none_is_refused(archive: Path, tmp_path: Path, manifest: bytes) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(CorruptAdapter):
        unpack(rewritten(archive, [(MANIFEST, manifest), *members(archive)[1:]]), tmp_path / "out")


def test_files_of_another_digest_are_refused(archive: Path, tmp_path: Path) -> None:
    whole = members(archive)
    manifest = {**json.loads(whole[0][1]), "digest": "sha256:" + "0" * 64}
    (tmp_path / "out").mkdir()
    with pytest.raises(CorruptAdapter, match="not those of its digest"):
        unpack(rewritten(archive, [(MANIFEST, json.dumps(manifest).encode()), *whole[1:]]), tmp_path / "out")


def test_compressed_or_other_files_are_no_archives(archive: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("text")
    assert is_archive(archive)
    assert not is_archive(other)
    assert not is_archive(tmp_path)
    (tmp_path / "link").symlink_to(archive)
    assert not is_archive(tmp_path / "link")
    with pytest.raises(FileMissing, match="is no archive"):
        unpack(other, tmp_path)
    assert set(DIGEST_FILES) <= {name for name, _ in members(archive)}
