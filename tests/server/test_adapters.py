"""Adapters brought, kept and let go over HTTP, at the real hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapterhub.registry.store import Registry
from adapterhub.runtime.hub import AdapterHub
from adapterhub.server.access import Access
from adapterhub.server.keys import KeyFile

from .fake import BASE, FakeHub, eventually
from .publishing import make_base, publish
from .running import Running, running

ACTIONS = ("load", "pin", "unpin", "unload")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("adapters")
    patch = pytest.MonkeyPatch()
    patch.setenv("ADAPTERHUB_CACHE", str(root / "cache"))
    base = make_base(root / "base")
    registry = Registry(root / "registry")
    for seed, task in enumerate(("alpha", "beta")):
        publish(registry, base, task, root, seed=seed)
    publish(registry, base, "alpha", root, seed=7)
    registry.alias("alpha", "prod", "alpha@1")
    publish(registry, base, "tone", root, kind="classification", seed=5)
    publish(registry, make_base(root / "other", seed=9), "foreign", root, seed=8)
    hub = AdapterHub(base, registry, precision="float32", threads=1, resident=2)
    with hub, running(hub) as server:
        yield server
    patch.undo()


def states(server: Running) -> dict[str, tuple[str, bool]]:
    listed = server.ask("GET", "/v1/adapters").json
    assert listed["object"] == "list"
    return {each["id"]: (each["residency"], each["pinned"]) for each in listed["data"]}


def change(server: Running, action: str, model: str) -> Any:
    return server.post(f"/v1/adapters/{action}", {"model": model})


def test_an_adapters_life(served: Running) -> None:
    assert set(states(served)) == {"alpha@1", "alpha@2", "beta@1", "tone@1"}
    loaded = change(served, "load", "alpha@prod").json
    assert (loaded["id"], loaded["residency"], loaded["pinned"], loaded["aliases"]) == (
        "alpha@1",
        "slot",
        False,
        ["prod"],
    )
    assert change(served, "pin", "alpha").json["pinned"] is True
    assert states(served)["alpha@1"] == ("slot", True)
    full = change(served, "pin", "beta")
    assert full.status == 400
    assert "1 of 2 slots are pinned" in full.error["message"]
    assert change(served, "unpin", "alpha@1").status == 200
    assert eventually(lambda: states(served)["alpha@1"] == ("slot", False))
    answer = change(served, "unload", "alpha@1")
    assert answer.status == 200
    assert answer.headers["x-adapterhub-digest"] == loaded["digest"]
    assert eventually(lambda: states(served)["alpha@1"] == ("disk", False))
    body = {"model": "alpha@1", "prompt": "Hi", "max_tokens": 3}
    assert served.post("/v1/completions", body).status == 200
    assert states(served)["alpha@1"][0] == "slot"


def test_memory_does_not_grow_over_loads_and_unloads(served: Running) -> None:
    def held() -> float:
        stats = served.hub.stats()
        return stats["resident_adapters"] + stats["host_adapters"] + stats["host_bytes"] + stats["loading"]

    for name in ("alpha@1", "alpha@2", "beta", "tone"):
        change(served, "unload", name)
    assert eventually(lambda: held() == 0)
    for _ in range(5):
        for name in ("alpha@2", "beta", "tone"):
            assert change(served, "load", name).status == 200
            assert change(served, "unload", name).status == 200
        assert eventually(lambda: held() == 0)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("nothing", 404, "model_not_found"),
        ("../../etc", 404, "model_not_found"),
        ("foreign", 400, "base_mismatch"),
        ("BASE", 400, "unsupported_request"),
    ],
)
def test_what_cannot_be_loaded(served: Running, action: str, model: str, status: int, code: str) -> None:
    answer = change(served, action, served.hub.base.name if model == "BASE" else model)
    assert (answer.status, answer.error["code"]) == (status, code)


def test_as_vllms_clients_ask(served: Running) -> None:
    folder = served.hub.registry.resolve("beta").path
    for path in (None, "beta", str(folder)):
        answer = served.post("/v1/load_lora_adapter", {"lora_name": "beta", "lora_path": path, "load_inplace": False})
        assert answer.status == 200
        assert answer.body == b"Success: LoRA adapter 'beta' added successfully."
        assert states(served)["beta@1"][0] == "slot"
    for path in ("/etc", str(folder.parent), "../beta"):
        answer = served.post("/v1/load_lora_adapter", {"lora_name": "beta", "lora_path": path})
        assert (answer.status, answer.error["param"]) == (400, "lora_path")
    assert served.post("/v1/load_lora_adapter", {"lora_name": "gone", "lora_path": "/etc"}).status == 404
    assert served.post("/v1/unload_lora_adapter", {"lora_name": "beta", "lora_int_id": 3}).status == 200
    assert eventually(lambda: states(served)["beta@1"][0] == "disk")


def test_only_admins_may(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    plain, admin = (
        {"authorization": f"Bearer {file.create(name, admin=name == 'boss')[1]}"} for name in ("shop", "boss")
    )
    with running(FakeHub(), access=Access(file.path)) as server:
        asked = [("GET", "/v1/adapters", None)]
        asked += [("POST", f"/v1/adapters/{action}", {"model": "orders"}) for action in ACTIONS]  # type: ignore[misc]
        asked += [("POST", f"/v1/{each}_lora_adapter", {"lora_name": BASE}) for each in ("load", "unload")]  # type: ignore[misc]
        for method, path, body in asked:
            answer = server.ask(method, path, body, plain)
            assert (answer.status, answer.error["code"]) == (403, "permission_denied")
            assert server.ask(method, path, body).status == 401
        assert server.ask("GET", "/v1/adapters", headers=admin).json == {"object": "list", "data": []}
