"""Adapters' lives: cold, hot, evicted, forgotten, broken; and requests that go away in the middle of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapterhub.engine.engine import Engine
from adapterhub.engine.prefix_cache import CHUNK
from adapterhub.engine.request import Adapter, Classify, Embed, Score
from adapterhub.engine.scheduler import Limits
from adapterhub.errors import AdapterError, Cancelled, CorruptAdapter, UsageError
from adapterhub.lora.weights import LoraPair, LoraWeights
from tests.tiny import make_tiny_base

from .stand_ins import PATIENCE, Disk, settle
from .support import Asked, assert_free, finish, make_engine

PROMPT = [5, 6, 7, 8, 9]
RANK = 4


class RealDisk(Disk):
    """The stand-in's reads, of adapters that a tiny Llama can run."""

    def adapter(self, digest: str, pooling: str | None = None) -> Adapter:
        count = super().adapter(digest).read

        def read() -> LoraWeights:
            count()
            return random_weights(digest, labels=pooling is not None)

        return Adapter(digest, read, pooling)


def random_weights(digest: str, *, labels: bool = False) -> LoraWeights:
    generator = torch.Generator().manual_seed(int.from_bytes(digest.encode()[-6:], "big"))

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    names = [f"layers.{i}.self_attn.{kind}" for i in range(3) for kind in ("q_proj", "o_proj")]
    modules = {name: LoraPair(draw(RANK, 32), draw(32, RANK), 1.0) for name in names}
    return LoraWeights(modules, {"score.weight": draw(3, 32)} if labels else {})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"), "llama")


@pytest.fixture
def disk() -> RealDisk:
    return RealDisk()


def alone(base: Path, adapter: Adapter | None, prompt: list[int], count: int) -> list[int]:
    """What an engine says that has never met another adapter."""
    item = Asked(prompt, adapter, max_tokens=count)
    finish(make_engine(base, "llama"), item)
    return item.tokens


def test_a_cold_adapter_does_not_hold_up_those_who_run(base: Path, disk: RealDisk) -> None:
    engine = make_engine(base, "llama")
    talks = Asked(PROMPT, max_tokens=10)
    engine.add(talks.request)
    disk.gate.clear()
    cold = Asked(PROMPT, disk.adapter("cold"), max_tokens=4)
    engine.add(cold.request)
    assert disk.entered.acquire(timeout=PATIENCE)
    for said in range(1, 11):
        assert engine.step()
        assert len(talks.events) == said
    assert not engine.step()
    assert engine.busy
    assert engine.stats()["loading"] == 1
    assert not engine.wait(0)
    disk.gate.set()
    assert engine.wait(PATIENCE)
    finish(engine)
    assert cold.tokens == alone(base, disk.adapter("cold"), PROMPT, 4)
    assert_free(engine)


def test_two_requests_for_one_cold_digest_read_it_once_and_share_a_slot(base: Path, disk: RealDisk) -> None:
    engine = make_engine(base, "llama")
    disk.gate.clear()
    asked = [Asked([*PROMPT, i], disk.adapter("cold"), max_tokens=4) for i in range(5)]
    for item in asked:
        engine.add(item.request)
        engine.step()
    disk.gate.set()
    finish(engine)
    assert disk.reads == ["cold"]
    assert engine.slots.loads == 1
    assert [item.tokens for item in asked] == [alone(base, disk.adapter("cold"), [*PROMPT, i], 4) for i in range(5)]


def test_nobody_is_answered_with_another_users_adapter_after_a_run_time_load(base: Path, disk: RealDisk) -> None:
    """Slots, and places in the cache, change hands at every load; each answer stays that of its own adapter."""
    digests = [f"sha256:user-{number}" for number in range(6)]
    expected = {digest: alone(base, disk.adapter(digest), PROMPT, 6) for digest in digests}
    assert len({tuple(tokens) for tokens in expected.values()}) == len(digests)
    engine = make_engine(base, "llama", resident=2, host_bytes=0, limits=Limits(rows=3))
    asked = []
    for turn in range(4):
        for digest in digests[turn % 3 :] + digests[: turn % 3]:
            asked.append((digest, Asked(PROMPT, disk.adapter(digest), max_tokens=6)))
            engine.add(asked[-1][1].request)
            engine.step()
    finish(engine)
    assert engine.slots.evictions >= len(digests) - engine.slots.capacity
    for digest, item in asked:
        assert item.tokens == expected[digest]
    assert_free(engine)


