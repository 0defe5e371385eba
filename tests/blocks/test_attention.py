"""The attention variants against the explicit (T, T) formula, in float64, values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lit_simplified.blocks.attention import ShapedMixing, SkipInitMixing, SoftmaxMixing, attend, uniform_mean
from lit_simplified.blocks.residual import NO_CONTEXT, Context

B, H, K = 3, 2, 4
LENGTHS = (1, 2, 7, 64, 129)


def explicit(mixing: SoftmaxMixing, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None) -> Tensor:
    """alpha*I + beta*A - gamma*C written out as the paper has it (Eq. 4 and 5), with every (T, T) matrix."""
    length = query.shape[-2]
    may = torch.ones(length, length, dtype=torch.bool)
    may = may.tril() if mixing.causal else may
    may = may.expand(B, 1, length, length)
    if attention_mask is not None:
        may = may & attention_mask[:, None, None, :]
    scores = query @ key.transpose(-1, -2) / math.sqrt(K)

    def softmax(s: Tensor) -> Tensor:
        return s.masked_fill(~may, -math.inf).softmax(-1).nan_to_num(0.0)  # rows with no allowed key: zero

    matrix = softmax(scores)
    if isinstance(mixing, SkipInitMixing):
        matrix = mixing.alpha * torch.eye(length) + mixing.beta * matrix
    if isinstance(mixing, ShapedMixing):
        matrix = matrix - mixing.gamma * softmax(torch.zeros_like(scores))
    return matrix @ value


def mixings(causal: bool) -> list[SoftmaxMixing]:
    return [
        SoftmaxMixing(causal=causal),
        SkipInitMixing(heads=H, causal=causal, alpha=0.7, beta=0.4),
        ShapedMixing(heads=H, causal=causal, alpha=0.9, beta=1.3, gamma=0.6),
    ]


def masks(length: int) -> dict[str, Tensor | None]:
    right = torch.arange(length) < torch.tensor([[length], [max(1, length // 2)], [0]])  # the last row: all padding
    holes = torch.rand(B, length, generator=torch.Generator().manual_seed(1)) < 0.6
    return {"none": None, "right": right, "left": right.flip(-1), "holes": holes}


@pytest.mark.parametrize("mask", ["none", "right", "left", "holes"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_explicit_formula(length: int, causal: bool, mask: str) -> None:
    torch.manual_seed(length)
    torch.set_default_dtype(torch.float64)
    try:
        for mixing in mixings(causal):
            for gain in mixing.parameters():  # a value of its own for every head
                gain.data += torch.randn_like(gain) / 5
            attention_mask = masks(length)[mask]
            context = NO_CONTEXT if attention_mask is None else Context(attention_mask)
            leaves = [torch.randn(B, H, length, K, requires_grad=True) for _ in range(3)]
            inputs = [*leaves, *mixing.parameters()]
            weights = torch.randn(B, H, length, K)
            ours, theirs = mixing(*leaves, context), explicit(mixing, *leaves, attention_mask)
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
            gradients = [
                torch.autograd.grad((y * weights).sum(), inputs, allow_unused=True, materialize_grads=True)
                for y in (ours, theirs)
            ]
            torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-10)
    finally:
        torch.set_default_dtype(torch.float32)


def test_variants_differ() -> None:
    """The parity above compares different functions: with equal inputs, the three give three results."""
    torch.manual_seed(0)
    inputs = [torch.randn(B, H, 9, K) for _ in range(3)]
    results = [mixing(*inputs) for mixing in mixings(causal=True)]
    assert not torch.allclose(results[0], results[1])
    assert not torch.allclose(results[1], results[2])


@pytest.mark.parametrize("causal", [True, False])
def test_no_matrix_over_positions_is_built(causal: bool) -> None:
    """Neither forward nor backward makes a tensor of T*T elements, with or without a mask."""
    from torch.utils._python_dispatch import TorchDispatchMode

    length, largest = 512, 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes() // tensor.element_size())
            return result

    mixing = ShapedMixing(heads=1, causal=causal, alpha=1.0, beta=1.0, gamma=1.0)
    inputs = [torch.randn(1, 1, length, 8, requires_grad=True) for _ in range(3)]
    for context in (NO_CONTEXT, Context(torch.arange(length)[None] < 300)):
        with Largest():
            mixing(*inputs, context).sum().backward()
    assert 0 < largest < length * length / 8


def test_running_mean_keeps_its_precision_in_bfloat16() -> None:
    """Ones stay ones over 4,000 positions; a bfloat16 sum would stop at 256."""
    value = torch.ones(1, 1, 4000, 2, dtype=torch.bfloat16)
    assert torch.equal(uniform_mean(value, causal=True), value)


def test_mean_is_attention_with_zero_scores() -> None:
    """C is A where all query-key products are 0 (Noci et al. 2023): checked against the kernel itself."""
    torch.manual_seed(0)
    value = torch.randn(B, H, 17, K, dtype=torch.float64)
    zero, key = torch.zeros_like(value), torch.randn_like(value)
    for causal in (True, False):
        mixed = attend(zero, key, value, causal=causal)
        torch.testing.assert_close(mixed, uniform_mean(value, causal=causal).expand_as(mixed), rtol=1e-12, atol=1e-12)
