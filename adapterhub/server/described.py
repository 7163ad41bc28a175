"""What `/openapi.json` says of answers: their form is not checked on the way out, so it is written down here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

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
GUARDED = (401, 403, 429, 500)
ASKED = (400, 401, 403, 404, 409, 422, 429, 500, 503)
POSTED = (*ASKED, 408, 413)

STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}


class Labelled(BaseModel):
    """One input's label (null where the task finds none likely enough) or labels, and the probability of each."""

    index: int
    label: str | None = None
    labels: list[str] | None = None
    probs: dict[str, float]


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ClassifyAnswer(BaseModel):
    """What `/v1/classify` answers: an entry an input, in order, with `labels` for a multilabel task, else `label`."""

    id: str
    object: Literal["list"]
    model: str
    data: list[Labelled]
    usage: Usage


CLASSIFIED: dict[int | str, dict[str, Any]] = {200: {"model": ClassifyAnswer}}


class ErrorDetail(BaseModel):
    """What was wrong, as OpenAI tells it."""

    message: str
    type: Literal["invalid_request_error", "permission_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every refusal."""

    error: ErrorDetail


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that may refuse with `statuses`."""
    return {status: {"model": ErrorAnswer, "description": MEANINGS[status]} for status in sorted(statuses)}
