from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapterhub.errors import (
    BaseMismatch,
    Conflict,
    CorruptAdapter,
    FileMissing,
    NameTaken,
    RefNotFound,
    UnsafeAdapter,
    UsageError,
)
from adapterhub.registry import disk, publish, store
from adapterhub.registry.bundle import ALL_FILES, ATTACHED_FILES, digest_folder
from adapterhub.registry.index import Index
from adapterhub.registry.ref import Ref
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Published

from .making import FINGERPRINT, OTHER_FINGERPRINT, make_card, make_folder, make_spec, snapshot


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def put(registry: Registry, weights: bytes, task: str = "mail", **changes: object) -> Published:
    folder = make_folder(
        registry.root.parent / f"made-{task}-{weights.hex()}-{len(list(registry.root.parent.iterdir()))}", weights
    )
    return registry.publish(task, folder, make_card(**changes))


def test_publish_makes_numbered_versions_that_read_back(registry: Registry, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a", b"one")
    first = registry.publish("mail", folder, make_card(description="Routes mail."))
    second = put(registry, b"two")
    assert (first.ref, first.created, second.ref, second.created) == ("mail@1", True, "mail@2", True)
    assert first.digest == digest_folder(folder) == digest_folder(first.path)
    assert first.path == registry.root / "mail" / first.digest[7:23]
    assert sorted(each.name for each in first.path.iterdir()) == sorted({*ALL_FILES} - {*ATTACHED_FILES})
    assert registry.tasks() == ["mail"]
    assert [each.version for each in registry.versions("mail")] == [1, 2]
    assert first.spec() == make_spec()
    card = first.card()
    assert (card.task, card.digest, card.description) == ("mail", first.digest, "Routes mail.")
    assert card.created_at.endswith("Z")
    assert first.base == "tiny"
    assert first.base_fingerprint == FINGERPRINT
    assert registry.verify() == []


def test_folders_are_as_readable_as_the_umask_says(registry: Registry) -> None:
    path = put(registry, b"one").path
    plain = registry.root / "plain"
    plain.mkdir()
    assert path.stat().st_mode == path.parent.stat().st_mode == plain.stat().st_mode


def test_an_existing_digest_keeps_its_version_and_card(registry: Registry) -> None:
    first = put(registry, b"one", description="first")
    put(registry, b"two")
    before = snapshot(registry.root)
    again = put(registry, b"one", description="again")
    assert (again.version, again.created, again.digest) == (1, False, first.digest)
    assert again.card().description == "first"
    assert snapshot(registry.root) == before


def test_resolve_understands_every_form(registry: Registry) -> None:
    first, second = put(registry, b"one"), put(registry, b"two")
    for ref in ("mail", "mail@2", "mail@latest", f"mail@{second.digest}", f"mail@{second.digest[:20]}"):
        assert registry.resolve(ref).version == 2
    registry.alias("mail", "prod", "mail@1")
    assert registry.resolve("mail").version == 1
    assert registry.resolve("mail@latest").version == 2
    assert registry.resolve("mail@prod").digest == first.digest
    assert registry.resolve("mail@prod").aliases == ("prod",)
    assert registry.resolve(Ref("mail", version=2)).aliases == ()


def test_unknown_refs_say_what_there_is(registry: Registry) -> None:
    put(registry, b"one", "trec6")
    put(registry, b"one", "booking")
    registry.alias("trec6", "canary", "trec6@1")
    cases = {
        "trec7": "did you mean 'trec6'",
        "Trec6": "did you mean 'trec6'",
        "zzz": "known: 'booking', 'trec6'",
        "trec6@9": "version 1 only",
        "trec6@canry": "did you mean 'canary'",
        "trec6@sha256:0000": "no version with digest 'sha256:0000'",
        "booking@prod": "there are none yet",
    }
    for ref, message in cases.items():
        with pytest.raises(RefNotFound, match=message):
            registry.resolve(ref)


def test_an_ambiguous_digest_lists_its_versions() -> None:
    index = Index("a", "tiny", FINGERPRINT)
    for number in range(3):
        index, _ = index.with_entry(f"sha256:abcd{number}" + "0" * 59, "", "")
    with pytest.raises(RefNotFound, match=r"fits 3 versions of task 'a': a@1 .*more digits"):
        store.choose(index, Ref("a", digest="sha256:abcd"))
    assert store.choose(index, Ref("a", digest="sha256:abcd1")).version == 2


def test_a_missing_registry_is_named_and_made_by_publishing(registry: Registry) -> None:
    for ask in (registry.tasks, registry.verify, lambda: registry.resolve("a")):
        with pytest.raises(RefNotFound, match=str(registry.root)):
            ask()
    with pytest.raises(RefNotFound):
        registry.alias("a", "prod", "a@1")
    assert not registry.root.exists()
    put(registry, b"one")
    assert registry.tasks() == ["mail"]


def test_reading_writes_nothing_and_takes_no_lock(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    put(registry, b"one")
    before = sorted((str(path), path.stat().st_mtime_ns) for path in registry.root.rglob("*"))
    monkeypatch.setattr(disk, "FileLock", None)
    version = registry.resolve("mail")
    assert version.card().digest == version.digest
    assert registry.verify() == []
    assert registry.versions("mail") == [version]
    assert sorted((str(path), path.stat().st_mtime_ns) for path in registry.root.rglob("*")) == before


def test_a_task_is_bound_to_the_base_of_its_first_version(registry: Registry, tmp_path: Path) -> None:
    put(registry, b"one")
    before = snapshot(registry.root)
    other = make_folder(tmp_path / "other", b"two", fingerprint=OTHER_FINGERPRINT)
    with pytest.raises(BaseMismatch, match="'tiny'"):
        registry.publish("mail", other, make_card(OTHER_FINGERPRINT))
    with pytest.raises(BaseMismatch, match="both must name"):
        registry.publish("fresh", other, make_card(FINGERPRINT))
    with pytest.raises(BaseMismatch):
        registry.check_base("mail", OTHER_FINGERPRINT)
    registry.check_base("mail", FINGERPRINT)
    registry.check_base("unknown", OTHER_FINGERPRINT)
    assert snapshot(registry.root) == before


def test_bad_names_and_folders_are_refused_before_anything_is_written(registry: Registry, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a")
    for name in ("../a", "", "A", ".locks", "a/b"):
        with pytest.raises(UsageError):
            registry.publish(name, folder, make_card())
    with pytest.raises(FileMissing):
        registry.publish("a", tmp_path / "nowhere", make_card())
    with pytest.raises(UsageError, match="fingerprint"):
        registry.publish("a", folder, make_card(base={"name": "x", "public_id": "x"}))
    (folder / "task.json").write_text("{}")
    with pytest.raises(CorruptAdapter):
        registry.publish("a", folder, make_card())
    assert not registry.root.exists()


def test_links_are_refused(registry: Registry, tmp_path: Path) -> None:
    version = put(registry, b"one")
    (registry.root / "linked").symlink_to(registry.root / "mail")
    with pytest.raises(UnsafeAdapter, match="linked"):
        registry.resolve("linked")
    with pytest.raises(UnsafeAdapter, match="linked"):
        put(registry, b"two", "linked")
    assert registry.tasks() == ["mail"]
    assert [problem.where for problem in registry.verify()] == ["linked"]
    folder = make_folder(tmp_path / "source")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.safetensors").symlink_to(version.path / "adapter_model.safetensors")
    with pytest.raises(UnsafeAdapter):
        registry.publish("mail", folder, make_card())


def test_aliases_move_and_go(registry: Registry) -> None:
    put(registry, b"one")
    put(registry, b"two")
    put(registry, b"one", "other")
    moved = registry.alias("mail", "prod", "mail@1")
    assert moved is not None
    assert (moved.version, moved.aliases) == (1, ("prod",))
    again = registry.alias("mail", "prod", "mail@latest")
    assert again is not None
    assert again.version == 2
    registry.alias("mail", "canary", Ref("mail", alias="prod"))
    assert registry.resolve("mail@2").aliases == ("canary", "prod")
    assert registry.alias("mail", "prod", None) is None
    with pytest.raises(RefNotFound, match=r"no alias 'prod'.*'canary'"):
        registry.alias("mail", "prod", None)
    with pytest.raises(UsageError, match="mail@NUMBER"):
        registry.alias("mail", "prod", "other@1")
    with pytest.raises(NameTaken):
        registry.alias("mail", "latest", "mail@1")
    with pytest.raises(RefNotFound):
        registry.alias("mail", "prod", "mail@7")
    assert registry.resolve("mail@latest").aliases == ("canary",)


def test_index_is_canonical_and_keeps_what_it_does_not_know(registry: Registry) -> None:
    put(registry, b"one")
    path = registry.root / "mail" / "index.json"
    record = json.loads(path.read_text())
    assert path.read_text() == json.dumps(record, indent=2, sort_keys=True) + "\n"
    assert set(record) == {
        *("format", "task", "base", "base_fingerprint"),
        *("versions", "aliases", "history", "deleted"),
    }
    assert set(record["versions"][0]) == {"version", "digest", "card_sha256", "created_at"}
    path.write_text(json.dumps({**record, "owner": "support"}))
    put(registry, b"two")
    assert json.loads(path.read_text())["owner"] == "support"


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"task": "other"},
        {"versions": []},
        {"versions": [{"version": 1, "digest": "sha256:../../x", "card_sha256": "", "created_at": ""}]},
        {"aliases": {"../x": 1}},
        {"aliases": []},
        {"versions": None},
        {"versions": [{"version": 0, "digest": "sha256:" + "a" * 64, "card_sha256": "", "created_at": ""}]},
        {"versions": [{"version": 1, "digest": "sha256:" + "a" * 64, "card_sha256": "", "created_at": ""}] * 2},
    ],
)
def test_a_damaged_index_is_an_error_that_names_it(registry: Registry, change: dict[str, object]) -> None:
    put(registry, b"one")
    path = registry.root / "mail" / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CorruptAdapter, match=r"index\.json .*mail"):
        registry.resolve("mail")
    with pytest.raises(CorruptAdapter):
        put(registry, b"two")
    assert any("index.json" in problem.message for problem in registry.verify())


