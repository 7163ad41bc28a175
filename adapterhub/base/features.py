"""Pooled hidden states of a base, by the plain transformers forward: features of texts, and what the engine is held to.

A text's vector is the mean of its tokens' last hidden states, that of its last token, or that of its first ("cls"). It
is not normalised.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from adapterhub.data.task import FEATURE_POOLINGS, FeaturePooling, TaskSpec
from adapterhub.data.tokens import check_length, encode_input
from adapterhub.errors import BaseError, InvalidRequest

from .load import load_backbone, load_tokenizer
from .record import Base

# What sentence-transformers calls them, in the file that says how a sentence encoder pools.
_SENTENCE_CONFIG = "1_Pooling/config.json"
_SENTENCE_MODES: dict[str, FeaturePooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_cls_token": "cls",
}


def pool(states: Tensor, pooling: str) -> Tensor:
    """Return [dim], float32 or wider, of the last hidden states [tokens, dim] of one text. Raises InvalidRequest."""
    check_pooling(pooling)
    states = states.to(torch.promote_types(states.dtype, torch.float32))
    if pooling == "mean":
        return states.mean(dim=0)
    return states[-1 if pooling == "last" else 0]


def pool_rows(states: Tensor, lengths: Tensor, pooling: str) -> Tensor:
    """Return what `pool` does for each row of [rows, longest, dim], padded on the right: [rows, dim], float32 or wider.

    Gradients flow, and what stands at padded positions does not matter unless it is not finite.
    """
    check_pooling(pooling)
    states = states.to(torch.promote_types(states.dtype, torch.float32))
    if pooling == "mean":
        real = torch.arange(states.shape[1], device=states.device) < lengths[:, None]
        return states.masked_fill(~real[:, :, None], 0.0).sum(1) / lengths[:, None]
    if pooling == "cls":
        return states[:, 0]
    return states[torch.arange(len(states), device=states.device), lengths - 1]


def check_pooling(pooling: str) -> None:
    """Raise InvalidRequest for a pooling nobody knows."""
    if pooling not in FEATURE_POOLINGS:
        raise InvalidRequest(f"pooling is {pooling!r}; known are {', '.join(FEATURE_POOLINGS)}", param="pooling")


def default_pooling(base: Base) -> FeaturePooling:
    """Return how texts are pooled on this base: as its own sentence-transformers config says, else the mean.

    The mean is what all-MiniLM and most sentence encoders were trained with, and for decoders it says more of a text
    than the last token, which is about the next word. Raises BaseError where the config names what is not known here.
    """
    file = base.path / _SENTENCE_CONFIG
    if not file.is_file():
        return "mean"
    try:
        record = json.loads(file.read_text("utf-8"))
        named = [key for key, value in record.items() if key.startswith("pooling_mode") and value]
    except (ValueError, AttributeError) as error:
        raise BaseError(f"{file} is not a pooling config: {error}; restore it, or name a pooling") from error
    if len(named) != 1 or named[0] not in _SENTENCE_MODES:
        raise BaseError(
            f"{file} pools by {', '.join(named) or 'nothing'}; name one of {', '.join(FEATURE_POOLINGS)} instead"
        )
    return _SENTENCE_MODES[named[0]]


def features(
    base: Base,
    texts: Iterable[str],
    pooling: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    batch_tokens: int = 2048,
) -> Tensor:
    """Return float32 [texts, dim] on the CPU; `pooling` None is the base's default.

    Texts are read bare, with the tokenizer's own special tokens. Those of like length share a forward, padded and
    masked, of at most `batch_tokens` tokens with padding (or one text). Raises InvalidRequest for a text without
    tokens or an unknown pooling, PromptTooLong for a text beyond the base's context.
    """
    pooling = default_pooling(base) if pooling is None else pooling
    check_pooling(pooling)
    return Embedder(base, pooling, dtype, device)(list(texts), batch_tokens=batch_tokens)


class Embedder:
    """A base loaded to pool texts, for those who ask it more than once.

    With `cut`, a text longer than the base's context is read up to there instead of being refused.
    """

    def __init__(
        self,
        base: Base,
        pooling: str,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        *,
        cut: bool = False,
    ) -> None:
        self._tokenizer = load_tokenizer(base, require_pad=False)
        model = load_backbone(base, dtype, device)
        self._network, self._dim = getattr(model, model.base_model_prefix, model), int(model.config.hidden_size)
        self._rules = TaskSpec("generation", base.fingerprint, base.context_length)
        self._pooling, self._device, self._cut = pooling, device, cut

    def __call__(
        self, texts: Sequence[str], *, batch_tokens: int = 2048, numbers: Sequence[int] | None = None
    ) -> Tensor:
        """Return float32 [texts, dim] on the CPU, as `features` does; `numbers` are the texts' own in messages."""
        ids = [self._encode(text, numbers[row] if numbers else row) for row, text in enumerate(texts)]
        # A padded position is masked, so any token will do where the base has none to pad with.
        pad = self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else 0
        found = torch.empty(len(ids), self._dim)
        for rows in _batches([len(each) for each in ids], batch_tokens):
            states = _forward(self._network, [ids[row] for row in rows], pad, self._device)
            for row, each in zip(rows, states, strict=True):
                found[row] = pool(each, self._pooling)
        return found

    def _encode(self, text: str, number: int) -> list[int]:
        try:
            ids = encode_input(self._tokenizer, self._rules, {"prompt": text})
        except InvalidRequest as error:
            raise InvalidRequest(f"text {number}: {error}", param=error.param) from error
        if self._cut:
            return ids[: self._rules.max_length]
        check_length(ids, self._rules, f"text {number}")
        return ids


@torch.inference_mode()
def _forward(network: Any, ids: Sequence[Sequence[int]], pad: int, device: str | torch.device) -> list[Tensor]:
    """Return the last hidden states [tokens, dim] of each text."""
    longest = max(len(each) for each in ids)
    tokens = torch.tensor([[*each, *[pad] * (longest - len(each))] for each in ids], device=device)
    mask = torch.tensor([[1] * len(each) + [0] * (longest - len(each)) for each in ids], device=device)
    states = network(input_ids=tokens, attention_mask=mask).last_hidden_state
    return [row[: len(each)] for row, each in zip(states, ids, strict=True)]


def _batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield indices of texts that run together, the shortest first."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[row] > most:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
