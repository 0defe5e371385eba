"""The transformer block, from its parts (`residual`, `norm`, `linear`, `attention`, `mlp`) by its `factory`."""

from lit_simplified.blocks.factory import build_block

__all__ = ["build_block"]
