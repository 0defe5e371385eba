"""lit-simplified: which parts of the transformer block are needed?

Names load on first use, so that `lit_simplified.config` can be read without torch, and blocks and model without
Lightning's trainer, the tokenizers or the data sets.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_simplified.blocks.factory import build_block
    from lit_simplified.config import PRESETS, BlockConfig, ConfigError, ModelConfig, RunConfig
    from lit_simplified.model import Transformer
    from lit_simplified.train import CurvePoint, RunResult, fit

_HOMES = {
    "config": ("PRESETS", "BlockConfig", "ConfigError", "ModelConfig", "RunConfig"),
    "blocks.factory": ("build_block",),
    "model": ("Transformer",),
    "train": ("CurvePoint", "RunResult", "fit"),
}

__all__ = [
    "PRESETS", "BlockConfig", "ConfigError", "CurvePoint", "ModelConfig", "RunConfig", "RunResult", "Transformer",
    "build_block", "fit",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
