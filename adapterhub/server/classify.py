"""`/v1/classify`: labels with probabilities for one text or many."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from adapterhub.errors import InvalidRequest
from adapterhub.runtime.hub import AdapterHub
from adapterhub.runtime.target import Prediction, Target

from .fields import Input
from .lookup import find_for, record_of
from .schemas import ClassifyBody
from .service import Service
from .stream import ClientGone, while_connected
from .wire import Json


async def classify(service: Service, request: Request, body: ClassifyBody) -> Response:
    """Answer `/v1/classify`: one entry an input, in order."""
    record = record_of(request)
    target = await find_for(service, record, body.model, "classify")
    cancelled = threading.Event()
    work = service.classify(partial(label, service.loaded, target, body.input, cancelled))
    try:
        predictions = await while_connected(request.receive, work)
    except BaseException as error:
        cancelled.set()
        record.gone = isinstance(error, ClientGone)
        raise
    tokens = record.prompt_tokens = sum(prediction.prompt_tokens for prediction in predictions)
    return Json(
        {
            "object": "list",
            "model": body.model,
            "data": [_entry(index, prediction) for index, prediction in enumerate(predictions)],
            "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
        }
    )


def label(hub: AdapterHub, target: Target, inputs: Sequence[Input], cancelled: threading.Event) -> list[Prediction]:
    """Return the hub's answers; an InvalidRequest then says which of several inputs is meant."""
    answers: list[Prediction] = []
    try:
        answers.extend(hub.answers(target, inputs, cancelled=cancelled))  # keeps those before a refusal
    except InvalidRequest as error:
        where = f"input {len(answers)}: " if len(inputs) > 1 else ""
        raise type(error)(f"{where}{error}", param="input") from error
    return answers


def _entry(index: int, prediction: Prediction) -> dict[str, Any]:
    """Return one entry; `label` is null where the task gives none, and what it thinks of each stands in `probs`."""
    multilabel = prediction.labels is not None
    chosen = {"labels": list(prediction.labels or ())} if multilabel else {"label": prediction.label}
    return {"index": index, **chosen, "probs": dict(prediction.probs or {})}
