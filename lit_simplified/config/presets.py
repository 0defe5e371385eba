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

SETTINGS: Mapping[Task, Mapping[str, Any]] = MappingProxyType({
    "clm": MappingProxyType({}),
    "mlm": MappingProxyType({  # the paper's b_FF is 0.05 at 16 blocks
        "norm": "layer", "norm_eps": 1e-12, "activation": "gelu", "glu": True,
        "mlp_gain_at_18": 0.05 * math.sqrt(16 / 18),
    }),
})
"""What takes the place of a block's defaults in a task: the paper's crammed setting for mlm, the defaults for clm."""

SHARED = tuple(dict.fromkeys(name for setting in SETTINGS.values() for name in setting))
"""The fields that some task's setting gives to all its blocks."""


def preset(name: str, *, task: Task = "clm") -> BlockConfig:
    """The named block in the setting of a task, or a `ConfigError` that lists the known names."""
    if name not in PRESETS:
        raise ConfigError("preset", name, f"choose one of {', '.join(PRESETS)}")
    return in_setting(PRESETS[name], task)


def in_setting(block: BlockConfig, task: Task) -> BlockConfig:
    """A block in the setting of a task, which changes what is at its default and nothing else."""
    return replace(block, **{name: value for name, value in SETTINGS[task].items()
                             if getattr(block, name) == getattr(PRE_LN, name)})


def plain(block: BlockConfig) -> BlockConfig:
    """A block without what the setting of a task gives to all its blocks; one of no setting as it is."""
    for task, setting in sorted(SETTINGS.items(), key=lambda item: -len(item[1])):  # that of clm changes nothing
        at_default = {name: getattr(PRE_LN, name) for name, value in setting.items() if getattr(block, name) == value}
        bare = replace(block, **at_default)
        if in_setting(bare, task) == block:
            return bare
    return block


def preset_of(block: BlockConfig) -> str:
    """The name of a block that is exactly a preset in the setting of some task, or the empty string."""
    return next((name for name, known in PRESETS.items()
                 if any(in_setting(known, task) == block for task in SETTINGS)), "")
