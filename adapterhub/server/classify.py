"""`/v1/classify`: labels with probabilities for one text or many."""

from __future__ import annotations

import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from adapterhub.runtime.target import Prediction

from .feedback import labelled, remember
from .inputs import answer_all
from .lookup import find_for, record_of
from .schemas import ClassifyBody
from .service import Service
from .wire import Json


async def classify(service: Service, request: Request, body: ClassifyBody) -> Response:
    """Answer `/v1/classify`: one entry an input, in order."""
    record = record_of(request)
    target = await find_for(service, record, body.model, "classify")
    predictions = await answer_all(
        service,
        request,
        body.input,
        lambda inputs, cancelled: service.loaded.answers(target, inputs, cancelled=cancelled),
    )
    tokens = record.prompt_tokens
    identity = f"clsf-{uuid.uuid4().hex}"
    await remember(service, identity, labelled(target, body.model, body.input, predictions, record))
    return Json(
        {
            "id": identity,
            "object": "list",
            "model": body.model,
            "data": [_entry(index, prediction) for index, prediction in enumerate(predictions)],
            "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
        }
    )


def _entry(index: int, prediction: Prediction) -> dict[str, Any]:
    """Return one entry; `label` is null where the task gives none, and what it thinks of each stands in `probs`."""
    multilabel = prediction.labels is not None
    chosen = {"labels": list(prediction.labels or ())} if multilabel else {"label": prediction.label}
    return {"index": index, **chosen, "probs": dict(prediction.probs or {})}
