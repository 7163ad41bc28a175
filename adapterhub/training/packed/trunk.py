"""The trunk below the lowest layer that learns: its activations are computed once and kept on disk.

The trunk is frozen, so what it makes of a text is the same in every epoch, for every rank, seed and recipe. It is kept
in bfloat16, keyed by base, depth, compute dtype and the text's token ids, in immutable shards: `<name>.states`, the
residual stream [tokens, hidden] of text after text, and `<name>.index`, where each text's begins. A shard is renamed
into place whole; one that is interrupted leaves nothing that would be read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapterhub.training.rows import Row

from .decoder import PackedDecoder
from .line import Line, pack

Ids = tuple[int, ...]
_INDEX = np.dtype([("key", "V16"), ("start", "<u8"), ("tokens", "<u4")])
# Tokens of one shard, which is what an interruption can lose, and of one forward that fills it.
_SHARD_TOKENS, _LINE_TOKENS = 65_536, 1024
# Shards of least recent use go when all of them together take more.
_MOST_BYTES = 8 << 30
# A file that nobody has finished for so long is not being written any more.
_LEFT_SECONDS = 24 * 3600


@dataclass(frozen=True)
class _Place:
    """A text's states: rows [start, start + tokens) of a shard."""

    shard: int
    start: int


class Trunk:
    """The residual stream before layer `depth` of texts that `fill` has seen.

    `root` is where all trunks of all bases are kept; `base` names the base by its fingerprint.
    """

    def __init__(self, root: Path, base: str, decoder: PackedDecoder, depth: int) -> None:
        dtype = str(decoder.dtype).removeprefix("torch.")
        self.root, self._decoder, self.depth = root, decoder, depth
        self._folder = root / f"{base.removeprefix('sha256:')[:16]}-{depth}-{dtype}"
        self._places: dict[bytes, _Place] = {}
        self._shards: list[np.ndarray[Any, np.dtype[np.int16]]] = []

    def fill(self, sequences: Iterable[Ids], progress: Callable[[int, int], None] | None = None) -> int:
        """Compute and keep what is missing; return how many tokens that were. `progress` hears of tokens done, of all.

        Raises OSError where the disk is full or cannot be written; what was kept before stays.
        """
        wanted = dict.fromkeys(sequences)
        self._open_all()
        # In sorted order texts that begin alike come together, and their beginnings are computed once.
        missing = sorted(ids for ids in wanted if _key(ids) not in self._places)
        total = sum(map(len, missing))
        done = 0
        for part in _parts(missing, _SHARD_TOKENS):
            self._write(part)
            done += sum(map(len, part))
            if progress is not None:
                progress(done, total)
        if missing:
            self._make_room()
        return total

    def tokens_missing(self, sequences: Iterable[Ids]) -> int:
        """Return how many tokens `fill` would compute."""
        self._open_all()
        return sum(len(ids) for ids in dict.fromkeys(sequences) if _key(ids) not in self._places)

    def bytes_of(self, tokens: int) -> int:
        """Return the disk that so many tokens take."""
        return tokens * self._decoder.hidden * 2

    def states(self, line: Line, rows: Sequence[Sequence[Row]]) -> Tensor:
        """Return the residual stream [tokens, hidden] of a line of these rows, span by span; all were filled before."""
        found = torch.empty(len(line.tokens), self._decoder.hidden, dtype=torch.bfloat16)
        target: dict[int, list[int]] = {}
        source: dict[int, list[int]] = {}
        for places, given in zip(line.places, rows, strict=True):
            sequences = [each for row in given for each in row.sequences]
            for place, each in zip(places, sequences, strict=True):
                kept = self._places[_key(each.ids)]
                target.setdefault(kept.shard, []).extend(place)
                source.setdefault(kept.shard, []).extend(range(kept.start, kept.start + len(place)))
        for shard, into in target.items():
            part = torch.from_numpy(self._shards[shard][source[shard]]).view(torch.bfloat16)
            found[torch.tensor(into)] = part
        return found.to(self._decoder.device, self._decoder.dtype)

    def _open_all(self) -> None:
        for index in sorted(self._folder.glob("*.index")):
            try:
                self._open(index)
            except (OSError, ValueError):
                # Another process may have made room just now; what is gone is computed anew.
                continue

    def _open(self, index: Path) -> None:
        entries = np.frombuffer(index.read_bytes(), _INDEX)
        if not len(entries) or bytes(entries[0]["key"]) in self._places:
            return
        states = index.with_suffix(".states")
        shard = np.memmap(states, np.int16, "r").reshape(-1, self._decoder.hidden)
        if len(shard) != int(entries["tokens"].sum()):
            return
        os.utime(index)
        for entry in entries:
            self._places.setdefault(bytes(entry["key"]), _Place(len(self._shards), int(entry["start"])))
        self._shards.append(shard)

    def _write(self, sequences: Sequence[Ids]) -> None:
        keys = [_key(ids) for ids in sequences]
        name = hashlib.sha256(b"".join(keys)).hexdigest()[:24]
        lengths = [len(ids) for ids in sequences]
        entries = np.zeros(len(keys), _INDEX)
        entries["key"] = keys
        entries["start"] = np.cumsum([0, *lengths[:-1]])
        entries["tokens"] = lengths
        self._folder.mkdir(parents=True, exist_ok=True)
        scratch = self._folder / f".{name}-{os.getpid()}"
        try:
            with scratch.open("wb") as file:
                for part in _parts(sequences, _LINE_TOKENS):
                    file.write(self._computed(part).view(torch.int16).numpy().tobytes())
            scratch.replace(self._folder / f"{name}.states")
            scratch.write_bytes(entries.tobytes())
            scratch.replace(self._folder / f"{name}.index")
        finally:
            scratch.unlink(missing_ok=True)
        self._open(self._folder / f"{name}.index")

    def _computed(self, sequences: Sequence[Ids]) -> Tensor:
        """Return the states of sequence after sequence, bfloat16 [tokens, hidden]."""
        rows = [Row(ids, len(ids), (), 1.0, "") for ids in sequences]
        line = pack([(rows, "last", True)], self._decoder.device)
        states = self._decoder.trunk(line, self.depth).to("cpu", torch.bfloat16)
        return states[torch.tensor([place for each in line.places[0] for place in each])]

    def _make_room(self) -> None:
        """Remove the shards used longest ago while all trunks together take too much; those in use stay readable."""
        self._sweep_up()
        found = []
        for index in self.root.glob("*/*.index"):
            with suppress(FileNotFoundError):  # another process makes room as well
                found.append((index.stat().st_mtime, index.with_suffix(".states").stat().st_size, index))
        over = sum(size for _, size, _ in found) - _MOST_BYTES
        for _, size, index in sorted(found):
            if over <= 0:
                return
            index.unlink(missing_ok=True)
            index.with_suffix(".states").unlink(missing_ok=True)
            over -= size

    def _sweep_up(self) -> None:
        """Remove what killed processes left: states without an index, and files that were never renamed."""
        whole = {index.with_suffix("") for index in self.root.glob("*/*.index")}
        for file in (*self.root.glob("*/*.states"), *self.root.glob("*/.*")):
            with suppress(FileNotFoundError):
                if file.with_suffix("") not in whole and time.time() - file.stat().st_mtime > _LEFT_SECONDS:
                    file.unlink()


def fits_on_disk(root: Path, needed: int) -> bool:
    """Say whether `needed` bytes leave half of the free disk alone."""
    nearest = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    return needed <= shutil.disk_usage(nearest).free // 2 and needed <= _MOST_BYTES


def _key(ids: Ids) -> bytes:
    return hashlib.blake2b(np.asarray(ids, "<u4").tobytes(), digest_size=16).digest()


def _parts(sequences: Sequence[Ids], tokens: int) -> Iterable[list[Ids]]:
    """Yield the sequences in parts of at most so many tokens (or one sequence)."""
    part: list[Ids] = []
    size = 0
    for ids in sequences:
        if part and size + len(ids) > tokens:
            yield part
            part, size = [], 0
        part.append(ids)
        size += len(ids)
    if part:
        yield part
