"""How the tuned values of a row are chosen, on seeds that judge nothing.

    select   every row at every tuned value, on seeds of their own: at which value is each at its best?
    judge    every row at that value, on the seeds from which everything is reported

A value that was chosen on the seeds that are reported flatters: the best of several noisy results is better than it
will be again. What is judged depends on what was chosen, so that the cells of such a study are known in two steps. The
choice is a pure function of the results: every machine that trains a study finds the same cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from ablations.design.collapse import COLLAPSED

SELECT, JUDGE = "select", "judge"
FIRST_SEED = 1000
"""Of those that choose. A study's own are counted from 0, so that the two are apart."""
SPOILT = (COLLAPSED, "diverged")
"""Ends of a run that make its tuned value no row's best, if it has another."""


@dataclass(frozen=True)
class Outcome:
    """How a cell ended."""

    state: str
    """complete, collapsed, diverged or failed."""
    loss: float = math.nan

    @property
    def trained(self) -> bool:
        return self.state == "complete" and math.isfinite(self.loss)


@dataclass(frozen=True)
class Found:
    """What is known of a row at one tuned value."""

    chosen_on: Sequence[Outcome]
    """On the seeds that choose."""
    judged: Sequence[Outcome] = ()
    """On those that judge: they can spoil the value, and are not looked at otherwise."""

    @property
    def spoilt(self) -> bool:
        """Whether a run collapsed or diverged."""
        return any(outcome.state in SPOILT for outcome in (*self.chosen_on, *self.judged))

    @property
    def trained(self) -> float:
        """The share of its runs that trained."""
        every = (*self.chosen_on, *self.judged)
        return sum(outcome.trained for outcome in every) / len(every) if every else 0.0

    @property
    def loss(self) -> float:
        """The mean by which it is chosen; infinite where nothing trained."""
        losses = [outcome.loss for outcome in self.chosen_on if math.isfinite(outcome.loss)]
        return fmean(losses) if losses else math.inf


def best(found: Sequence[Found]) -> int:
    """The place of the value at which a row is at its best.

    Smallest mean loss of the values at which no run collapsed or diverged; where all have one, of those at which the
    largest share of the runs trained. The first of equals.
    """
    def rank(place: int) -> tuple[bool, float, float]:
        own = found[place]
        return (True, -own.trained, own.loss) if own.spoilt else (False, 0.0, own.loss)

    return min(range(len(found)), key=rank)


def apart(count: int) -> tuple[int, ...]:
    """So many seeds that choose."""
    return tuple(range(FIRST_SEED, FIRST_SEED + count))
