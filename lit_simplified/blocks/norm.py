"""Normalisation at the start of a sub-block.

Shapes: B batch, T positions, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_simplified.blocks.own import build_own
from lit_simplified.blocks.residual import NO_CONTEXT, Context
from lit_simplified.config import BlockConfig, ConfigError
from lit_simplified.config.own import parse


class RMSNorm(nn.RMSNorm):
    """x -> weight * x / sqrt(mean(x^2) + eps).  (B, T, D) -> (B, T, D)"""

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        # In mixed precision the weight is wider than x, for which torch has no fused kernel.
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class RMSNormEpsOutside(nn.RMSNorm):
    """x -> weight * x / (sqrt(mean(x^2)) + eps), as in the authors' code.  (B, T, D) -> (B, T, D)"""

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide) / math.sqrt(x.shape[-1])
        return self.weight.to(x.dtype) * (x / (rms + self.eps)).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """x -> weight * (x - mean(x)) / sqrt(var(x) + eps) + bias.  (B, T, D) -> (B, T, D)"""

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        return super().forward(x)


NORMS: Mapping[str, Callable[..., nn.Module]] = {"rms": RMSNorm, "layer": LayerNorm, "none": RMSNorm}
"""What builds each norm. Of a block without norms: those that are kept, at the first block and before the head."""


def build_norm(config: BlockConfig, *, width: int, outer: bool = False) -> nn.Module:
    """The block's kind of normalisation; `outer`: that before the head, or kept at the first block."""
    kind = config.resolved_outer_norm if outer else config.norm
    if parse(kind):
        return build_own(kind, field="norm", width=width, eps=config.norm_eps)
    if kind not in NORMS:
        raise ConfigError("block.norm", kind, "nothing builds it: add it to NORMS")
    outside = config.norm_eps_outside and NORMS[kind] is RMSNorm
    return (RMSNormEpsOutside if outside else NORMS[kind])(width, eps=config.norm_eps)
