"""What `/openapi.json` says: answers of every status, their headers, and which routes ask for a key.

The form of answers is not checked on the way out, so it is written down here (and in `answer_models`), and tests hold
real answers against it.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from .answer_models import (
    AdapterEntry,
    AdapterList,
    ChatCompletion,
    ChatCompletionChunk,
    ClassifyAnswer,
    Completion,
    CompletionChunk,
    EmbeddingAnswer,
    ErrorAnswer,
    Health,
    ModelEntry,
    ModelList,
    Noted,
    Ready,
)
from .middleware import OPEN_ROUTES

Responses = dict[int | str, dict[str, Any]]

MEANINGS = {
    400: "A field is wrong (`param` says which), the prompt is too long, or the model answers another kind of request.",
    401: "The API key is missing or wrong.",
    403: "The API key does not allow it.",
    404: "There is no such model.",
    408: "The body did not come in time.",
    409: "The name stands for the base and for a task.",
    413: "The body is too large.",
    422: "The adapter's files are damaged, or the base cannot be used so.",
    429: "The API key's requests a minute, at once, or tokens a day are used up; `Retry-After` says when to try again.",
    500: "The server failed.",
    503: "Loading, stopping, no room now, or no time left; try again.",
}
GUARDED = (401, 413, 429, 500)
ASKED = (*GUARDED, 400, 403, 404, 409, 422, 503)
POSTED = (*ASKED, 408)

REQUEST_ID = {
    "description": "The request's id: the client's own where it sent a plain word, else a new one.",
    "required": True,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
}
DIGEST = {
    "description": "The digest of the version that was asked; absent for the base.",
    "schema": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"},
}
RETRY_AFTER = {
    "description": "After how many seconds the same request may succeed.",
    "required": True,
    "schema": {"type": "integer", "minimum": 1},
}
BEARER = {"description": "How to send a key.", "required": True, "schema": {"const": "Bearer"}}
KEY = {"type": "http", "scheme": "bearer", "description": "An API key of this server."}
_REF = "#/components/schemas/{model}"


def answers(model: type[BaseModel], description: str) -> Responses:
    """Return the `responses` of a route that answers with `model`."""
    return {200: {"model": model, "description": description}}


def refusals(*statuses: int) -> Responses:
    """Return the `responses` of a route that may refuse with `statuses`, in JSON whatever else it answers in."""
    body = {"application/json": {"schema": {"$ref": _REF.format(model=ErrorAnswer.__name__)}}}
    return {status: {"content": body, "description": MEANINGS[status]} for status in sorted(statuses)}


def _streamed(whole: type[BaseModel], chunk: type[BaseModel]) -> Responses:
    """Return the `responses` of a route that answers whole or, with `stream`, as server-sent events."""
    parts = [{"$ref": _REF.format(model=model.__name__)} for model in (chunk, ErrorAnswer)]
    told = {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": parts}}
    data = {"anyOf": [{"const": "[DONE]"}, told]}
    event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
    said = "The answer, or with `stream` its chunks; a stream that breaks off ends with an error instead of `[DONE]`."
    found = answers(whole, said)
    found[200]["content"] = {"text/event-stream": {"itemSchema": event}}
    return found


CHAT = _streamed(ChatCompletion, ChatCompletionChunk)
COMPLETION = _streamed(Completion, CompletionChunk)
CLASSIFIED = answers(ClassifyAnswer, "An entry an input, in order.")
EMBEDDED = answers(EmbeddingAnswer, "A vector an input, in order.")
NOTED = answers(Noted, "It is on the disk.")
MODELS = answers(ModelList, "The base and every ref that the key may ask.")
MODEL = answers(ModelEntry, "The model.")
ADAPTERS = answers(AdapterList, "Every version on this base.")
ADAPTER = answers(AdapterEntry, "The version, and where its adapter is now.")
HEALTH = answers(Health, "The process is up.")
# Named in `content` alone, where the framework does not look for them.
REFERRED = (ChatCompletionChunk, CompletionChunk, ErrorAnswer)
READY = answers(Ready, "Requests are answered.")


class DescribedApp(FastAPI):
    """An application whose description is complete; `guarded` says that it asks for keys."""

    guarded = False

    def openapi(self) -> dict[str, Any]:
        """Return the description, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            _, told = models_json_schema([(model, "serialization") for model in REFERRED], ref_template=_REF)
            components = document["components"]
            components["schemas"] = {**told["$defs"], **components["schemas"]}
            components["securitySchemes"] = {"key": KEY}
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    self._complete(path, operation)
        assert self.openapi_schema is not None
        return self.openapi_schema

    def _complete(self, path: str, operation: dict[str, Any]) -> None:
        for status, answer in operation["responses"].items():
            answer["headers"] = _headers(status, of_a_model="404" in operation["responses"])
        if self.guarded and path not in OPEN_ROUTES:
            operation["security"] = [{"key": []}]


def _headers(status: str, *, of_a_model: bool) -> dict[str, Any]:
    special = {
        "401": {"WWW-Authenticate": BEARER},
        "429": {"Retry-After": RETRY_AFTER},
        "503": {"Retry-After": RETRY_AFTER},
    }
    return {
        "x-request-id": REQUEST_ID,
        **({"x-adapterhub-digest": DIGEST} if of_a_model else {}),
        **special.get(status, {}),
    }
