"""From the model a request names to the target that answers it, noted on the request's record."""

from __future__ import annotations

from functools import partial
from typing import Literal

from starlette.requests import Request

from adapterhub.errors import UnsupportedRequest
from adapterhub.runtime.target import Target

from .metrics import UNKNOWN_ADAPTER
from .record import Record
from .service import Service

Purpose = Literal["generate", "classify"]
ENDPOINTS = {"generate": "/v1/chat/completions or /v1/completions", "classify": "/v1/classify"}


def record_of(request: Request) -> Record:
    """Return the record of a request."""
    record: Record = request.scope["state"]["record"]
    return record


async def find(service: Service, record: Record, model: str) -> Target:
    """Return the target `model` names; raises what the hub raises (RefNotFound, BaseMismatch, …)."""
    hub = service.loaded
    record.model = model
    record.adapter = UNKNOWN_ADAPTER
    target = await service.look_up(partial(hub.target, model))
    # One label a version, however it was asked for.
    is_base = target.spec is None
    record.adapter = hub.base.name if is_base else f"{target.name.partition('@')[0]}@{target.version}"
    record.digest = target.digest
    return target


async def find_for(service: Service, record: Record, model: str, purpose: Purpose) -> Target:
    """Return the target as `find` does; raises UnsupportedRequest where it answers another kind of request."""
    target = await find(service, record, model)
    kind = "generation" if target.spec is None else target.spec.kind
    fits: Purpose = "generate" if kind == "generation" else "classify"
    if fits != purpose:
        what = "the base" if target.spec is None else f"a {kind} task"
        raise UnsupportedRequest(f"{model!r} is {what}; ask it at {ENDPOINTS[fits]}", param="model")
    return target