def test_a_failing_load_breaks_only_its_own_requests(base: Path, disk: RealDisk) -> None:
    engine = make_engine(base, "llama")
    disk.broken.add("bad")
    bad = [Asked(PROMPT, disk.adapter("bad"), max_tokens=4) for _ in range(2)]
    misfit = Adapter(
        "sha256:misfit", lambda: LoraWeights({"nowhere": LoraPair(torch.ones(1, 2), torch.ones(2, 1), 1.0)}, {})
    )
    odd = Asked(PROMPT, misfit, max_tokens=4)
    good = [Asked(PROMPT, disk.adapter("good"), max_tokens=4), Asked(PROMPT, max_tokens=4)]
    finish(engine, bad[0], good[0], odd, good[1], bad[1])
    assert all(isinstance(item.error, OSError) for item in bad)
    assert isinstance(odd.error, CorruptAdapter)
    assert good[0].tokens == alone(base, disk.adapter("good"), PROMPT, 4)
    assert good[1].tokens == alone(base, None, PROMPT, 4)
    assert engine.slots.resident == ("good",)
    assert_free(engine)
    disk.broken.clear()
    again = Asked(PROMPT, disk.adapter("bad"), max_tokens=4)
    finish(engine, again)
    assert again.tokens == alone(base, disk.adapter("bad"), PROMPT, 4)


def test_an_adapter_that_changes_nothing_is_refused(base: Path) -> None:
    zero = LoraWeights({"layers.0.self_attn.q_proj": LoraPair(torch.ones(2, 32), torch.zeros(32, 2), 1.0)}, {})
    item = Asked(PROMPT, Adapter("sha256:zero", lambda: zero), max_tokens=4)
    finish(make_engine(base, "llama"), item)
    assert isinstance(item.error, AdapterError)


@pytest.mark.parametrize("phase", ["queued", "loading", "prefilling", "decoding", "scoring", "classifying"])
def test_a_client_that_goes_away_frees_everything_at_the_next_step(phase: str, base: Path, disk: RealDisk) -> None:
    limits = Limits(rows=1, step_tokens=40, chunk_tokens=10)
    engine = make_engine(base, "llama", limits=limits, prefix_bytes=0)
    stays = Asked(PROMPT, max_tokens=12, share="s")
    adapter = disk.adapter("a", "last")
    long = list(range(3, 123))
    if phase == "loading":
        disk.gate.clear()
    asks = {
        "prefilling": Asked(long, adapter, max_tokens=4),
        "decoding": Asked(PROMPT, adapter, max_tokens=90),
        "scoring": Asked(long[:39], adapter, Score(((5, 6), (7, 8)))),
        "classifying": Asked(long, adapter, Classify()),
    }
    gone = asks.get(phase) or Asked(PROMPT, adapter, share="s", max_tokens=4)
    first, second = (stays, gone) if phase == "queued" else (gone, stays)
    engine.add(first.request)
    if phase == "loading":
        assert disk.entered.acquire(timeout=PATIENCE)
        assert not engine.step()
    else:
        settle(engine.loader)
        assert engine.step()
    engine.add(second.request)
    if phase == "queued":
        settle(engine.loader)
        engine.step()
    before = len(gone.events)
    gone.request.cancelled = True
    engine.step()
    assert gone.request not in [row.request for row in engine.scheduler.running]
    assert gone.request not in [waiter.request for waiter in engine.scheduler.waiting]
    assert not engine.tiers._users
    assert not any(engine.slots._users)
    disk.gate.set()
    finish(engine)
    assert len(gone.events) == before
    assert stays.tokens == alone(base, None, PROMPT, 12)
    assert_free(engine)


def test_unload_frees_every_tier_once_the_last_request_is_done(base: Path, disk: RealDisk) -> None:
    engine = make_engine(base, "llama")
    prompt = list(range(3, 3 + 2 * CHUNK))
    runs, waits = (Asked(prompt, disk.adapter("old"), max_tokens=6) for _ in range(2))
    engine.add(runs.request)
    settle(engine.loader)
    engine.step()
    engine.add(waits.request)
    engine.forget("old")
    assert "old" in engine.slots
    finish(engine)
    right = alone(base, disk.adapter("old"), prompt, 6)
    assert runs.tokens == waits.tokens == right
    stats = engine.stats()
    assert stats["resident_adapters"] == stats["host_adapters"] == stats["host_bytes"] == 0
    assert stats["prefix_cache_bytes"] == 0
    again = Asked(prompt, disk.adapter("old"), max_tokens=6)
    finish(engine, again)
    assert again.tokens == right
    assert "old" in engine.slots


