"""The stages of a study: what its training runs are for, in the order in which they are trained.

    screen   every row, for a share of the steps: which go on?
    select   these at every tuned value, on seeds that judge nothing: at which is each at its best?
    judge    these at that value, on the seeds from which everything else is reported
    extend   rows of claims, with several times the steps: would more tokens turn the answer?

A study has the first and the last if it says so, and the second where something is tuned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

SCREEN, SELECT, JUDGE, EXTEND = "screen", "select", "judge", "extend"
STAGES = (SCREEN, SELECT, JUDGE, EXTEND)
FIRST_SEED = 1000
"""Of those that judge nothing. A study's own are counted from 0, so that the two are apart."""


@dataclass(frozen=True)
class Screen:
    """How rows are screened."""

    share: float
    """Of the steps of a run that judges."""
    keep: int
    """The rows that go on beside those that do in any case: named blocks, the baseline, rows of claims."""
    tune: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """The tuned values that are tried, by axis. An axis that is not here: all of its own."""

    def at_all(self, axis: str) -> Screen:
        """The screening at all values of a tuned axis."""
        return replace(self, tune={name: levels for name, levels in self.tune.items() if name != axis})


@dataclass(frozen=True)
class Select:
    """How tuned values are chosen."""

    seeds: int = 1
    """0: those that judge choose, too, which flatters."""
    share: float = 1.0
    """Of the steps of a run that judges."""


@dataclass(frozen=True)
class Extend:
    """How it is asked whether more tokens would turn the answer."""

    times: float = 4.0
    """The steps of a run that judges."""
    seeds: int = 1


def steps_at(share: float, steps: int) -> int:
    """The steps of a run that has a share of those of a run that judges, or several times as many."""
    return max(1, round(steps * share))


def apart(count: int) -> tuple[int, ...]:
    """So many seeds that judge nothing."""
    return tuple(range(FIRST_SEED, FIRST_SEED + count))
