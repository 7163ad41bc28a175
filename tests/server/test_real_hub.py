"""The server over the real hub and engine: what it serves is what the Python API answers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from adapterhub.base.source import Base
from adapterhub.data.task import Calibration
from adapterhub.errors import QuotaSpent
from adapterhub.registry.store import Registry
from adapterhub.runtime.hub import AdapterHub
from adapterhub.runtime.target import Asker, GenerationRequest
from tests.tiny import byte_tokenizer

from .fake import eventually
from .publishing import LABELS, make_base, publish
from .running import Running, left, opened, running

TEXTS = ("hello", "two words", "a rather longer line of text", "ü")


@dataclass(frozen=True)
class Served:
    server: Running
    hub: AdapterHub
    registry: Registry
    base: Base
    scratch: Path

    def text(self, model: str, prompt: str, **options: Any) -> str:
        return str(self.completion(model, prompt, **options)["choices"][0]["text"])

    def completion(self, model: str, prompt: Any, **options: Any) -> Any:
        body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 12, **options}
        answer = self.server.post("/v1/completions", body)
        assert answer.status == 200, answer.body
        return answer.json

    def running_rows(self) -> float:
        return self.hub.stats()["running"] + self.hub.stats()["waiting"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("served")
    patch = pytest.MonkeyPatch()
    patch.setenv("ADAPTERHUB_CACHE", str(root / "cache"))
    base = make_base(root / "base")
    registry = Registry(root / "registry")
    for seed, task in enumerate(("alpha", "beta")):
        publish(registry, base, task, root, seed=seed)
    publish(registry, base, "tone", root, kind="classification", seed=5)
    publish(registry, base, "tags", root, kind="multilabel", seed=6)
    publish(registry, base, "unsure", root, kind="classification", seed=5, calibration=Calibration(20.0, 0.999))
    publish(registry, make_base(root / "other", seed=9), "foreign", root, seed=7)
    with AdapterHub(base, registry, precision="float32", threads=1) as hub, running(hub) as server:
        yield Served(server, hub, registry, base, root)
    patch.undo()


def test_a_mixed_crowd_gets_what_the_python_api_gives_each_alone(served: Served) -> None:
    asked = [(model, text) for model in ("alpha", "beta") for text in TEXTS]
    alone = {pair: served.hub.predict(pair[0], [pair[1]], max_tokens=12)[0].completion for pair in asked}
    labels = {text: served.hub.predict("tone", [text])[0] for text in TEXTS}
    base_alone = {text: served.text(served.base.name, text) for text in TEXTS}

    def chat(pair: tuple[str, str]) -> bool:
        model, text = pair
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 12, "stream": True}
        events = served.server.post("/v1/chat/completions", body).events
        told = [choice["delta"].get("content", "") for event in events[:-1] for choice in event["choices"]]
        return bool("".join(told) == alone[pair])

    def label(text: str) -> bool:
        row = served.server.post("/v1/classify", {"model": "tone", "input": text}).json["data"][0]
        assert row["probs"] == pytest.approx(dict(labels[text].probs or {}), abs=1e-4)
        return bool(row["label"] == labels[text].label)

    def plain(text: str) -> bool:
        return served.text(served.base.name, text) == base_alone[text]

    with ThreadPoolExecutor(12) as pool:
        results = [pool.submit(chat, pair) for pair in asked * 2]
        results += [pool.submit(call, text) for call in (label, plain) for text in TEXTS * 2]
        assert all(result.result() for result in results)
    assert len({alone["alpha", text] for text in TEXTS} | {alone["beta", text] for text in TEXTS}) > 4
    assert alone["alpha", TEXTS[0]] != alone["beta", TEXTS[0]]


def test_a_task_that_is_unsure_gives_null_and_its_probabilities(served: Served) -> None:
    body = {"model": "unsure", "input": list(TEXTS)}
    answer = served.server.post("/v1/classify", body)
    assert answer.status == 200
    assert b'"label":null' in answer.body
    sure = served.server.post("/v1/classify", {**body, "model": "tone"}).json["data"]
    for row, other in zip(answer.json["data"], sure, strict=True):
        assert row["label"] is None
        assert set(row) == {"index", "label", "probs"}
        assert sum(row["probs"].values()) == pytest.approx(1, abs=1e-5)
        assert max(row["probs"], key=row["probs"].get) == other["label"]
        assert max(row["probs"].values()) < max(other["probs"].values())
    single = served.server.post("/v1/classify", {"model": "unsure", "input": TEXTS[0]}).json["data"]
    assert single[0]["label"] is None


def test_token_ids_are_the_text_they_stand_for(served: Served) -> None:
    ids = byte_tokenizer()("hello")["input_ids"]
    by_text, by_ids = (served.completion("alpha", prompt) for prompt in ("hello", ids))
    assert by_text["choices"] == by_ids["choices"]
    assert by_text["usage"] == by_ids["usage"]
    assert by_text["usage"]["prompt_tokens"] == len(ids)


def test_an_asker_is_told_what_may_be_needed_and_can_refuse(served: Served) -> None:
    told: list[int] = []

    def admit(tokens: int) -> None:
        told.append(tokens)
        if sum(told) > 40:
            raise QuotaSpent("no more")

    askers = {task: replace(served.hub.target(task), asker=Asker("ann", admit)) for task in ("alpha", "tone")}
    stream = served.hub.generate(askers["alpha"], GenerationRequest(text="hello", max_tokens=9))
    assert stream.result().completion_tokens <= 9
    assert [each.prompt_tokens for each in served.hub.answers(askers["tone"], ["abc", "de"])] == [3, 2]
    assert told == [14, 3, 2]
    with pytest.raises(QuotaSpent):
        served.hub.generate(askers["alpha"], GenerationRequest(text="hello", max_tokens=30))
    assert eventually(lambda: served.running_rows() == 0)


def test_keys_flood_their_own_part_of_a_task(served: Served) -> None:
    """One key's long queue: another's request for the same task ends long before it."""
    ended: list[str] = []

    def ask(name: str) -> Any:
        target = replace(served.hub.target("alpha"), asker=Asker(name, lambda tokens: None))
        stream = served.hub.generate(target, GenerationRequest(text="hello", max_tokens=20, ignore_eos=True))
        stream.subscribe(lambda chunk: ended.append(name) if getattr(chunk, "finish_reason", None) else None)
        return stream

    streams = [ask("flood") for _ in range(120)]
    streams.append(ask("other"))
    for stream in streams:
        stream.result()
    assert ended.index("other") < 80


def test_usage_and_exact_lengths(served: Served) -> None:
    whole = served.completion("alpha", ["hello", "hi"], max_tokens=9, min_tokens=9, ignore_eos=True)
    assert whole["usage"] == {"prompt_tokens": 7, "completion_tokens": 18, "total_tokens": 25}
    assert {choice["finish_reason"] for choice in whole["choices"]} == {"length"}


def test_streamed_text_is_the_whole_text_whatever_stops_it(served: Served) -> None:
    text = served.text("beta", "hello", max_tokens=30, ignore_eos=True)
    for stop in (None, text[5:7], ["never there", text[10:12]]):
        body = {"model": "beta", "prompt": "hello", "max_tokens": 30, "ignore_eos": True, "stop": stop, "stream": True}
        events = served.server.post("/v1/completions", body).events
        told = "".join(event["choices"][0]["text"] for event in events[:-1])
        body.pop("model"), body.pop("prompt")
        assert told == served.text("beta", "hello", **{**body, "stream": False})
        stops = [stop] if isinstance(stop, str) else stop or []
        assert all(each not in told for each in stops)
        assert text.startswith(told)


def test_logprobs_are_of_the_chosen_tokens(served: Served) -> None:
    choice = served.completion("alpha", "hello", logprobs=3, max_tokens=5)["choices"][0]
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == 5
    for value, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
        assert value <= 0
        assert value == pytest.approx(max(top.values()))  # greedy chose the likeliest


def test_seeds_repeat_and_differ(served: Served) -> None:
    def ask(seed: int) -> str:
        return served.text("alpha", "hello", temperature=1.5, seed=seed, max_tokens=20)

    assert ask(3) == ask(3)
    assert len({ask(seed) for seed in range(5)}) > 1


def test_multilabel(served: Served) -> None:
    row = served.server.post("/v1/classify", {"model": "tags", "input": ["hello"]}).json["data"][0]
    assert row["labels"] == [label for label in LABELS if row["probs"][label] > 0.5]


def test_a_version_published_meanwhile_is_served_at_the_next_request(served: Served) -> None:
    first = publish(served.registry, served.base, "growing", served.scratch, seed=20)
    body = {"model": "growing", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 12}
    before = served.server.post("/v1/chat/completions", body)
    second = publish(served.registry, served.base, "growing", served.scratch, seed=21)
    after = served.server.post("/v1/chat/completions", body)
    assert [before.headers["x-adapterhub-digest"], after.headers["x-adapterhub-digest"]] == [
        first.digest,
        second.digest,
    ]
    assert before.json["choices"] != after.json["choices"]
    served.registry.alias("growing", "prod", "growing@1")
    again = served.server.post("/v1/chat/completions", body)
    assert again.headers["x-adapterhub-digest"] == first.digest
    assert again.json["choices"] == before.json["choices"]
    ids = {model["id"] for model in served.server.ask("GET", "/v1/models").json["data"]}
    assert {"growing", "growing@1", "growing@2", "growing@prod"} <= ids


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("/v1/completions", {"model": "alhpa", "prompt": "Hi"}, 404, "model_not_found", "model"),
        ("/v1/completions", {"model": "alpha@9", "prompt": "Hi"}, 404, "model_not_found", "model"),
        ("/v1/completions", {"model": "../registry/alpha", "prompt": "Hi"}, 404, "model_not_found", "model"),
        ("/v1/completions", {"model": "foreign", "prompt": "Hi"}, 400, "base_mismatch", "model"),
        ("/v1/completions", {"model": "alpha", "prompt": "x" * 600}, 400, "context_length_exceeded", "prompt"),
        ("/v1/completions", {"model": "alpha", "prompt": [5, 100_000]}, 400, "invalid_request", "prompt"),
        ("/v1/completions", {"model": "alpha", "prompt": ""}, 400, "invalid_request", "prompt"),
        ("/v1/completions", {"model": "tone", "prompt": "Hi"}, 400, "unsupported_request", "model"),
        ("/v1/classify", {"model": "alpha", "input": "Hi"}, 400, "unsupported_request", "model"),
        ("/v1/classify", {"model": "tone", "input": {"subject": "Hi"}}, 400, "invalid_request", "input"),
        ("/v1/classify", {"model": "tone", "input": "x" * 600}, 400, "context_length_exceeded", "input"),
        ("/v1/completions", {"model": "x" * 200, "prompt": "Hi"}, 404, "model_not_found", "model"),
        (
            "/v1/completions",
            {"model": "alpha", "prompt": "Hi", "max_tokens": 2**40},
            400,
            "invalid_request",
            "max_tokens",
        ),
    ],
)
def test_refusals(served: Served, path: str, body: Any, status: int, code: str, param: str | None) -> None:
    answer = served.server.post(path, body)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (status, code, param)


def test_which_of_many_inputs_is_wrong(served: Served) -> None:
    inputs = ["hello", "hi", {"subject": "hi"}, "hello", {"nor": "this"}]
    answer = served.server.post("/v1/classify", {"model": "tone", "input": inputs})
    assert answer.status == 400
    assert answer.error["message"].startswith("input 2: ")
    assert "'text'" in answer.error["message"]


def test_one_model_is_told_without_the_others(served: Served) -> None:
    broken = publish(served.registry, served.base, "broken", served.scratch, seed=40)
    (broken.path / "task.json").write_text("{")
    digest = served.registry.resolve("alpha@1").digest
    for ref in ("alpha", "alpha@1", "alpha@" + digest[:15]):
        answer = served.server.ask("GET", f"/v1/models/{ref}")
        assert answer.status == 200
        assert (answer.json["id"], answer.json["digest"], answer.json["kind"]) == (ref, digest, "generation")
        assert answer.json["created"] > 1_700_000_000
        assert answer.headers["x-adapterhub-digest"] == digest
    assert 400 <= served.server.ask("GET", "/v1/models/broken").status < 500
    assert served.server.ask("GET", "/v1/models/foreign").error["code"] == "base_mismatch"
    base = served.server.ask("GET", f"/v1/models/{served.base.name}").json
    assert (base["kind"], base["digest"], base["parent"]) == ("base", None, None)
    assert {"alpha", "tone"} <= {model["id"] for model in served.server.ask("GET", "/v1/models").json["data"]}


def test_a_client_that_leaves_frees_its_classifications(served: Served) -> None:
    before = left(served.server)
    with opened(served.server, {"model": "tone", "input": ["x" * 200] * 1000}, "/v1/classify"):
        assert eventually(lambda: served.running_rows() > 0)
    assert eventually(lambda: left(served.server) == before + 1)
    assert eventually(lambda: served.running_rows() == 0, 1)


CHAT = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize(
    ("kind", "path", "body"),
    [
        ("generation", "/v1/completions", {"prompt": "hello"}),
        ("generation", "/v1/completions", {"prompt": ["hello", "hi"], "stream": True}),
        ("generation", "/v1/chat/completions", CHAT),
        ("generation", "/v1/chat/completions", {**CHAT, "stream": True}),
        ("classification", "/v1/classify", {"input": ["hello", "hi"]}),
    ],
)
def test_a_damaged_adapter_fails_alone(served: Served, kind: str, path: str, body: Any) -> None:
    """Its weights are read after the request was taken in; the status is still the refusal's, in streams too."""
    name = f"damaged-{kind}"
    if name not in served.registry.tasks():
        damaged = publish(served.registry, served.base, name, served.scratch, kind=kind, seed=30)
        weights = damaged.path / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    expected = served.text("alpha", "hello")
    with ThreadPoolExecutor(4) as pool:
        fine = [pool.submit(served.text, "alpha", "hello") for _ in range(6)]
        answer = served.server.post(path, {"model": name, **body})
        assert [each.result() for each in fine] == [expected] * 6
    assert (answer.status, answer.error["code"], answer.error["param"]) == (422, "corrupt_adapter", "model")
    assert eventually(lambda: served.running_rows() == 0)


