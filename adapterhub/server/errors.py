"""How refusals look on the wire: OpenAI's shape, for our errors, the framework's, and the unforeseen."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from adapterhub.errors import (
    AdapterError,
    AdapterHubError,
    BaseMismatch,
    NameTaken,
    RefNotFound,
)

from .fields import shorten
from .wire import Json

# Errors about the adapter that was asked for; their class has no `param` of its own.
ABOUT_THE_MODEL = (RefNotFound, BaseMismatch, NameTaken, AdapterError)
# OpenAI's names of what went wrong, where it is neither the request's content nor the server.
KINDS = {403: "permission_error", 429: "rate_limit_error"}
# Statuses after which the same request may succeed.
LATER = frozenset({429, 503})
# The folders before a file of this machine, in quotes or bare; routes and what merely holds slashes are no such path.
_FOLDERS = re.compile(r"(?<=')/(?!v1/)[^'\n]*/(?=[^'/\n]+')|(?<![^\s(])/(?!v1/)(?:[^\s/'\"]+/)+(?=[^\s/'\"])")
CODES = {
    400: "invalid_json",  # the framework's own, of a body that is no JSON at all
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "timed_out",
    413: "request_too_large",
}


def error_body(status: int, message: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """Return `{"error": {message, type, param, code}}`."""
    kind = "server_error" if status >= 500 else KINDS.get(status, "invalid_request_error")
    # A message may quote what came in, lone surrogates included; the answer must be UTF-8.
    message = message.encode("utf-8", "backslashreplace").decode()
    return {"error": {"message": message, "type": kind, "param": param, "code": code or CODES.get(status)}}


def error_response(
    status: int,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Json:
    """Return the whole answer of a refusal."""
    return Json(error_body(status, message, code=code, param=param), status_code=status, headers=headers)


def describe(error: Exception) -> tuple[int, dict[str, Any]]:
    """Return the status and body of any exception.

    Those not of our tree say nothing of the inside, and ours not in which folders of this machine things lie.
    """
    if not isinstance(error, AdapterHubError):
        return 500, error_body(500, "the server failed to answer this request", code="internal_error")
    param = getattr(error, "param", None)
    if param is None and isinstance(error, ABOUT_THE_MODEL):
        param = "model"
    message = _FOLDERS.sub("…/", str(error))
    return error.status, error_body(error.status, message, code=error.code, param=param)


def respond(error: Exception) -> Json:
    """Return the answer to any exception."""
    status, body = describe(error)
    headers = None
    if status in LATER:
        headers = {"retry-after": str(max(1, math.ceil(getattr(error, "retry_after", 1.0))))}
    return Json(body, status_code=status, headers=headers)


def _param(error: Mapping[str, Any]) -> str | None:
    path = [*error["loc"][1:], error.get("ctx", {}).get("field")]
    return ".".join(str(part) for part in path if part not in ("", None)) or None


def _message(error: Mapping[str, Any], param: str | None) -> str:
    text = str(error["msg"])
    if error["type"] in ("unsupported_field", "refused_value"):
        return text
    return f"{param}: {text[:1].lower()}{text[1:]}" if param else text


def explain(errors: Sequence[Mapping[str, Any]], content_type: str) -> tuple[str, str | None, str]:
    """Return message, param and code for what pydantic (or the JSON parser) found wrong; the first finding counts."""
    error = errors[0]
    if error["type"] == "json_invalid":
        reason = error.get("ctx", {}).get("error", "")
        return f"the body is not valid JSON: {reason} at character {error['loc'][-1]}", None, "invalid_json"
    if len(error["loc"]) == 1 and error["type"] == "missing":
        return "the body is empty; send a JSON object", None, "invalid_json"
    if len(error["loc"]) == 1 and error["type"] not in ("unsupported_field", "refused_value"):
        hint = "" if "json" in content_type else "; send it with the header 'Content-Type: application/json'"
        return f"the body must be a JSON object{hint}", None, "invalid_json"
    param = _param(error)
    code = "unsupported_request" if error["type"] == "unsupported_field" else "invalid_request"
    return _message(error, param), param, code


async def _on_ours(_: Request, error: Exception) -> Json:
    return respond(error)


async def _on_validation(request: Request, error: Exception) -> Json:
    assert isinstance(error, RequestValidationError)
    message, param, code = explain(error.errors(), request.headers.get("content-type", ""))
    return error_response(400, message, param=param, code=code)


async def _on_http(request: Request, error: Exception) -> Json:
    assert isinstance(error, HTTPException)
    path = shorten(request.url.path, 100)[1:-1]
    known = {
        404: f"no route {request.method} {path}",
        405: f"{path} does not take {request.method}",
        400: "the body could not be read as JSON",
    }
    message = known.get(error.status_code) or str(error.detail) or HTTPStatus(error.status_code).phrase
    return error_response(error.status_code, message, headers=error.headers)


def install_handlers(app: FastAPI) -> None:
    """Make every refusal of `app` take OpenAI's shape."""
    app.add_exception_handler(AdapterHubError, _on_ours)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
