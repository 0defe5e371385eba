"""The speed pass: every block's training step against Pre-LN's, apart from training and alone on the machine.

Two instances are compared in short bursts, P X X P, so that a slow drift of the machine falls on both alike; each round
gives one ratio, and the rounds their median with a distribution-free interval. A step is forward, backward, clipping
and optimiser on random tokens, in the shape, precision and number of threads of the study's training.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import optuna
import torch
from filelock import FileLock
from lightning.fabric import Fabric
from scipy.stats import quantile_test
from torch import Tensor

from ablations.memory import Allocations
from ablations.space import block_id
from ablations.storage import Queue, now, ours
from lit_simplified.config import PRE_LN, BlockConfig, RunConfig, from_dict
from lit_simplified.model import Transformer
from lit_simplified.objectives import build_objective
from lit_simplified.optim import build_optimizer

logging.getLogger("lightning.fabric.utilities.rank_zero").setLevel(logging.WARNING)  # one line per model is too many

WARM_UP = 2
"""Steps before the clock runs: allocation, kernel selection, the optimiser's state."""


def speed_pass(
    queue: Queue, *, rounds: int, burst: int, threads: int, redo: bool = False,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[str, dict[str, Any]]:
    """Measure every distinct block of a study that has not been measured; return and store all rows by block id.

    Args:
        queue: the study and its locks; one process of a machine measures at a time.
        rounds: paired comparisons per block.
        burst: training steps per burst.
        threads: CPU threads, those of a training worker.
        redo: measure everything anew.
        progress: wraps the iteration over blocks, to show it.
    """
    with FileLock(queue.locks / f"{queue.study.study_name}.speed.lock"):
        known = {} if redo else dict(queue.study.user_attrs.get("speed", {}))
        configs = distinct_blocks(queue.study)
        missing = {name: config for name, config in configs.items() if name not in known}
        if not missing:
            return known
        with _threads(threads):
            known.update(_measure_all(missing, rounds=rounds, burst=burst, progress=progress))
        queue.study.set_user_attr("speed", known)
        queue.study.set_user_attr("speed_conditions", {
            "rounds": rounds, "burst": burst, "threads": threads, "measured": now(),
        })
    return known


def distinct_blocks(study: optuna.Study) -> dict[str, RunConfig]:
    """A configuration of each block that the study has a cell of, by block id."""
    found: dict[str, RunConfig] = {}
    for trial in ours(study.get_trials(deepcopy=False)):
        config = from_dict(RunConfig, trial.user_attrs["config"])
        found.setdefault(block_id(config.model.block), config)
    return found


def _measure_all(
    configs: Mapping[str, RunConfig], *, rounds: int, burst: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]],
) -> dict[str, dict[str, Any]]:
    """All rows. Absolute speeds are Pre-LN's median over the whole pass times the ratio, so that they compare."""
    any_config = next(iter(configs.values()))
    baseline = TrainingStep(any_config, block=PRE_LN)
    seconds: list[float] = []
    rows: dict[str, dict[str, Any]] = {}
    for name, config in progress(list(configs.items())):
        try:
            row, taken = compare(baseline, config, rounds=rounds, burst=burst)
        except (RuntimeError, MemoryError) as error:  # out of memory is a RuntimeError of torch
            row, taken = {"error": f"{type(error).__name__}: {error}"[:500]}, []
        rows[name] = row
        seconds += taken
    if seconds:
        baseline_speed = burst * baseline.tokens / median(seconds)
        for row in rows.values():
            if "ratio" in row:
                row["tokens_per_second"] = baseline_speed * row["ratio"]
    return rows


def compare(
    baseline: TrainingStep, config: RunConfig, *, rounds: int, burst: int
) -> tuple[dict[str, Any], list[float]]:
    """Build a block's model, compare it with the baseline, drop it.

    Returns:
        The row (ratio above 1: faster than the baseline, with its 95 % interval; peak memory in MiB), and the
        baseline's seconds per burst.
    """
    other = TrainingStep(config)
    memory = peak_memory_mb(config)
    baseline.warm_up()
    other.warm_up()
    ratios, seconds = [], []
    for _ in range(rounds):
        first, third = baseline.time(burst), other.time(burst)
        fourth, second = other.time(burst), baseline.time(burst)
        ratios.append((first + second) / (third + fourth))
        seconds += [first, second]
    low, high = interval(ratios)
    return {"ratio": median(ratios), "low": low, "high": high, "peak_memory_mb": memory}, seconds


def interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the median by order statistics: no assumption on the distribution.

    With fewer than six values none reaches 95 %; their range is returned.
    """
    found = quantile_test(values, p=0.5).confidence_interval(confidence)
    low = found.low if math.isfinite(found.low) else min(values)
    high = found.high if math.isfinite(found.high) else max(values)
    return float(low), float(high)


class TrainingStep:
    """A model with its optimiser and a batch of random tokens, ready to be stepped and timed.

    One batch per step: gradients are not accumulated, whatever the configuration says. fp16 runs without loss scaling.
    """

    def __init__(self, config: RunConfig, *, block: BlockConfig | None = None) -> None:
        model = replace(config.model, block=block or config.model.block)
        self.config = replace(config, model=model)
        self.fabric = Fabric(
            accelerator=config.trainer.accelerator, devices=1, precision=config.trainer.precision,  # type: ignore[arg-type]
        )
        self.device = self.fabric.device
        self.objective = build_objective(self.config)
        torch.manual_seed(0)
        with self.fabric.init_module():
            self.model = Transformer(model)
        if config.trainer.compile:
            for part in self.model.blocks:
                part.compile()
        self.optimizer = build_optimizer(self.model, config.optim)
        shape = (config.data.batch_size, model.context + self.objective.extra)
        self.windows: Tensor = torch.randint(model.vocab_size, shape).to(self.device)
        self.tokens = config.data.batch_size * model.context
        self.warm = False

    def step(self) -> None:
        """Forward, backward, clipping, optimiser."""
        with self.fabric.autocast():
            loss = self.objective.loss(self.model, self.windows)
        loss.backward()
        if self.config.optim.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def warm_up(self) -> None:
        """The first steps, once."""
        if not self.warm:
            self.time(WARM_UP)
            self.warm = True

    def time(self, steps: int) -> float:
        """Seconds that some steps take, with the device's queue empty before and after."""
        self._synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        self._synchronize()
        return time.perf_counter() - start

    def _synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_memory_mb(config: RunConfig) -> float | None:
    """Most bytes alive at once over a training step, in MiB: parameters, gradients, optimiser state, activations and
    temporary tensors.

    On CUDA the allocator counts (what lived before is taken off); on a CPU `Allocations` does, which is exact and
    repeatable but leaves out scratch memory inside kernels. None on other devices.
    """
    device = Fabric(accelerator=config.trainer.accelerator, devices=1).device
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        TrainingStep(config).time(2)  # the first step makes the optimiser's state
        return float((torch.cuda.max_memory_allocated(device) - before) / 2**20)
    if device.type != "cpu":
        return None
    # Compiled code would hide its tensors.
    step = TrainingStep(replace(config, trainer=replace(config.trainer, compile=False)))
    step.step()
    with Allocations() as allocations:
        allocations.add(*step.model.parameters(), *step.model.buffers(), step.windows)
        allocations.add(*(value for state in step.optimizer.state.values() for value in state.values()))
        step.step()
    return allocations.peak / 2**20
