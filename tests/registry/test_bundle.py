from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from adapterhub.errors import FileMissing, UnsafeAdapter
from adapterhub.registry.bundle import DIGEST_FILES, digest_folder, file_hashes, folder_name

from .making import make_folder


def test_digest_is_pinned(tmp_path: Path) -> None:
    """Published digests must mean the same for ever: this value may never change."""
    for name in DIGEST_FILES:
        (tmp_path / name).write_bytes(name.encode())
    assert digest_folder(tmp_path) == "sha256:eb601fa2880633b5b5c2d632ee04b0edefd2bda5007717673dbd906ae5b4543f"


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs coreutils")
def test_digest_is_what_sha256sum_says(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a")
    listing = subprocess.run(["sha256sum", *DIGEST_FILES], cwd=folder, capture_output=True, check=True).stdout
    assert digest_folder(folder) == "sha256:" + hashlib.sha256(listing).hexdigest()


def test_only_the_three_files_count_and_each_does(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a")
    before = digest_folder(folder)
    (folder / "README.md").write_text("text")
    assert digest_folder(folder) == before
    for name in DIGEST_FILES:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data + b" ")
        assert digest_folder(folder) != before
        (folder / name).write_bytes(data)
    assert folder_name(before) == before[7:23]


def test_missing_files_and_links_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a")
    (folder / "task.json").rename(tmp_path / "task.json")
    with pytest.raises(FileMissing, match=r"task\.json"):
        file_hashes(folder)
    (folder / "task.json").symlink_to(tmp_path / "task.json")
    with pytest.raises(UnsafeAdapter, match="symbolic link"):
        digest_folder(folder)
