"""From logits to tokens, each row by its own rules and random numbers.

What may not be said is ruled out first of all, so that greedy choice, top-k, top-p and log-probabilities are those of
the distribution that is left, as in vLLM: a log-probability tells how sure the row was among what it could say.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adapterhub.errors import CorruptAdapter

from .request import Constraint, Event, FailedEvent, Row, Sampling, TokenEvent

# Dividing by less would overflow; the draw would be the maximum anyway.
GREEDY_BELOW = 1e-5


def sample(logits: Tensor, rows: tuple[Row, ...]) -> list[Event]:
    """Return one event a row for logits [rows, vocabulary]; a row with NaN or infinite logits fails alone.

    So does a row whose grammar fails. The caller adds the token to the row; its constraint has gone on already.
    """
    logits = logits.float()
    # A sum that is finite says so of all its terms, at a twentieth of the time; one that is not may have overflowed.
    finite = torch.isfinite(logits.sum(dim=-1)).tolist()
    finite = [fine or bool(torch.isfinite(logits[i]).all()) for i, fine in enumerate(finite)]
    greedy = logits.max(dim=-1).indices.tolist()
    return [_event(logits[i], row, greedy[i]) if finite[i] else _broken(row) for i, row in enumerate(rows)]


def _event(logits: Tensor, row: Row, greedy: int) -> Event:
    sampling = row.request.ask
    assert isinstance(sampling, Sampling)
    if sampling.grammar is None:
        return _said(logits, row, sampling, _allowed(logits, row, sampling), greedy)
    try:
        if row.constraint is None:
            row.constraint = sampling.grammar.start()
        event = _said(logits, row, sampling, _allowed(logits, row, sampling, row.constraint), greedy)
        if event.finish is None:
            row.constraint.take(event.token)
    except Exception as error:  # one row's grammar must not cost the others of the batch their tokens
        return FailedEvent(error)
    return event


def _allowed(logits: Tensor, row: Row, sampling: Sampling, constraint: Constraint | None = None) -> Tensor | None:
    """Return bool [vocabulary], the tokens that the row may say; None: all."""
    allowed = None if constraint is None else constraint.allowed().to(logits.device)
    if len(row.output) >= sampling.min_tokens:
        return allowed
    barred = [token for token in sampling.stop_ids if token < logits.shape[-1]]
    if not barred:
        return allowed
    left = torch.ones_like(logits, dtype=torch.bool) if allowed is None else allowed.clone()
    left[barred] = False
    # Where the grammar is at its end there is nothing else to say.
    return left if constraint is None or bool(left.any()) else allowed


def _said(logits: Tensor, row: Row, sampling: Sampling, allowed: Tensor | None, greedy: int) -> TokenEvent:
    if allowed is not None:
        logits = torch.where(allowed, logits, float("-inf"))
        greedy = int(logits.argmax())
    token = greedy if sampling.temperature < GREEDY_BELOW else _draw(logits, sampling, row.generator)
    finish = None
    if token in sampling.stop_ids and (sampling.grammar is not None or not sampling.ignore_eos):
        finish = "stop"
    elif len(row.output) + 1 >= sampling.max_tokens:
        finish = "length"
    logprob, top = _logprobs(logits, token, sampling.logprobs)
    return TokenEvent(token, logprob, top, finish)


def _draw(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> int:
    """Draw from the distribution after temperature, then top-k, then top-p (nucleus; Holtzman et al. 2020)."""
    scaled = logits / sampling.temperature
    if sampling.top_k == 0 and sampling.top_p >= 1.0:
        return _pick(torch.softmax(scaled, dim=-1), generator)
    order = torch.argsort(scaled, descending=True)
    if sampling.top_k:
        order = order[: sampling.top_k]
    probs = torch.softmax(scaled[order], dim=-1)
    # A token stays while the mass before it is below top_p; the likeliest always does, whatever rounding says.
    kept = max(1, int(((probs.cumsum(0) - probs) < sampling.top_p).sum()))
    return int(order[_pick(probs[:kept], generator)])


def _pick(weights: Tensor, generator: torch.Generator | None) -> int:
    """Return an index drawn in proportion to `weights` [n], by inversion: one random number a token."""
    mass = weights.double().cumsum(0)
    point = torch.rand((), dtype=torch.float64, generator=generator) * mass[-1]
    return min(int(torch.searchsorted(mass, point, right=True)), weights.shape[0] - 1)


def _logprobs(logits: Tensor, token: int, count: int | None) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    if count is None:
        return None, ()
    scores = torch.log_softmax(logits, dim=-1)
    values, ids = scores.topk(min(count, scores.shape[-1])) if count else (scores[:0], scores[:0])
    top = tuple((int(i), float(v)) for i, v in zip(ids.tolist(), values.tolist(), strict=True))
    return float(scores[token]), top


def _broken(row: Row) -> FailedEvent:
    name = row.request.adapter.digest if row.request.adapter else "the base"
    return FailedEvent(CorruptAdapter(f"{name} produced NaN or infinite logits; its answer is withheld"))
