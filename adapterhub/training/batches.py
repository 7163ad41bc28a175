"""Batches of rows of similar length, in an order that a seed decides."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Rows are sorted by length within so many batches: enough to leave little padding, few enough to keep an epoch random.
MEGA_BATCH = 50


def epoch_batches(lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Return batches of row indices in which each row of `lengths` (tokens) occurs exactly once.

    Equal arguments give equal batches on any machine. At most one batch is smaller than `batch_size`.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    order: list[int] = torch.randperm(len(lengths), generator=generator).tolist()
    batches: list[list[int]] = []
    for start in range(0, len(order), batch_size * MEGA_BATCH):
        mega = sorted(order[start : start + batch_size * MEGA_BATCH], key=lambda row: lengths[row])
        batches += [mega[i : i + batch_size] for i in range(0, len(mega), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def ordered_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return batches of row indices, shortest rows first: for evaluation, where order does not matter."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def split_by_tokens(batch: Sequence[int], lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Cut a batch into parts of at most `max_tokens` padded tokens each (a longer row stands alone).

    Long texts would otherwise need memory for a whole batch at once; the gradients of the parts add up to the same.
    """
    parts: list[list[int]] = []
    longest = 0
    for row in batch:
        longest = max(longest, lengths[row])
        if parts and (len(parts[-1]) + 1) * longest <= max_tokens:
            parts[-1].append(row)
        else:
            parts.append([row])
            longest = lengths[row]
    return parts