def test_a_new_version_leaves_those_in_flight_on_the_old_one(base: Path, disk: RealDisk) -> None:
    engine = make_engine(base, "llama", resident=2)
    old = [Asked(PROMPT, disk.adapter("v1"), share="task", max_tokens=12) for _ in range(2)]
    for item in old:
        engine.add(item.request)
    settle(engine.loader)
    for _ in range(4):
        engine.step()
    new = Asked(PROMPT, disk.adapter("v2"), share="task", max_tokens=12)
    engine.add(new.request)
    engine.forget("v1")
    finish(engine)
    assert [item.tokens for item in old] == [alone(base, disk.adapter("v1"), PROMPT, 12)] * 2
    assert new.tokens == alone(base, disk.adapter("v2"), PROMPT, 12) != old[0].tokens
    assert engine.slots.resident == ("v2",)


def slab_bytes(engine: Engine) -> int:
    """Every byte that is reachable from the network, slabs included."""
    seen: set[int] = set()
    total = 0
    stack: list[object] = [engine.runner._network, engine.runner._heads]
    while stack:
        item = stack.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            storage = item.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                total += storage.nbytes()
        elif isinstance(item, dict):
            stack += item.values()
        elif isinstance(item, list | tuple | set | frozenset):
            stack += item
        elif hasattr(item, "__dict__"):
            stack += vars(item).values()
    return total


@pytest.mark.parametrize("reference", [False, True], ids=["fast", "reference"])
def test_memory_is_flat_over_many_loads_and_unloads(reference: bool, base: Path, disk: RealDisk) -> None:
    engine = make_engine(base, "llama", resident=3, host_bytes=20_000, prefix_bytes=50_000, reference=reference)
    weights = random_weights("a0").bytes
    prompt = list(range(3, 3 + CHUNK + 2))
    found = []
    for number in range(60):
        asked = [Asked(prompt, disk.adapter(f"a{number + k}"), max_tokens=2) for k in range(4)]
        finish(engine, *asked)
        assert not any(item.error for item in asked)
        if number % 3 == 0:
            engine.forget(f"a{number}")
        stats = engine.stats()
        assert stats["host_bytes"] <= 20_000 + weights
        assert stats["prefix_cache_bytes"] <= 50_000
        assert stats["kv_cache_bytes"] == 0
        assert stats["resident_adapters"] <= 3
        found.append(slab_bytes(engine))
    assert max(found[20:]) <= max(found[:20])
    assert_free(engine)
    assert len(disk.reads) >= 63


def test_hundreds_of_adapters_in_random_order(base: Path, disk: RealDisk) -> None:
    engine = make_engine(base, "llama", resident=4, host_bytes=40_000, limits=Limits(rows=6))
    order = torch.randint(0, 300, (400,), generator=torch.Generator().manual_seed(1)).tolist()
    asked = [Asked([3 + i % 200, 9], disk.adapter(f"n{i}", "last"), Classify()) for i in order]
    for start in range(0, len(asked), 50):
        finish(engine, *asked[start : start + 50])
        assert engine.stats()["host_bytes"] <= 40_000 + random_weights("n0", labels=True).bytes
    engine = make_engine(base, "llama")
    for item, number in list(zip(asked, order, strict=True))[::25]:
        again = Asked(item.request.tokens, disk.adapter(f"n{number}", "last"), Classify())
        finish(engine, again)
        torch.testing.assert_close(item.logits, again.logits, rtol=1e-5, atol=1e-5)


def test_pinned_adapters_stay_resident(base: Path, disk: RealDisk) -> None:
    engine = make_engine(base, "llama", resident=2)
    engine.pin("kept")
    with pytest.raises(UsageError, match="cannot pin other"):
        engine.pin("other")
    for name in ("kept", "b", "c", "d"):
        finish(engine, Asked(PROMPT, disk.adapter(name), max_tokens=2))
    assert set(engine.slots.resident) == {"kept", "d"}
    engine.unpin("kept")
    for name in ("e", "f"):
        finish(engine, Asked(PROMPT, disk.adapter(name), max_tokens=2))
    assert "kept" not in engine.slots


