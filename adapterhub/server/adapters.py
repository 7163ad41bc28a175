"""`/v1/adapters` and vLLM's routes for adapters: which are at hand, and having them come, stay and go."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from adapterhub.errors import InvalidRequest, UnsupportedRequest
from adapterhub.runtime.target import AdapterState

from .lookup import find, record_of
from .schemas import AdapterBody, LoadLoraBody, UnloadLoraBody
from .service import Service
from .stream import while_connected
from .wire import Json


async def list_adapters(service: Service) -> Response:
    """Answer `GET /v1/adapters`."""
    states = await service.look_up(service.loaded.adapters)
    return Json({"object": "list", "data": [adapter_object(state) for state in states]})


async def change_adapter(service: Service, request: Request, body: AdapterBody, action: str) -> Response:
    """Answer `POST /v1/adapters/{load,pin,unpin,unload}` with where the adapter is after it."""
    ref = await _change(service, request, body.model, action)
    return Json(adapter_object(await service.look_up(partial(service.loaded.adapter, ref))))


async def load_lora(service: Service, request: Request, body: LoadLoraBody) -> Response:
    """Answer vLLM's `/v1/load_lora_adapter`.

    Whatever is published can be asked without it, and nothing else ever can: `lora_path` must name the same version.
    """
    if body.lora_path is not None and body.lora_path != body.lora_name:
        version = await service.look_up(partial(service.loaded.registry.resolve, body.lora_name))
        if Path(body.lora_path) != version.path:
            raise InvalidRequest(
                "only published versions are served: leave lora_path out, or give the ref again", param="lora_path"
            )
    await _change(service, request, body.lora_name, "load")
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


async def unload_lora(service: Service, request: Request, body: UnloadLoraBody) -> Response:
    """Answer vLLM's `/v1/unload_lora_adapter`; whoever asks the adapter later has it loaded again."""
    await _change(service, request, body.lora_name, "unload")
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


async def _change(service: Service, request: Request, model: str, action: str) -> str:
    """Do it, and return a ref that means the same version whatever becomes of an alias."""
    record = record_of(request)
    target = await find(service, record, model)
    if target.digest is None:
        raise UnsupportedRequest(f"{model!r} is the base, which is always in memory; name a task", param="model")
    ref = f"{model.partition('@')[0]}@{target.digest}"
    hub = service.loaded
    actions: dict[str, Callable[[], None]] = {
        "load": partial(hub.load, [ref]),
        "pin": partial(hub.pin, ref),
        "unpin": partial(hub.unpin, ref),
        "unload": partial(hub.unload, ref),
    }
    await while_connected(request.receive, service.compute(actions[action], record.key), record)
    return ref


def adapter_object(state: AdapterState) -> dict[str, Any]:
    """Return a version in the form of the list."""
    return {
        "id": state.id,
        "object": "adapter",
        "task": state.task,
        "version": state.version,
        "aliases": list(state.aliases),
        "digest": state.digest,
        "kind": state.kind,
        "residency": state.residency,
        "pinned": state.pinned,
    }
