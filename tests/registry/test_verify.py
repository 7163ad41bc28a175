from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from adapterhub.errors import CorruptAdapter
from adapterhub.registry.bundle import DIGEST_FILES
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Version

from .making import FINGERPRINT, OTHER_FINGERPRINT, make_card, make_folder


@pytest.fixture
def version(tmp_path: Path) -> Version:
    registry = Registry(tmp_path / "registry")
    registry.publish("mail", make_folder(tmp_path / "a", b"one"), make_card())
    return registry.publish("mail", make_folder(tmp_path / "b", bytes(range(256))), make_card())


def problems(version: Version) -> list[str]:
    registry = Registry(version.path.parent.parent)
    found = [problem.message for problem in registry.verify() if not problem.note]
    assert found == [problem.message for problem in registry.verify("mail@2")]
    assert registry.verify("mail@1") == []
    return found


@pytest.mark.parametrize("name", [*DIGEST_FILES, "card.json"])
def test_one_flipped_bit_is_found(version: Version, name: str) -> None:
    assert problems(version) == []
    path = version.path / name
    data = bytearray(path.read_bytes())
    for place in (0, len(data) // 2, len(data) - 1):
        for bit in (0, 7):
            flipped = data.copy()
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            assert problems(version)
    path.write_bytes(data)
    assert problems(version) == []


def test_missing_added_and_linked_files_are_found(version: Version, tmp_path: Path) -> None:
    for path in sorted(version.path.iterdir()):
        aside = path.rename(tmp_path / path.name)
        assert any(path.name in message for message in problems(version))
        path.symlink_to(aside)
        assert any("symbolic link" in message for message in problems(version))
        path.unlink()
        aside.rename(path)
    (version.path / "adapter_model.bin").write_bytes(b"pickle")
    assert any("adapter_model.bin" in message for message in problems(version))
    (version.path / "adapter_model.bin").unlink()
    assert problems(version) == []


def test_a_version_under_another_name_is_found(version: Version) -> None:
    version.path.rename(version.path.with_name("0" * 16))
    registry = Registry(version.path.parent.parent)
    assert any("missing" in problem.message for problem in registry.verify())


def test_check_raises_what_verify_reports(version: Version) -> None:
    version.check()
    (version.path / "task.json").write_text("{}")
    with pytest.raises(CorruptAdapter, match=r"mail@2 .*hash to"):
        version.check()


def test_leftovers_are_notes(version: Version) -> None:
    registry = Registry(version.path.parent.parent)
    (registry.root / ".tmp-1@mail").mkdir()
    (registry.root / "mail" / ".tmp-2").mkdir()
    (registry.root / "README.md").write_text("Our adapters.")
    assert [problem.note for problem in registry.verify()] == [True, True]
    registry.publish("mail", make_folder(registry.root.parent / "c", b"three"), make_card())
    assert registry.verify() == []


def test_strangers_in_the_registry_are_problems(version: Version) -> None:
    registry = Registry(version.path.parent.parent)
    (registry.root / "mail" / "notes").mkdir()
    (registry.root / "Mail").mkdir()
    (registry.root / "empty").mkdir()
    index = registry.root / "mail" / "index.json"
    registry.alias("mail", "prod", "mail@2")
    index.write_text(index.read_text().replace('"prod": 2', '"prod": 5'))
    found = {problem.where: problem for problem in registry.verify()}
    assert set(found) == {"Mail", "empty", str(registry.root / "mail" / "notes"), "mail@prod"}
    assert not any(problem.note for problem in found.values())


def test_what_agrees_with_its_hash_and_not_with_the_rest_is_found(version: Version) -> None:
    registry = Registry(version.path.parent.parent)
    index = registry.root / "mail" / "index.json"
    text = index.read_text()
    index.write_text(text.replace(FINGERPRINT, OTHER_FINGERPRINT))
    assert len([problem for problem in registry.verify() if "is bound to" in problem.message]) == 2
    card = version.path / "card.json"
    card.write_text(replace(version.card(), digest="sha256:" + "0" * 64).to_json())
    index.write_text(text.replace(version.card_sha256, hashlib.sha256(card.read_bytes()).hexdigest()))
    assert any("card.json is that of 'sha256:0000" in message for message in problems(version))


def test_files_that_are_no_text_are_found(version: Version) -> None:
    (version.path / "card.json").write_bytes(b"\xff")
    assert any("not UTF-8" in message for message in problems(version))
