"""The gradient of every row by itself: the same as autograd's, row by row, and rows of one task have much alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adapterhub.training.objectives import Generation
from adapterhub.training.packed import gradients
from adapterhub.training.packed.gradients import RowGradients
from adapterhub.training.rows import Row
from tests.training.networks import FAMILIES, job_of, packed_of, peft_gradients, peft_of, rows_of, turn_of

DIMENSIONS = 64


def plain_rows() -> list[Row]:
    """Rows of several lengths, some of which begin alike, each of weight 1 or less."""
    return rows_of("generation")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", ["all", "top-1"])
def test_they_are_those_of_autograd_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, layers: str
) -> None:
    job = job_of(tmp_path, "generation", family, lora={"layers": layers, "rank": 2, "alpha": 3.0})
    packed, learner = packed_of(job)
    slow, reference = peft_of(job)
    with torch.no_grad():
        for name, tensor in reference.saved().items():
            tensor.copy_(learner.saved()[name])
    monkeypatch.setattr(gradients, "LINE_TOKENS", 40)  # several lines, and one row longer than the others
    rows = plain_rows()
    found = RowGradients(packed, learner, DIMENSIONS)(rows)
    wanted = np.zeros_like(found)
    for place, row in enumerate(rows):
        slow.learn([turn_of(reference, Generation(), [row])])
        given = peft_gradients(reference)
        for site in learner.adapter.sites:
            grad = given[f"{learner.name_of(site)}.lora_B.weight"]  # [out, rank]
            drawn = np.random.default_rng([0, site.layer, site.stack, site.index])
            bits = np.unpackbits(np.frombuffer(drawn.bytes(grad.numel() * DIMENSIONS // 8), np.uint8))
            signs = 2.0 * bits.reshape(-1, DIMENSIONS) - 1.0
            wanted[place] += grad.T.flatten().numpy() @ signs
            assert not given[f"{learner.name_of(site)}.lora_A.weight"].any(), "B is zero"
        reference.clear()
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    assert not any(p.grad.any() for p in learner.parameters().values() if p.grad is not None)


def test_company_order_and_line_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, learner = packed_of(job_of(tmp_path, "generation", lora={"rank": 2}))
    ask, rows = RowGradients(packed, learner, DIMENSIONS), plain_rows()
    together = ask(rows)
    np.testing.assert_allclose(ask(rows[::-1])[::-1], together, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([ask([row]) for row in rows]), together, atol=1e-5)
    assert ask([]).shape == (0, DIMENSIONS)
    doubled = [replace(row, weight=2 * row.weight) for row in rows]
    np.testing.assert_allclose(ask(doubled), together, atol=1e-5)
    assert not np.allclose(
        RowGradients(*packed_of(job_of(tmp_path / "b", "generation", lora={"rank": 2})), 64, 1)(rows),
        together,
        atol=0.1,
    )
