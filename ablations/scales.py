"""How large a study is: what one cell trains, which blocks and seeds, how long the speed pass takes.

Imports no torch, except `detect`.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from ablations import space
from lit_simplified.config import (
    BlockConfig,
    ConfigError,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    Task,
    TrainerConfig,
    from_dict,
    to_dict,
)

OWNED = ("task", "seed", "out_dir")
"""Fields of RunConfig that are not overridden, because cells and the command line decide them; as the block."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of a study."""

    template: RunConfig
    """What every cell trains; block, seed and learning rate are put in."""
    whole_grid: bool = True
    """Every block of the grid. False: the named blocks alone, those outside the grid included."""
    seeds: tuple[int, ...] = (0,)
    """Of every block. Paired: one seed gives every block the same data in the same order."""
    preset_seeds: tuple[int, ...] = ()
    """Further seeds of the named blocks."""
    speed_rounds: int = 9
    """Paired comparisons with Pre-LN per block. From nine on one outlier does not widen the interval of the median."""
    speed_burst: int = 1
    """Training steps per burst of the speed pass."""
    keep_checkpoints: str = "none"
    """Whose last checkpoints stay when their cells are finished: none, best (of every block), all, or a number."""

    def blocks(self) -> tuple[BlockConfig, ...]:
        """What is trained when no names are given."""
        task = self.template.task
        return space.grid(task) if self.whole_grid else space.named(task=task)


def _quiet(**changes: Any) -> TrainerConfig:
    """A cell's trainer: no bar (the study has its own table). Which checkpoints stay is the study's to say."""
    return replace(TrainerConfig(progress_bar=False, keep_checkpoint=False), **changes)


SMOKE = Scale(
    template=RunConfig(
        model=ModelConfig(depth=2, width=32, heads=2, context=64, vocab_size=512),
        data=DataConfig(batch_size=4, val_windows=32, test_windows=32),
        optim=OptimConfig(steps=20, learning_rate=3e-3),
        trainer=_quiet(val_every=10, checkpoint_every=10),
    ),
)
SMALL = Scale(
    template=RunConfig(
        model=ModelConfig(depth=6, width=64, heads=4, context=128, vocab_size=1024),
        data=DataConfig(batch_size=8, val_windows=128, test_windows=128),
        # A twentieth of so few steps would be a warm-up of a dozen: too short for any block at this learning rate.
        optim=OptimConfig(steps=250, learning_rate=1e-2, warmup=0.2),
        trainer=_quiet(val_every=50, checkpoint_every=50),
    ),
    preset_seeds=(1, 2),
)
BASE = Scale(
    template=RunConfig(
        model=ModelConfig(depth=12, width=512, heads=8, context=256, vocab_size=16_384),
        data=DataConfig(recipe="installed", batch_size=32, val_windows=512, test_windows=512),
        optim=OptimConfig(steps=6000, learning_rate=1e-3, warmup=0.05),
        trainer=_quiet(
            accelerator="gpu", precision="bf16-mixed", val_every=250, checkpoint_every=1000, inspect_every=500
        ),
    ),
    preset_seeds=(1, 2), speed_rounds=15, speed_burst=5,
)
PAPER = Scale(
    template=RunConfig(
        model=ModelConfig(
            depth=18, width=768, heads=12, context=128, vocab_size=50_257, positions="sinusoidal", embedding_rms=0.02
        ),
        data=DataConfig(recipe="codeparrot", batch_size=128, val_windows=2048, test_windows=2048),
        optim=OptimConfig(steps=43_000, learning_rate=1e-3, warmup=0.05),
        trainer=_quiet(
            accelerator="gpu", precision="bf16-mixed", val_every=500, checkpoint_every=1000, inspect_every=1000
        ),
    ),
    whole_grid=False, keep_checkpoints="best", speed_rounds=15, speed_burst=5,
)

SCALES: Mapping[str, Scale] = MappingProxyType({"smoke": SMOKE, "small": SMALL, "base": BASE, "paper": PAPER})
"""smoke: does all of it work? Minutes; the order of the blocks means nothing. small: two cores. base: one GPU.
paper: the paper's causal setting, named blocks alone."""


def _masked(of: Scale, *, optim: OptimConfig, **changes: Any) -> Scale:
    """A scale with the crammed recipe (paper, Table 1): `optim` gives what depends on the size."""
    crammed = replace(optim, beta1=0.9, beta2=0.98, eps=1e-12, clip=0.5, warmup=0.75, batch_ramp=0.6)
    causal = of.template
    model = replace(causal.model, **changes.pop("model", {}))
    data = replace(causal.data, **{"recipe": "prose", **changes.pop("data", {})})
    return replace(of, template=replace(causal, task="mlm", model=model, data=data, optim=crammed), **changes)


MASKED_SCALES: Mapping[str, Scale] = MappingProxyType({
    "smoke": _masked(SMOKE, optim=OptimConfig(steps=20, learning_rate=3e-3)),
    "small": _masked(
        SMALL, optim=OptimConfig(steps=500, learning_rate=1e-2), model={"vocab_size": 2048}, data={"batch_size": 16}
    ),
    "base": _masked(BASE, optim=OptimConfig(steps=6000, learning_rate=2e-3), data={"batch_size": 64}),
    "paper": _masked(
        # 8192 windows per step. On one GPU the steps are of 16 batches, whose windows grow in number with the ramp.
        PAPER, optim=OptimConfig(steps=1500, learning_rate=3e-3, accumulate=16),
        model={"depth": 16, "vocab_size": 32_768}, data={"recipe": "pile", "batch_size": 512},
    ),
})
"""The same sizes for masked language modelling. paper: 16 blocks, the crammed setting."""


def scale(name: str, *, task: Task = "clm") -> Scale:
    """The scale of this name for a task, or a `ConfigError` that lists the known ones."""
    if name not in SCALES:
        raise ConfigError("scale", name, f"choose one of auto, {', '.join(SCALES)}")
    return (SCALES if task == "clm" else MASKED_SCALES)[name]


def detect() -> str:
    """The name of the scale that this machine can carry: base with CUDA, else small. Imports torch."""
    import torch

    return "base" if torch.cuda.is_available() else "small"


def override(template: RunConfig, *, assignments: Sequence[str]) -> RunConfig:
    """The template with fields replaced by `path=value` strings, e.g. `optim.steps=5`; types are checked.

    Raises:
        ConfigError: an unknown field, a value of another type, or no `=`.
    """
    from jsonargparse import ArgumentParser

    for assignment in assignments:
        if "=" not in assignment:
            raise ConfigError("--set", assignment, "write FIELD=VALUE, e.g. optim.steps=5")
        if assignment.split("=")[0].split(".")[-1] in OWNED or assignment.startswith("model.block"):
            raise ConfigError("--set", assignment, "the study sets this: see --presets, --task, --seeds and --out")
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(RunConfig)
    parser.set_defaults(to_dict(template))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parsed = parser.parse_args([f"--{assignment}" for assignment in assignments])
    except argparse.ArgumentError as error:
        raise ConfigError("--set", list(assignments), f"{error}. The fields are those of RunConfig") from error
    return from_dict(RunConfig, parsed.as_dict())
