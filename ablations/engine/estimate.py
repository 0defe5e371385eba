"""How long a study will take: from its own finished cells, else from a few steps of each row on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean

from optuna.trial import FrozenTrial

from ablations.design.cells import Cell
from ablations.design.design import StudyDesign
from ablations.engine.resources import threads_for, workers_for
from ablations.engine.storage import row_of, stage_of, state_of
from ablations.timing.flops import training_flops
from lit_simplified.config import RunConfig

BUDGET = 60.0
"""Seconds that may be spent on measuring; rows that were not reached count as the mean of the others."""
SLOW = 5.0
"""Seconds of a first step above which no second one is timed."""
MEASURED = "measured now"
"""How an estimate says that it comes from no finished cell."""
FORWARD = 1 / 3
"""A validation batch against a training step: the forward pass of three equal parts."""


@dataclass(frozen=True)
class Estimate:
    """Seconds by row for one run that judges, and where they come from."""

    seconds: Mapping[str, float]
    basis: str

    def of(self, cell: Cell) -> float:
        """Seconds of a run; of a row that is not known the mean of the others."""
        return self.seconds.get(cell.row, fmean(self.seconds.values())) * cell.share

    def total(self, cells: Iterable[Cell], *, workers: int) -> float:
        """Seconds until so many workers have trained all cells."""
        return sum(map(self.of, cells)) / workers


def from_history(trials: Iterable[FrozenTrial], *, design: StudyDesign) -> Estimate | None:
    """What complete cells took, short ones counted up to whole ones; None when there are none."""
    found: dict[str, list[float]] = {}
    for trial in trials:
        if state_of(trial) == "complete":
            last = trial.user_attrs["executions"][-1]
            took = datetime.fromisoformat(last["end"]) - datetime.fromisoformat(last["start"])
            found.setdefault(row_of(trial), []).append(took.total_seconds() / design.share_of(stage_of(trial)))
    if not found:
        return None
    return Estimate({row: fmean(times) for row, times in found.items()}, "its own finished cells")


def measure(
    rows: Mapping[str, RunConfig], *, threads: int, steps: int = 2, budget: float = BUDGET,
    progress: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> Estimate:
    """Time a few training steps of every row, within a budget; imports torch.

    Validations and the test count as forward passes; start-up and idle time are left out.
    """
    from ablations.timing.step import TrainingStep, torch_threads

    found: dict[str, float] = {}
    begun = time.monotonic()
    with torch_threads(threads):
        for row in progress(list(rows)):
            if found and time.monotonic() - begun > budget:
                break
            step = TrainingStep(rows[row])
            first = step.time(1)  # includes warming up; a step that is slow anyway is not timed again
            found[row] = (first if first > SLOW else step.time(steps) / steps) * steps_worth(rows[row])
    return Estimate(found, f"a few steps of {len(found)} rows, {MEASURED}")


class Yardstick:
    """Rough times of many studies: a few steps of one row per size of batch and precision, and for the others the count
    of operations against it. Imports torch."""

    def __init__(self) -> None:
        self._speed: dict[str, float] = {}

    def total(self, cells: Iterable[Cell], *, asked: int | None = None) -> float:
        """Seconds until the workers of this machine have trained all cells."""
        cells = list(cells)
        workers = workers_for(cells[0].config.trainer.accelerator, asked=asked)
        return sum(self._seconds(cell.config, threads=threads_for(workers)) for cell in cells) / workers

    def _seconds(self, config: RunConfig, *, threads: int) -> float:
        trainer, batch = config.trainer, config.data.batch_size
        key = f"{trainer.precision} {trainer.accelerator} {config.model.width}"
        if key not in self._speed:
            found = measure({"": config}, threads=threads).seconds[""]
            self._speed[key] = found / steps_worth(config) / training_flops(config.model, batch=batch)
        return self._speed[key] * training_flops(config.model, batch=batch) * steps_worth(config)


def steps_worth(config: RunConfig) -> float:
    """A whole run, validations and test included, in training steps.

    A split that is used whole is left out: how large it is is known only when the corpus is there.
    """
    optim, data, trainer = config.optim, config.data, config.trainer
    batches = {name: -(-(windows or 0) // data.batch_size) for name, windows in
               (("val", data.val_windows), ("test", data.test_windows))}
    validations = -(-optim.steps // min(trainer.val_every, optim.steps))
    return optim.steps + FORWARD / optim.accumulate * (validations * batches["val"] + batches["test"])
