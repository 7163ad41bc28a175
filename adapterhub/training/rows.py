"""Examples as token ids and targets, checked before training starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from adapterhub.data.example import Example
from adapterhub.data.task import TaskSpec
from adapterhub.data.tokens import encode_completion, encode_input
from adapterhub.errors import DataError, InvalidRequest

from .answers import class_factors, target_of

# What a sequence is to its example. A preference has two completions of one prompt, an embedding two texts or three.
FIRST, SECOND, NEGATIVE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Row:
    """One example as numbers.

    `ids` hold the input, followed by the completion where there is one, which starts at index `start`. `target` is one
    number a label (probabilities, or zeros and ones); of a preference it is the log-probability that the base alone
    gives the completion, once that is known; else it is empty.

    `others` are further sequences of the same example, which stays whole in every batch. Of a preference, this is
    prompt and chosen completion and the one other is prompt and rejected completion: the first `start` ids are the
    same in both, so they need to be computed only once. Of an embedding, this is the text, the others are its positive
    and, where it has one, its hard negative.
    """

    ids: tuple[int, ...]
    start: int
    target: tuple[float, ...]
    weight: float
    where: str
    others: tuple[Row, ...] = ()

    @property
    def sequences(self) -> tuple[Row, ...]:
        """All sequences of the example, this one first."""
        return (self, *self.others)

    @property
    def length(self) -> int:
        """Tokens of a padded batch of this row alone; of one sequence its ids."""
        return max(len(each.ids) for each in self.sequences) * (1 + len(self.others))

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(len(each.ids) for each in self.sequences)


@dataclass(frozen=True)
class Batch:
    """The sequences of rows as numbers: shapes [sequences], of `targets` [sequences, labels].

    The sequences of a row follow one another. A completion is what begins at `starts`, told by position, never by a
    token's id. `roles` are FIRST, SECOND (a rejected completion, a positive) or NEGATIVE; equal ids have equal `keys`,
    64 bits, in every batch. A row's weight stands at each of its sequences.
    """

    lengths: Tensor
    starts: Tensor
    targets: Tensor
    weights: Tensor
    roles: Tensor
    keys: Tensor

    @property
    def answer_owners(self) -> Tensor:
        """Which sequence each token of a completion belongs to, int64 [completion tokens], sequence by sequence."""
        counts = self.lengths - self.starts
        return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)


@dataclass(frozen=True)
class PaddedBatch(Batch):
    """A batch with its token ids, padded on the right: [sequences, longest]. What is padding is told by `lengths`."""

    input_ids: Tensor
    attention_mask: Tensor


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


def weigh_classes(rows: Sequence[Row], weights: Mapping[str, float] | str | None, labels: Sequence[str]) -> list[Row]:
    """Return `rows` with their weights multiplied as `training.class_weights` asks. Raises ConfigError."""
    if weights is None:
        return list(rows)
    factors = class_factors([row.target for row in rows], weights, labels)
    return [replace(row, weight=row.weight * factor) for row, factor in zip(rows, factors, strict=True)]


def _encoder(spec: TaskSpec, tokenizer: Any) -> Callable[[Example], Row]:
    def text(example: Example, fields: Mapping[str, Any]) -> Row:
        ids = tuple(encode_input(tokenizer, spec, fields))
        return Row(ids, len(ids), (), example.weight, example.where)

    def labelled(example: Example) -> Row:
        return replace(text(example, example.fields), target=target_of(example, spec.kind, spec.labels))

    def generated(example: Example) -> Row:
        if not example.completions:
            raise DataError(f"{example.where}: no completion to learn from; add the field, or a final assistant turn")
        prompt = text(example, example.fields)
        answers = [tuple(encode_completion(tokenizer, answer)) for answer in example.completions]
        first, *others = [replace(prompt, ids=prompt.ids + answer) for answer in answers]
        return replace(first, others=tuple(others))

    def embedded(example: Example) -> Row:
        if example.positive is None:
            raise DataError(f"{example.where}: no positive to learn from; add the field, a text that shall lie near")
        texts = [example.positive] if example.negative is None else [example.positive, example.negative]
        others = tuple(text(example, {**example.fields, "text": each}) for each in texts)
        return replace(text(example, example.fields), others=others)

    return {"generation": generated, "embedding": embedded}.get(spec.kind, labelled)


def _check_lengths(rows: Sequence[Row], spec: TaskSpec, context_length: int) -> None:
    long = [row for row in rows if _longest(row) > spec.max_length]
    if long:
        longest = max(map(_longest, long))
        fits = longest <= context_length
        remedy = (
            f"set max_length to {longest} in the recipe, or shorten or remove them"
            if fits
            else f"shorten or remove them: the longest has {longest}, and the base reads no more than {context_length}"
        )
        raise DataError(
            f"{len(long)} of {len(rows)} rows are longer than max_length {spec.max_length} tokens, the first at "
            f"{long[0].where} ({_longest(long[0])} tokens); {remedy}"
        )


def _longest(row: Row) -> int:
    return max(len(each.ids) for each in row.sequences)


def batch_of(rows: Sequence[Row], device: torch.device) -> Batch:
    """Return the sequences of `rows` as one batch on `device`."""
    return Batch(**_numbers(rows, device))


def collate(rows: Sequence[Row], pad_token_id: int, device: torch.device) -> PaddedBatch:
    """Return the sequences of `rows` as one padded batch on `device`."""
    numbers = _numbers(rows, device)
    ids = [each.ids for row in rows for each in row.sequences]
    longest = max(map(len, ids))
    return PaddedBatch(
        **numbers,
        input_ids=torch.tensor([each + (pad_token_id,) * (longest - len(each)) for each in ids], device=device),
        attention_mask=(torch.arange(longest, device=device) < numbers["lengths"][:, None]).long(),
    )


def _numbers(rows: Sequence[Row], device: torch.device) -> dict[str, Tensor]:
    sequences = [each for row in rows for each in row.sequences]
    return {
        "lengths": torch.tensor([len(each.ids) for each in sequences], device=device),
        "starts": torch.tensor([each.start for each in sequences], device=device),
        "targets": torch.tensor([each.target for each in sequences], dtype=torch.float32, device=device),
        "weights": torch.tensor([each.weight for each in sequences], dtype=torch.float32, device=device),
        "roles": torch.tensor([role for row in rows for role in range(len(row.sequences))], device=device),
        # Of a tuple of numbers, and so the same in every process.
        "keys": torch.tensor([hash(each.ids) for each in sequences], device=device),
    }
