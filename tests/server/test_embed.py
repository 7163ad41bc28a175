"""`/v1/embeddings` over the real hub and engine, by hand and with OpenAI's client."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import openai
import pytest
import torch

from adapterhub.registry.store import Registry
from adapterhub.runtime.hub import AdapterHub
from tests.tiny import byte_tokenizer

from .publishing import make_base, publish
from .running import Running, running

TEXTS = ["hello", "two words", "a rather longer line of text", "ü"]


@dataclass(frozen=True)
class Served:
    server: Running
    hub: AdapterHub
    base: str

    def vectors(self, model: str, texts: list[str]) -> list[list[float]]:
        return [each.vector.tolist() for each in self.hub.embed(model, texts)]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("served")
    patch = pytest.MonkeyPatch()
    patch.setenv("ADAPTERHUB_CACHE", str(root / "cache"))
    base, registry = make_base(root / "base"), Registry(root / "registry")
    for seed, (task, kind) in enumerate(
        (("search", "embedding"), ("writer", "generation"), ("tone", "classification"))
    ):
        publish(registry, base, task, root, kind=kind, seed=seed)
    with AdapterHub(base, registry, precision="float32", threads=1) as hub, running(hub) as server:
        yield Served(server, hub, base.name)
    patch.undo()


def test_vectors_are_those_of_the_python_api(served: Served) -> None:
    answer = served.server.post("/v1/embeddings", {"model": "search", "input": TEXTS})
    assert answer.status == 200
    body = answer.json
    assert (body["object"], body["model"], set(body)) == ("list", "search", {"object", "model", "data", "usage"})
    assert [(row["object"], row["index"], set(row)) for row in body["data"]] == [
        ("embedding", index, {"object", "index", "embedding"}) for index in range(4)
    ]
    tokens = sum(len(byte_tokenizer()(text)["input_ids"]) for text in TEXTS)
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    for row, expected in zip(body["data"], served.vectors("search", TEXTS), strict=True):
        assert row["embedding"] == pytest.approx(expected, abs=1e-5)
        assert float(np.linalg.norm(row["embedding"])) == pytest.approx(1.0, abs=1e-5)
    assert answer.headers["x-adapterhub-digest"] == served.hub.target("search").digest


def test_one_text_and_fields_are_inputs_too(served: Served) -> None:
    (expected,) = served.vectors("search@1", ["hello"])
    for given in ("hello", {"text": "hello"}, [{"text": "hello"}]):
        (row,) = served.server.post("/v1/embeddings", {"model": "search@1", "input": given}).json["data"]
        assert row["embedding"] == pytest.approx(expected, abs=1e-6)


def test_base64_holds_little_endian_float32(served: Served) -> None:
    body = {"model": "search", "input": TEXTS[:2], "encoding_format": "base64"}
    rows = served.server.post("/v1/embeddings", body).json["data"]
    for row, expected in zip(rows, served.vectors("search", TEXTS[:2]), strict=True):
        raw = base64.b64decode(row["embedding"])
        assert len(raw) == 4 * len(expected)
        assert np.frombuffer(raw, "<f4").tolist() == pytest.approx(expected, abs=1e-6)


def test_the_bases_vectors_are_as_they_are(served: Served) -> None:
    (row,) = served.server.post("/v1/embeddings", {"model": served.base, "input": "hello"}).json["data"]
    assert row["embedding"] == pytest.approx(served.vectors(served.base, ["hello"])[0], abs=1e-5)
    assert float(torch.tensor(row["embedding"]).norm()) > 2


@pytest.mark.parametrize("encoding", [openai.omit, "float", "base64"])
def test_with_the_openai_client(served: Served, encoding: Any) -> None:
    with served.server.openai() as client:
        answer = client.embeddings.create(model="search", input=TEXTS, encoding_format=encoding, user="me")
    found = [row.embedding for row in answer.data]
    if encoding == "base64":
        found = [np.frombuffer(base64.b64decode(row), "<f4").tolist() for row in found]  # type: ignore[arg-type]
    for vector, expected in zip(found, served.vectors("search", TEXTS), strict=True):
        assert vector == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("model", "path", "said"),
    [
        ("tone", "/v1/embeddings", "'tone' is a classification task; ask it at /v1/classify"),
        (
            "writer",
            "/v1/embeddings",
            "'writer' is a generation task; ask it at /v1/chat/completions or /v1/completions",
        ),
        ("search", "/v1/classify", "'search' is an embedding task; ask it at /v1/embeddings"),
        ("search", "/v1/completions", "'search' is an embedding task; ask it at /v1/embeddings"),
    ],
)
def test_the_wrong_kind_names_the_right_route(served: Served, model: str, path: str, said: str) -> None:
    body = {"model": model, "prompt" if path == "/v1/completions" else "input": "hello"}
    answer = served.server.post(path, body)
    assert answer.status == 400
    assert said in answer.error["message"]
    assert answer.error["param"] == "model"


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"input": []}, "input", "empty list"),
        ({"input": ["a", 3]}, "input", "input 1: must be a text or an object of fields"),
        ({"input": [1, 2]}, "input", "input 0: must be a text or an object of fields"),
        ({"input": ["a", ""]}, "input", "input 1: the text is empty"),
        ({"input": ["a", "x" * 300, "b"]}, "input", "input 1: 300 tokens are more than the 256"),
        ({"input": {"shop": "x"}}, "input", "the field 'text' is missing"),
        ({"dimensions": 8}, "dimensions", "'dimensions' is not supported here"),
        ({"encoding_format": "hex"}, "encoding_format", "'float' or 'base64'"),
        ({"model": "serach"}, "model", "serach"),
    ],
)
def test_what_is_wrong_is_named(served: Served, change: dict[str, Any], param: str, said: str) -> None:
    answer = served.server.post("/v1/embeddings", {"model": "search", "input": "hello", **change})
    assert answer.status == (404 if param == "model" else 400)
    assert answer.error["param"] == param
    assert said in answer.error["message"]


def test_the_kind_is_listed_and_requests_are_counted(served: Served) -> None:
    found = served.server.ask("GET", "/v1/models/search").json
    assert found["kind"] == "embedding"
    served.server.post("/v1/embeddings", {"model": "search", "input": "hello"})
    text = served.server.ask("GET", "/metrics").body.decode()
    assert 'route="/v1/embeddings"' in text
