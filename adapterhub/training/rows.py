"""Examples as token ids and targets, checked before training starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapterhub.data.example import Example
from adapterhub.data.task import TaskSpec
from adapterhub.data.tokens import encode_completion, encode_input
from adapterhub.errors import DataError, InvalidRequest

from .answers import target_of


@dataclass(frozen=True, slots=True)
class Row:
    """One example as numbers.

    `ids` hold the input, for generation followed by the completion, which starts at index `start`. `target` is one
    number a label (probabilities, or zeros and ones), empty for generation.
    """

    ids: tuple[int, ...]
    start: int
    target: tuple[float, ...]
    weight: float
    where: str


@dataclass(frozen=True)
class Batch:
    """Rows as tensors, padded on the right: shapes [rows, longest], [rows] and [rows, labels].

    What is padding is told by `lengths`, never by the pad token's id, which may also be the EOS token of a completion.
    """

    input_ids: Tensor
    attention_mask: Tensor
    lengths: Tensor
    starts: Tensor
    targets: Tensor
    weights: Tensor

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.lengths.sum())


def encode_rows(examples: Sequence[Example], spec: TaskSpec, tokenizer: Any, context_length: int) -> list[Row]:
    """Turn examples into rows; `context_length` is the most tokens the base reads.

    Raises DataError for an example without gold answer, with an unknown label, without tokens, or too long.
    """
    encode = _encoder(spec, tokenizer)
    rows = []
    for example in examples:
        try:
            rows.append(encode(example))
        except InvalidRequest as error:
            raise DataError(f"{example.where}: {error}") from error
    _check_lengths(rows, spec, context_length)
    return rows


def _encoder(spec: TaskSpec, tokenizer: Any) -> Callable[[Example], Row]:
    def encode(example: Example) -> Row:
        ids = tuple(encode_input(tokenizer, spec, example.fields))
        if spec.kind != "generation":
            return Row(ids, len(ids), target_of(example, spec.kind, spec.labels), example.weight, example.where)
        if example.completion is None:
            raise DataError(f"{example.where}: no completion to learn from; add the field, or a final assistant turn")
        answer = tuple(encode_completion(tokenizer, example.completion))
        return Row(ids + answer, len(ids), (), example.weight, example.where)

    return encode


def _check_lengths(rows: Sequence[Row], spec: TaskSpec, context_length: int) -> None:
    long = [row for row in rows if len(row.ids) > spec.max_length]
    if long:
        longest = max(len(row.ids) for row in long)
        fits = longest <= context_length
        remedy = (
            f"set max_length to {longest} in the recipe, or shorten or remove them"
            if fits
            else f"shorten or remove them: the longest has {longest}, and the base reads no more than {context_length}"
        )
        raise DataError(
            f"{len(long)} of {len(rows)} rows are longer than max_length {spec.max_length} tokens, the first at "
            f"{long[0].where} ({len(long[0].ids)} tokens); {remedy}"
        )


def collate(rows: Sequence[Row], pad_token_id: int, device: torch.device) -> Batch:
    """Return the rows as one batch on `device`."""
    longest = max(len(row.ids) for row in rows)
    lengths = torch.tensor([len(row.ids) for row in rows])
    padded = [row.ids + (pad_token_id,) * (longest - len(row.ids)) for row in rows]
    return Batch(
        input_ids=torch.tensor(padded, device=device),
        attention_mask=(torch.arange(longest) < lengths[:, None]).long().to(device),
        lengths=lengths.to(device),
        starts=torch.tensor([row.start for row in rows], device=device),
        targets=torch.tensor([row.target for row in rows], dtype=torch.float32, device=device),
        weights=torch.tensor([row.weight for row in rows], dtype=torch.float32, device=device),
    )
