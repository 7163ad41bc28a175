"""What happens to versions after they are published: aliases move and are remembered, versions go and come back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adapterhub.errors import AdapterHubError, Conflict, CorruptAdapter, RefNotFound
from adapterhub.registry import store
from adapterhub.registry.bundle import folder_name
from adapterhub.registry.card import Card
from adapterhub.registry.index import INDEX_FILE, Index
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Published

from .making import make_card, make_folder


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def put(registry: Registry, weights: bytes, task: str = "mail", card: Card | None = None) -> Published:
    folder = registry.root.parent / "made" / task / weights.hex()
    if not folder.exists():
        make_folder(folder, weights)
    return registry.publish(task, folder, card or make_card())


# Aliases


def test_every_move_of_an_alias_is_remembered_with_its_reason(registry: Registry) -> None:
    put(registry, b"one")
    put(registry, b"two")
    registry.alias("mail", "prod", "mail@1", why="first")
    registry.alias("mail", "prod", "mail@2", why="better on spam")
    registry.alias("mail", "canary", "mail@2")
    registry.alias("mail", "prod", None, why="wrong")
    moves = registry.history("mail")
    assert [(m.alias, m.before, m.version, m.why) for m in moves] == [
        ("prod", None, 1, "first"),
        ("prod", 1, 2, "better on spam"),
        ("canary", None, 2, ""),
        ("prod", 2, None, "wrong"),
    ]
    assert all(move.at.endswith("Z") for move in moves)
    assert registry.resolve("mail@canary").aliases == ("canary",)


def test_an_alias_that_means_it_already_does_not_move(registry: Registry) -> None:
    put(registry, b"one")
    registry.alias("mail", "prod", "mail@1")
    before = (registry.root / "mail" / INDEX_FILE).read_bytes()
    version = registry.alias("mail", "prod", "mail@1", why="again")
    assert version is not None
    assert version.version == 1
    assert (registry.root / "mail" / INDEX_FILE).read_bytes() == before


def test_an_alias_that_moved_meanwhile_is_not_moved_again(registry: Registry) -> None:
    for weights in (b"one", b"two", b"three"):
        put(registry, weights)
    registry.alias("mail", "prod", "mail@1")
    registry.alias("mail", "prod", "mail@2", expected=[1])
    with pytest.raises(Conflict, match=r"means mail@2 now: somebody moved it meanwhile"):
        registry.alias("mail", "prod", "mail@3", expected=[1])
    with pytest.raises(Conflict, match="nothing any more"):
        registry.alias("mail", "canary", "mail@3", expected=[1])
    registry.alias("mail", "canary", "mail@3", expected=[None])
    assert registry.resolve("mail@prod").version == 2


def test_a_registry_of_an_earlier_program_has_no_history(registry: Registry) -> None:
    put(registry, b"one")
    file = registry.root / "mail" / INDEX_FILE
    record = json.loads(file.read_text())
    del record["history"], record["deleted"]
    file.write_text(json.dumps(record))
    assert registry.history("mail") == ()
    registry.alias("mail", "prod", "mail@1")
    assert len(registry.history("mail")) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("history", [{"alias": "../x", "version": 1, "before": None, "at": "", "why": ""}]),
        ("history", [{"alias": "prod"}]),
        ("history", 3),
        (
            "deleted",
            [{"version": 2, "digest": "../..", "card_sha256": "", "created_at": "", "deleted_at": "", "why": ""}],
        ),
        ("deleted", "all"),
    ],
)
def test_a_strangers_history_is_refused(registry: Registry, key: str, value: object) -> None:
    put(registry, b"one")
    file = registry.root / "mail" / INDEX_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(CorruptAdapter, match=r"index\.json"):
        registry.resolve("mail")


# Deleting


def test_a_deleted_version_is_gone_by_every_name_and_its_number_is_never_given_again(registry: Registry) -> None:
    first, second = put(registry, b"one"), put(registry, b"two")
    gone = registry.delete("mail@2", why="leaked data")
    assert gone.digest == second.digest
    assert registry.resolve("mail").version == 1
    for ref in ("mail@2", f"mail@{second.digest}", f"mail@{second.digest[:20]}"):
        with pytest.raises(RefNotFound, match=r"mail@2 was deleted at .*Z \(leaked data\); publish"):
            registry.resolve(ref)
    assert [each.version for each in registry.versions("mail")] == [1]
    assert put(registry, b"three").version == 3
    assert [(p.where, p.note) for p in registry.verify()] == [("mail@2", True)]
    assert first.path.is_dir()


def test_publishing_a_deleted_version_brings_it_back_under_its_number(registry: Registry) -> None:
    put(registry, b"one")
    second = put(registry, b"two")
    put(registry, b"three")
    registry.delete("mail@2")
    back = put(registry, b"two")
    assert (back.version, back.digest, back.created) == (2, second.digest, True)
    assert [each.version for each in registry.versions("mail")] == [1, 2, 3]
    registry.delete("mail@2")
    registry.gc()
    assert not second.path.exists()
    assert put(registry, b"two").version == 2
    assert registry.verify() == []


def test_what_an_alias_means_is_not_deleted(registry: Registry) -> None:
    put(registry, b"one")
    registry.alias("mail", "prod", "mail@1")
    with pytest.raises(Conflict, match=r"mail@1 is what mail@prod means; move or remove that alias first"):
        registry.delete("mail")
    registry.alias("mail", "prod", None)
    registry.delete("mail")
    with pytest.raises(RefNotFound, match="all versions of task 'mail' were deleted"):
        registry.resolve("mail")
    with pytest.raises(RefNotFound, match="was deleted"):
        registry.resolve("mail@1")
    with pytest.raises(RefNotFound, match="all it had were deleted"):
        registry.resolve("mail@7")
    assert registry.versions("mail") == []
    assert put(registry, b"two").version == 2


def test_an_index_without_any_version_is_damaged(registry: Registry) -> None:
    put(registry, b"one")
    file = registry.root / "mail" / INDEX_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), "versions": []}))
    with pytest.raises(CorruptAdapter, match="lists no version"):
        registry.resolve("mail")


def test_a_digest_or_number_that_is_deleted_and_listed_is_damage(registry: Registry) -> None:
    put(registry, b"one")
    put(registry, b"two")
    registry.delete("mail@2")
    file = registry.root / "mail" / INDEX_FILE
    record = json.loads(file.read_text())
    for change in ({"digest": record["versions"][0]["digest"]}, {"version": 1}):
        file.write_text(json.dumps({**record, "deleted": [{**record["deleted"][0], **change}]}))
        with pytest.raises(CorruptAdapter, match="twice"):
            registry.resolve("mail")


# Collecting


def test_gc_frees_what_was_deleted_and_nothing_else(registry: Registry) -> None:
    first, second = put(registry, b"one"), put(registry, b"two")
    assert registry.gc() == []
    registry.delete("mail@1")
    (would,) = registry.gc(dry_run=True)
    assert (would.path, would.size > 0) == (first.path, True)
    assert "mail@1, deleted at" in would.what
    assert first.path.is_dir()
    assert registry.gc() == [would]
    assert not first.path.exists()
    assert second.path.is_dir()
    assert registry.verify() == []
    assert registry.gc() == []


@pytest.mark.parametrize("how", ["parents", "init"])
def test_what_a_version_was_made_from_stays(registry: Registry, how: str) -> None:
    first = put(registry, b"one")
    card = make_card(parents=(first.digest,)) if how == "parents" else make_card(training={"init": first.digest})
    child = put(registry, b"child", "other", card)
    registry.delete("mail@1")
    assert registry.gc() == []
    assert first.path.is_dir()
    registry.delete(child.ref)
    assert {each.path for each in registry.gc()} == {first.path, child.path}


def test_gc_clears_what_killed_writes_left(registry: Registry) -> None:
    put(registry, b"one")
    for name in (".tmp-00@mail", "mail/.tmp-11", ".tmp-22@unborn"):
        (registry.root / name / "deep").mkdir(parents=True)
        (registry.root / name / "deep" / "file").write_bytes(b"12345")
    freed = registry.gc()
    assert [(each.what, each.size) for each in freed] == [("an unfinished write", 5)] * 3
    assert registry.verify() == []


def test_gc_clears_a_version_that_was_never_listed_and_leaves_strangers_alone(registry: Registry) -> None:
    first = put(registry, b"one")
    second = put(registry, b"two")
    file = registry.root / "mail" / INDEX_FILE
    index = Index.from_json(file.read_text(), "mail")
    file.write_text(Index("mail", index.base, index.base_fingerprint, index.versions[:1]).to_json())
    stranger = registry.root / "mail" / "notes"
    shutil.copytree(first.path, stranger)
    (freed,) = registry.gc()
    assert freed.path == second.path
    assert "did not come to list" in freed.what
    assert stranger.is_dir()


def test_gc_asks_again_once_it_holds_the_lock(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    first = put(registry, b"one")
    registry.delete("mail@1")
    real, published = store.locked, []

    @contextmanager
    def late(root: Path, task: str) -> Iterator[None]:
        if not published:
            published.append(task)
            put(registry, b"child", "other", make_card(parents=(first.digest,)))
        with real(root, task):
            yield

    monkeypatch.setattr(store, "locked", late)
    assert registry.gc() == []
    assert first.path.is_dir()


def test_gc_removes_nothing_while_a_card_cannot_be_read(registry: Registry) -> None:
    first = put(registry, b"one")
    second = put(registry, b"two", "other")
    registry.delete("mail@1")
    (second.path / "card.json").write_text("{}")
    with pytest.raises(CorruptAdapter):
        registry.gc()
    assert first.path.is_dir()


def test_gc_says_what_the_disk_refuses(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    put(registry, b"one")
    registry.delete("mail@1")

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refused)
    with pytest.raises(AdapterHubError, match="could not free what"):
        registry.gc()


# What lies beside


def test_attached_files_are_kept_hashed_and_proved(registry: Registry, tmp_path: Path) -> None:
    attached = {"probes.jsonl": '{"a": "é"}\n', "rows.txt": ""}
    version = registry.publish("mail", make_folder(tmp_path / "a"), make_card(), attached)
    assert {name: version.attached(name) for name in attached} == attached
    assert version.attached("rows.txt") == ""
    assert registry.verify() == []
    (version.path / "probes.jsonl").write_text("{}")
    assert ["probes.jsonl" in problem.message for problem in registry.verify()] == [True]
    with pytest.raises(CorruptAdapter, match=r"probes\.jsonl .* is not the one that was published"):
        version.attached("probes.jsonl")
    # The same adapter published again mends it.
    registry.publish("mail", tmp_path / "a", make_card(), attached)
    assert registry.verify() == []


def test_a_version_without_attached_files_must_not_get_some(registry: Registry) -> None:
    version = put(registry, b"one")
    assert version.attached("probes.jsonl") is None
    (version.path / "rows.txt").write_text("train a b\n")
    assert ["rows.txt lies there" in problem.message for problem in registry.verify()] == [True]


def test_a_card_cannot_name_any_file(registry: Registry) -> None:
    version = put(registry, b"one")
    card = json.loads((version.path / "card.json").read_text())
    (version.path / "card.json").write_text(json.dumps({**card, "files": {"../../secret": "0" * 64}}))
    assert any("names a file '../../secret'" in p.message or "not the one" in p.message for p in registry.verify())
    assert folder_name(version.digest) == version.path.name