def test_numbers_are_not_given_twice(registry: Registry) -> None:
    put(registry, b"one")
    put(registry, b"two")
    (registry.root / "mail" / "index.json").unlink()
    with pytest.raises(Conflict, match=r"no index\.json"):
        put(registry, b"three")


def test_two_digests_with_the_same_folder_name_are_an_error(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = put(registry, b"one")
    before = snapshot(registry.root)
    rival = first.digest[:23] + "0" * 48
    monkeypatch.setattr(publish, "digest_folder", lambda _: rival)
    with pytest.raises(Conflict, match="share the folder"):
        put(registry, b"two")
    assert snapshot(registry.root) == before


def test_publishing_again_heals_a_damaged_version(registry: Registry) -> None:
    version = put(registry, b"one")
    for name in sorted({*ALL_FILES} - {*ATTACHED_FILES}):
        (version.path / name).unlink()
        assert registry.verify("mail@1")
        healed = put(registry, b"one")
        assert (healed.version, healed.created) == (1, False)
        assert registry.verify() == []
    weights = version.path / "adapter_model.safetensors"
    weights.write_bytes(b"xxx")
    put(registry, b"one")
    assert weights.read_bytes() == b"one"
    assert registry.verify() == []


def test_an_unlisted_or_unfinished_folder_is_adopted(registry: Registry) -> None:
    put(registry, b"one")
    index = (registry.root / "mail" / "index.json").read_text()
    second = put(registry, b"two", description="survives")
    (registry.root / "mail" / "index.json").write_text(index)
    assert [problem.note for problem in registry.verify()] == [True]
    adopted = put(registry, b"two")
    assert (adopted.version, adopted.created, adopted.card().description) == (2, True, "survives")
    (registry.root / "mail" / "index.json").write_text(index)
    (second.path / "card.json").unlink()
    finished = put(registry, b"two", description="new")
    assert (finished.version, finished.card().description) == (2, "new")
    assert registry.verify() == []


def test_where_the_registry_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("ADAPTERHUB_REGISTRY", raising=False)
    assert Registry.locate(None) == tmp_path / "data" / "adapterhub" / "registry"
    (tmp_path / "registry").mkdir()
    assert Registry.locate(None) == Path("registry")
    monkeypatch.setenv("ADAPTERHUB_REGISTRY", str(tmp_path / "named"))
    assert Registry.locate(None) == tmp_path / "named"
    assert Registry.locate(tmp_path / "given") == tmp_path / "given"


def test_ten_thousand_versions_open_one_file(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    put(registry, b"one")
    path = registry.root / "mail" / "index.json"
    index = Index.from_json(path.read_text(), "mail")
    record = json.loads(index.to_json())
    entry = record["versions"][0]
    record["versions"] += [{**entry, "version": n, "digest": f"sha256:{n:064x}"} for n in range(2, 10_001)]
    path.write_text(json.dumps(record))
    read: list[Path] = []
    real = store.read_text
    monkeypatch.setattr(store, "read_text", lambda path: read.append(path) or real(path))
    assert len(registry.versions("mail")) == 10_000
    assert registry.resolve("mail@9999").digest == f"sha256:{9999:064x}"
    assert registry.resolve("mail").version == 10_000
    assert read == [path] * 3
