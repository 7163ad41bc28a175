"""`/openapi.json` tells the truth: whatever it allows or forbids is sent over a socket, and every answer is in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, CheckContext, GenerationMode, Response
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance

from adapterhub.data.task import Calibration
from adapterhub.registry.store import Registry
from adapterhub.runtime.hub import AdapterHub
from adapterhub.server.access import Access
from adapterhub.server.app import create_app
from adapterhub.server.feedback_store import FeedbackStore
from adapterhub.server.fields import MAX_TOKEN_ID
from adapterhub.server.keys import KeyFile
from adapterhub.server.limits import ServerLimits
from adapterhub.server.service import Service

from .fake import FakeHub
from .publishing import make_base, publish
from .running import Running, running

KEY = "s3cret"
EXAMPLES = 10
BASE = "BASE"  # stands for the base's own name
GENERATION, LABELS, VECTORS = ("alpha", "alpha@prod", BASE), ("tone@1", "tags", "unsure"), ("near", BASE)
FITTING = {
    "/v1/chat/completions": GENERATION,
    "/v1/completions": GENERATION,
    "/v1/classify": LABELS,
    "/v1/embeddings": VECTORS,
}
# What a schema cannot say, by the beginning of what is said then.
RULES = (
    r"the last message is the assistant's",
    r"(input \d+: )?the text is empty",
    r"(input \d+: )?the prompt has \d+ tokens",
    r"stream_options needs stream",
    r"top_logprobs needs logprobs",
    r"min_tokens (= \d+ is above max_tokens|is \d+; it must be from 0 to \d+)",
    r"max_tokens = \d+ and max_completion_tokens = \d+ differ",
    r"template_fields cannot be used here",
    r"(input \d+: )?the field '\w+' is missing",
    r"token id \d+ is outside the vocabulary",
    r"response_format and structured_outputs both",
    r"structured_outputs must hold exactly",
    r"the (JSON schema|list of choices|regular expression) ",
    r"the rule for the output ",
    r"no answer .* is known",
    r"only published versions are served",
    r"cannot pin ",
    r"no (task|version|model|route) ",
)
DOCUMENT = create_app(Service(None)).openapi()
KEYED = create_app(Service(None, access=Access(api_key=KEY))).openapi()
OPERATIONS = [(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods]
CASES = [(path, method, GenerationMode.POSITIVE) for path, method in OPERATIONS]
# Without a body there is nothing to get wrong.
CASES += [(path, method, GenerationMode.NEGATIVE) for path, method in OPERATIONS if method == "post"]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[bool, Running]]:
    """A server that asks for no key, and one that does, over the same hub."""
    root = tmp_path_factory.mktemp("openapi")
    base = make_base(root / "base")
    registry = Registry(root / "registry")
    kinds = {"alpha": "generation", "tone": "classification", "tags": "multilabel", "near": "embedding"}
    for seed, (task, kind) in enumerate(kinds.items()):
        publish(registry, base, task, root, kind=kind, seed=seed)
    publish(registry, base, "unsure", root, kind="classification", seed=5, calibration=Calibration(20.0, 0.999))
    registry.alias("alpha", "prod", "alpha@1")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("ADAPTERHUB_CACHE", str(root / "cache"))
        hub = stack.enter_context(AdapterHub(base, registry, precision="float32", threads=1, resident=2))
        access = {False: None, True: Access(api_key=KEY)}
        yield {
            keyed: stack.enter_context(running(hub, access=each, feedback=FeedbackStore(root / str(keyed))))
            for keyed, each in access.items()
        }


def addressed(case: Case, base: str) -> Case:
    """Send the case to a model that is there, and ask it for little; what is wrong with a case stays wrong."""
    body = case.body
    if not isinstance(body, dict):
        return case
    for name in ("model", "lora_name"):
        if isinstance(body.get(name), str):
            names = FITTING.get(case.path, (*LABELS, "alpha", "near"))
            chosen = names[len(body[name]) % len(names)]
            body[name] = base if chosen is BASE else chosen
    if "/completions" in case.path:
        body.setdefault("max_tokens", 3)
        for name, most in {"max_tokens": 4, "max_completion_tokens": 4, "n": 3}.items():
            value = body.get(name)
            if type(value) in (int, float) and 1 <= value <= MAX_TOKEN_ID and value % 1 == 0:
                body[name] = 1 + value % most
    return case


def answered_or_refused_by_a_rule(_: CheckContext, response: Response, case: Case) -> None:
    """Hold that what the description allows is answered, but for `RULES`."""
    assert case.meta is not None
    if case.meta.generation.mode.is_positive and response.status_code != 200:
        said = response.json()["error"]["message"]
        assert any(re.match(rule, said) for rule in RULES), said


@pytest.mark.parametrize("keyed", [False, True], ids=["open", "keys"])
@pytest.mark.parametrize(("path", "method", "mode"), CASES)
def test_every_answer_is_described(
    servers: Mapping[bool, Running], path: str, method: str, mode: GenerationMode, keyed: bool
) -> None:
    server = servers[keyed]
    headers = {"authorization": f"Bearer {KEY}"} if keyed else {}
    document = server.ask("GET", "/openapi.json", headers=headers).json
    operation = schemathesis.openapi.from_dict(document)[path][method]
    base = server.hub.base.name

    @given(operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        # Found by a longer run, a failure would be shrunk for minutes; it comes with a command that repeats it.
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Case) -> None:
        url = f"http://127.0.0.1:{server.port}"
        response = addressed(case, base).call(base_url=url, headers=headers, timeout=60)
        case.validate_response(
            response,
            headers=headers,
            excluded_checks=[positive_data_acceptance],
            additional_checks=[answered_or_refused_by_a_rule],
        )

    check()


def test_refusals_at_the_door_are_described(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    rights: dict[str, Any] = {"plain": {}, "tone": {"tasks": ("tone",)}, "slow": {"requests_per_minute": 1}}
    keys = {name: file.create(name, **each)[1] for name, each in rights.items()} | {"nobody": "ah_nobody"}
    limits = ServerLimits(body_bytes=1000)
    body = {"model": "orders", "prompt": "Hi"}
    asked = [
        ("plain", "/v1/completions", body, 200),
        ("nobody", "/v1/completions", body, 401),
        ("tone", "/v1/completions", body, 403),
        ("plain", "/v1/adapters/load", {"model": "orders"}, 403),
        ("plain", "/v1/load_lora_adapter", {"lora_name": "orders"}, 403),
        ("plain", "/v1/completions", {**body, "prompt": "x" * 2000}, 413),
        ("slow", "/v1/completions", body, 200),
        ("slow", "/v1/completions", body, 429),
    ]
    with running(FakeHub(), access=Access(file.path), limits=limits) as server, running(None) as loading:
        for asker, path, sent, status in asked:
            assert described(server, path, sent, keys[asker]).status_code == status
        answer = described(loading, "/v1/completions", body, "")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, ["1"])


def described(server: Running, path: str, body: Any, key: str) -> Response:
    """Send a request, and hold the answer against the server's own description."""
    case = schemathesis.openapi.from_dict(KEYED if server.service.access else DOCUMENT)[path]["post"].Case(
        body=body, media_type="application/json"
    )
    headers = {"authorization": f"Bearer {key}"} if key else {}
    response = case.call(base_url=f"http://127.0.0.1:{server.port}", headers=headers, timeout=60)
    case.validate_response(response, headers=headers, excluded_checks=[not_a_server_error])  # 503 is meant
    return response


