"""From what a request says to the engine's sampling, or to what is wrong with it."""

from __future__ import annotations

import math

from adapterhub.engine.request import Grammar, Sampling
from adapterhub.errors import InvalidRequest, PromptTooLong

from .target import GenerationRequest

DEFAULT_MAX_TOKENS = 256


def make_sampling(
    request: GenerationRequest, size: int, limit: int, stop_ids: frozenset[int], grammar: Grammar | None = None
) -> Sampling:
    """Return the sampling for a prompt of `size` tokens where prompt and answer may take `limit`.

    Without max_tokens it is what fits, at most DEFAULT_MAX_TOKENS. Raises PromptTooLong and InvalidRequest.
    """
    room = limit - size
    if room < 1:
        raise PromptTooLong(
            f"the prompt has {size} tokens; {limit} is the most that prompt and answer may take", param="prompt"
        )
    wanted = request.max_tokens if request.max_tokens is not None else min(room, DEFAULT_MAX_TOKENS)
    if wanted > room:
        raise PromptTooLong(
            f"the prompt has {size} tokens and max_tokens is {wanted}; together at most {limit} fit",
            param="max_tokens",
        )
    _check_ranges(request, wanted)
    return Sampling(
        max_tokens=wanted,
        min_tokens=request.min_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        seed=request.seed,
        stop_ids=stop_ids,
        ignore_eos=request.ignore_eos,
        logprobs=request.logprobs,
        grammar=grammar,
    )


def _check_ranges(request: GenerationRequest, max_tokens: int) -> None:
    """Raise InvalidRequest naming the first setting outside its range."""
    checks: tuple[tuple[str, float, bool, str], ...] = (
        ("max_tokens", max_tokens, max_tokens >= 1, "at least 1"),
        ("min_tokens", request.min_tokens, 0 <= request.min_tokens <= max_tokens, f"from 0 to {max_tokens}"),
        ("temperature", request.temperature, 0 <= request.temperature < math.inf, "0 or more"),
        ("top_p", request.top_p, 0 < request.top_p <= 1, "above 0 and at most 1"),
        ("top_k", request.top_k, request.top_k >= 0, "0 or more"),
        ("seed", request.seed or 0, -(2**63) <= (request.seed or 0) < 2**63, "a 64-bit integer"),
        ("logprobs", request.logprobs or 0, 0 <= (request.logprobs or 0) <= 20, "from 0 to 20"),
    )
    for name, value, fine, allowed in checks:
        if not fine:
            raise InvalidRequest(f"{name} is {value}; it must be {allowed}", param=name)
    if any(not stop for stop in request.stop):
        raise InvalidRequest("a stop string is empty; it would stop everything", param="stop")
