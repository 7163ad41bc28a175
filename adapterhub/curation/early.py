"""Cheap heads watched while they learn: softmax regressions on features, trained in mini-batches, a few epochs each.

What a head gets wrong early, and what it learns and forgets again, says how hard a row is (Paul et al. 2021, "Deep
Learning on a Data Diet"; Toneva et al. 2019, forgetting). Features are read part by part and may be memory-mapped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adapterhub.errors import DataError

from .clusters import parts

_BATCH, _MOMENTUM = 64, 0.9


@dataclass(frozen=True)
class Watch:
    """How heads are watched: how many of them, epochs each, and after which epoch EL2N is taken (from 1)."""

    heads: int = 5
    epochs: int = 10
    early: int = 3
    rate: float = 0.02
    decay: float = 1e-3


@dataclass(frozen=True)
class Observed:
    """What was seen, float32 over rows. A row that no head ever got right was forgotten `epochs` times.

    `el2n` is the mean over heads of the length of (softmax - one-hot) early on, `forgetting` how often a row that was
    right became wrong.
    """

    el2n: np.ndarray
    forgetting: np.ndarray


def watch_heads(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    watch: Watch = Watch(),
    seed: int = 0,
) -> Observed:
    """Train heads on features [rows, dim] and label indices [rows]; return what each row gave them to do.

    Raises DataError for fewer than two classes.
    """
    if len(np.unique(labels)) < 2:
        raise DataError("all rows have the same label; a head needs at least two")
    mean, spread = moments(features)
    el2n, forgotten = np.zeros(len(labels), np.float32), np.zeros(len(labels), np.float32)
    for head in range(watch.heads):
        draw = np.random.default_rng([seed, head])
        weight = np.zeros((features.shape[1] + 1, classes), np.float32)
        speed = np.zeros_like(weight)
        was = np.zeros(len(labels), bool)
        ever, lost = np.zeros(len(labels), bool), np.zeros(len(labels), np.float32)
        for epoch in range(1, watch.epochs + 1):
            _one_epoch(features, labels, (mean, spread), weight, speed, watch, draw)
            errors, right = _judged(features, labels, (mean, spread), weight)
            if epoch == watch.early:
                el2n += errors
            lost += was & ~right
            ever |= right
            was = right
        forgotten += np.where(ever, lost, np.float32(watch.epochs))
    return Observed(el2n / watch.heads, forgotten / watch.heads)


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each dimension, float32 [dim], 1 where it does not vary."""
    total = np.zeros(features.shape[1])
    square = np.zeros(features.shape[1])
    for part in parts(len(features)):
        values = np.asarray(features[part], np.float64)
        total += values.sum(axis=0)
        square += np.square(values).sum(axis=0)
    mean = total / len(features)
    spread = np.sqrt(np.maximum(square / len(features) - np.square(mean), 0.0))
    return mean.astype(np.float32), np.where(spread > 1e-6 * np.abs(mean) + 1e-12, spread, 1.0).astype(np.float32)


def _one_epoch(
    features: np.ndarray,
    labels: np.ndarray,
    scale: tuple[np.ndarray, np.ndarray],
    weight: np.ndarray,
    speed: np.ndarray,
    watch: Watch,
    draw: np.random.Generator,
) -> None:
    """Go through all rows once, in a new order, changing `weight` and `speed` in place."""
    order = draw.permutation(len(labels))
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        inputs = _scaled(features[rows], scale)
        error = _softmax(inputs @ weight)
        error[np.arange(len(rows)), labels[rows]] -= 1.0
        # The step is for inputs of dim values of variance 1; their length must not set it.
        gradient = inputs.T @ error / len(rows) + watch.decay * weight
        speed *= _MOMENTUM
        speed -= watch.rate * gradient
        weight += speed


def _judged(
    features: np.ndarray, labels: np.ndarray, scale: tuple[np.ndarray, np.ndarray], weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the length of the error of each row, and whether it is right."""
    errors, right = np.empty(len(labels), np.float32), np.empty(len(labels), bool)
    for part in parts(len(labels)):
        error = _softmax(_scaled(features[part], scale) @ weight)
        right[part] = error.argmax(axis=1) == labels[part]
        error[np.arange(len(error)), labels[part]] -= 1.0
        errors[part] = np.linalg.norm(error, axis=1)
    return errors, right


def _scaled(features: np.ndarray, scale: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return standardised features with a 1 behind each row: float32 [rows, dim + 1]."""
    values = (np.asarray(features, np.float32) - scale[0]) / scale[1]
    return np.concatenate([values, np.ones((len(values), 1), np.float32)], axis=1)


def _softmax(scores: np.ndarray) -> np.ndarray:
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    found: np.ndarray = raised / raised.sum(axis=1, keepdims=True)
    return found
