"""How the parts of a block are put together: one after the other, beside each other, with or without a skip.

Every part maps `(x, context)` to a tensor shaped like `x`; a part that a configuration removes is not built.

Shapes: B batch, T positions, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_simplified.blocks.kv_cache import KVCache


class Context(NamedTuple):
    """What a part may need beside `x`. Immutable; one object serves all blocks of a forward pass."""

    attention_mask: Tensor | None = None
    """(B, T) bool: true where a position may be attended to. None: everywhere."""
    kv_cache: KVCache | None = None
    """What was read before `x`, to which `x` is added. None: `x` is all there is, and nothing is kept of it."""


NO_CONTEXT = Context()


class Chain(nn.Module):
    """x -> last(...(first(x))).  (B, T, D) -> (B, T, D)"""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        for part in self.children():
            x = part(x, context)
        return x


class Skip(Chain):
    """x -> x + last(...(first(x))).  (B, T, D) -> (B, T, D)"""

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        return x + super().forward(x, context)


class Sum(Chain):
    """x -> first(x) + ... + last(x).  (B, T, D) -> (B, T, D)"""

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        first, *others = self.children()
        total = first(x, context)
        for part in others:
            total = total + part(x, context)
        return total


class Gain(nn.Module):
    """x -> gain * x, with one scalar, trained or fixed (b_SA, b_FF, a_FF of Eq. 1).  (B, T, D) -> (B, T, D)"""

    def __init__(self, initial: float, *, trainable: bool) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(float(initial)), requires_grad=trainable)

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        return self.gain.to(x.dtype) * x

    def extra_repr(self) -> str:
        return f"{self.gain.item():.3g}, trainable={self.gain.requires_grad}"
