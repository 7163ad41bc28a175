"""Bugs that users of other servers for many adapters met again and again, over a socket and a real engine.

A test's name says what those users saw; that it passes says that it is not seen here. Those met below HTTP have their
tests there: a failing load among good requests (`test_real_hub`, `engine/test_lives`), memory over many loads and
unloads (`test_adapters`, `engine/test_lives`), unknown names in metrics (`test_service`).
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub.base.source import Base
from adapterhub.engine.prefix_cache import CHUNK
from adapterhub.registry.store import Registry
from adapterhub.registry.version import Published
from adapterhub.runtime import adapters
from adapterhub.runtime.hub import AdapterHub
from tests.adapters import load_peft, load_plain
from tests.tiny import byte_tokenizer

from .fake import eventually
from .publishing import make_base, publish
from .running import Answer, Running, left, opened, running

TASKS = tuple(f"user{number}" for number in range(5))
TOKENS = 8
OUTSIDE = (
    "..",
    "../other/hidden",
    "/etc/passwd",
    "user0/../user1",
    "..\\other",
    "user0\x00",
    "user0\n",
    "%2e%2e",
    "~",
    "",
)


@dataclass(frozen=True)
class Reads:
    """The files of weights that were opened; while `gate` is closed, those of `held` wait."""

    folders: list[Path]
    gate: threading.Event
    waiting: threading.Semaphore

    @contextmanager
    def held(self) -> Iterator[None]:
        self.gate.clear()
        try:
            yield
        finally:
            self.gate.set()


@dataclass(frozen=True)
class Served:
    server: Running
    hub: AdapterHub
    registry: Registry
    base: Base
    scratch: Path
    reads: Reads

    def publish(self, task: str, seed: int, **options: Any) -> Published:
        return publish(self.registry, self.base, task, self.scratch, seed=seed, **options)

    def ask(self, model: str, prompt: str = "hello", **options: Any) -> Answer:
        body = {
            "model": model,
            "prompt": prompt,
            "temperature": 0,
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "logprobs": 0,
        }
        return self.server.post("/v1/completions", {**body, **options})

    def forget(self) -> None:
        """Have no adapter in memory."""
        for state in self.hub.adapters():
            assert self.server.post("/v1/unload_lora_adapter", {"lora_name": state.id}).status == 200
        assert eventually(lambda: self.hub.stats()["host_adapters"] == self.hub.stats()["resident_adapters"] == 0)
        while self.reads.waiting.acquire(blocking=False):
            pass

    def said(self, folder: Path | None, prompt: str = "hello") -> list[float]:
        """What plain PEFT says, the adapter merged into the base: the log-probabilities of its own greedy answer."""
        path = self.base.path
        model = load_plain(path, None) if folder is None else load_peft(path, folder, None).merge_and_unload()
        ids = byte_tokenizer()(prompt)["input_ids"]
        told: list[float] = []
        with torch.inference_mode():
            for _ in range(TOKENS):
                logprobs = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
                ids = [*ids, int(logprobs.argmax())]
                told.append(float(logprobs.max()))
        return told


def logprobs_of(answer: Answer) -> list[float]:
    assert answer.status == 200, answer.body
    found: list[float] = answer.json["choices"][0]["logprobs"]["token_logprobs"]
    return found


def about(expected: list[float]) -> Any:
    return pytest.approx(expected, abs=1e-3)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two places for adapters, and as good as no memory for others: nearly every request is a load at run time."""
    root = tmp_path_factory.mktemp("peers")
    base = make_base(root / "base")
    registry = Registry(root / "registry")
    reads = Reads([], threading.Event(), threading.Semaphore(0))
    reads.gate.set()
    plain = adapters.open_weights

    def counted(folder: Path) -> Any:
        reads.folders.append(folder)
        reads.waiting.release()
        assert reads.gate.wait(60)
        return plain(folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAPTERHUB_CACHE", str(root / "cache"))
        patch.setattr(adapters, "open_weights", counted)
        for seed, task in enumerate(TASKS):
            publish(registry, base, task, root, seed=seed)
        publish(Registry(root / "other"), base, "hidden", root, seed=50)
        hub = AdapterHub(base, registry, precision="float32", threads=1, resident=2, host_bytes=1)
        with hub, running(hub) as server:
            yield Served(server, hub, registry, base, root, reads)


def test_a_users_request_is_answered_with_another_users_adapter_after_a_run_time_load(served: Served) -> None:
    folders = {task: served.registry.resolve(task) for task in TASKS}
    expected = {task: served.said(version.path) for task, version in folders.items()}
    assert len({tuple(each) for each in expected.values()}) == len(TASKS)

    def ask(number: int) -> None:
        task = TASKS[number % len(TASKS)]
        if number % 3 == 0:
            loaded = served.server.post("/v1/load_lora_adapter", {"lora_name": TASKS[number % 4]})
            assert loaded.status == 200
        answer = served.ask(task)
        assert logprobs_of(answer) == about(expected[task])
        assert answer.headers["x-adapterhub-digest"] == folders[task].digest

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(40)))
    assert served.hub.stats()["adapter_evictions"] > len(TASKS)