@pytest.mark.parametrize("prompt", ["Hi", "late"])  # `late` breaks off after three tokens
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_events_of_a_stream_are_described(server: Running, path: str, prompt: str) -> None:
    content = DOCUMENT["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]
    done, told = content["itemSchema"]["properties"]["data"]["anyOf"]
    assert done == {"const": "[DONE]"}
    event = jsonschema_rs.validator_for({**told["contentSchema"], "components": DOCUMENT["components"]})
    chat = {"messages": [{"role": "user", "content": prompt}], "logprobs": True, "top_logprobs": 2}
    asked = chat if "chat" in path else {"prompt": prompt, "logprobs": 2}
    for options in ({}, {"n": 2, "stream_options": {"include_usage": True}}):
        events = server.post(path, {"model": "orders", **asked, **options, "stream": True}).events
        for each in events if prompt == "late" else events[:-1]:
            event.validate(each)
        assert (events[-1] == "[DONE]") == (prompt == "Hi")
    with pytest.raises(jsonschema_rs.ValidationError):
        event.validate({**events[0], "surprise": 1})


def test_the_description_is_the_servers_own(servers: Mapping[bool, Running]) -> None:
    assert servers[False].ask("GET", "/openapi.json").json == DOCUMENT
    assert servers[True].ask("GET", "/openapi.json").status == 401
    kept = servers[True].ask("GET", "/openapi.json", headers={"authorization": f"Bearer {KEY}"}).json
    assert kept == KEYED
    for path, method in OPERATIONS:
        asks = path not in ("/health", "/ready")
        assert ("security" in KEYED["paths"][path][method]) == asks
        assert "security" not in DOCUMENT["paths"][path][method]
    assert kept["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
