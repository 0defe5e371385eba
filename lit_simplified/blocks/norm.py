"""Normalisation at the start of a sub-block.

Shapes: B batch, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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


class LayerNorm(nn.LayerNorm):
    """x -> weight * (x - mean(x)) / sqrt(var(x) + eps) + bias.  (B, T, D) -> (B, T, D)"""

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        return super().forward(x)


NORMS: Mapping[str, Callable[..., nn.Module]] = {"rms": RMSNorm, "layer": LayerNorm, "none": RMSNorm}
"""What builds each norm. Of a block without norms: those that are kept, at the first block and before the head."""


def build_norm(config: BlockConfig, *, width: int) -> nn.Module:
    """The block's kind of normalisation."""
    if parse(config.norm):
        return build_own(config.norm, field="norm", width=width, eps=config.norm_eps)
    if config.norm not in NORMS:
        raise ConfigError("block.norm", config.norm, "nothing builds it: add it to NORMS")
    return NORMS[config.norm](width, eps=config.norm_eps)
