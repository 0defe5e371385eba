"""Running sums over positions.

Shapes: B batch, T positions, D width, N chunks, C positions of a chunk (T = N*C).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LONGEST = 16
"""The most positions of a chunk."""
FEWEST = 2**17
"""Numbers that are summed in chunks at least: from there on that takes a quarter to four fifths of the time of
`cumsum`, at 128 to 8,192 positions and widths of 64 to 768, unless the length is prime; with fewer, calls to the
kernels take longer than sums."""


def running_sum(x: Tensor) -> Tensor:
    """`x.cumsum(1)`, which torch computes on a CPU number by number.  (B, T, D) -> (B, T, D)"""
    if x.device.type != "cpu" or x.numel() < FEWEST or torch.compiler.is_compiling():
        return x.cumsum(1)
    return _RunningSum.apply(x)


class _RunningSum(torch.autograd.Function):
    """The sum of all positions up to each; its gradient is the sum of all from each on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _scan(x, reverse=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _scan(gradient, reverse=True)


def _scan(x: Tensor, *, reverse: bool) -> Tensor:
    """The sums up to each position, or from each position on: inside all chunks at once, then over chunks."""
    size = max(divisor for divisor in range(1, LONGEST + 1) if x.shape[1] % divisor == 0)
    sums = x.clone(memory_format=torch.contiguous_format).unflatten(1, (-1, size))  # (B, N, C, D)
    places = sums.unbind(2)[::-1] if reverse else sums.unbind(2)  # C times (B, N, D)
    for before, here in pairwise(places):
        here.add_(before)
    totals = places[-1]
    if reverse:
        sums[:, :-1].add_(totals[:, 1:].flip(1).cumsum(1).flip(1)[:, :, None])
    else:
        sums[:, 1:].add_(totals[:, :-1].cumsum(1)[:, :, None])
    return sums.flatten(1, 2)