def test_a_flood_of_one_adapter_does_not_starve_a_quiet_one(base: Path, disk: RealDisk) -> None:
    engine = make_engine(base, "llama", limits=Limits(rows=4), resident=2)
    flood = [Asked(PROMPT, disk.adapter("flood"), max_tokens=20) for _ in range(200)]
    for item in flood:
        engine.add(item.request)
    settle(engine.loader)
    for _ in range(3):
        engine.step()
    quiet = Asked(PROMPT, disk.adapter("quiet"), max_tokens=3)
    engine.add(quiet.request)
    settle(engine.loader)
    for _ in range(4):
        engine.step()
    assert quiet.tokens == alone(base, disk.adapter("quiet"), PROMPT, 3)
    for item in flood:
        item.request.cancelled = True
    finish(engine)
    assert_free(engine)


def test_a_heavier_share_gets_more(base: Path) -> None:
    engine = make_engine(base, "llama", limits=Limits(rows=4, step_tokens=30))
    shares = {
        name: [Asked([7] * 10, None, Embed(), share=name, weight=weight) for _ in range(60)]
        for name, weight in (("heavy", 3.0), ("light", 1.0))
    }
    for items in zip(*shares.values(), strict=True):
        for item in items:
            engine.add(item.request)
    for _ in range(20):
        engine.step()
    done = {name: sum(bool(item.events) for item in items) for name, items in shares.items()}
    assert done == {"heavy": 45, "light": 15}


def test_a_forward_that_fails_frees_rows_slots_and_places(
    base: Path, disk: RealDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(base, "llama", limits=Limits(rows=2))
    asked = [
        Asked(PROMPT, disk.adapter("a", "last"), max_tokens=9),
        Asked(PROMPT, disk.adapter("a", "last"), Classify()),
        Asked(PROMPT, None, Score(((5, 6), (7,)))),
    ]
    spared = Asked(list(range(3, 90)), max_tokens=2)
    for item in (*asked, spared):
        engine.add(item.request)
    settle(engine.loader)
    with monkeypatch.context() as patched:
        patched.setattr(engine.runner, "run", lambda plan: (_ for _ in ()).throw(MemoryError("none left")))
        assert engine.step()
    assert all(isinstance(item.error, MemoryError) for item in asked)
    assert not any(engine.slots._users)
    assert not engine.scheduler.running
    finish(engine)
    assert len(spared.tokens) == 2
    assert_free(engine)
    again = Asked(PROMPT, disk.adapter("a", "last"), max_tokens=9)
    finish(engine, again)
    assert again.tokens == alone(base, disk.adapter("a", "last"), PROMPT, 9)


def test_failing_everybody_frees_everything(base: Path, disk: RealDisk) -> None:
    engine = make_engine(base, "llama", limits=Limits(rows=1))
    disk.gate.clear()
    asked = [Asked(PROMPT, max_tokens=9), Asked(PROMPT, max_tokens=9), Asked(PROMPT, disk.adapter("a"), max_tokens=9)]
    for item in asked:
        engine.add(item.request)
    assert disk.entered.acquire(timeout=PATIENCE)
    engine.step()
    engine.fail_all(Cancelled("stop"))
    assert all(isinstance(item.error, Cancelled) for item in asked)
    engine.close()
    disk.gate.set()
    assert_free(engine)
    late = Asked(PROMPT, disk.adapter("a"), max_tokens=9)
    engine.add(late.request)
    engine.step()
    assert isinstance(late.error, Cancelled)


def test_nothing_grows_with_unknown_names(base: Path) -> None:
    def fail() -> LoraWeights:
        raise CorruptAdapter("there is no such adapter")

    engine = make_engine(base, "llama")
    asked = [Asked(PROMPT, Adapter(f"sha256:unknown-{number}", fail), max_tokens=2) for number in range(200)]
    finish(engine, *asked, steps=2000)
    assert all(isinstance(item.error, CorruptAdapter) for item in asked)
    for number in range(200, 400):
        engine.forget(f"sha256:unknown-{number}")
    assert_free(engine)
    tables = (engine.tiers._leaving, engine.loader._loads, engine.loader._wanted, engine.slots._slots)
    assert not any(tables)


def test_what_is_pinned_after_it_was_forgotten_stays(base: Path, disk: RealDisk) -> None:
    engine = make_engine(base, "llama")
    first = Asked(PROMPT, disk.adapter("a"), max_tokens=5)
    engine.add(first.request)
    settle(engine.loader)
    engine.step()
    engine.forget("a")
    engine.pin("a")
    finish(engine)
    assert "a" in engine.slots
