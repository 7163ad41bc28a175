"""`/v1/embeddings`: a vector for one text or many, in OpenAI's form."""

from __future__ import annotations

import base64
from typing import Any

import torch
from starlette.requests import Request
from starlette.responses import Response
from torch import Tensor

from .inputs import answer_all
from .lookup import find_for, record_of
from .schemas import EmbeddingBody
from .service import Service
from .wire import Json


async def embed(service: Service, request: Request, body: EmbeddingBody) -> Response:
    """Answer `/v1/embeddings`: one vector an input, in order."""
    record = record_of(request)
    target = await find_for(service, record, body.model, "embed")
    found = await answer_all(
        service,
        request,
        body.input,
        lambda inputs, cancelled: service.loaded.embeddings(target, inputs, cancelled=cancelled),
    )
    tokens = record.prompt_tokens
    write = in_base64 if body.encoding_format == "base64" else Tensor.tolist
    entries: list[dict[str, Any]] = [
        {"object": "embedding", "index": index, "embedding": write(each.vector)} for index, each in enumerate(found)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return Json({"object": "list", "model": body.model, "data": entries, "usage": usage})


def in_base64(vector: Tensor) -> str:
    """Return the vector as OpenAI's clients read it: base64 of little-endian float32."""
    return base64.b64encode(vector.to(torch.float32).numpy().astype("<f4").tobytes()).decode("ascii")
