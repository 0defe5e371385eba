"""The speed pass: every row's training step against the baseline's block at the same size, alone on the machine.

Both are timed in paired rounds (`timing.rounds`). A step is forward, backward, clipping and optimiser on random tokens,
in the shape, precision and number of threads of the study's training. A matrix product in each round gives the peak for
the MFU.

Rows of another size have another baseline: the baseline's block in their own depth, width, batch and so on. Across
sizes, compare tokens per second and MFU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from statistics import median
from typing import Any

from filelock import FileLock

from ablations.engine.queue import Queue
from ablations.engine.storage import now, read_design, trained_rows
from ablations.timing.flops import step_flops
from ablations.timing.peak import Matmul, matmul_for
from ablations.timing.rounds import paired_rounds, spread
from ablations.timing.step import TrainingStep, build_with_peak_memory, fabric_of, torch_threads
from lit_simplified.config import BlockConfig, RunConfig, digest
from lit_simplified.hardware import keep_freed_memory

OUT_OF_MEMORY = (RuntimeError, MemoryError)
"""Of torch, out of memory is a RuntimeError."""
PEAK_SECONDS = 0.02
"""Of the matrix product in every round: a study has many rows."""


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


def _measure_all(
    configs: Mapping[str, RunConfig], *, baseline: BlockConfig, rounds: int, burst: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]],
) -> dict[str, dict[str, Any]]:
    """Measure all rows, size by size: one baseline lives at a time."""
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
    configs: Mapping[str, RunConfig], *, baseline: BlockConfig, rounds: int, burst: int, bar: Iterator[Any]
) -> dict[str, dict[str, Any]]:
    """Rows of one size. Absolute speeds are the baseline's median over all of them times the ratio, so that they
    compare."""
    first = next(iter(configs.values()))
    try:
        reference = TrainingStep(first, block=baseline)
        peak = matmul_for(reference.fabric.device, precision=first.trainer.precision, seconds=PEAK_SECONDS)
    except OUT_OF_MEMORY as error:
        return {row: _failed(error, side="the baseline: ") for row, _ in zip(configs, bar, strict=False)}
    seconds: list[float] = []
    found: dict[str, dict[str, Any]] = {}
    for row, config in configs.items():
        next(bar, None)
        try:
            found[row], taken = compare(reference, config, rounds=rounds, burst=burst, peak=peak)
        except OUT_OF_MEMORY as error:
            found[row], taken = _failed(error), []
        seconds += taken
    if seconds:
        speed = reference.tokens / median(seconds)
        for measured in found.values():
            if "ratio" in measured:
                measured["tokens_per_second"] = speed * measured["ratio"]
    return found


def _failed(error: BaseException, *, side: str = "") -> dict[str, Any]:
    return {"error": f"{side}{type(error).__name__}: {error}"[:500]}


def compare(
    baseline: TrainingStep, config: RunConfig, *, rounds: int, burst: int, peak: Matmul
) -> tuple[dict[str, Any], list[float]]:
    """Build a row's model, compare it with the baseline, drop it.

    Returns:
        What was measured: ratio of speeds, above 1 where the row is faster than the baseline, with its 95 % interval;
        peak memory in MiB; counted operations of a training step and the MFU, None where they are unknown. And the
        baseline's seconds per step, a value per round.
    """
    other = TrainingStep(config)
    memory = peak_memory_mb(config)
    baseline.warm_up()
    other.warm_up()
    flops = step_flops(config)
    found = paired_rounds(
        baseline, other, rounds=rounds, bursts={"train": burst}, peak=None if flops is None else peak.flops_per_second
    )
    ratio, low, high = spread(found.ratios())
    mfu = None if flops is None else median(found.utilization(flops))
    measured = {"ratio": ratio, "low": low, "high": high, "peak_memory_mb": memory, "mfu": mfu, "flops": flops}
    return measured, found.baseline["train"]


def peak_memory_mb(config: RunConfig) -> float | None:
    """Peak memory of a training step in MiB (see `build_with_peak_memory`), on a CPU that of code that is not compiled.
    None on devices where it is unknown."""
    on_cpu = fabric_of(config.trainer.accelerator, precision="32-true").device.type == "cpu"
    trainer = replace(config.trainer, compile=config.trainer.compile and not on_cpu)
    return build_with_peak_memory(lambda: TrainingStep(replace(config, trainer=trainer)))[1]
