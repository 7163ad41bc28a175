"""`/v1/feedback`: what an answer should have been, kept for training."""

from __future__ import annotations

import difflib
import sqlite3
from collections.abc import Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from adapterhub.data.feedback import Feedback
from adapterhub.errors import InvalidRequest, NotFound, UnsupportedRequest
from adapterhub.registry.disk import utc_now
from adapterhub.runtime.target import GenerationRequest, Prediction, Target

from .fields import Input, shorten
from .log import LOG
from .lookup import record_of
from .recall import Said
from .record import Record
from .schemas import FeedbackBody
from .service import Service
from .wire import Json


async def give_feedback(service: Service, request: Request, body: FeedbackBody) -> Response:
    """Answer `/v1/feedback`: 200 once it is on the disk."""
    store, record = service.feedback, record_of(request)
    if store is None:
        raise UnsupportedRequest("this server keeps no feedback; it was started without --feedback")
    said = await service.look_up(partial(store.recall.find, body.id, body.index))
    # Whose answer it was is nobody else's business, and so is whether there was one.
    if said is None or said.owner != record.key:
        raise NotFound(f"no answer {shorten(body.id)} with index {body.index} is known; the oldest are forgotten first")
    record.model, record.digest = said.model, said.digest
    name, right = _right(body, said)
    line = Feedback(
        id=body.id,
        index=body.index,
        at=utc_now(),
        task=said.task,
        model=said.model,
        digest=said.digest,
        kind=said.kind,
        input=said.input,
        predicted=said.predicted,
        right={name: right},
        key=None if record.visitor is None else record.visitor.name,
    )
    await service.look_up(partial(store.writer.add, line))
    told = {"id": body.id, "index": body.index, "model": said.model, "digest": said.digest, "agrees": line.agrees}
    return Json({"object": "feedback", **told})


def _right(body: FeedbackBody, said: Said) -> tuple[str, Any]:
    """Return the field that holds the right answer, and the answer; raises InvalidRequest where it does not fit."""
    name = {"classification": "label", "multilabel": "labels"}.get(said.kind, "completion")
    given = {key: value for key in ("label", "labels", "completion") if (value := getattr(body, key)) is not None}
    if given.keys() != {name}:
        raise InvalidRequest(
            f"the right answer of {shorten(said.model)} is given as {name!r}, and nothing else", param=name
        )
    right = given[name]
    known = list(said.predicted.get("probs") or ())
    for label in [right] if name == "label" else right if name == "labels" else []:
        if label not in known:
            near = difflib.get_close_matches(label, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"its labels are {', '.join(known[:10])}"
            raise InvalidRequest(f"{shorten(said.model)} has no label {shorten(label)}; {hint}", param=name)
    return name, right


async def remember(service: Service, identity: str, said: Sequence[Said]) -> None:
    """Keep the answers of a request where the server keeps feedback; a full disk costs nobody an answer."""
    if service.feedback is None:
        return
    try:
        await service.look_up(partial(service.feedback.recall.keep, identity, said))
    except sqlite3.Error:
        LOG.exception("the answer %s was not kept: feedback on it will be refused", identity)


def labelled(
    target: Target, model: str, inputs: Sequence[Input], found: Sequence[Prediction], record: Record
) -> list[Said]:
    """Return the answers of a classification, to be kept."""
    assert target.spec is not None
    return [
        Said(
            model.partition("@")[0],
            model,
            target.digest,
            target.spec.kind,
            {"fields": {"text": given} if isinstance(given, str) else given},
            prediction.to_record(),
            record.key,
        )
        for given, prediction in zip(inputs, found, strict=True)
    ]


def generated(
    target: Target, model: str, asked: Sequence[GenerationRequest], texts: Sequence[str], record: Record
) -> list[Said]:
    """Return the choices of a generation, to be kept."""
    task = None if target.spec is None else model.partition("@")[0]
    return [
        Said(task, model, target.digest, "generation", _input(each), {"completion": text}, record.key)
        for each, text in zip(asked, texts, strict=True)
    ]


def _input(request: GenerationRequest) -> dict[str, Any]:
    if request.fields is not None:
        # The turn stands for `text` as well, and the template may ask for either; an example has it once.
        given = dict(request.fields)
        if given.get("text") == given.get("prompt"):
            given.pop("text", None)
        return {"fields": given}
    if request.messages is not None:
        return {"fields": {"messages": [dict(turn) for turn in request.messages]}}
    if request.token_ids is not None:
        return {"token_ids": list(request.token_ids)}
    return {"text": request.text}
