"""What is wrong with a request, told before it is queued."""

from __future__ import annotations

import math
from collections.abc import Iterable

from adapterhub.errors import InvalidRequest, PromptTooLong, UnsupportedRequest

from .request import Classify, Embed, Request, Sampling, Score
from .runner import Runner

POOLINGS = ("mean", "last", "cls")


def check_request(request: Request, runner: Runner, context: int, cache_tokens: int) -> None:
    """Raise PromptTooLong, InvalidRequest or UnsupportedRequest where no row could answer the request.

    `context` is the most positions a row may take, `cache_tokens` the most the cache of a decoder has.
    """
    if not request.tokens:
        raise InvalidRequest("the prompt has no tokens", param="prompt")
    _check_ids(request.tokens, runner.vocabulary, "prompt")
    if not 0 < request.weight < math.inf:
        raise InvalidRequest(f"weight is {request.weight}; it must be above 0 and finite", param="weight")
    if isinstance(request.ask, Sampling):
        _check_sampling(request.ask)
    if isinstance(request.ask, Score):
        _check_continuations(request.ask, runner.vocabulary)
    if isinstance(request.ask, Embed) and request.ask.pooling not in POOLINGS:
        raise InvalidRequest(
            f"pooling is {request.ask.pooling!r}; it must be one of {', '.join(POOLINGS)}", param="pooling"
        )
    _check_length(request, runner, context, cache_tokens)
    _check_supported(request, runner)


def _check_ids(tokens: Iterable[int], vocabulary: int, param: str) -> None:
    bad = next((token for token in tokens if not 0 <= token < vocabulary), None)
    if bad is not None:
        raise InvalidRequest(f"token id {bad} is outside the vocabulary of {vocabulary}", param=param)


def _check_sampling(ask: Sampling) -> None:
    least: dict[str, tuple[float, float]] = {
        "max_tokens": (ask.max_tokens, 1),
        "min_tokens": (ask.min_tokens, 0),
        "temperature": (ask.temperature, 0),
        "top_k": (ask.top_k, 0),
        "logprobs": (ask.logprobs or 0, 0),
    }
    for name, (value, lowest) in least.items():
        if not lowest <= value < math.inf:
            raise InvalidRequest(f"{name} is {value}; it must be at least {lowest} and finite", param=name)
    if not 0 < ask.top_p <= 1:
        raise InvalidRequest(f"top_p is {ask.top_p}; it must be above 0 and at most 1", param="top_p")


def _check_continuations(ask: Score, vocabulary: int) -> None:
    if not ask.continuations:
        raise InvalidRequest("there are no continuations to score", param="continuations")
    for number, continuation in enumerate(ask.continuations, 1):
        if not continuation:
            raise InvalidRequest(f"continuation {number} has no tokens", param="continuations")
        _check_ids(continuation, vocabulary, "continuations")


def _check_length(request: Request, runner: Runner, context: int, cache_tokens: int) -> None:
    size, needed, besides, param = len(request.tokens), request.room, "", "prompt"
    if request.sampling is not None:
        besides, param = f" and max_tokens {request.sampling.max_tokens}", "max_tokens"
    elif isinstance(request.ask, Score):
        longest = max(len(continuation) for continuation in request.ask.continuations)
        needed, besides, param = size + longest, f" and the longest continuation {longest}", "continuations"
    limit = min(context, cache_tokens) if runner.causal else context
    fits = runner.cache is None or runner.cache.could(request.room)
    if needed > limit or not fits:
        together = "together " if besides else ""
        raise PromptTooLong(f"the prompt has {size} tokens{besides}; {together}at most {limit} fit", param=param)


def _check_supported(request: Request, runner: Runner) -> None:
    if not runner.causal and request.keeps_cache:
        raise UnsupportedRequest(
            "this base is an encoder; it classifies and embeds, but does not generate or score text", param="model"
        )
    if isinstance(request.ask, Classify) and (request.adapter is None or request.adapter.pooling is None):
        raise UnsupportedRequest("only an adapter with a classification head can classify", param="model")
