"""One comparison: two subjects in rounds P X X P, between them a matrix product, whose speed is the peak for the MFU.

Only two models live at a time. Each round gives one ratio; a row has their median and its distribution-free interval.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from statistics import median
from typing import Any, NamedTuple

import torch

from ablations.bench.apart import Apart
from ablations.bench.subjects import Subject, compiling
from ablations.timing.step import Mode, Step, build_and_weigh, interval, synchronize

Side = Step | Apart
MODES: tuple[Mode, ...] = ("train", "inference")
LONGEST = 1000
"""Steps of a burst at most."""
FEWEST = 2
"""Rounds of a comparison at least, however long they take."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is measured against what."""

    group: str
    subject: Subject
    baseline: Subject
    compiled: str = ""
    """The mode of torch.compile that both sides are compiled in; empty for none."""
    modes: tuple[Mode, ...] = MODES
    apart: bool = False
    """Whether the baseline runs in a process of its own, with the C library's own memory management."""
    note: str = ""
    skip: str = ""
    """Why it is not measured; empty if it is."""

    @property
    def key(self) -> str:
        """What names it in `--only` and in messages."""
        return "/".join(filter(None, (self.group, self.subject.name, self.baseline.name, self._length, self.compiled)))

    @property
    def names(self) -> tuple[str, ...]:
        """What selects it in `--only` beside its key. The baseline does where it is what one asks about: a peer."""
        asked = (self.baseline.name,) if self.group == "peers" else ()
        return tuple(filter(None, (self.group, self.subject.name, *asked, self._length, self.compiled)))

    @property
    def _length(self) -> str:
        return str(self.subject.run.model.context) if self.group == "length" else ""


@dataclass(kw_only=True)
class Row:
    """A line of the result, in the order of its columns. What was not measured is None.

    A ratio above 1 says that `name` is faster than `baseline`. Tokens per second, ms, FLOPs, MFU, memory and
    parameters are those of `name`; those of the other side begin with `baseline_`.
    """

    group: str
    name: str
    baseline: str
    apart: bool = False
    compiled: str = ""
    context: int = 0
    batch: int = 0
    train_ratio: float | None = None
    train_low: float | None = None
    train_high: float | None = None
    inference_ratio: float | None = None
    inference_low: float | None = None
    inference_high: float | None = None
    train_tokens_per_second: float | None = None
    inference_tokens_per_second: float | None = None
    train_ms: float | None = None
    inference_ms: float | None = None
    flops: int | None = None
    """Counted operations of a training step."""
    flop_ratio: float | None = None
    """Baseline's operations over these: what the training ratio would be if operations alone took time."""
    flop_share: float | None = None
    """Training ratio over `flop_ratio`."""
    mfu: float | None = None
    mfu_low: float | None = None
    mfu_high: float | None = None
    peak_flops_per_second: float | None = None
    """Of the matrix products of the same rounds."""
    memory_mib: float | None = None
    parameters: int | None = None
    baseline_train_tokens_per_second: float | None = None
    baseline_inference_tokens_per_second: float | None = None
    baseline_flops: int | None = None
    baseline_mfu: float | None = None
    baseline_memory_mib: float | None = None
    baseline_parameters: int | None = None
    memory_ratio: float | None = None
    """Baseline's peak memory over this."""
    rounds: int = 0
    train_burst: int | None = None
    inference_burst: int | None = None
    note: str = ""
    error: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)
    """Per round: seconds per step of both sides, and the matrix product's operations per second. JSON alone."""


COLUMNS = tuple(column.name for column in fields(Row) if column.name != "samples")