def test_a_prefix_of_the_old_version_is_reused_after_a_reload_under_the_same_name(served: Served) -> None:
    prompt = "the same instruction, " * (2 * CHUNK // 22 + 1)
    old = served.publish("growing", 20)
    before = served.hub.stats()["prefix_hits"]
    for _ in range(2):
        assert logprobs_of(served.ask("growing", prompt)) == about(served.said(old.path, prompt))
    assert served.hub.stats()["prefix_hits"] == before + 1
    new = served.publish("growing", 21)
    assert logprobs_of(served.ask("growing", prompt)) == about(served.said(new.path, prompt))
    served.registry.alias("growing", "prod", "growing@1")
    assert logprobs_of(served.ask("growing", prompt)) == about(served.said(old.path, prompt))


def test_an_adapter_whose_module_names_match_nothing_is_served_as_the_bare_base(served: Served) -> None:
    folder = served.publish("misnamed", 22).path
    weights = load_file(folder / adapters.WEIGHTS)
    renamed = {key.replace("self_attn", "attention").replace("mlp", "ffn"): value for key, value in weights.items()}
    assert not renamed.keys() & weights.keys()
    copy = served.scratch / "renamed"
    copy.mkdir()
    for name in (adapters.CONFIG, adapters.TASK_FILE):
        text = (folder / name).read_text().replace("self_attn", "attention").replace("mlp", "ffn")
        (copy / name).write_text(text)
    save_file(renamed, copy / adapters.WEIGHTS, {"format": "pt"})
    version = served.registry.publish("misnamed", copy, served.registry.resolve("misnamed").card())
    assert version.created
    for stream in (False, True):
        answer = served.ask("misnamed", stream=stream)
        assert (answer.status, answer.error["param"]) == (422, "model")


def test_an_unknown_adapter_is_answered_200_by_the_base(served: Served) -> None:
    steps = served.hub.stats()["prefix_hits"], len(served.reads.folders)
    for model in ("user9", "user0@9", "user0@canary", "user0@sha256:" + "0" * 64):
        asked = {
            "/v1/completions": {"prompt": "hello"},
            "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
            "/v1/classify": {"input": "hello"},
            "/v1/embeddings": {"input": "hello"},
            "/v1/adapters/load": {},
        }
        for path, body in asked.items():
            answer = served.server.post(path, {"model": model, **body})
            assert (answer.status, answer.error["code"]) == (404, "model_not_found"), path
        assert served.server.ask("GET", f"/v1/models/{model}").status == 404
    assert (served.hub.stats()["prefix_hits"], len(served.reads.folders)) == steps


def test_unloading_frees_nothing(served: Served) -> None:
    prompt = "x" * (2 * CHUNK)
    served.forget()
    empty = served.hub.stats()
    assert served.ask("user0", prompt).status == 200
    used = served.hub.stats()
    assert used["resident_adapters"] == 1
    assert used["prefix_cache_bytes"] > empty["prefix_cache_bytes"]
    served.forget()
    after = served.hub.stats()
    for name in ("host_bytes", "prefix_cache_bytes", "kv_cache_bytes", "resident_adapters", "host_adapters"):
        assert after[name] <= empty[name], name


def test_requests_that_race_for_one_cold_adapter_load_it_twice_or_fail(served: Served) -> None:
    served.forget()
    version = served.registry.resolve("user1")
    before = served.reads.folders.count(version.path)
    with ThreadPoolExecutor(12) as pool:
        with served.reads.held():
            asked = [pool.submit(served.ask, "user1") for _ in range(8)]
            body = {"model": "user1"}
            asked += [pool.submit(served.server.post, "/v1/adapters/load", body) for _ in range(4)]
            assert served.reads.waiting.acquire(timeout=30)
            assert eventually(lambda: served.hub.stats()["waiting"] >= 8)
        answers = [each.result() for each in asked]
    assert [answer.status for answer in answers] == [200] * 12
    assert served.reads.folders.count(version.path) == before + 1
    right = served.said(version.path)
    assert all(logprobs_of(answer) == about(right) for answer in answers[:8])


def test_loads_and_unloads_that_race_with_requests_break_them(served: Served) -> None:
    right = {task: logprobs_of(served.ask(task, max_tokens=40)) for task in TASKS[:3]}
    for task, logprobs in right.items():
        assert logprobs[:TOKENS] == about(served.said(served.registry.resolve(task).path))
    actions = itertools.cycle(("load", "unload", "pin", "unpin"))
    with ThreadPoolExecutor(8) as pool:
        asked = [(task, pool.submit(served.ask, task, max_tokens=40)) for task in list(right) * 5]
        for task in itertools.cycle(right):
            action = next(actions)
            answer = served.server.post(f"/v1/adapters/{action}", {"model": task})
            # A pin may find the one place for pins taken; nothing else may fail.
            assert answer.status == 200 or (action == "pin" and answer.status == 400)
            if all(each.done() for _, each in asked):
                break
    for task, each in asked:
        assert logprobs_of(each.result()) == about(right[task])
    for task in right:
        assert served.server.post("/v1/adapters/unpin", {"model": task}).status == 200


def test_a_map_of_unknown_names_grows_without_bound(served: Served) -> None:
    def known() -> tuple[int, int, int]:
        series = [line for line in served.server.ask("GET", "/metrics").body.splitlines() if not line.startswith(b"#")]
        core = served.hub._core
        assert core is not None
        return len(series), len(core.adapters._kept), len(core.adapters._known)

    def ask(number: int) -> None:
        for name in (f"nobody{number}", f"user0@{number + 5}", f"user0@nobody{number}"):
            served.ask(name)
            served.server.ask("GET", f"/v1/models/{name}")
            served.server.post("/v1/load_lora_adapter", {"lora_name": name})
            served.server.post("/v1/adapters/pin", {"model": name})

    served.ask("user0")
    ask(0)
    known()  # has its own series from now on
    before = known()
    for number in range(1, 40):
        ask(number)
    assert known() == before


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_is_a_path_reaches_files_outside_of_the_registry(served: Served, name: str) -> None:
    before = len(served.reads.folders)
    asked = [("/v1/completions", {"model": name, "prompt": "hello"}), ("/v1/adapters/load", {"model": name})]
    asked += [("/v1/load_lora_adapter", {"lora_name": name}), ("/v1/unload_lora_adapter", {"lora_name": name})]
    for path, body in asked:
        answer = served.server.post(path, body)
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert served.server.ask("GET", f"/v1/models/{quote(name, safe='')}").status == 404
    hidden = Registry(served.scratch / "other").resolve("hidden").path
    for where in ("../other/hidden", str(hidden), name):
        answer = served.server.post("/v1/load_lora_adapter", {"lora_name": "user0", "lora_path": where})
        assert (answer.status, answer.error["param"]) == (400, "lora_path")
    assert len(served.reads.folders) == before


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_while_its_adapter_loads_leaves_a_request_for_ever(
    served: Served, stream: bool
) -> None:
    served.forget()
    gone = left(served.server)
    with served.reads.held():
        with opened(served.server, {"model": "user2", "prompt": "hello", "stream": stream}):
            assert served.reads.waiting.acquire(timeout=30)
        assert eventually(lambda: left(served.server) == gone + 1)
        assert eventually(lambda: served.hub.stats()["waiting"] == 0)
        assert logprobs_of(served.ask(served.base.name)) == about(served.said(None))
    assert eventually(lambda: served.hub.stats()["loading"] == 0)
    assert logprobs_of(served.ask("user2")) == about(served.said(served.registry.resolve("user2").path))
    assert served.server.service.places._taken.total() == 0


def test_requests_in_flight_switch_to_the_new_version_at_a_reload_under_the_same_name(served: Served) -> None:
    old = served.publish("moving", 30)
    served.registry.alias("moving", "prod", "moving@1")
    served.forget()
    with ThreadPoolExecutor(8) as pool:
        with served.reads.held():
            # They wait for the old version's weights when the name comes to mean the new one.
            before = [pool.submit(served.ask, ref) for ref in ("moving", "moving@prod", "moving@latest")]
            assert served.reads.waiting.acquire(timeout=30)
            assert eventually(lambda: served.hub.stats()["waiting"] >= 3)
            new = served.publish("moving", 31)
            served.registry.alias("moving", "prod", "moving@2")
            after = [pool.submit(served.ask, ref) for ref in ("moving", "moving@prod", "moving@latest")]
            assert eventually(lambda: served.hub.stats()["waiting"] >= 6)
        for asked, version in ((before, old), (after, new)):
            right = served.said(version.path)
            for each in asked:
                assert each.result().headers["x-adapterhub-digest"] == version.digest
                assert logprobs_of(each.result()) == about(right)


def test_an_answer_differs_from_that_of_merged_weights_at_some_rank(served: Served) -> None:
    kinds = [(rank, rslora) for rank in (1, 3, 7, 16, 33) for rslora in (False, True)]
    folders = {
        f"rank{rank}-{'rs' if rslora else 'plain'}": served.publish(
            f"rank{rank}-{'rs' if rslora else 'plain'}", 60 + rank, rank=rank, rslora=rslora
        ).path
        for rank, rslora in kinds
    }
    with ThreadPoolExecutor(len(kinds)) as pool:  # of all ranks in one batch, and each in its turn
        found = dict(zip(folders, pool.map(served.ask, folders), strict=True))
    rights = {task: served.said(folder) for task, folder in folders.items()}
    assert len({tuple(right) for right in rights.values()}) == len(kinds) - 1  # at rank 1 rsLoRA is no other
    for task, right in rights.items():
        assert logprobs_of(found[task]) == about(right), task
