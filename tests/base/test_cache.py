"""The cache's lock is waited for, aloud; its files are replaced whole."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from adapterhub.base.cache import locked, write_json


def test_who_waits_for_a_lock_says_so_and_gets_it(tmp_path: Path) -> None:
    said, order = threading.Event(), []

    def wait() -> None:
        with locked(tmp_path, "tiny", lambda step, done=0, total=0: said.set()):
            order.append("second")

    other = threading.Thread(target=wait)
    with locked(tmp_path, "tiny"):
        other.start()
        assert said.wait(30)
        order.append("first")
    other.join(30)
    assert order == ["first", "second"]


def test_locks_of_two_names_do_not_wait_for_each_other(tmp_path: Path) -> None:
    order: list[str] = []

    def take_two() -> None:
        with locked(tmp_path, "two"):
            order.append("two")

    with locked(tmp_path, "one"):
        other = threading.Thread(target=take_two, daemon=True)
        other.start()
        other.join(30)
        order.append("one")
    assert order == ["two", "one"]


def test_json_that_cannot_be_written_leaves_the_old(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "record.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": 1}
    assert [path.name for path in file.parent.iterdir()] == ["record.json"]
