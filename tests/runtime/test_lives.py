"""Adapters seen from the Python API: read when first asked, moved under load, refused alone, bounded in memory."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapterhub import AdapterHub
from adapterhub.base.source import Base
from adapterhub.engine.loop import EngineLoop
from adapterhub.engine.request import Request
from adapterhub.errors import CorruptAdapter, RefNotFound, UsageError
from adapterhub.registry.store import Registry
from adapterhub.runtime.target import GenerationRequest
from adapterhub.runtime.text import Detokenizer
from adapterhub.server.startup import HubOptions, open_hub
from tests.server.publishing import LABELS, publish

LONG = GenerationRequest(text="abc", max_tokens=120, temperature=0, ignore_eos=True)


def damage(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")


def test_an_adapter_is_read_when_it_is_first_asked(hub: AdapterHub) -> None:
    targets = [hub.target(ref) for ref in ("tone", "writer", "topics", "tone@1")]
    assert hub.stats()["adapter_reads"] == 0
    for _ in range(2):
        assert next(hub.answers(targets[0], ["text"])).label in LABELS
        assert hub.stats()["adapter_reads"] == hub.stats()["adapter_loads"] == 1
    assert next(hub.answers(targets[3], ["text"])).label in LABELS
    assert hub.stats()["adapter_reads"] == 1


def test_adapters_asked_for_are_at_hand_before_anybody_asks(hub: AdapterHub, base: Base) -> None:
    hub.load(["tone", "writer", base.name])
    assert hub.stats()["adapter_loads"] == hub.stats()["resident_adapters"] == 2
    assert hub.predict("tone", ["text"])[0].label in LABELS
    assert hub.stats()["adapter_loads"] == 2
    with pytest.raises(RefNotFound):
        hub.load(["nobody"])


def test_a_damaged_adapter_is_refused_by_whatever_asks_it_first(base: Base, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    damage(publish(registry, base, "tone", tmp_path, kind="classification").path)
    damage(publish(registry, base, "writer", tmp_path, seed=1).path)
    fine = publish(registry, base, "fine", tmp_path, seed=2)
    with AdapterHub(base, registry) as hub:
        running = hub.generate(hub.target("fine"), LONG)
        stream = hub.generate(hub.target("writer"), LONG)
        for ask in (
            lambda: hub.predict("tone", ["a"]),
            lambda: hub.embed("tone", ["a"]),
            lambda: hub.predict("writer", ["a"]),
            lambda: hub.score("writer", "a", ["b"]),
            lambda: hub.load(["fine", "writer"]),
            stream.result,
        ):
            with pytest.raises(CorruptAdapter, match="hash"):
                ask()
        assert running.result().completion_tokens == 120
        assert hub.target("fine").digest == fine.digest


def test_an_alias_that_moves_under_load_changes_new_requests_only(base: Base, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    for seed in (1, 9):
        publish(registry, base, "writer", tmp_path, seed=seed)
    registry.alias("writer", "prod", "writer@1")
    with AdapterHub(base, registry, resident=2) as hub:
        alone = {ref: hub.generate(hub.target(ref), LONG).result().token_ids for ref in ("writer@1", "writer@2")}
        assert alone["writer@1"] != alone["writer@2"]
        streams, expected = [], []
        for ref in ("writer@1", "writer@2", "writer@1", "writer@2"):
            registry.alias("writer", "prod", ref)
            streams += [hub.generate(hub.target("writer"), LONG) for _ in range(3)]
            next(iter(streams[-1]))  # it runs
            expected += [alone[ref]] * 3
        assert [stream.result().token_ids for stream in streams] == expected


def test_more_adapters_than_slots_and_memory_answer_as_ever(base: Base, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    for seed in range(5):
        publish(
            registry, base, f"task-{seed}", tmp_path, seed=seed, kind="classification" if seed % 2 else "generation"
        )
    order = [3, 0, 4, 1, 1, 2, 0, 3, 4, 2]
    with AdapterHub(base, registry) as roomy, AdapterHub(base, registry, resident=1, host_bytes=1) as narrow:
        for seed in order:
            expected = roomy.predict(f"task-{seed}", ["text"])[0]
            found = narrow.predict(f"task-{seed}", ["text"])[0]
            assert found.answer == expected.answer
            assert list((found.probs or {}).values()) == pytest.approx(list((expected.probs or {}).values()), abs=1e-5)
        assert roomy.stats()["adapter_reads"] == 5
        assert narrow.stats()["adapter_reads"] > 5
        assert narrow.stats()["resident_adapters"] == 1
        assert narrow.stats()["host_adapters"] <= 1


@pytest.mark.parametrize(("prefix_bytes", "reused"), [(1 << 20, True), (0, False)])
def test_a_prompt_that_comes_again_is_not_computed_again(
    base: Base, registry: Registry, prefix_bytes: int, reused: bool
) -> None:
    with AdapterHub(base, registry, prefix_bytes=prefix_bytes) as hub:
        request = GenerationRequest(text="once upon a time " * 5, max_tokens=8, temperature=0, ignore_eos=True)
        answers = [hub.generate(hub.target("writer"), request).result().token_ids for _ in range(2)]
        assert answers[0] == answers[1]
        assert (hub.stats()["prefix_tokens_reused"] > 0) is reused
        assert (hub.stats()["prefix_cache_bytes"] > 0) is reused


def test_a_tasks_versions_share_its_weight(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path / "registry")
    folders = [publish(registry, base, "writer", tmp_path, seed=seed).path for seed in (1, 2)]
    publish(registry, base, "other", tmp_path, seed=3)
    sent: list[Request] = []
    submit = EngineLoop.submit

    def spy(self: EngineLoop, request: Request) -> None:
        sent.append(request)
        submit(self, request)

    monkeypatch.setattr(EngineLoop, "submit", spy)
    with AdapterHub(base, registry, weights={"writer": 2, base.name: 0.5, "later": 3}) as hub:
        for ref in ("writer@1", "writer@2", "other", base.name):
            hub.predict(ref, ["a"], max_tokens=1)
            hub.score(ref, "a", ["b"])
            hub.embed(ref, ["a"])
        hub.predict_folder(folders[0], ["a"], max_tokens=1)
    assert [(request.share, request.weight) for request in sent] == [
        *[("writer", 2)] * 6,
        *[("other", 1)] * 3,
        *[(None, 0.5)] * 3,
        (None, 1),
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"weights": {"writer": 0}},
        {"weights": {"writer": -1}},
        {"weights": {"writer": math.nan}},
        {"weights": {"writer": math.inf}},
        {"host_bytes": -1},
        {"prefix_bytes": -1},
        {"resident": 0},
        {"max_rows": 0},
        {"cache_tokens": 0},
        {"threads": 0},
    ],
)
def test_options_that_make_no_sense_are_refused(base: Base, registry: Registry, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options)).removeprefix("max_").removesuffix("s")):
        AdapterHub(base, registry, **options)


def test_how_many_threads_compute_is_told(base: Base, registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="adapterhub"), AdapterHub(base, registry, threads=1) as hub:
        assert hub.stats()["threads"] == 1
    assert "threads: 1 (asked for)" in caplog.text


def test_the_engine_computes_with_the_threads_that_are_told(base: Base, registry: Registry) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    try:
        with AdapterHub(base, registry, threads=before + 1) as hub:
            stream = hub.generate(hub.target("writer"), LONG)
            stream.subscribe(lambda _: seen.append(torch.get_num_threads()))
            stream.result()
    finally:
        torch.set_num_threads(before)
    assert seen[-1] == before + 1  # the first ones may have been told in this thread


def test_a_pinned_adapter_stays_and_an_unpinned_one_makes_room(base: Base, registry: Registry) -> None:
    with AdapterHub(base, registry, resident=2, host_bytes=1) as hub:
        hub.pin("tone")
        for ref in ("writer", "topics", "writer"):
            hub.load([ref])
        before = hub.stats()["adapter_loads"]
        hub.predict("tone", ["a"])
        assert hub.stats()["adapter_loads"] == before
        with pytest.raises(UsageError, match="cannot pin"):
            hub.pin("writer")
        hub.unpin("tone")
        hub.pin("writer")
        hub.load(["topics"])
        before = hub.stats()["adapter_loads"]
        hub.predict("tone", ["a"])
        assert hub.stats()["adapter_loads"] == before + 1


def test_an_unloaded_adapter_leaves_once_its_requests_are_done(hub: AdapterHub) -> None:
    hub.pin("writer")
    stream = hub.generate(hub.target("writer"), LONG)
    hub.unload("writer")
    assert stream.result().completion_tokens == 120
    # A job of the engine's thread that comes after: what it does before is done then.
    hub.load(["tone"])
    assert hub.stats()["resident_adapters"] == hub.stats()["host_adapters"] == 1
    assert hub.predict("writer", ["a"], max_tokens=1)[0].completion_tokens == 1
    assert hub.stats()["adapter_reads"] == 3


def test_what_could_not_be_loaded_is_not_left_pinned(base: Base, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    damage(publish(registry, base, "tone", tmp_path, kind="classification").path)
    publish(registry, base, "writer", tmp_path, seed=1)
    with AdapterHub(base, registry, resident=2) as hub:
        with pytest.raises(CorruptAdapter, match="hash"):
            hub.pin("tone")
        hub.pin("writer")  # the one place there is for a pin


def test_the_base_can_be_neither_pinned_nor_unloaded(hub: AdapterHub, base: Base) -> None:
    for act in (hub.pin, hub.unpin, hub.unload):
        with pytest.raises(UsageError, match="bare base"):
            act(base.name)
        with pytest.raises(RefNotFound):
            act("nobody")


def test_one_ref_in_place_of_several_is_told(hub: AdapterHub) -> None:
    with pytest.raises(UsageError, match="one text, 'tone'"):
        hub.load("tone")


def test_what_a_server_was_asked_to_have_at_hand_is_pinned_where_it_can_be(
    base: Base, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    for resident, told in ((3, False), (2, True)):
        caplog.clear()
        options = HubOptions(
            registry.root, str(base.path), ("tone", "tone@1", "topics"), resident=resident, host_bytes=1
        )
        with open_hub(options) as hub:
            for ref in ("writer", base.name):
                hub.predict(ref, ["a"], max_tokens=1)
            before = hub.stats()["adapter_loads"]
            hub.load(["tone", "topics"])
            assert (hub.stats()["adapter_loads"] == before) is not told
        assert ("none is pinned" in caplog.text) is told


def test_an_error_while_an_answer_is_read_reaches_the_asker(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    target = hub.target("tone")
    assert target.spec is not None
    few = replace(target, spec=replace(target.spec, labels=("only", "two")))
    with pytest.raises(ValueError, match="zip"):
        next(hub.answers(few, ["a"]))

    def broken(self: Detokenizer, token: int) -> str:
        raise LookupError(f"no text for {token}")

    monkeypatch.setattr(Detokenizer, "add", broken)
    for ask in (lambda: hub.predict("writer", ["a"]), hub.generate(hub.target("writer"), LONG).result):
        with pytest.raises(LookupError, match="no text for"):
            ask()


def test_continuations_may_come_from_an_iterator(hub: AdapterHub) -> None:
    texts = [" one", " two"]
    expected = hub.score("writer", "a", texts)
    found = hub.score("writer", "a", iter(texts))  # type: ignore[arg-type]
    assert [score.text for score in found] == texts
    assert [score.logprob for score in found] == pytest.approx([score.logprob for score in expected], abs=1e-4)
