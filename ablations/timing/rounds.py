"""Paired rounds: two sides timed in turns, P X X P, so that a slow drift of the machine falls on both alike.

P is the baseline, X the other side, a letter a burst of steps. Each round gives one ratio of speeds; the rounds give
their median and an interval that assumes nothing about the distribution. Imports the standard library alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal, NamedTuple, Protocol

Mode = Literal["train", "inference"]
FEWEST = 2
"""Rounds that are made however long they take."""


class Side(Protocol):
    """What is timed: a `Step`, or one in a process of its own."""

    def time(self, steps: int, mode: Mode = "train") -> float:
        """Seconds that some steps take."""


@dataclass(frozen=True)
class Rounds:
    """What paired rounds gave, a value per round."""

    baseline: Mapping[Mode, list[float]]
    """Seconds per step, by mode."""
    other: Mapping[Mode, list[float]]
    peak: list[float] = field(default_factory=list)
    """Operations per second of the matrix product of the same round; empty without one."""

    @property
    def count(self) -> int:
        """How many rounds were made."""
        return len(next(iter(self.other.values())))

    def ratios(self, mode: Mode = "train") -> list[float]:
        """Speed of the other side over that of the baseline: above 1 where it is faster."""
        return [base / other for base, other in zip(self.baseline[mode], self.other[mode], strict=True)]

    def utilization(self, flops: int, *, of: Literal["baseline", "other"] = "other") -> list[float]:
        """Model FLOPs utilization of training (MFU): counted operations of a step per second, over the round's peak."""
        seconds = (self.baseline if of == "baseline" else self.other)["train"]
        return [flops / taken / peak for taken, peak in zip(seconds, self.peak, strict=True)]


def paired_rounds(
    baseline: Side, other: Side, *, rounds: int, bursts: Mapping[Mode, int], peak: Callable[[], float] | None = None,
    limit: float = math.inf, on_round: Callable[[], Any] = lambda: None,
) -> Rounds:
    """Time two sides in turns; both are warm already.

    Args:
        baseline: P.
        other: X.
        rounds: how often P X X P, each in every mode.
        bursts: steps of a burst, by mode.
        peak: measures the machine's operations per second; called once per round, before its bursts.
        limit: seconds after which no further round is begun, once there are `FEWEST`.
        on_round: called after each.
    """
    found = Rounds({mode: [] for mode in bursts}, {mode: [] for mode in bursts})
    start = time.perf_counter()
    for done in range(rounds):
        if done >= FEWEST and time.perf_counter() - start > limit:
            break
        if peak is not None:
            found.peak.append(peak())
            _recover(baseline, other, mode=next(iter(bursts)))
        for mode, burst in bursts.items():
            first, second = baseline.time(burst, mode), other.time(burst, mode)
            third, fourth = other.time(burst, mode), baseline.time(burst, mode)
            found.baseline[mode].append((first + fourth) / (2 * burst))
            found.other[mode].append((second + third) / (2 * burst))
        on_round()
    return found


def _recover(baseline: Side, other: Side, *, mode: Mode) -> None:
    """A step of each side that does not count, in the order in which a round ends.

    A large matrix product empties the caches. Between the two bursts of X it cost a small model 16 % of its speed; what
    comes first after it pays, so neither side's clock may run.
    """
    other.time(1, mode)
    baseline.time(1, mode)


class Spread(NamedTuple):
    """A median with its 95 % interval."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median and interval of one value per round."""
    return Spread(median(values), *interval(values))


def interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the median by order statistics: no assumption on the distribution.

    The k-th smallest and k-th largest value miss the median with probability 2*P(Binomial(n, 1/2) < k); k is the
    largest that keeps this below 1 - confidence. With fewer than six values no k reaches 95 %; their range is returned.
    """
    ordered, count = sorted(values), len(values)
    k, missed = 0, 1 / 2**count
    while missed <= (1 - confidence) / 2:
        k += 1
        missed += math.comb(count, k) / 2**count
    place = max(k - 1, 0)
    return float(ordered[place]), float(ordered[count - 1 - place])
