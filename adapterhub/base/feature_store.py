"""Features of texts kept on disk, so that a text is read by a base once, however often rows are judged by it.

A folder holds what one base says under one pooling and dtype.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from adapterhub.folders import cache_root

from .describe import hidden_size
from .features import Embedder, check_pooling, default_pooling
from .record import Base
from .vector_store import Report, VectorStore

# What rows are judged by unless a base is named: chosen in benchmarks/RESULTS.md ("Which features").
DEFAULT_BASE = "all-minilm-l6-v2"


def stored_features(
    base: Base,
    texts: Iterable[str],
    pooling: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    progress: Report | None = None,
    cache: Path | None = None,
) -> np.ndarray:
    """Return float32 [texts, dim], memory-mapped where it is large; only texts that are not known are computed.

    `pooling` None is the base's default; `dtype` is that of the computation. A text longer than the base's context is
    read up to there. Texts stream: memory does not grow with them beyond 24 bytes each. Raises InvalidRequest for a
    text without tokens, AdapterHubError where the disk is full; what was kept before stays.
    """
    pooling = default_pooling(base) if pooling is None else pooling
    check_pooling(pooling)
    embedder: Embedder | None = None

    def compute(missing: list[str], numbers: list[int]) -> np.ndarray:
        nonlocal embedder
        if embedder is None:
            embedder = Embedder(base, pooling, dtype, cut=True)
        return embedder(missing, numbers=numbers).numpy()

    store = feature_store(base, pooling, dtype, cache)
    return store.all(texts, lambda text: text.encode("utf-8", "surrogatepass"), compute, progress)


def feature_store(base: Base, pooling: str, dtype: torch.dtype, cache: Path | None = None) -> VectorStore:
    """Open the store of a base, making it where there is none."""
    name = f"{base.fingerprint.removeprefix('sha256:')[:16]}-{pooling}-{str(dtype).removeprefix('torch.')}"
    root = cache_root() if cache is None else cache
    return VectorStore(root / "features" / name, base.name, hidden_size(base), "features")
