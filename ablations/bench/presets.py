"""What is measured at which size: `small`, `paper`, `crammed`, `long`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from lit_simplified.config import BlockConfig, ConfigError, DataConfig, ModelConfig, OptimConfig, RunConfig, Task

GROUPS = ("blocks", "terms", "explicit", "peers", "length", "decode")
LENGTHS = tuple(2**power for power in range(7, 14))
"""T of the group `length`: 128 to 8192."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A size, and the groups of comparisons made at it."""

    text: str
    """One line of help."""
    model: ModelConfig
    batch: int
    """Windows per step, B."""
    task: Task = "clm"
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields set in every block, e.g. its activation."""
    groups: tuple[str, ...] = ("blocks", "terms", "explicit", "peers", "decode")
    cut: Mapping[str, int] = field(default_factory=dict)
    """Fields of the model, and `batch`, that are smaller on a CPU."""

    def on(self, device: str) -> Preset:
        """The preset as it is measured on `cpu` or `cuda`."""
        if device != "cpu":
            return self
        model: dict[str, Any] = {name: value for name, value in self.cut.items() if name != "batch"}
        return replace(self, model=replace(self.model, **model), batch=self.cut.get("batch", self.batch), cut={})

    def block(self, block: BlockConfig) -> BlockConfig:
        """A block with this preset's changes."""
        return replace(block, **self.changes)

    def run(self, block: BlockConfig, **model: Any) -> RunConfig:
        """The training run whose step is measured: this size with a block; `model` changes further fields."""
        shape = replace(self.model, block=self.block(block), **model)
        return RunConfig(task=self.task, model=shape, data=DataConfig(batch_size=self.batch), optim=OptimConfig())


BENCH_PRESETS: Mapping[str, Preset] = MappingProxyType({
    "small": Preset(
        text="6 blocks, width 256, 8 heads, T 128, batch 16, vocabulary 8192: minutes on one core",
        model=ModelConfig(depth=6, width=256, heads=8, context=128, vocab_size=8192), batch=16,
    ),
    "paper": Preset(
        text="the paper's: 18 blocks, width 768, 12 heads, T 128, batch 128, vocabulary 50257; "
             "on a CPU 4 blocks, batch 8, vocabulary 2048",
        model=ModelConfig(depth=18, width=768, heads=12, context=128, vocab_size=50_257), batch=128,
        cut={"depth": 4, "vocab_size": 2048, "batch": 8},
    ),
    "crammed": Preset(
        text="masked language model: 16 non-causal blocks, width 768, 12 heads, GELU with GLU, T 128, batch 128, "
             "vocabulary 32768; on a CPU 2 blocks, batch 8, vocabulary 2048",
        model=ModelConfig(depth=16, width=768, heads=12, context=128, vocab_size=32_768, causal=False), batch=128,
        task="mlm", changes={"glu": True, "activation": "gelu"}, groups=("blocks", "terms", "explicit", "peers"),
        cut={"depth": 2, "vocab_size": 2048, "batch": 8},
    ),
    "long": Preset(
        text="2 blocks, width 256, 8 heads, vocabulary 1024, T from 128 to 8192 at 8192 tokens per step (4096 with "
             "less than 8 GiB of free memory)",
        model=ModelConfig(depth=2, width=256, heads=8, context=LENGTHS[-1], vocab_size=1024), batch=1,
        groups=("length",),
    ),
})


def bench_preset(name: str) -> Preset:
    """The preset of this name, or a `ConfigError` that lists the known ones."""
    if name not in BENCH_PRESETS:
        raise ConfigError("--preset", name, f"choose one of {', '.join(BENCH_PRESETS)}")
    return BENCH_PRESETS[name]
