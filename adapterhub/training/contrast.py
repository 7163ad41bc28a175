"""Contrastive learning of text vectors: of all texts of a batch, the right ones shall be the nearest, both ways.

The loss is InfoNCE (van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018) over
cosine similarities and in-batch negatives, symmetric as in Radford et al. 2021 (CLIP). What is right besides a row's
own pair (the same positive in another row, another positive of the same text) is no negative and is masked.

All on plain tensors. A batch holds for each row its text, its positive and perhaps a hard negative; `roles`
(rows.FIRST, SECOND, NEGATIVE) say which is which, and equal texts have equal `keys`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from adapterhub.metrics import ranks

from .rows import FIRST, NEGATIVE, SECOND


def unit(vectors: Tensor) -> Tensor:
    """Return `vectors` [rows, hidden] with length 1, in float32 or wider."""
    return functional.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)


def contrastive_losses(vectors: Tensor, roles: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Return a loss a row, [rows]: the mean of choosing its positive for its text and its text for its positive.

    `vectors` [sequences, hidden] need no length of 1; `roles` and `keys` are [sequences]. A text chooses among all
    positives and all hard negatives of the batch, a positive among all texts.
    """
    found = unit(vectors)
    texts, positives = found[roles == FIRST], found[roles == SECOND]
    candidates = torch.cat([positives, found[roles == NEGATIVE]])
    right = _right(roles, keys)
    own = torch.arange(len(texts), device=vectors.device)
    forward = _losses(texts @ candidates.T / temperature, right, own)
    backward = _losses(positives @ texts.T / temperature, right[:, : len(texts)].T, own)
    return (forward + backward) / 2


def _right(roles: Tensor, keys: Tensor) -> Tensor:
    """Return [rows, candidates]: whether a candidate is a positive of the row's text, in this row or in another."""
    texts, positives = keys[roles == FIRST], keys[roles == SECOND]
    candidates = torch.cat([positives, keys[roles == NEGATIVE]])
    same_text = texts[:, None] == texts[None, :]
    is_positive = positives[:, None] == candidates[None, :]
    return (same_text.float() @ is_positive.float()) > 0


def _losses(logits: Tensor, right: Tensor, own: Tensor) -> Tensor:
    """Return the cross-entropy of each row's own candidate; others that are right too take no part."""
    aside = right.clone()
    aside[own, own] = False
    return functional.cross_entropy(logits.masked_fill(aside, -torch.inf), own, reduction="none")


def recall_at_1(vectors: Tensor, roles: Tensor, keys: Tensor) -> float:
    """Return the share of texts whose nearest text is a right one, among all different positives and hard negatives."""
    found, names = unit(vectors), keys.tolist()
    kinds: Sequence[int] = roles.tolist()
    pool: dict[int, int] = {}
    for index, role in enumerate(kinds):
        if role != FIRST:
            pool.setdefault(names[index], index)
    place = {key: number for number, key in enumerate(pool)}
    texts = [index for index, role in enumerate(kinds) if role == FIRST]
    own = [place[names[index]] for index, role in enumerate(kinds) if role == SECOND]
    right: dict[int, set[int]] = defaultdict(set)
    for text, positive in zip(texts, own, strict=True):
        right[names[text]].add(positive)
    queries, candidates = found[texts].cpu().numpy(), found[list(pool.values())].cpu().numpy()
    places = ranks(queries, candidates, own, [right[names[text]] for text in texts])
    return sum(rank == 1 for rank in places) / len(places)
