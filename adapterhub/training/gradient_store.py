"""Gradients of rows kept on disk as features are: which way each row would push a fresh adapter, computed once.

Every row is a text and what is to be written after it. A classification's rows are told as text and label: the base's
own output layer then says what is wrong with a row before anything has learnt, and rows of tasks with other labels can
be compared, which a head for each could not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from adapterhub.base.architecture import read_config
from adapterhub.base.llama import is_trainable, read_shape
from adapterhub.base.load import compute_dtype, load_tokenizer
from adapterhub.base.record import Base
from adapterhub.base.vector_store import Report, VectorStore
from adapterhub.data.task import TaskSpec
from adapterhub.data.tokens import encode_completion
from adapterhub.errors import UsageError
from adapterhub.folders import cache_root
from adapterhub.recipe import Recipe

from .job import TrainingJob
from .machine import fit_threads
from .packed.gradients import RowGradients
from .packed.network import PackedNetwork
from .rows import Row

# Tokens of a row that are read, since gradients take the memory of its activations: the text's end gives way.
LONGEST = 512


@dataclass(frozen=True)
class Adapter:
    """Which adapter is asked: rank of its pairs, on all linear modules of how many of the upper layers, drawn by what.

    `dimensions` are those of the vectors, a multiple of 8. Chosen in benchmarks/RESULTS.md ("Influence").
    """

    layers: int = 4
    rank: int = 8
    dimensions: int = 512
    seed: int = 0


def stored_gradients(
    base: Base,
    rows: Iterable[tuple[str, str]],
    adapter: Adapter = Adapter(),
    *,
    precision: str = "auto",
    progress: Report | None = None,
    cache: Path | None = None,
) -> np.ndarray:
    """Return float32 [rows, dimensions] of length 1 for each (text, what is written after it), memory-mapped if large.

    Only rows that are not known are computed, and they stream. Raises UsageError for a base that is not of the Llama
    family, BaseError where it cannot be used, AdapterHubError where the disk is full; what was kept before stays.
    """
    config = read_config(base.path)
    if not is_trainable(config):
        raise UsageError(
            f"influence is told by gradients, which are taken on decoders of the Llama family, and base {base.name!r} "
            "is none; name another, such as smollm2-135m-instruct"
        )
    dtype = compute_dtype(precision)
    shape = read_shape(config)
    depth = min(adapter.layers, shape.layers)
    said = f"top{depth}-rank{adapter.rank}-{adapter.dimensions}-{adapter.seed}"
    name = f"{base.fingerprint.removeprefix('sha256:')[:16]}-{said}-{str(dtype).removeprefix('torch.')}"
    root = cache_root() if cache is None else cache
    store = VectorStore(root / "gradients" / name, base.name, adapter.dimensions)
    ask: RowGradients | None = None

    def compute(missing: list[Row], _: list[int]) -> np.ndarray:
        nonlocal ask
        if ask is None:
            fit_threads(shape.hidden, dtype, torch.device("cpu"))
            ask = _fresh(base, adapter, depth, precision)
        return ask(missing)

    return store.all(_encoded(base, rows), _key, compute, progress)


def _fresh(base: Base, adapter: Adapter, depth: int, precision: str) -> RowGradients:
    network = PackedNetwork(base, precision, torch.device("cpu"))
    recipe = Recipe.model_validate(
        {
            "task": "influence",
            "base": base.name,
            "kind": "generation",
            "data": {"train": "rows"},
            "lora": {"rank": adapter.rank, "layers": f"top-{depth}", "dropout": 0.0},
            "training": {"seed": adapter.seed},
            "path": Path("influence.yaml"),
        }
    )
    learner = network.learner(TrainingJob(recipe, base, TaskSpec("generation", base.fingerprint, LONGEST), ()))
    return RowGradients(network, learner, adapter.dimensions, adapter.seed)


def _encoded(base: Base, rows: Iterable[tuple[str, str]]) -> Iterator[Row]:
    tokenizer = load_tokenizer(base, require_pad=False)
    most = min(LONGEST, base.context_length)
    for text, written in rows:
        answer = encode_completion(tokenizer, written)[: most - 1]
        asked = [int(token) for token in tokenizer(f"{text}\n")["input_ids"]][: most - len(answer)]
        yield Row((*asked, *answer), len(asked), (), 1.0, "")


def _key(row: Row) -> bytes:
    return np.asarray([row.start, *row.ids], "<u4").tobytes()
