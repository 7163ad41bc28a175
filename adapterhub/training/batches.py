"""Padded batches: rows of similar length together, no more tokens at once than memory holds."""

from __future__ import annotations

from collections.abc import Sequence


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
