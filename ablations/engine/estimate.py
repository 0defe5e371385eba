"""How long a study will take: from its own finished cells, else from a few steps of each block on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from statistics import fmean

from optuna.trial import FrozenTrial

from ablations.design.space import Cell
from ablations.engine.storage import state_of
from lit_simplified.config import BlockConfig, RunConfig, from_dict

BUDGET = 60.0
"""Seconds that may be spent on measuring; blocks that were not reached count as the mean of the others."""
SLOW = 5.0
"""Seconds of a first step from which on no second one is timed."""
FORWARD = 1 / 3
"""A validation batch against a training step: the forward pass of three equal parts."""


@dataclass(frozen=True)
class Estimate:
    """Seconds by block for one run, and where they come from."""

    seconds: Mapping[BlockConfig, float]
    basis: str

    def of(self, block: BlockConfig) -> float:
        """Seconds of one run of a block; the mean of the others for one that is not known."""
        return self.seconds.get(block, fmean(self.seconds.values()))

    def total(self, cells: Iterable[Cell], *, workers: int) -> float:
        """Seconds until so many workers are through."""
        return sum(self.of(cell.block) for cell in cells) / workers


def from_history(trials: Iterable[FrozenTrial]) -> Estimate | None:
    """What complete cells took; None when there are none."""
    found: dict[BlockConfig, list[float]] = {}
    for trial in trials:
        if state_of(trial) == "complete":
            last = trial.user_attrs["executions"][-1]
            took = datetime.fromisoformat(last["end"]) - datetime.fromisoformat(last["start"])
            block = from_dict(RunConfig, trial.user_attrs["config"]).model.block
            found.setdefault(block, []).append(took.total_seconds())
    if not found:
        return None
    return Estimate({block: fmean(times) for block, times in found.items()}, "its own finished cells")


def measure(
    template: RunConfig, blocks: Sequence[BlockConfig], *, threads: int, steps: int = 2,
    progress: Callable[[Iterable[BlockConfig]], Iterable[BlockConfig]] = iter,
) -> Estimate:
    """Time a few training steps of every block, within `BUDGET`; imports torch.

    Validations and the test are reckoned as forward passes; start-up and idle time are not.
    """
    from ablations.timing.step import TrainingStep, torch_threads

    found: dict[BlockConfig, float] = {}
    begun = time.monotonic()
    with torch_threads(threads):
        for block in progress(blocks):
            if found and time.monotonic() - begun > BUDGET:
                break
            step = TrainingStep(replace(template, model=replace(template.model, block=block)))
            first = step.time(1)  # pays for warming up; one that is so slow all the same has to do
            found[block] = (first if first > SLOW else step.time(steps) / steps) * steps_worth(template)
    return Estimate(found, f"a few steps of {len(found)} blocks, measured now")


def steps_worth(config: RunConfig) -> float:
    """A whole run, validations and test included, in training steps."""
    optim, data, trainer = config.optim, config.data, config.trainer
    batches = {name: -(-(windows or 0) // data.batch_size) for name, windows in
               (("val", data.val_windows), ("test", data.test_windows))}
    validations = -(-optim.steps // min(trainer.val_every, optim.steps))
    return optim.steps + FORWARD / optim.accumulate * (validations * batches["val"] + batches["test"])
