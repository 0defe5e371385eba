"""The sizes that a run can have, for both tasks: smoke, small, medium, base, paper. Imports no torch.

smoke: a test of everything, in seconds. small: two cores, minutes. medium: the same model, several times the tokens.
base: one GPU. paper: the paper's setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from lit_simplified.config import (
    ConfigError,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    Task,
    TrainerConfig,
)

CAUSAL: Mapping[str, RunConfig] = MappingProxyType({
    "smoke": RunConfig(
        model=ModelConfig(depth=2, width=32, heads=2, context=64, vocab_size=512),
        data=DataConfig(batch_size=4, val_windows=32, test_windows=32),
        optim=OptimConfig(steps=20, learning_rate=3e-3),
        trainer=TrainerConfig(val_every=10, checkpoint_every=10),
    ),
    "small": RunConfig(
        model=ModelConfig(depth=6, width=64, heads=4, context=128, vocab_size=1024),
        data=DataConfig(batch_size=8, val_windows=128, test_windows=128),
        # A twentieth of so few steps would be a warm-up of a dozen: too short for any block at this learning rate.
        optim=OptimConfig(steps=250, learning_rate=1e-2, warmup=0.2),
        trainer=TrainerConfig(val_every=50, checkpoint_every=50),
    ),
    "base": RunConfig(
        model=ModelConfig(depth=12, width=512, heads=8, context=256, vocab_size=16_384),
        data=DataConfig(recipe="installed", batch_size=32, val_windows=512, test_windows=512),
        optim=OptimConfig(steps=6000, learning_rate=1e-3, warmup=0.05),
        trainer=TrainerConfig(
            accelerator="gpu", precision="bf16-mixed", val_every=250, checkpoint_every=1000, inspect_every=500
        ),
    ),
    "paper": RunConfig(
        model=ModelConfig(
            depth=18, width=768, heads=12, context=128, vocab_size=50_257, positions="sinusoidal", embedding_rms=0.02
        ),
        data=DataConfig(recipe="codeparrot", batch_size=128, val_windows=2048, test_windows=2048),
        optim=OptimConfig(steps=43_000, learning_rate=1e-3, warmup=0.05),
        trainer=TrainerConfig(
            accelerator="gpu", precision="bf16-mixed", val_every=500, checkpoint_every=1000, inspect_every=1000
        ),
    ),
})


def _crammed(
    size: str, *, steps: int, learning_rate: float, data: Mapping[str, Any],
    model: Mapping[str, Any] = MappingProxyType({}), optim: Mapping[str, Any] = MappingProxyType({}),
) -> RunConfig:
    """A causal run's size with the crammed recipe (paper, Sec. 5 and Table 1)."""
    causal = CAUSAL[size]
    recipe = OptimConfig(
        steps=steps, learning_rate=learning_rate, **optim,
        beta1=0.9, beta2=0.98, eps=1e-12, weight_decay=0.1, clip=0.5, warmup=0.75, batch_ramp=0.6,
    )
    return replace(
        causal, task="mlm", optim=recipe, model=replace(causal.model, **model),
        data=replace(causal.data, **{"recipe": "prose", **data}),
    )


def _longer(run: RunConfig) -> RunConfig:
    """The medium run of a task, from its small one: long enough for blocks to part, validated on the whole split."""
    return replace(
        run, optim=replace(run.optim, steps=4000), data=replace(run.data, val_windows=None, test_windows=None),
        trainer=replace(run.trainer, val_every=1000, checkpoint_every=500),
    )


MASKED: Mapping[str, RunConfig] = MappingProxyType({
    "smoke": _crammed("smoke", steps=20, learning_rate=3e-3, data={}),
    # Short windows: at as many tokens per step, 16 of 64 came further below the tokens' frequencies than 8 of 128.
    "small": _crammed("small", steps=600, learning_rate=1e-2, data={"batch_size": 16}, model={"context": 64}),
    "base": _crammed("base", steps=6000, learning_rate=2e-3, data={"batch_size": 64}),
    # 8192 windows per step, as 16 batches, which grow with the ramp. The paper gives the run's hours, not its steps.
    # What it leaves open is as in the code of "crammed" BERT, with which docs/crammed.md compares all of this.
    "paper": _crammed(
        "paper", steps=1500, learning_rate=3e-3,
        data={"recipe": "pile", "tokenizer": "wordpiece", "batch_size": 512},
        model={"depth": 16, "vocab_size": 32_768, "positions": "scaled_sinusoidal", "embedding_norm": True},
        optim={"accumulate": 16, "warmup_start": 0.25, "mask_count": "exact"},
    ),
})

def _all(runs: Mapping[str, RunConfig]) -> Mapping[str, RunConfig]:
    """All sizes, in their order."""
    names = ("smoke", "small", "medium", "base", "paper")
    return MappingProxyType({name: runs[name] if name in runs else _longer(runs["small"]) for name in names})


RUNS: Mapping[Task, Mapping[str, RunConfig]] = MappingProxyType({"clm": _all(CAUSAL), "mlm": _all(MASKED)})
"""The run of a task at a scale; block, seed and folder are filled in."""


def run_of(scale: str, *, task: Task = "clm") -> RunConfig:
    """The run of this scale, or a `ConfigError` that lists the known ones."""
    if scale not in RUNS[task]:
        raise ConfigError("scale", scale, f"choose one of {', '.join(RUNS[task])}")
    return RUNS[task][scale]
