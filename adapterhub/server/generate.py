"""`/v1/completions` and `/v1/chat/completions`: from a body to generations, and from these to an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from adapterhub.errors import InvalidRequest, UnsupportedRequest
from adapterhub.runtime.hub import AdapterHub
from adapterhub.runtime.stream import Chunk, GenerationStream
from adapterhub.runtime.target import GenerationRequest, Target

from .answers import Answer, ChatAnswer, CompletionAnswer
from .feedback import generated, remember
from .lookup import find_for, record_of
from .record import Record
from .schemas import ChatBody, CompletionBody, SamplingFields
from .service import Service
from .stream import ClientGone, EventStream, Feed, while_connected
from .wire import Json

Ended = Callable[[], Awaitable[None]]


async def complete(service: Service, request: Request, body: CompletionBody) -> Response:
    """Answer `/v1/completions`: `n` choices a prompt, those of one prompt next to each other."""
    target = await find_for(service, record_of(request), body.model, "generate")
    prompts: list[dict[str, Any]] = [
        {"text" if isinstance(prompt, str) else "token_ids": prompt} for prompt in body.prompt
    ]
    asked = [GenerationRequest(**prompt, **options) for prompt in prompts for options in choices(body, target)]
    answer = CompletionAnswer(
        body.model, fingerprint_of(service), len(asked), each=body.n, logprobs=body.alternatives is not None
    )
    return await _run(service, request, body, target, asked, answer)


async def chat(service: Service, request: Request, body: ChatBody) -> Response:
    """Answer `/v1/chat/completions`."""
    target = await find_for(service, record_of(request), body.model, "generate")
    turns = conversation(body, target)
    asked = [GenerationRequest(**turns, **options) for options in choices(body, target)]
    answer = ChatAnswer(
        body.model, fingerprint_of(service), len(asked), each=body.n, logprobs=body.alternatives is not None
    )
    return await _run(service, request, body, target, asked, answer)


def fingerprint_of(service: Service) -> str:
    """Return the short fingerprint of the base that answers."""
    return "fp_" + service.loaded.base.fingerprint.removeprefix("sha256:")[:16]


def sampling_options(body: SamplingFields, target: Target) -> dict[str, Any]:
    """Return the fields of a GenerationRequest besides its prompt.

    Where the request gives no temperature, the base samples at 1 as OpenAI's models do, and a task answers greedily, as
    it was evaluated.
    """
    default = 1.0 if target.spec is None else 0.0
    return {
        "max_tokens": body.token_limit,
        "min_tokens": body.min_tokens,
        "ignore_eos": body.ignore_eos,
        "temperature": default if body.temperature is None else body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "seed": body.seed,
        "stop": body.stop,
        "logprobs": body.alternatives,
        "output": body.output,
    }


def choices(body: SamplingFields, target: Target) -> list[dict[str, Any]]:
    """Return the options of each of the `n` choices of a prompt: a seed gives every choice one of its own."""
    options = sampling_options(body, target)
    if body.seed is None:
        return [options] * body.n
    # From one end of the range of 64 bits on to the other.
    return [{**options, "seed": (body.seed + index + 2**63) % 2**64 - 2**63} for index in range(body.n)]


def conversation(body: ChatBody, target: Target) -> dict[str, Any]:
    """Return the prompt of a chat as `messages`, or as `fields`.

    To a task a single user turn is its input: the task's own template and system text are applied to it, as in training
    and in `adapterhub predict`. The turn stands for the field `prompt` (or `text`); `template_fields` are the others.
    """
    turns = tuple({"role": message.role, "content": message.content} for message in body.messages)
    single = len(turns) == 1 and turns[0]["role"] == "user"
    if target.spec is not None and single:
        content = turns[0]["content"]
        return {"fields": {"prompt": content, "text": content, **(body.template_fields or {})}}
    if body.template_fields:
        where = "the base has no template" if target.spec is None else "they go with exactly one user message"
        raise UnsupportedRequest(f"template_fields cannot be used here: {where}", param="template_fields")
    return {"messages": turns}


async def _run(
    service: Service,
    request: Request,
    body: SamplingFields,
    target: Target,
    asked: Sequence[GenerationRequest],
    answer: Answer,
) -> Response:
    record = record_of(request)
    record.choices = len(asked)

    async def ended() -> None:
        """Keep what was said, and settle: before the client hears of the end, and asks or answers again."""
        record.settle()
        texts = ["".join(choice.texts) for choice in answer.choices]
        await remember(service, answer.id, generated(target, body.model, asked, texts, record))

    feed = Feed(await _start(service, record, body, target, asked))
    try:
        if not body.stream:
            return Json(await while_connected(request.receive, _whole(feed, answer, record, ended), record))
        # The first chunk is awaited before the status is sent, so that what fails until then still gets its own.
        first = await while_connected(request.receive, feed.take(), record)
        events = _events(first, feed, answer, record, ended, include_usage=body.include_usage)
        return EventStream(events, feed, record)
    except BaseException as error:
        feed.cancel()
        record.gone = isinstance(error, ClientGone)
        raise


async def _start(
    service: Service, record: Record, body: SamplingFields, target: Target, asked: Sequence[GenerationRequest]
) -> list[GenerationStream]:
    """Start all requests; where there is a rule for the answer, in a thread that may take its time to read it."""
    begin = partial(start, service.loaded, target, asked)
    if body.output is None and (target.spec is None or target.spec.output is None):
        return await service.look_up(begin)
    try:
        return await service.prepare(begin, record.key)
    except InvalidRequest as error:
        if error.param != "output":
            raise
        raise type(error)(str(error), param=body.output_field) from error


def start(hub: AdapterHub, target: Target, asked: Sequence[GenerationRequest]) -> list[GenerationStream]:
    """Hand all requests to the engine; where one is refused, none of them runs on."""
    streams: list[GenerationStream] = []
    try:
        streams.extend(hub.generate(target, each) for each in asked)  # keeps those before a refusal
    except BaseException:
        for stream in streams:
            stream.cancel()
        raise
    return streams


async def _whole(feed: Feed, answer: Answer, record: Record, ended: Ended) -> dict[str, Any]:
    async for index, chunk in feed:
        answer.choices[index].add(chunk)
        _note(answer, chunk, record)
    await ended()
    return answer.whole()


async def _events(
    first: tuple[int, Chunk], feed: Feed, answer: Answer, record: Record, ended: Ended, *, include_usage: bool
) -> AsyncIterator[bytes]:
    def told(item: tuple[int, Chunk]) -> bytes:
        index, chunk = item
        events = answer.events(index, chunk, include_usage=include_usage)
        _note(answer, chunk, record)
        return events

    yield answer.opening(include_usage=include_usage) + told(first)
    async for item in feed:
        yield told(item)
    await ended()
    if include_usage:
        yield answer.closing()


def _note(answer: Answer, chunk: Chunk, record: Record) -> None:
    if chunk.token_ids:
        record.saw_token()
    usage = answer.usage()
    record.prompt_tokens = usage["prompt_tokens"]
    record.completion_tokens = usage["completion_tokens"]
