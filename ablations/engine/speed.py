"""The speed pass: every block's training step against Pre-LN's, apart from training and alone on the machine.

Two instances are compared in short bursts, P X X P, so that a slow drift of the machine falls on both alike; each round
gives one ratio, and the rounds their median with a distribution-free interval. A step is forward, backward, clipping
and optimiser on random tokens, in the shape, precision and number of threads of the study's training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from statistics import median
from typing import Any

import optuna
from filelock import FileLock

from ablations.design.space import block_id
from ablations.engine.queue import Queue
from ablations.engine.storage import now, ours
from ablations.timing.step import Mode, TrainingStep, build_and_weigh, fabric_of, interval, torch_threads
from lit_simplified.config import PRE_LN, RunConfig, from_dict, in_setting
from lit_simplified.hardware import keep_freed_memory


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
        keep_freed_memory()  # as `fit` does
        with torch_threads(threads):
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
    baseline = TrainingStep(any_config, block=in_setting(PRE_LN, any_config.task))
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
    ratios, seconds = interleaved(baseline, other, rounds=rounds, burst=burst)
    low, high = interval(ratios)
    return {"ratio": median(ratios), "low": low, "high": high, "peak_memory_mb": memory}, seconds


def interleaved(
    baseline: TrainingStep, other: TrainingStep, *, rounds: int, burst: int, mode: Mode = "train"
) -> tuple[list[float], list[float]]:
    """Bursts P X X P of two models, warm already: a ratio of speeds per round, and the baseline's seconds per burst."""
    ratios, seconds = [], []
    for _ in range(rounds):
        first, third = baseline.time(burst, mode), other.time(burst, mode)
        fourth, second = other.time(burst, mode), baseline.time(burst, mode)
        ratios.append((first + second) / (third + fourth))
        seconds += [first, second]
    return ratios, seconds


def peak_memory_mb(config: RunConfig) -> float | None:
    """Most bytes alive at once over a training step, in MiB (see `build_and_weigh`), of code that is not compiled on a
    CPU. None on devices that do not count."""
    on_cpu = fabric_of(config.trainer.accelerator, precision="32-true").device.type == "cpu"
    trainer = replace(config.trainer, compile=config.trainer.compile and not on_cpu)
    return build_and_weigh(lambda: TrainingStep(replace(config, trainer=trainer)))[1]
