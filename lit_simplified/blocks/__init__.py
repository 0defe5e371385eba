"""The transformer block, from its parts (`residual`, `norm`, `linear`, `attention`, `mlp`) by its `factory`; and parts
of your own (`own`), which are checked before they train (`check`)."""

from lit_simplified.blocks.factory import build_block
from lit_simplified.blocks.residual import NO_CONTEXT, Context

__all__ = ["NO_CONTEXT", "Context", "build_block"]
