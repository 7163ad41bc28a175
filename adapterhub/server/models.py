"""`/v1/models`: the base and every ref that it answers, in OpenAI's form plus digest, kind and parent."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from adapterhub.runtime.target import ModelInfo

from .lookup import named, record_of
from .service import Service
from .wire import Json


async def list_models(service: Service, request: Request) -> Response:
    """Answer `/v1/models`: what the key allows."""
    infos = await service.look_up(service.loaded.models)
    visitor, base = record_of(request).visitor, service.loaded.base
    if visitor is not None:
        # The base may be allowed by either of its names.
        own = (base.name, base.public_id)
        infos = [info for info in infos if visitor.key.may_ask(*(own if info.id in own else (_task(info),)))]
    return Json({"object": "list", "data": [model_object(info) for info in infos]})


async def show_model(service: Service, request: Request, model: str) -> Response:
    """Answer `/v1/models/{model}` for any ref, listed or not (`task@sha256:ab12…`)."""
    record = record_of(request)
    name = named(service, record, model)
    info = await service.look_up(partial(service.loaded.model, name))
    record.digest = info.digest
    return Json({**model_object(info), "id": model})


def _task(info: ModelInfo) -> str:
    return info.id.partition("@")[0]


def model_object(info: ModelInfo) -> dict[str, Any]:
    """Return a model in OpenAI's form; clients ignore the keys they do not know."""
    return {
        "id": info.id,
        "object": "model",
        "created": info.created,
        "owned_by": "adapterhub",
        "parent": info.parent,
        "kind": info.kind,
        "digest": info.digest,
    }
