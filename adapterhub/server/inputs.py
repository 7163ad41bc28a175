"""Inputs answered one by one, whole or not at all: what `/v1/classify` and `/v1/embeddings` share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from starlette.requests import Request

from adapterhub.errors import InvalidRequest

from .fields import Input
from .lookup import record_of
from .service import Service
from .stream import ClientGone, while_connected

T = TypeVar("T")
# Takes the inputs and an event that gives them up; yields an answer each, in order.
Ask = Callable[[Sequence[Input], threading.Event], Iterator[T]]


async def answer_all(service: Service, request: Request, inputs: Sequence[Input], ask: Ask[T]) -> list[T]:
    """Return the answers, computed off the event loop; what runs is given up when the client goes away.

    Raises ClientGone then, and what `ask` raises; of several inputs, an InvalidRequest says which is meant.
    """
    cancelled = threading.Event()
    try:
        return await while_connected(request.receive, service.compute(partial(_all, inputs, ask, cancelled)))
    except BaseException as error:
        cancelled.set()
        record_of(request).gone = isinstance(error, ClientGone)
        raise


def _all(inputs: Sequence[Input], ask: Ask[T], cancelled: threading.Event) -> list[T]:
    answers: list[T] = []
    try:
        answers.extend(ask(inputs, cancelled))  # keeps those before a refusal
    except InvalidRequest as error:
        where = f"input {len(answers)}: " if len(inputs) > 1 else ""
        raise type(error)(f"{where}{error}", param="input") from error
    return answers
