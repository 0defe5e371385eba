"""One comparison: two subjects in paired rounds, with a matrix product in each round as the peak for the MFU.

Only two models live at a time.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import median
from typing import Any

import torch

from ablations.bench.subjects import Subject, compiling
from ablations.bench.subprocess_side import SubprocessSide
from ablations.timing.peak import Matmul
from ablations.timing.rounds import Mode, Rounds, paired_rounds, spread
from ablations.timing.step import Step, build_with_peak_memory

BenchSide = Step | SubprocessSide
MODES: tuple[Mode, ...] = ("train", "inference")
LONGEST = 1000
"""Steps of a burst at most."""
RENAMED = {"apart": "own_process"}
"""Columns of older records by their names of today."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is measured against what."""

    group: str
    subject: Subject
    baseline: Subject
    compiled: str = ""
    """The mode of torch.compile that both sides are compiled in; empty for none."""
    modes: tuple[Mode, ...] = MODES
    own_process: bool = False
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
class Measurement:
    """What a comparison gave: a line of the result, in the order of its columns. What was not measured is None.

    A ratio above 1 says that `name` is faster than `baseline`. Tokens per second, ms, FLOPs, MFU, memory and
    parameters are those of `name`; those of the other side begin with `baseline_`.
    """

    group: str
    name: str
    baseline: str
    own_process: bool = False
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


COLUMNS = tuple(column.name for column in fields(Measurement) if column.name != "samples")


def measure(
    comparison: Comparison, *, rounds: int, seconds: float, matmul: Matmul, limit: float = math.inf,
    on_round: Callable[[], Any] = lambda: None,
) -> Measurement:
    """Build both sides, time them, drop them.

    Args:
        comparison: what to measure.
        rounds: P X X P, each for training and inference.
        seconds: shortest burst.
        matmul: timed once per round.
        limit: seconds after which no further round is begun, once there are `FEWEST`.
        on_round: called after each.
    """
    baseline: BenchSide | None = None
    try:
        with compiling(comparison.compiled):
            baseline, baseline_memory = _prepare(comparison.baseline, comparison, own_process=comparison.own_process)
            other, memory = _prepare(comparison.subject, comparison)
            found, bursts = _sample(
                baseline, other, comparison.modes, rounds=rounds, seconds=seconds, matmul=matmul, limit=limit,
                on_round=on_round,
            )
        row = _filled(comparison, other, baseline, found)
        row.train_burst, row.inference_burst = bursts.get("train"), bursts.get("inference")
        row.memory_mib, row.baseline_memory_mib = memory, baseline_memory
        if memory and baseline_memory:
            row.memory_ratio = baseline_memory / memory
        return row
    finally:
        if isinstance(baseline, SubprocessSide):
            baseline.close()
        baseline = other = None  # type: ignore[assignment]
        gc.collect()
        if matmul.device.type == "cuda":
            torch.cuda.empty_cache()


def _prepare(subject: Subject, comparison: Comparison, *, own_process: bool = False) -> tuple[BenchSide, float | None]:
    """A warm side and its peak memory; of one that is never trained no memory is measured."""
    compiled = comparison.compiled or None
    side: BenchSide
    memory = None
    if own_process:
        side = SubprocessSide(subject, compiled=compiled, threads=torch.get_num_threads())
        memory = side.memory
    elif "train" in comparison.modes:
        side, memory = build_with_peak_memory(lambda: subject.build(compiled))
    else:
        side = subject.build(compiled)
    side.time(1, "inference")
    return side, memory


def _sample(
    baseline: BenchSide, other: BenchSide, modes: Sequence[Mode], *, rounds: int, seconds: float, matmul: Matmul,
    limit: float, on_round: Callable[[], Any],
) -> tuple[Rounds, dict[Mode, int]]:
    """The paired rounds, and the steps per burst in every mode."""
    bursts = {mode: _burst(baseline, other, mode, seconds=seconds) for mode in modes}
    found = paired_rounds(
        baseline, other, rounds=rounds, bursts=bursts, peak=matmul.flops_per_second, limit=limit, on_round=on_round
    )
    return found, bursts


def _burst(baseline: BenchSide, other: BenchSide, mode: Mode, *, seconds: float) -> int:
    """Steps after which the faster side has taken `seconds`."""
    fastest = min(step.time(1, mode) for step in (baseline, other))
    return min(LONGEST, max(1, math.ceil(seconds / fastest)))


def _filled(comparison: Comparison, other: BenchSide, baseline: BenchSide, found: Rounds) -> Measurement:
    """The measurement of a comparison, but for memory."""
    row = unmeasured(comparison)
    row.samples, row.rounds = _samples(found), found.count
    row.peak_flops_per_second = median(found.peak)
    row.parameters, row.baseline_parameters = other.parameters, baseline.parameters
    for mode in comparison.modes:
        seconds = median(found.other[mode])
        columns = dict(zip(("ratio", "low", "high"), spread(found.ratios(mode)), strict=True))
        columns |= {"ms": 1000 * seconds, "tokens_per_second": other.tokens / seconds}
        for column, value in columns.items():
            setattr(row, f"{mode}_{column}", value)
        setattr(row, f"baseline_{mode}_tokens_per_second", baseline.tokens / median(found.baseline[mode]))
    if "train" in comparison.modes:
        _add_flops(row, comparison, found)
    return row


def _samples(found: Rounds) -> dict[str, list[float]]:
    """The values of all rounds, as `bench.json` keeps them."""
    samples: dict[str, list[float]] = {}
    for mode in found.other:
        samples |= {f"{mode}_name": found.other[mode], f"{mode}_baseline": found.baseline[mode]}
    return {**samples, "peak": found.peak}


def _add_flops(row: Measurement, comparison: Comparison, found: Rounds) -> None:
    row.flops, row.baseline_flops = comparison.subject.flops, comparison.baseline.flops
    if row.flops is None or row.baseline_flops is None:
        return
    row.flop_ratio = row.baseline_flops / row.flops
    row.flop_share = (row.train_ratio or 0.0) / row.flop_ratio
    row.mfu, row.mfu_low, row.mfu_high = spread(found.utilization(row.flops))
    row.baseline_mfu = median(found.utilization(row.baseline_flops, of="baseline"))


def unmeasured(comparison: Comparison, *, error: str = "") -> Measurement:
    """What is known of a comparison before, or without, its measurement."""
    run = comparison.subject.run
    return Measurement(
        group=comparison.group, name=comparison.subject.name, baseline=comparison.baseline.name,
        own_process=comparison.own_process, compiled=comparison.compiled, context=run.model.context,
        batch=run.data.batch_size, note=comparison.note, error=error,
    )


def from_record(values: Mapping[str, Any]) -> Measurement:
    """A measurement from a row of `bench.json`, also of an older one."""
    return Measurement(**{RENAMED.get(name, name): value for name, value in values.items()})
