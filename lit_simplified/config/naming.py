"""Names and digests of blocks and runs, from their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import reduce
from types import MappingProxyType
from typing import Any

from lit_simplified.config.own import parse, specs_of
from lit_simplified.config.parsing import to_dict
from lit_simplified.config.presets import plain, preset_of
from lit_simplified.config.schema import BlockConfig, RunConfig
from lit_simplified.config.switches import SWITCHES

_SKIPS = {(True, True): "skips", (False, False): "noskip", (False, True): "noattnskip", (True, False): "nomlpskip"}
"""Two switches in one word: of a parallel block they are one."""
_UNIMPORTANT = MappingProxyType({
    "out_dir": "", "data.cache_dir": "", "trainer.progress_bar": True, "trainer.tensorboard": True,
    "trainer.keep_checkpoint": True, "trainer.inspect_every": 0, "trainer.inspect_heads": 0,
})
"""What decides nothing of a run's result, as it stands in the digest of its id."""


def describe(block: BlockConfig) -> str:
    """A short unique-enough form of the switches for names of runs, e.g. `par-noskip-shaped-vI-pI-rms`.

    A part of your own has the name of its class, and a whole block of your own is nothing else.
    """
    whole = parse(block.own)
    if whole is not None:
        return whole.short
    short = {name: switch[getattr(block, name)].short or str(switch[getattr(block, name)])
             for name, switch in SWITCHES.items()}
    short |= {"attention_skip": _SKIPS[block.attention_skip, block.mlp_skip], "mlp_skip": "",
              "value": f"v{short['value']}", "projection": f"p{short['projection']}"}
    return "-".join(filter(None, short.values()))


def block_id(block: BlockConfig) -> str:
    """A name from the block's content: its switches, and a digest where another field is not that of the setting."""
    bare = plain(block)
    usual = bare == BlockConfig(**bare.switches) and not specs_of(bare)  # type: ignore[arg-type]
    return describe(block) if usual else f"{describe(block)}-{digest(block)}"


def digest(config: Any, *, changes: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Eight hexadecimal digits that stand for a configuration.

    Args:
        config: a dataclass.
        changes: what stands in place of fields, by dotted path: of those that do not count, anything that is always
            the same.
    """
    values = to_dict(config)
    for path, value in changes.items():
        *outer, name = path.split(".")
        reduce(dict.__getitem__, outer, values)[name] = value
    return digest_text(json.dumps(values, sort_keys=True))


def digest_text(text: str) -> str:
    """Eight hexadecimal digits that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_id(config: RunConfig) -> str:
    """Name of a run's folder: preset or switches, seed, and a digest of all that decides its result."""
    name = preset_of(config.model.block) or describe(config.model.block)
    return f"{name}-s{config.seed}-{digest(config, changes=_UNIMPORTANT)}"
