"""A registry under random operations, checked against the simplest thing that could be right: a few dictionaries."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from adapterhub.errors import Conflict, RefNotFound
from adapterhub.registry import disk
from adapterhub.registry.store import Registry

from .making import make_card, make_folder

contents = st.sampled_from(["one", "two", "three", "four"])
names = st.sampled_from(["prod", "canary"])
numbers = st.integers(1, 5)


class RegistryMachine(RuleBasedStateMachine):
    """One task. `numbers` is content → the number it ever got; `listed` those that are there now."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.registry = Registry(self.root / "registry")
        self.folders = {name: make_folder(self.root / name, name.encode()) for name in ("one", "two", "three", "four")}
        self.numbers: dict[str, int] = {}
        self.listed: set[int] = set()
        self.aliases: dict[str, int] = {}
        self.moves: list[tuple[str, int | None]] = []

    @rule(content=contents)
    def publish(self, content: str) -> None:
        published = self.registry.publish("mail", self.folders[content], make_card())
        number = self.numbers.setdefault(content, len(self.numbers) + 1)
        assert (published.version, published.created) == (number, number not in self.listed)
        self.listed.add(number)

    @rule(name=names, number=numbers)
    def alias(self, name: str, number: int) -> None:
        if number not in self.listed:
            with pytest.raises(RefNotFound):
                self.registry.alias("mail", name, f"mail@{number}")
            return
        self.registry.alias("mail", name, f"mail@{number}")
        if self.aliases.get(name) != number:
            self.moves.append((name, number))
        self.aliases[name] = number

    @rule(name=names)
    def remove(self, name: str) -> None:
        if name not in self.aliases:
            with pytest.raises(RefNotFound):
                self.registry.alias("mail", name, None)
            return
        self.registry.alias("mail", name, None)
        del self.aliases[name]
        self.moves.append((name, None))

    @rule(number=numbers)
    def delete(self, number: int) -> None:
        if number not in self.listed:
            with pytest.raises(RefNotFound):
                self.registry.delete(f"mail@{number}")
        elif number in self.aliases.values():
            with pytest.raises(Conflict):
                self.registry.delete(f"mail@{number}")
        else:
            self.registry.delete(f"mail@{number}")
            self.listed.remove(number)

    @rule()
    def collect(self) -> None:
        if not self.numbers:
            with pytest.raises(RefNotFound):
                self.registry.gc()
            return
        self.registry.gc()
        folders = [path for path in (self.registry.root / "mail").iterdir() if path.is_dir()]
        assert len(folders) == len(self.listed)

    @invariant()
    def agrees(self) -> None:
        if not self.numbers:
            return
        assert [each.version for each in self.registry.versions("mail")] == sorted(self.listed)
        assert [(move.alias, move.version) for move in self.registry.history("mail")] == self.moves
        for name, number in self.aliases.items():
            assert self.registry.resolve(f"mail@{name}").version == number
        if self.listed:
            wanted = self.aliases.get("prod", max(self.listed))
            assert self.registry.resolve("mail").version == wanted
        assert all(problem.note for problem in self.registry.verify())

    def teardown(self) -> None:
        shutil.rmtree(self.root)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.os, "fsync", lambda _: None)


class TestModel(RegistryMachine.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
