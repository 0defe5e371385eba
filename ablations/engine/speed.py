"""The speed pass: every row's training step against the baseline's block at the same size, alone on the machine.

Two instances are compared in short bursts, P X X P, so that a slow drift of the machine falls on both alike; each round
gives one ratio, and the rounds their median with a distribution-free interval. A step is forward, backward, clipping
and optimiser on random tokens, in the shape, precision and number of threads of the study's training.

Rows of another size have another baseline: the baseline's block in their own depth, width, batch and so on. Across
sizes tokens per second compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from statistics import median
from typing import Any

import optuna
from filelock import FileLock

from ablations.engine.queue import Queue
from ablations.engine.storage import now, ours, read_design, row_of
from ablations.timing.step import Mode, TrainingStep, build_and_weigh, fabric_of, interval, torch_threads
from lit_simplified.config import BlockConfig, RunConfig, digest, from_dict
from lit_simplified.hardware import keep_freed_memory


def speed_pass(
    queue: Queue, *, rounds: int, burst: int, threads: int, redo: bool = False,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[str, dict[str, Any]]:
    """Measure every row of a study that has not been measured; return and store what was found by row id.

    Args:
        queue: the study and its locks; one process of a machine measures at a time.
        rounds: paired comparisons per row.
        burst: training steps per burst.
        threads: CPU threads, those of a training worker.
        redo: measure everything anew.
        progress: wraps the iteration over rows, to show it.
    """
    with FileLock(queue.locks / f"{queue.study.study_name}.speed.lock"):
        known = {} if redo else dict(queue.study.user_attrs.get("speed", {}))
        configs = trained_rows(queue.study)
        missing = {row: config for row, config in configs.items() if row not in known}
        if not missing:
            return known
        baseline = configs.get(read_design(queue.study).baseline, next(iter(configs.values())))
        keep_freed_memory()  # as `fit` does
        with torch_threads(threads):
            known.update(_measure_all(
                missing, baseline=baseline.model.block, rounds=rounds, burst=burst, progress=progress
            ))
        queue.study.set_user_attr("speed", known)
        queue.study.set_user_attr("speed_conditions", {
            "rounds": rounds, "burst": burst, "threads": threads, "measured": now(),
        })
    return known


def trained_rows(study: optuna.Study) -> dict[str, RunConfig]:
    """A configuration of each row that the study has a cell of, by its id."""
    found: dict[str, RunConfig] = {}
    for trial in ours(study.get_trials(deepcopy=False)):
        row = row_of(trial)
        if row not in found:
            found[row] = from_dict(RunConfig, trial.user_attrs["config"])
    return found


def _measure_all(
    configs: Mapping[str, RunConfig], *, baseline: BlockConfig, rounds: int, burst: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]],
) -> dict[str, dict[str, Any]]:
    """What was found of all rows, size by size: one baseline lives at a time."""
    sizes: dict[str, dict[str, RunConfig]] = {}
    for row, config in configs.items():
        sizes.setdefault(_size(config), {})[row] = config
    found: dict[str, dict[str, Any]] = {}
    bar = iter(progress(list(configs)))
    for own in sizes.values():
        found |= _measure_size(own, baseline=baseline, rounds=rounds, burst=burst, bar=bar)
    next(bar, None)  # the last one is done, too
    return found


def _size(config: RunConfig) -> str:
    """Stands for all that decides the time of a step but the block."""
    model, data, trainer = config.model, config.data, config.trainer
    rest = (config.task, data.batch_size, trainer.precision, trainer.compile, trainer.accelerator)
    return " ".join(map(str, (digest(replace(model, block=BlockConfig())), *rest)))


def _measure_size(
    configs: Mapping[str, RunConfig], *, baseline: BlockConfig, rounds: int, burst: int, bar: Iterable[Any]
) -> dict[str, dict[str, Any]]:
    """Rows of one size. Absolute speeds are the baseline's median over all of them times the ratio, so that they
    compare."""
    bar = iter(bar)
    reference = TrainingStep(next(iter(configs.values())), block=baseline)
    seconds: list[float] = []
    found: dict[str, dict[str, Any]] = {}
    for row, config in configs.items():
        next(bar, None)
        try:
            found[row], taken = compare(reference, config, rounds=rounds, burst=burst)
        except (RuntimeError, MemoryError) as error:  # out of memory is a RuntimeError of torch
            found[row], taken = {"error": f"{type(error).__name__}: {error}"[:500]}, []
        seconds += taken
    if seconds:
        speed = burst * reference.tokens / median(seconds)
        for measured in found.values():
            if "ratio" in measured:
                measured["tokens_per_second"] = speed * measured["ratio"]
    return found


def compare(
    baseline: TrainingStep, config: RunConfig, *, rounds: int, burst: int
) -> tuple[dict[str, Any], list[float]]:
    """Build a row's model, compare it with the baseline, drop it.

    Returns:
        What was found (ratio above 1: faster than the baseline, with its 95 % interval; peak memory in MiB), and the
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
