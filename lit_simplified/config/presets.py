"""The named blocks, and what the blocks of a task have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from lit_simplified.config.errors import ConfigError
from lit_simplified.config.schema import BlockConfig, Task

PRE_LN = BlockConfig()
PARALLEL = replace(PRE_LN, layout="parallel")
SAS = replace(PRE_LN, attention_skip=False, attention="shaped", value="identity", projection="identity")
SAS_P = replace(SAS, layout="parallel", mlp_skip=False)

PRESETS: Mapping[str, BlockConfig] = MappingProxyType({
    "pre_ln": PRE_LN,
    "parallel": PARALLEL,
    "v_skipinit": replace(PRE_LN, attention_skip=False, attention="skipinit"),
    "shaped_orthogonal": replace(PRE_LN, attention_skip=False, attention="shaped"),
    "naive_skipless": replace(PRE_LN, attention_skip=False),
    "sas": SAS,
    "sas_p": SAS_P,
    "sas_p_no_norm": replace(SAS_P, norm="none"),
})
"""The named blocks, each a small change of another (paper, sections 4 and 5; `shaped_orthogonal` after the authors'
script: the second curve of Fig. 2)."""

AUTHORS: Mapping[str, Any] = MappingProxyType({
    "model.block.norm_eps": 1e-5, "model.block.norm_eps_outside": True, "model.block.outer_norm": "layer",
    "model.block.query_key_bias": True, "model.block.all_gains": True,
    "model.positions": "learned", "model.init_std": 0.02, "model.embedding_rms": 0.02, "data.windows": "document",
})
"""The fields of `RunConfig` in which the authors' released code differs from the paper's text, whatever the scale and
the block (`docs/authors.md`)."""

BUNDLES: Mapping[str, Mapping[str, Any]] = MappingProxyType({"authors": AUTHORS})
"""What `settings: NAME` stands for, by dotted path."""

SETTINGS: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    "clm": MappingProxyType({}),
    "mlm": MappingProxyType({  # the paper's b_FF is 0.05 at 16 blocks
        "norm": "layer", "norm_eps": 1e-12, "activation": "gelu", "glu": True,
        "mlp_gain_at_18": 0.05 * math.sqrt(16 / 18),
    }),
    "authors": MappingProxyType({
        path.removeprefix("model.block."): value for path, value in AUTHORS.items() if path.startswith("model.block.")
    }),
})
"""What takes the place of a block's defaults in a task: the paper's crammed setting for mlm, the defaults for clm; and
in the authors' settings."""

SHARED = tuple(SETTINGS["mlm"])
"""The fields that some task's setting gives to all its blocks."""


def preset(name: str, *, task: Task = "clm") -> BlockConfig:
    """The named block in the setting of a task, or a `ConfigError` that lists the known names."""
    if name not in PRESETS:
        raise ConfigError("preset", name, f"choose one of {', '.join(PRESETS)}")
    return in_setting(PRESETS[name], task)


def in_setting(block: BlockConfig, setting: str) -> BlockConfig:
    """A block in the setting of a task, or in the authors', which changes what is at its default and nothing else."""
    return replace(block, **{name: value for name, value in SETTINGS[setting].items()
                             if getattr(block, name) == getattr(PRE_LN, name)})


def bundle(name: Any, *, where: str = "settings") -> Mapping[str, Any]:
    """The fields of a bundle by dotted path, or a `ConfigError` that lists the known names."""
    if not isinstance(name, str) or name not in BUNDLES:
        raise ConfigError(where, name, f"choose {', '.join(BUNDLES)}, or leave it out")
    return BUNDLES[name]


def plain(block: BlockConfig) -> BlockConfig:
    """A block without what the setting of a task gives to all its blocks; one of no setting as it is."""
    for place, setting in sorted(SETTINGS.items(), key=lambda item: -len(item[1])):  # that of clm changes nothing
        at_default = {name: getattr(PRE_LN, name) for name, value in setting.items() if getattr(block, name) == value}
        bare = replace(block, **at_default)
        if in_setting(bare, place) == block:
            return bare
    return block


def preset_of(block: BlockConfig) -> str:
    """The name of a block that is exactly a preset in some setting, or the empty string."""
    return next((name for name, known in PRESETS.items()
                 if any(in_setting(known, setting) == block for setting in SETTINGS)), "")
