"""Log-probabilities made chunk by chunk, beside those of whole logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adapterhub.training.packed.logprobs import CHUNK, plain_token_logprobs, token_logprobs

HIDDEN, VOCABULARY = 8, 31


def given(count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(count)
    return (
        torch.randn(count, HIDDEN).to(dtype),
        torch.randn(VOCABULARY, HIDDEN).to(dtype),
        torch.randint(VOCABULARY, (count,)),
    )


@pytest.mark.parametrize("count", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_values_and_gradients_are_those_of_whole_logits(count: int) -> None:
    states, output, tokens = given(count, torch.float64)
    upstream = torch.randn(count, dtype=torch.float64)
    results = []
    for function in (token_logprobs, plain_token_logprobs):
        leaf = states.clone().requires_grad_()
        found = function(leaf, output, tokens)
        found.backward(upstream)
        results.append((found.detach(), leaf.grad))
    torch.testing.assert_close(*(value for value, _ in results), rtol=0, atol=1e-12)
    torch.testing.assert_close(*(gradient for _, gradient in results), rtol=0, atol=1e-12)


def test_the_gradient_is_that_of_finite_differences() -> None:
    states, output, tokens = given(5, torch.float64)
    assert torch.autograd.gradcheck(lambda leaf: token_logprobs(leaf, output, tokens), (states.requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_widened_before_the_sum(dtype: torch.dtype) -> None:
    states, output, tokens = given(CHUNK + 9, dtype)
    leaf, reference = states.clone().requires_grad_(), states.clone().requires_grad_()
    found, expected = token_logprobs(leaf, output, tokens), plain_token_logprobs(reference, output, tokens)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found.sum().backward()
    expected.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(leaf.grad, reference.grad, rtol=tolerance, atol=tolerance)


def test_no_gradient_is_computed_where_none_is_asked_for() -> None:
    states, output, tokens = given(3, torch.float32)
    with torch.no_grad():
        found = token_logprobs(states.requires_grad_(), output, tokens)
    assert not found.requires_grad
    assert not token_logprobs(states.detach(), output, tokens).requires_grad


def test_chunks_do_not_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    states, output, tokens = given(20, torch.float64)
    whole = token_logprobs(states, output, tokens)
    monkeypatch.setattr("adapterhub.training.packed.logprobs.CHUNK", 3)
    torch.testing.assert_close(token_logprobs(states, output, tokens), whole, rtol=0, atol=1e-12)
    states[4] = torch.nan
    broken = token_logprobs(states, output, tokens)
    assert broken.isnan().nonzero().flatten().tolist() == [4]
