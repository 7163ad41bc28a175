"""The file of keys: made, listed, revoked, and never half there."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.errors import ConfigError, FileMissing, NameTaken, NotFound, UsageError
from adapterhub.server.keys import Key, KeyFile, hash_key


def test_a_key_is_kept_by_its_hash_for_its_owner_alone(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "deep" / "keys.json")
    made, text = file.create("shop", tasks=("orders",), requests_per_minute=5, tokens_per_day=100, admin=True)
    assert file.read() == (made,)
    assert made.sha256 == hash_key(text.encode())
    assert text not in file.path.read_text()
    assert len(text) > 40
    assert file.path.stat().st_mode & 0o777 == 0o600
    _, other = file.create("other")
    assert other != text
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_names_are_taken_until_revoked(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    first, _ = file.create("shop")
    with pytest.raises(NameTaken, match="shop"):
        file.create("shop")
    gone = file.revoke("shop")
    assert gone.revoked_at is not None
    with pytest.raises(NotFound, match="none"):
        file.revoke("shop")
    second, _ = file.create("shop")
    assert [key.id for key in file.read()] == [first.id, second.id]
    with pytest.raises(NotFound, match="'shop'"):
        file.revoke("nobody")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileMissing, match="keys create"):
        KeyFile(tmp_path / "none").read()
    with pytest.raises(FileMissing):
        KeyFile(tmp_path / "none").revoke("shop")


@pytest.mark.parametrize(
    ("name", "rights"),
    [
        ("", {}),
        ("a b", {}),
        ("../a", {}),
        ("x" * 65, {}),
        ("a", {"tasks": ()}),
        ("a", {"requests_per_minute": 0}),
        ("a", {"tokens_per_day": -1}),
    ],
)
def test_rights_that_make_no_sense(tmp_path: Path, name: str, rights: dict[str, Any]) -> None:
    file = KeyFile(tmp_path / "keys.json")
    with pytest.raises(UsageError):
        file.create(name, **rights)
    assert not file.path.exists()


def good() -> dict[str, Any]:
    return Key("1", "a", "0" * 64, "2026-01-01T00:00:00Z", ("t",)).to_record()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no file of keys"),
        ('{"format": 2, "keys": []}', "no file of keys"),
        ('{"format": 1, "keys": 3}', "no file of keys"),
        ('{"format": 1, "keys": [3]}', "key 1 of"),
        (json.dumps({"format": 1, "keys": [{**good(), "limit": 3}]}), "'limit'"),
        (json.dumps({"format": 1, "keys": [{**good(), "sha256": "ABC"}]}), "sha256"),
        (json.dumps({"format": 1, "keys": [{**good(), "admin": 1}]}), "admin"),
        (json.dumps({"format": 1, "keys": [{**good(), "tokens_per_day": True}]}), "tokens_per_day"),
        (json.dumps({"format": 1, "keys": [{**good(), "tokens_per_day": 0}]}), "tokens_per_day"),
        (json.dumps({"format": 1, "keys": [{**good(), "tasks": [1]}]}), "tasks"),
        (json.dumps({"format": 1, "keys": [{"name": "a"}]}), "id"),
        (json.dumps({"format": 1, "keys": [good(), good()]}), "two valid keys"),
    ],
)
def test_a_broken_file_is_refused_with_the_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        KeyFile(path).read()
    before = path.read_bytes()
    with pytest.raises(ConfigError):
        KeyFile(path).create("new")
    assert path.read_bytes() == before


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        KeyFile(path).read()


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = KeyFile(tmp_path / "keys.json")
    file.create("shop")
    before = file.path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adapterhub.server.keys.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        file.create("other")
    assert file.path.read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} <= {"keys.json", "keys.json.lock"}


def test_many_writers_lose_none(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    stop, torn = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            try:
                KeyFile(path).read()
            except FileMissing:
                pass
            except ConfigError as error:
                torn.append(error)

    reader = threading.Thread(target=look)
    reader.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: KeyFile(path).create(f"key{number}"), range(24)))
    stop.set()
    reader.join()
    assert {key.name for key in KeyFile(path).read()} == {f"key{number}" for number in range(24)}
    assert not torn


NAMES = st.from_regex(r"[a-z][a-z0-9._-]{0,20}", fullmatch=True)
COUNTS = st.none() | st.integers(1, 2**60)


@given(tasks=st.none() | st.lists(NAMES, min_size=1, max_size=4).map(tuple), rate=COUNTS, quota=COUNTS, asked=NAMES)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, tasks: Any, rate: int | None, quota: int | None, asked: str
) -> None:
    file = KeyFile(tmp_path_factory.mktemp("keys") / "keys.json")
    made, _ = file.create("a", tasks=tasks, requests_per_minute=rate, tokens_per_day=quota)
    assert file.read() == (made,)
    assert made.may_ask(asked) is (tasks is None or asked in tasks)