class Matmul:
    """Square matrix products in the benchmark's precision; their speed is taken for the machine's peak."""

    def __init__(self, *, side: int, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        self.left, self.right = (
            torch.randn(side, side, generator=generator).to(device=device, dtype=dtype) for _ in range(2)
        )
        self.out = torch.empty_like(self.left)
        self.device, self.operations, self.count = device, 2 * side**3, 1
        self.flops_per_second()
        self.count = max(1, math.ceil(0.1 * self.flops_per_second() / self.operations))

    def flops_per_second(self) -> float:
        """Operations per second over a tenth of a second, or one product where that takes longer."""
        synchronize(self.device)
        start = time.perf_counter()
        for _ in range(self.count):
            torch.mm(self.left, self.right, out=self.out)
        synchronize(self.device)
        return self.count * self.operations / (time.perf_counter() - start)


class Spread(NamedTuple):
    """A median with its 95 % interval."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median and interval of one value per round."""
    return Spread(median(values), *interval(values))


def measure(
    comparison: Comparison, *, rounds: int, seconds: float, matmul: Matmul, limit: float = math.inf,
    on_round: Callable[[], Any] = lambda: None,
) -> Row:
    """Build both sides, time them, drop them.

    Args:
        comparison: what to measure.
        rounds: P X X P, each for training and inference.
        seconds: shortest burst.
        matmul: timed once per round.
        limit: seconds after which no further round is begun, once there are `FEWEST`.
        on_round: called after each.
    """
    baseline: Side | None = None
    try:
        with compiling(comparison.compiled):
            baseline, baseline_memory = _prepare(comparison.baseline, comparison, apart=comparison.apart)
            other, memory = _prepare(comparison.subject, comparison)
            samples, bursts = _sample(
                baseline, other, comparison.modes, rounds=rounds, seconds=seconds, matmul=matmul, limit=limit,
                on_round=on_round,
            )
        row = _row(comparison, other, baseline, samples)
        row.rounds, row.train_burst = len(samples["peak"]), bursts.get("train")
        row.inference_burst = bursts.get("inference")
        row.memory_mib, row.baseline_memory_mib = memory, baseline_memory
        if memory and baseline_memory:
            row.memory_ratio = baseline_memory / memory
        return row
    finally:
        if isinstance(baseline, Apart):
            baseline.close()
        baseline = other = None  # type: ignore[assignment]
        gc.collect()
        if matmul.device.type == "cuda":
            torch.cuda.empty_cache()


def _prepare(subject: Subject, comparison: Comparison, *, apart: bool = False) -> tuple[Side, float | None]:
    """A warm side and its peak memory; what is never trained is not weighed."""
    compiled = comparison.compiled or None
    side: Side
    memory = None
    if apart:
        side = Apart(subject, compiled=compiled, threads=torch.get_num_threads())
        memory = side.memory
    elif "train" in comparison.modes:
        side, memory = build_and_weigh(lambda: subject.build(compiled))
    else:
        side = subject.build(compiled)
    side.time(1, "inference")
    return side, memory


def _sample(
    baseline: Side, other: Side, modes: Sequence[Mode], *, rounds: int, seconds: float, matmul: Matmul, limit: float,
    on_round: Callable[[], Any],
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds per step by mode and side, and operations per second of the matrix product, a value per round."""
    bursts = {mode: _burst(baseline, other, mode, seconds=seconds) for mode in modes}
    samples: dict[str, list[float]] = {f"{mode}_{side}": [] for mode in modes for side in ("name", "baseline")}
    samples["peak"] = []
    start = time.perf_counter()
    for done in range(rounds):
        if done >= FEWEST and time.perf_counter() - start > limit:
            break
        for mode in modes:
            burst = bursts[mode]
            first, third = baseline.time(burst, mode), other.time(burst, mode)
            if mode == modes[0]:
                samples["peak"].append(matmul.flops_per_second())
            fourth, second = other.time(burst, mode), baseline.time(burst, mode)
            samples[f"{mode}_name"].append((third + fourth) / (2 * burst))
            samples[f"{mode}_baseline"].append((first + second) / (2 * burst))
        on_round()
    return samples, {str(mode): burst for mode, burst in bursts.items()}


def _burst(baseline: Side, other: Side, mode: Mode, *, seconds: float) -> int:
    """Steps after which the faster side has taken `seconds`."""
    fastest = min(step.time(1, mode) for step in (baseline, other))
    return min(LONGEST, max(1, math.ceil(seconds / fastest)))


def _row(comparison: Comparison, other: Side, baseline: Side, samples: dict[str, list[float]]) -> Row:
    row = empty_row(comparison)
    row.samples = samples
    row.peak_flops_per_second = median(samples["peak"])
    row.parameters, row.baseline_parameters = other.parameters, baseline.parameters
    for mode in comparison.modes:
        name, base = samples[f"{mode}_name"], samples[f"{mode}_baseline"]
        ratio = spread([b / n for b, n in zip(base, name, strict=True)])
        found = dict(zip(("ratio", "low", "high"), ratio, strict=True))
        found |= {"ms": 1000 * median(name), "tokens_per_second": other.tokens / median(name)}
        for column, value in found.items():
            setattr(row, f"{mode}_{column}", value)
        setattr(row, f"baseline_{mode}_tokens_per_second", baseline.tokens / median(base))
    if "train" in comparison.modes:
        _add_flops(row, comparison, samples)
    return row


def _add_flops(row: Row, comparison: Comparison, samples: dict[str, list[float]]) -> None:
    row.flops, row.baseline_flops = comparison.subject.flops, comparison.baseline.flops
    row.flop_ratio = row.baseline_flops / row.flops
    row.flop_share = (row.train_ratio or 0.0) / row.flop_ratio
    peaks = samples["peak"]
    row.mfu, row.mfu_low, row.mfu_high = spread(
        [row.flops / s / peak for s, peak in zip(samples["train_name"], peaks, strict=True)]
    )
    row.baseline_mfu = median(
        [row.baseline_flops / s / peak for s, peak in zip(samples["train_baseline"], peaks, strict=True)]
    )


def empty_row(comparison: Comparison, *, error: str = "") -> Row:
    """What is known of a comparison before, or without, its measurement."""
    run = comparison.subject.run
    return Row(
        group=comparison.group, name=comparison.subject.name, baseline=comparison.baseline.name, apart=comparison.apart,
        compiled=comparison.compiled, context=run.model.context, batch=run.data.batch_size, note=comparison.note,
        error=error,
    )

