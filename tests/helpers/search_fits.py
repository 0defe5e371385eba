"""Stand-ins for `fit` in a search, with known optima. Apart from the tests: worker processes import them."""

from __future__ import annotations

import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from test_run import Point, Result, note

from ablations.design.scales import SCALES
from lit_simplified.config import RunConfig

OPTIMUM = {"learning_rate": 9e-3, "weight_decay": 0.02}
STEPS, EVERY = 90, 30


def bowl(config: RunConfig) -> float:
    """A loss with its optimum at OPTIMUM, away from the defaults (3e-3, 0.1); every seed adds a constant."""
    off = {name: math.log10(getattr(config.optim, name) / best) for name, best in OPTIMUM.items()}
    gain = config.model.block.resolved_mlp_gain(config.model.depth)
    missed = math.log10(gain / 0.2) ** 2 if gain else 0.0
    return 2 + off["learning_rate"] ** 2 + 0.2 * off["weight_decay"] ** 2 + 0.5 * missed + 0.1 * config.seed


def train_through(config: RunConfig, *, on_validation: Any, at: Any, state: str = "complete") -> Result:
    """Every validation of a run whose loss at a step is `at(step)`."""
    curve = []
    for step in range(EVERY, config.optim.steps + 1, EVERY):
        curve.append(Point(step=step, tokens=step, seconds=float(step), train_loss=3.0, val_loss=at(step)))
        on_validation(curve[-1])
    diverged = state == "diverged"
    return Result(
        state=state, reason="loss nan" * diverged, run_dir="r", val_loss=math.nan if diverged else curve[-1].val_loss,
        val_perplexity=1.0, test={"loss": 1.0}, curve=tuple(curve), steps=config.optim.steps, tokens=1, seconds=1.0,
        validation_seconds=0.1, inspection_seconds=0.01, tokens_per_second=1.0, parameters=1, peak_memory_mb=1.0,
    )


def fit_bowl(config: RunConfig, *, on_validation: Any) -> Result:
    note(config)
    return train_through(config, on_validation=on_validation, at=lambda step: bowl(config) + 1 / step)


def fit_late(config: RunConfig, *, on_validation: Any) -> Result:
    """The defaults look worst of all until the last step, at which they are best."""
    default = config.optim == template().optim
    return train_through(
        config, on_validation=on_validation,
        at=lambda step: (1.0 if step == STEPS else 9.0) if default else bowl(config),
    )


def fit_sinking(config: RunConfig, *, on_validation: Any) -> Result:
    """Better than all runs before at every step but the last, where it is worse than all."""
    return train_through(
        config, on_validation=on_validation, at=lambda step: time.monotonic() if step == STEPS else -time.monotonic()
    )


def fit_cliff(config: RunConfig, *, on_validation: Any) -> Result:
    """Diverges at all but low learning rates."""
    diverged = config.optim.learning_rate > 1e-3
    if diverged:
        return train_through(replace(config, optim=replace(config.optim, steps=EVERY)), on_validation=on_validation,
                             at=lambda step: 2.0, state="diverged")
    return train_through(config, on_validation=on_validation, at=lambda step: bowl(config))


def fit_killed(config: RunConfig, *, on_validation: Any) -> Result:
    """The first run of the third configuration, and of no other, kills its process."""
    time.sleep(0.02)
    log = Path(config.out_dir).parent / "log.txt"
    if note(config) == 1 and len(log.read_text().splitlines()) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return train_through(config, on_validation=on_validation, at=lambda step: bowl(config))


def fit_stalling(config: RunConfig, *, on_validation: Any) -> Result:
    """The third run of all takes for ever."""
    note(config)
    if len((Path(config.out_dir).parent / "log.txt").read_text().splitlines()) == 3:
        time.sleep(600)
    return train_through(config, on_validation=on_validation, at=lambda step: bowl(config))


def fit_failing(config: RunConfig, *, on_validation: Any) -> Result:
    raise RuntimeError("no luck")


def template(**optim: Any) -> RunConfig:
    base = SCALES["smoke"].template
    return replace(
        base, optim=replace(base.optim, **{"steps": STEPS, **optim}),
        trainer=replace(base.trainer, accelerator="cpu", val_every=EVERY),
    )
