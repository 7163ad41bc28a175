"""Clusters of features, made in mini-batches so that a million rows need no more memory than ten thousand."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import numpy as np

from adapterhub.errors import DataError

_BATCH, _STEPS = 8192, 60
_IN_MEMORY = 64 << 20


def directions(features: np.ndarray) -> np.ndarray:
    """Return float32 vectors of length 1; a zero vector stays what it is."""
    given = np.asarray(features, np.float32)
    lengths = np.linalg.norm(given, axis=1, keepdims=True)
    found: np.ndarray = given / np.where(lengths > 0, lengths, 1.0)
    return found


def parts(rows: int, size: int = 16_384) -> Iterator[slice]:
    """Yield the slices of so many rows."""
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def picked(features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return features[rows] for ascending rows: all of them as they are, many of them in a file without a name."""
    if len(rows) == len(features):
        return features
    if len(rows) * features.shape[1] * 4 <= _IN_MEMORY:
        return np.asarray(features[rows])
    with tempfile.TemporaryFile() as file:
        for part in parts(len(rows)):
            file.write(np.asarray(features[rows[part]], np.float32).tobytes())
        file.flush()
        return np.memmap(file, np.float32, "c", shape=(len(rows), features.shape[1]))


def cluster(features: np.ndarray, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return centroids float32 [count, dim] of the features' directions, and int64 [rows], the nearest of each row.

    Raises DataError for fewer rows than clusters.
    """
    from sklearn.cluster import MiniBatchKMeans

    if len(features) < count:
        raise DataError(f"{len(features)} rows make no {count} clusters; ask for fewer")
    if count == 1:
        mean = sum((directions(features[part]).sum(axis=0) for part in parts(len(features))), np.float32(0))
        return directions(np.asarray(mean)[None]), np.zeros(len(features), np.int64)
    model = MiniBatchKMeans(count, random_state=seed, batch_size=_BATCH, n_init=1)
    if len(features) <= 4 * _BATCH:
        model.fit(directions(features))
    else:
        draw = np.random.default_rng(seed)
        for _ in range(_STEPS):
            rows = np.sort(draw.choice(len(features), max(_BATCH, count), replace=False))
            model.partial_fit(directions(features[rows]))
    nearest = [model.predict(directions(features[part])) for part in parts(len(features))]
    return np.asarray(model.cluster_centers_, np.float32), np.concatenate(nearest).astype(np.int64)
