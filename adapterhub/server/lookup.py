"""From the model a request names to the target that answers it, noted on the request's record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

from starlette.requests import Request

from adapterhub.data.task import Kind, a_task
from adapterhub.errors import RefNotFound, UnsupportedRequest
from adapterhub.runtime.target import Asker, Target

from .fields import shorten
from .metrics import UNKNOWN_ADAPTER
from .record import Record
from .service import Service

LONGEST_REF = 136  # a task of 64 characters, "@sha256:" and 64 digits
SHOWN = 100  # characters of a name that answers and the log repeat

Purpose = Literal["generate", "classify", "embed"]
ENDPOINTS: Mapping[Purpose, str] = {
    "generate": "/v1/chat/completions or /v1/completions",
    "classify": "/v1/classify",
    "embed": "/v1/embeddings",
}
PURPOSES: Mapping[Kind, Purpose] = {
    "classification": "classify",
    "multilabel": "classify",
    "generation": "generate",
    "embedding": "embed",
}


def record_of(request: Request) -> Record:
    """Return the record of a request."""
    record: Record = request.scope["state"]["record"]
    return record


def named(service: Service, record: Record, model: str) -> str:
    """Return `model`, noted on the record; raises RefNotFound where it is too long for a name of anything.

    Longer ones are not passed on: what looks them up would quote them whole. Raises Forbidden where the key does not
    allow it: before anything is looked up, so that it tells nobody what there is.
    """
    record.model = model
    known = (service.loaded.base.name, service.loaded.base.public_id)
    if record.visitor is not None:
        record.visitor.check_task(*(known if model in known else (model.partition("@")[0],)))
    if len(model) > LONGEST_REF and model not in known:
        raise RefNotFound(f"no model is called {shorten(model, SHOWN)}; a ref has at most {LONGEST_REF} characters")
    return model


async def find(service: Service, record: Record, model: str) -> Target:
    """Return the target `model` names; raises what the hub raises (RefNotFound, BaseMismatch, …)."""
    hub = service.loaded
    record.adapter = UNKNOWN_ADAPTER
    target = await service.look_up(partial(hub.target, named(service, record, model)))
    # One label a version, however it was asked for.
    is_base = target.spec is None
    record.adapter = hub.base.name if is_base else f"{target.name.partition('@')[0]}@{target.version}"
    record.digest = target.digest
    if record.visitor is not None:
        target = replace(target, asker=Asker(record.visitor.key.id, record.visitor.admit))
    return target


async def find_for(service: Service, record: Record, model: str, purpose: Purpose) -> Target:
    """Return the target as `find` does; raises UnsupportedRequest where it answers another kind of request."""
    target = await find(service, record, model)
    fits: tuple[Purpose, ...] = ("generate", "embed") if target.spec is None else (PURPOSES[target.spec.kind],)
    if purpose not in fits:
        what = "the base" if target.spec is None else a_task(target.spec.kind)
        where = " or ".join(ENDPOINTS[each] for each in fits)
        raise UnsupportedRequest(f"{shorten(model, SHOWN)} is {what}; ask it at {where}", param="model")
    return target
