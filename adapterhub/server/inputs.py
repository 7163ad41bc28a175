"""Inputs answered one by one, whole or not at all: what `/v1/classify` and `/v1/embeddings` share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol, TypeVar

from starlette.requests import Request

from adapterhub.errors import InvalidRequest

from .fields import Input
from .lookup import record_of
from .record import Record
from .service import Service
from .stream import ClientGone, while_connected


class Counted(Protocol):
    """An answer that says how many tokens its input had."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the input."""


T = TypeVar("T", bound=Counted)
# Takes the inputs and an event that gives them up; yields an answer each, in order.
Ask = Callable[[Sequence[Input], threading.Event], Iterator[T]]


async def answer_all(service: Service, request: Request, inputs: Sequence[Input], ask: Ask[T]) -> list[T]:
    """Return the answers, computed off the event loop; what runs is given up when the client goes away.

    Tokens are noted on the record as answers come, so that those before a refusal are counted too.
    Raises ClientGone then, and what `ask` raises; of several inputs, an InvalidRequest says which is meant.
    """
    record, cancelled = record_of(request), threading.Event()
    try:
        work = service.compute(partial(_all, inputs, ask, cancelled, record), record.key)
        answers = await while_connected(request.receive, work, record)
    except BaseException as error:
        cancelled.set()
        record.gone = isinstance(error, ClientGone)
        raise
    record.settle()
    return answers


def _all(inputs: Sequence[Input], ask: Ask[T], cancelled: threading.Event, record: Record) -> list[T]:
    answers: list[T] = []
    try:
        for answer in ask(inputs, cancelled):
            answers.append(answer)
            record.prompt_tokens += answer.prompt_tokens
    except InvalidRequest as error:
        where = f"input {len(answers)}: " if len(inputs) > 1 else ""
        raise type(error)(f"{where}{error}", param="input") from error
    return answers
