"""Which rows make which step's batch: decided by a seed, so that any step is found without taking those before."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .schedule import total_steps

# Where rows are padded they are sorted by length within so many batches: enough to leave little padding, few enough to
# keep an epoch random.
MEGA_BATCH = 50


class Order:
    """The batches of a training, epoch after epoch; each row occurs once an epoch.

    `lengths` are the rows' tokens. A batch has `batch_size` rows, or as many as `batch_tokens` hold (one at least).
    Rows of a batch are alike in length where `alike`, else drawn at random. Equal arguments give equal batches on any
    machine.
    """

    def __init__(
        self, lengths: Sequence[int], *, batch_size: int, batch_tokens: int | None, seed: int, alike: bool
    ) -> None:
        self._lengths, self._size, self._tokens = lengths, batch_size, batch_tokens
        self._seed, self._alike = seed, alike
        self._starts = [0]
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def batch(self, step: int) -> list[int]:
        """Return the rows of a step, counted from 0."""
        while self._starts[-1] <= step:
            self._starts.append(self._starts[-1] + len(self._batches(len(self._starts) - 1)))
        epoch = max(i for i, start in enumerate(self._starts) if start <= step)
        return self._batches(epoch)[step - self._starts[epoch]]

    def epoch_of(self, step: int) -> float:
        """Return how many times all rows have been seen after so many steps."""
        if step == 0:
            return 0.0
        self.batch(step - 1)
        epoch = max(i for i, start in enumerate(self._starts) if start < step)
        return epoch + (step - self._starts[epoch]) / len(self._batches(epoch))

    def steps(self, *, epochs: float | None, steps: int | None) -> int:
        """Return how many steps a training has: `steps` where given, else what `epochs` (or a fraction) comes to."""
        if steps is not None or self._tokens is None:
            return total_steps(len(self._lengths), self._size, epochs=epochs, steps=steps)
        assert epochs is not None, "a recipe gives epochs or steps"
        # How many batches hold an epoch's tokens depends on how its rows fall together.
        whole = sum(len(self._batches(epoch)) for epoch in range(int(epochs)))
        rest = epochs - int(epochs)
        return whole + (total_steps(len(self._batches(int(epochs))), 1, epochs=rest, steps=None) if rest else 0)

    @property
    def steps_an_epoch(self) -> int:
        """Return the number of batches of the first epoch."""
        return len(self._batches(0))

    def _batches(self, epoch: int) -> list[list[int]]:
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._draw(epoch))
        return self._epoch[1]

    def _draw(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + epoch) % 2**63)
        order: list[int] = torch.randperm(len(self._lengths), generator=generator).tolist()
        if not self._alike:
            return self._cut(order)
        batches: list[list[int]] = []
        mean = max(1, sum(self._lengths) // max(1, len(self._lengths)))
        size = self._size if self._tokens is None else max(1, self._tokens // mean)
        for start in range(0, len(order), size * MEGA_BATCH):
            mega = sorted(order[start : start + size * MEGA_BATCH], key=lambda row: self._lengths[row])
            batches += self._cut(mega)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def _cut(self, rows: Sequence[int]) -> list[list[int]]:
        if self._tokens is None:
            return [list(rows[i : i + self._size]) for i in range(0, len(rows), self._size)]
        batches: list[list[int]] = []
        room = 0
        for row in rows:
            room -= self._lengths[row]
            if room < 0 or not batches:
                batches.append([])
                room = self._tokens - self._lengths[row]
            batches[-1].append(row)
        return batches
