"""What is read of an adapter when, and what is refused at which moment."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adapterhub import AdapterHub
from adapterhub.base.source import Base
from adapterhub.data.task import TaskSpec
from adapterhub.errors import AdapterError, BaseMismatch, CorruptAdapter, FileMissing, UnsafeAdapter
from adapterhub.lora.files import read_adapter
from adapterhub.registry.bundle import digest_folder
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Version
from adapterhub.runtime.adapters import AdapterCache, Specialist
from adapterhub.runtime.target import GenerationRequest
from tests.server.publishing import LABELS, publish

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def version(base: Base, tmp_path: Path) -> Version:
    return publish(Registry(tmp_path / "registry"), base, "tone", tmp_path, kind="classification")


def cache(base: Base, most: int = 8, dtype: torch.dtype = torch.float32) -> AdapterCache:
    return AdapterCache(base.name, base.fingerprint, dtype, most)


def get(found: AdapterCache, version: Version) -> Specialist:
    return found.get(version.ref, version.path, version.digest, version.base, version.base_fingerprint)


def change_labels(folder: Path, labels: tuple[str, ...]) -> None:
    spec = TaskSpec.from_json((folder / "task.json").read_text())
    (folder / "task.json").write_text(replace(spec, labels=labels).to_json())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_what_the_folder_holds(base: Base, version: Version, dtype: torch.dtype) -> None:
    found = get(cache(base, dtype=dtype), version)
    assert (found.adapter.digest, found.adapter.pooling) == (version.digest, "last")
    assert found.spec == version.spec()
    weights, expected = found.adapter.read(), read_adapter(version.path, dtype=dtype)
    assert weights.modules.keys() == expected.modules.keys()
    for name, pair in expected.modules.items():
        assert torch.equal(weights.modules[name].a, pair.a)
        assert torch.equal(weights.modules[name].b, pair.b)
        assert weights.modules[name].scaling == pair.scaling
    assert torch.equal(weights.head["score.weight"], expected.head["score.weight"])
    assert weights.head["score.weight"].dtype == torch.float32


def test_naming_an_adapter_reads_no_weights(base: Base, version: Version) -> None:
    (version.path / WEIGHTS).unlink()
    found = get(cache(base), version)
    assert found.spec.labels == LABELS
    with pytest.raises(CorruptAdapter, match=f"'tone@1' is damaged.*{WEIGHTS}"):
        found.adapter.read()


@pytest.mark.parametrize("file", ["task.json", "adapter_config.json", WEIGHTS])
def test_any_changed_file_is_refused_once_the_weights_are_read(base: Base, version: Version, file: str) -> None:
    path = version.path / file
    data = path.read_bytes()
    changed = data[:-1] + b"\x01" if file == WEIGHTS else data.rstrip() + b" \n"
    path.write_bytes(changed)
    adapters = cache(base)
    with pytest.raises(CorruptAdapter, match="hash"):
        get(adapters, version).adapter.read()
    # Restored, it serves again: what was read of the damaged files is kept by nobody.
    path.write_bytes(data)
    assert get(adapters, version).adapter.read().modules
    assert get(adapters, version).spec.labels == LABELS


def test_rules_changed_between_naming_and_reading_are_those_of_the_digest(base: Base, version: Version) -> None:
    found = get(cache(base), version)
    change_labels(version.path, ("a", "b", "c"))
    assert found.adapter.read().modules
    assert found.spec.labels == LABELS


def test_rules_changed_after_they_were_forgotten_are_refused_at_once(
    base: Base, version: Version, tmp_path: Path
) -> None:
    """The engine may still hold the weights of the digest, and would then never read the files again."""
    adapters = cache(base, most=1)
    get(adapters, version).adapter.read()
    get(adapters, publish(Registry(tmp_path / "registry"), base, "other", tmp_path, seed=4))
    change_labels(version.path, ("a", "b", "c"))
    with pytest.raises(CorruptAdapter, match="hash"):
        get(adapters, version)


def test_rules_of_weights_that_came_from_another_folder_are_refused_at_once(
    base: Base, version: Version, tmp_path: Path
) -> None:
    shutil.copytree(version.path, tmp_path / "copy")
    change_labels(version.path, ("a", "b", "c"))
    with AdapterHub(base, Registry(tmp_path / "registry")) as hub:
        assert hub.predict_folder(tmp_path / "copy", ["text"])[0].label in LABELS
        with pytest.raises(CorruptAdapter, match="hash"):
            hub.predict("tone", ["text"])


def test_rules_named_before_the_digest_was_hashed_elsewhere_are_refused(
    base: Base, version: Version, tmp_path: Path
) -> None:
    """The weights are in the engine then, and these files are not read: the order of asking must not matter."""
    shutil.copytree(version.path, tmp_path / "copy")
    change_labels(version.path, LABELS[::-1])
    with AdapterHub(base, Registry(tmp_path / "registry")) as hub:
        early = hub.target("tone")
        assert hub.predict_folder(tmp_path / "copy", ["text"])[0].label in LABELS
        with pytest.raises(CorruptAdapter, match="hash"):
            hub.predict("tone", ["text"])
        for ask in (lambda: next(hub.answers(early, ["text"])), lambda: next(hub.embeddings(early, ["text"]))):
            with pytest.raises(CorruptAdapter, match="hash"):
                ask()
        shutil.copy(tmp_path / "copy" / "task.json", version.path)
        assert hub.predict("tone", ["text"]) == hub.predict_folder(tmp_path / "copy", ["text"])


def test_a_stream_by_rules_that_are_not_the_digests_ends_in_an_error(base: Base, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    version = publish(registry, base, "writer", tmp_path)
    text = (version.path / "task.json").read_text()
    (version.path / "task.json").write_text(text.replace("Be brief.", "Be long."))
    with AdapterHub(base, registry) as hub:
        early = hub.target("writer")
        (version.path / "task.json").write_text(text)
        assert hub.predict_folder(version.path, ["a"], max_tokens=1)[0].completion_tokens == 1
        with pytest.raises(CorruptAdapter, match="hash"):
            hub.generate(early, GenerationRequest(text="a", max_tokens=5)).result()
        assert hub.predict("writer", ["a"], max_tokens=1)[0].completion_tokens == 1


@pytest.mark.parametrize("how", ["a failed read", "another folder"])
def test_naming_stays_lazy_whatever_was_read_before(base: Base, version: Version, tmp_path: Path, how: str) -> None:
    adapters = cache(base)
    if how == "a failed read":
        (version.path / WEIGHTS).rename(tmp_path / WEIGHTS)
        with pytest.raises(CorruptAdapter, match="is damaged"):
            get(adapters, version).adapter.read()
    else:
        adapters.read("it", version.path)
    other = publish(Registry(tmp_path / "registry"), base, "other", tmp_path, seed=4)
    (other.path / WEIGHTS).unlink()
    assert get(adapters, other).spec.labels == ()


def test_files_are_hashed_at_once_where_what_is_known_has_outgrown_its_bounds(
    base: Base, version: Version, tmp_path: Path
) -> None:
    adapters = AdapterCache(base.name, base.fingerprint, torch.float32, most_known=1)
    other = publish(Registry(tmp_path / "registry"), base, "other", tmp_path, seed=4)
    early = get(adapters, version)
    get(adapters, other).adapter.read()
    assert get(adapters, version).rules == early.rules
    change_labels(version.path, LABELS[::-1])
    adapters.read("other", other.path)
    with pytest.raises(CorruptAdapter, match="hash"):
        get(adapters, version)


def test_each_of_two_tasks_with_one_digest_is_read_from_its_own_folder(
    base: Base, version: Version, tmp_path: Path
) -> None:
    twin = replace(version, task="twin", path=tmp_path / "twin")
    shutil.copytree(version.path, twin.path)
    adapters = cache(base)
    assert get(adapters, version).adapter.digest == get(adapters, twin).adapter.digest
    shutil.rmtree(version.path)
    assert get(adapters, twin).adapter.read().head
    assert get(adapters, twin).spec.labels == LABELS


def test_only_the_last_rules_are_kept(base: Base, tmp_path: Path) -> None:
    registry, adapters = Registry(tmp_path / "registry"), cache(base, most=2)
    versions = [publish(registry, base, f"task-{seed}", tmp_path, seed=seed) for seed in range(3)]
    first = [get(adapters, version) for version in versions]
    again = [get(adapters, version) for version in versions[1:]]
    assert [one is two for one, two in zip(first[1:], again, strict=True)] == [True, True]
    assert get(adapters, versions[0]) is not first[0]
    assert get(adapters, versions[1]) is not first[1]


def test_an_unpublished_folder_has_the_digest_of_its_files(base: Base, version: Version) -> None:
    change_labels(version.path, ("a", "b", "c"))
    found = cache(base).read("it", version.path)
    assert found.adapter.digest == digest_folder(version.path) != version.digest
    assert found.spec.labels == ("a", "b", "c")
    assert found.adapter.read().head
    (version.path / WEIGHTS).write_bytes((version.path / WEIGHTS).read_bytes() + b"\0")
    with pytest.raises(CorruptAdapter, match="hash"):
        found.adapter.read()


def test_labels_and_head_must_belong_together(base: Base, version: Version) -> None:
    change_labels(version.path, (*LABELS, "one more"))
    with pytest.raises(CorruptAdapter, match="4 labels"):
        cache(base).read("it", version.path).adapter.read()
    spec = TaskSpec.from_json((version.path / "task.json").read_text())
    (version.path / "task.json").write_text(replace(spec, pooling="pooler").to_json())
    with pytest.raises(CorruptAdapter, match="no head for pooling 'pooler'"):
        cache(base).read("it", version.path).adapter.read()
    (version.path / "task.json").write_text(replace(spec, kind="generation", labels=(), pooling=None).to_json())
    with pytest.raises(CorruptAdapter, match="carries a classification head"):
        cache(base).read("it", version.path).adapter.read()


@pytest.mark.parametrize(
    ("file", "text", "error", "words"),
    [
        ("task.json", "{", CorruptAdapter, "task description"),
        ("adapter_config.json", "{", CorruptAdapter, "not JSON"),
        ("adapter_config.json", "[" * 100_000, CorruptAdapter, "not JSON"),
        ("adapter_config.json", "[]", CorruptAdapter, "expected an object"),
        ("adapter_config.json", '{"peft_type": "IA3"}', AdapterError, "IA3"),
    ],
)
def test_damaged_small_files_are_refused_at_once(
    base: Base, version: Version, file: str, text: str, error: type[Exception], words: str
) -> None:
    (version.path / file).write_text(text)
    with pytest.raises(error, match=words):
        get(cache(base), version)


def test_a_variant_that_is_not_served_is_refused_at_once(base: Base, version: Version) -> None:
    path = version.path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_bias": True}))
    with pytest.raises(AdapterError, match="lora_bias"):
        get(cache(base), version)


def test_missing_files_and_links_are_refused(base: Base, version: Version, tmp_path: Path) -> None:
    for file in ("task.json", "adapter_config.json"):
        kept = tmp_path / file
        (version.path / file).rename(kept)
        with pytest.raises(CorruptAdapter, match=f"is damaged.*{file}"):
            get(cache(base), version)
        with pytest.raises(FileMissing, match=file):
            cache(base).read("it", version.path)
        (version.path / file).symlink_to(kept)
        with pytest.raises(UnsafeAdapter, match="link"):
            get(cache(base), version)
        (version.path / file).unlink()
        kept.rename(version.path / file)
    (version.path / WEIGHTS).rename(tmp_path / WEIGHTS)
    (version.path / WEIGHTS).symlink_to(tmp_path / WEIGHTS)
    found = get(cache(base), version)
    with pytest.raises(UnsafeAdapter, match="link"):
        found.adapter.read()
    with pytest.raises(UnsafeAdapter, match="link"):
        cache(base).read("it", version.path)


def test_another_base_is_refused_at_once_whoever_says_it(base: Base, version: Version) -> None:
    adapters = cache(base)
    with pytest.raises(BaseMismatch, match="org/other"):
        adapters.get("tone", version.path, version.digest, "org/other", "sha256:" + "0" * 64)
    spec = version.spec()
    (version.path / "task.json").write_text(replace(spec, base_fingerprint="sha256:" + "0" * 64).to_json())
    with pytest.raises(BaseMismatch, match="sha256:000"):
        get(adapters, version)
