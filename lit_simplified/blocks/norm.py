"""Normalisation at the start of a sub-block.

Shapes: B batch, T positions, D width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from lit_simplified.blocks.residual import NO_CONTEXT, Context
from lit_simplified.config import BlockConfig


class RMSNorm(nn.RMSNorm):
    """x -> weight * x / sqrt(mean(x^2) + eps).  (B, T, D) -> (B, T, D)"""

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        # In mixed precision the weight is wider than x, for which torch has no fused kernel.
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class LayerNorm(nn.LayerNorm):
    """x -> weight * (x - mean(x)) / sqrt(var(x) + eps) + bias.  (B, T, D) -> (B, T, D)"""

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        return super().forward(x)


def build_norm(config: BlockConfig, *, width: int) -> nn.Module:
    """The block's kind of normalisation; RMSNorm where the block has none but a place still needs one."""
    kind = LayerNorm if config.norm == "layer" else RMSNorm
    return kind(width, eps=config.norm_eps)