def test_missing_weights_are_told_as_such(served: Served) -> None:
    gone = publish(served.registry, served.base, "gone", served.scratch, seed=31)
    (gone.path / "adapter_model.safetensors").unlink()
    for stream in (False, True):
        answer = served.server.post("/v1/completions", {"model": "gone", "prompt": "hello", "stream": stream})
        assert (answer.status, answer.error["code"], answer.error["param"]) == (422, "corrupt_adapter", "model")


def test_metrics_tell_the_engines_numbers(served: Served) -> None:
    served.text("alpha", "hello")
    families = {
        family.name: family
        for family in text_string_to_metric_families(served.server.ask("GET", "/metrics").body.decode())
    }
    counters = {"adapter_loads", "adapter_evictions", "adapter_reads", "prefix_hits", "prefix_reused_tokens"}
    gauges = {"running_rows", "waiting_rows", "loading_adapters", "resident_adapters", "host_adapters"}
    gauges |= {"host_adapter_bytes", "kv_cache_bytes", "prefix_cache_bytes", "compute_threads"}
    for name in counters | gauges:
        family = families[f"adapterhub_{name}"]
        assert family.type == ("counter" if name in counters else "gauge")
        (sample,) = family.samples
        assert sample.name == f"adapterhub_{name}" + ("_total" if name in counters else "")
        assert not sample.labels
    # Whatever else the engine comes to count is told too, but should be given a type and a name here.
    assert len(served.hub.stats()) == len(counters | gauges)
    assert families["adapterhub_compute_threads"].samples[0].value == 1
    assert families["adapterhub_adapter_loads"].samples[0].value >= 1
    assert families["adapterhub_host_adapter_bytes"].samples[0].value > 0


def test_metrics_tell_each_adapters_numbers(served: Served) -> None:
    for _ in range(2):
        served.text("beta", "x" * 80)
    served.text(served.base.name, "hello")
    numbers = {each.name: each for each in served.hub.adapter_counts()}
    beta = numbers["beta@1"]
    assert beta.counts.started >= 2
    assert beta.counts.queue_seconds > 0
    assert beta.counts.loads >= 1
    assert beta.counts.prefix_hits >= 1
    assert beta.counts.prefix_tokens >= 64
    assert beta.residency.slot
    assert numbers[served.base.name].counts.started >= 1
    text = served.server.ask("GET", "/metrics").body.decode()
    assert 'adapterhub_resident{adapter="beta@1"} 1.0' in text


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_row(served: Served, stream: bool) -> None:
    body = {"model": "alpha", "prompt": ["a", "b"], "max_tokens": 200, "ignore_eos": True, "stream": stream}
    before = left(served.server)
    with opened(served.server, body):
        assert eventually(lambda: served.running_rows() > 0)
    assert eventually(lambda: served.running_rows() == 0)
    assert eventually(lambda: left(served.server) == before + 1)
    assert served.text("alpha", "hello")
