"""What surrounds the answers: probes, models, classification, keys, metrics, log lines."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from adapterhub.server.access import Access
from adapterhub.server.log import JsonLines
from adapterhub.server.metrics import MOST_ADAPTERS, Metrics
from adapterhub.server.record import Record, request_id

from .fake import BASE, LABELS, FakeHub, digest_of
from .running import Running, running


@pytest.fixture
def fresh() -> Iterator[Running]:
    with running(FakeHub()) as each:
        yield each


def samples(server: Running) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = server.ask("GET", "/metrics")
    assert answer.status == 200
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


def test_probes(server: Running) -> None:
    assert server.ask("GET", "/health").json == {"status": "ok"}
    assert server.ask("GET", "/ready").json == {"status": "ready"}


def test_the_interface_is_described(server: Running) -> None:
    described = server.ask("GET", "/openapi.json").json
    body = described["components"]["schemas"]["CompletionBody"]
    assert set(body["required"]) == {"model", "prompt"}
    assert {"min_tokens", "ignore_eos", "top_k"} <= set(body["properties"])
    assert "/v1/classify" in described["paths"]
    assert {"n", "user"} <= set(body["properties"])  # accepted, so not among the additional ones that are refused
    assert "HTTPValidationError" not in json.dumps(described)  # the framework's own shape, which is never sent
    assert set(described["components"]["schemas"]["ErrorAnswer"]["properties"]) == {"error"}


def test_a_label_may_be_null_in_the_description(server: Running) -> None:
    described = server.ask("GET", "/openapi.json").json
    answer = described["paths"]["/v1/classify"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer == {"$ref": "#/components/schemas/ClassifyAnswer"}
    label = described["components"]["schemas"]["Labelled"]["properties"]["label"]
    assert {"type": "null"} in label["anyOf"]
    for task, key in (("tone", "label"), ("tags", "labels")):
        entry = server.post("/v1/classify", {"model": task, "input": "Hi"}).json
        assert set(entry) == set(described["components"]["schemas"]["ClassifyAnswer"]["required"])
        assert set(entry["data"][0]) == {"index", key, "probs"}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/classify", "/v1/embeddings"])
def test_refusals_are_described(server: Running, path: str) -> None:
    answers = server.ask("GET", "/openapi.json").json["paths"][path]["post"]["responses"]
    assert set(answers) == {"200", "400", "401", "403", "404", "408", "409", "413", "422", "429", "500", "503"}
    shapes = [answer["content"]["application/json"]["schema"] for status, answer in answers.items() if status != "200"]
    assert shapes == [{"$ref": "#/components/schemas/ErrorAnswer"}] * 11


def test_not_ready_while_the_base_loads() -> None:
    with running(None) as loading:
        assert loading.ask("GET", "/health").status == 200
        assert loading.ask("GET", "/ready").status == 503
        answer = loading.post("/v1/completions", {"model": "orders", "prompt": "Hi"})
        assert answer.status == 503
        assert answer.error["code"] == "overloaded"
        assert answer.headers["retry-after"] == "1"
        assert loading.ask("GET", "/metrics").status == 200


def test_models(server: Running) -> None:
    with server.openai() as client:
        models = client.models.list().data
        assert [model.id for model in models] == [BASE, "notes", "orders", "tags", "tone"]
        found = client.models.retrieve("orders@" + digest_of("orders")[:12])
    assert models[0].to_dict()["parent"] is None
    assert all(model.to_dict()["parent"] == BASE for model in models[1:])
    assert found.id == "orders@" + digest_of("orders")[:12]
    assert found.to_dict()["digest"] == digest_of("orders")
    assert found.to_dict()["kind"] == "generation"
    assert server.ask("GET", f"/v1/models/{BASE}").json["id"] == BASE
    missing = server.ask("GET", "/v1/models/org%2Fnothing")
    assert missing.status == 404
    assert missing.error["code"] == "model_not_found"


@pytest.mark.parametrize("given", ["abcd", {"text": "abcd"}])
def test_classify_one(server: Running, given: Any) -> None:
    answer = server.post("/v1/classify", {"model": "tone", "input": given})
    label = LABELS[4 % 3]
    probs = {each: 0.8 if each == label else 0.1 for each in LABELS}
    assert answer.json == {
        "id": answer.json["id"],
        "object": "list",
        "model": "tone",
        "data": [{"index": 0, "label": label, "probs": probs}],
        "usage": {"prompt_tokens": 4, "completion_tokens": 0, "total_tokens": 4},
    }
    assert answer.json["id"].startswith("clsf-")
    assert answer.headers["x-adapterhub-digest"] == digest_of("tone")


def test_classify_many_in_order_and_multilabel(server: Running) -> None:
    answer = server.post("/v1/classify", {"model": "tags", "input": ["a", "ab", {"text": "abc"}]}).json
    assert [row["labels"] for row in answer["data"]] == [[LABELS[1]], [LABELS[2]], [LABELS[0]]]
    assert [row["index"] for row in answer["data"]] == [0, 1, 2]
    assert all("label" not in row for row in answer["data"])
    assert answer["usage"]["prompt_tokens"] == 6


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shop": "x"}, "the field 'text'"),
        (["a", "b", {"shop": "x"}, {"nor": "here"}], "input 2: the field 'text'"),
        ([], "empty list"),
        (3, "input must be"),
        (["a", 3], "input 1: must be"),
        (["a", "b", "\ud800"], "input 2: text must be valid Unicode"),
        ({"text": float("nan")}, "finite"),
        ({"text": [[1.0, float("inf")]]}, "finite"),
        (["a"] * 1025, "1025 entries"),
    ],
)
def test_classify_refuses(server: Running, given: Any, said: str) -> None:
    answer = server.post("/v1/classify", {"model": "tone", "input": given})
    assert answer.status == 400
    assert answer.error["param"] == "input"
    assert said in answer.error["message"]


def test_request_ids() -> None:
    assert request_id("abc-1.2_3") == "abc-1.2_3"
    for bad in (None, "", "a b", "x" * 65, "a\n", "é"):
        made = request_id(bad)
        assert len(made) == 32
        assert made != request_id(bad)


def test_a_key_guards_all_but_the_probes() -> None:
    with running(FakeHub(), access=Access(api_key="s3cret-é")) as guarded:
        for path in ("/health", "/ready"):
            assert guarded.ask("GET", path).status == 200
        for path in ("/v1/models", "/metrics", "/nowhere", "/openapi.json"):
            assert guarded.ask("GET", path).status == 401
        for value in ("", "Bearer", "Bearer s3cret", "Basic s3cret-é", "Bearer s3cret-éx", "s3cret-é"):
            answer = guarded.ask("GET", "/v1/models", headers={"authorization": value.encode().decode("latin-1")})
            assert answer.status == 401
            assert answer.error["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        right = "Bearer s3cret-é".encode().decode("latin-1")
        assert guarded.ask("GET", "/v1/models", headers={"authorization": right}).status == 200
    with running(FakeHub(), access=Access(api_key="key")) as guarded:
        with guarded.openai("key") as client:
            assert client.models.list().data
        with guarded.openai("other") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_metrics_count_by_version_however_it_was_asked(fresh: Running) -> None:
    for model in ("orders", "orders@1", "orders@" + digest_of("orders")[:12]):
        fresh.post("/v1/completions", {"model": model, "prompt": "abc", "max_tokens": 5})
    fresh.post("/v1/completions", {"model": BASE, "prompt": "abc", "max_tokens": 5, "stream": True})
    fresh.post("/v1/classify", {"model": "tone", "input": "abcd"})
    found = samples(fresh)
    route = ("route", "/v1/completions")
    assert found["adapterhub_requests_total", (("adapter", "orders@1"), route, ("status", "200"))] == 3
    assert found["adapterhub_requests_total", (("adapter", BASE), route, ("status", "200"))] == 1
    assert found["adapterhub_prompt_tokens_total", (("adapter", "orders@1"),)] == 9
    assert found["adapterhub_prompt_tokens_total", (("adapter", "tone@1"),)] == 4
    assert found["adapterhub_completion_tokens_total", (("adapter", "orders@1"),)] == 15
    assert found["adapterhub_completion_tokens_total", (("adapter", BASE),)] == 5
    assert found["adapterhub_time_to_first_token_seconds_count", (("adapter", "orders@1"),)] == 3
    assert found["adapterhub_request_seconds_count", (("adapter", BASE), route)] == 1
    assert found["adapterhub_running_rows", ()] == 1
    assert found["adapterhub_resident_adapters", ()] == 2
    assert found["adapterhub_adapter_loads_total", ()] == 3


def test_the_engines_numbers_an_adapter(fresh: Running) -> None:
    found = samples(fresh)
    adapter = (("adapter", "orders@1"),)
    expected = {"queue_seconds_count": 4, "queue_seconds_sum": 0.5, "slot_loads_total": 2, "slot_evictions_total": 1}
    expected |= {"prompt_prefix_hits_total": 3, "prompt_prefix_tokens_total": 96, "resident": 1}
    assert {name: found[f"adapterhub_{name}", adapter] for name in expected} == expected


def test_time_between_tokens() -> None:
    record = Record("id", "POST", "/v1/completions", completion_tokens=10, choices=2)
    assert record.token_seconds is None
    record.saw_token()
    record.last_token = (record.first_token or 0) + 2.0
    assert record.token_seconds == pytest.approx(0.5)
    record.completion_tokens = 2
    assert record.token_seconds is None


def test_adapters_beyond_the_most_share_a_series() -> None:
    metrics = Metrics(dict)
    for number in range(MOST_ADAPTERS + 50):
        Record("id", "POST", "/v1/completions", adapter=f"task{number}@1").count(metrics)
    Record("id", "POST", "/v1/completions", adapter="task0@1").count(metrics)
    text = metrics.render().decode()
    counted = [line for line in text.splitlines() if line.startswith("adapterhub_requests_total")]
    assert len(counted) == MOST_ADAPTERS + 1
    assert any('adapter="others"' in line and line.endswith(" 50.0") for line in counted)
    assert any('adapter="task0@1"' in line and line.endswith(" 2.0") for line in counted)


def test_lines_for_machines() -> None:
    def line(**fields: Any) -> Any:
        record = logging.makeLogRecord({"name": "adapterhub.server", "levelname": "INFO", "msg": "a %s", **fields})
        text = JsonLines().format(record)
        assert "\n" not in text
        return json.loads(text)

    plain = line(args=("line\nbroken",))
    assert (plain["message"], plain["level"], plain["logger"]) == ("a line\nbroken", "info", "adapterhub.server")
    asked = line(request={"request_id": "x", "digest": "sha256:ab"})
    assert (asked["request_id"], asked["digest"]) == ("x", "sha256:ab")
    assert "message" not in asked
    try:
        raise ValueError("wrong")
    except ValueError:
        failed = line(args=("b",), exc_info=sys.exc_info())
    assert "ValueError: wrong" in failed["exception"]


def test_unknown_names_and_paths_add_no_series(fresh: Running) -> None:
    def ask(number: int) -> None:
        fresh.post("/v1/completions", {"model": f"nobody{number}", "prompt": "Hi"})
        fresh.ask("GET", f"/v1/models/nobody{number}")
        fresh.ask("GET", f"/nowhere{number}")

    ask(0)
    before = set(samples(fresh))
    for number in range(1, 20):
        ask(number)
    assert set(samples(fresh)) == before | {key for key in samples(fresh) if dict(key[1]).get("route") == "/metrics"}
    unknown = (("adapter", "unknown"), ("route", "/v1/completions"), ("status", "404"))
    assert samples(fresh)["adapterhub_requests_total", unknown] == 20


def test_a_huge_name_is_cut_wherever_it_is_told(fresh: Running, caplog: pytest.LogCaptureFixture) -> None:
    name = "x" * 30_000
    with caplog.at_level(logging.INFO, logger="adapterhub.server"):
        for path, body in (("/v1/completions", {"prompt": "Hi"}), ("/v1/classify", {"input": "Hi"})):
            answer = fresh.post(path, {"model": name, **body})
            assert (answer.status, answer.error["code"]) == (404, "model_not_found")
            assert len(answer.error["message"]) < 300
        for path in (f"/v1/models/{name}", f"/{name}"):
            answer = fresh.ask("GET", path)
            assert answer.status == 404
            assert len(answer.error["message"]) < 300
    assert max(len(record.getMessage()) for record in caplog.records) < 600
    assert name[:1000] not in fresh.ask("GET", "/metrics").body.decode()


def test_two_servers_count_apart(server: Running, fresh: Running) -> None:
    server.post("/v1/completions", {"model": "orders", "prompt": "Hi"})
    assert not any(name == "adapterhub_completion_tokens_total" for name, _ in samples(fresh))


def test_log_lines_name_and_count_but_hold_no_text(fresh: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="adapterhub.server"):
        fresh.post("/v1/completions", {"model": "orders@prod", "prompt": "my secret", "max_tokens": 3})
        fresh.post("/v1/completions", {"model": "evil\n{}", "prompt": "my secret"})
        fresh.ask("GET", "/health")
    lines = [record.getMessage() for record in caplog.records if record.name == "adapterhub.server"]
    assert len(lines) == 2
    assert "secret" not in "".join(lines)
    assert "\n" not in "".join(lines)
    first = json.loads(lines[0])
    assert first["model"] == "orders@prod"
    assert first["digest"] == digest_of("orders")
    assert (first["prompt_tokens"], first["completion_tokens"]) == (9, 3)
    assert first["status"] == 200
    assert first["ms"] >= first["first_token_ms"] >= 0
    assert json.loads(lines[1])["status"] == 404


def test_a_record_of_a_client_that_left_counts_as_499() -> None:
    metrics = Metrics(dict)
    record = Record("id", "POST", "/v1/completions", status=200, gone=True)
    record.count(metrics)
    assert record.line()["status"] == 499
    assert b'status="499"' in metrics.render()
