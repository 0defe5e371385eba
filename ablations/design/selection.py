"""Which rows go on from a screening, and at which tuned values they are judged: chosen on seeds that judge nothing.

A value that was chosen on the seeds that are reported flatters: the best of several noisy results is better than it
will be again. What a stage trains depends on what those before have found, so that the cells of a study are known stage
by stage. The choice is a pure function of the results: every machine that trains a study finds the same cells.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ablations.design.collapse import COLLAPSED

SPOILT = (COLLAPSED, "diverged")
"""Ends of a run that make its tuned value no row's best, if it has another."""


@dataclass(frozen=True)
class Outcome:
    """How a cell ended."""

    state: str
    """complete, collapsed, diverged or failed."""
    loss: float = math.nan
    """Of validation."""
    test_loss: float = math.nan
    assumed: bool = False
    """Nobody knows it yet: it stands for a cell in a count."""

    @property
    def trained(self) -> bool:
        return self.state == "complete" and math.isfinite(self.loss)

    def loss_in(self, quantity: str) -> float:
        """The loss that a claim about a quantity is about; of bits per byte in nats, of which they are a multiple."""
        return self.test_loss if quantity == "test_loss" else self.loss


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


def survivors(losses: Mapping[str, float], *, always: Collection[str], keep: int) -> list[str]:
    """The rows that go on from a screening, in their order: some in any case, and the best of the others that trained.

    Args:
        losses: by row, at its best tuned values; infinite where it did not train.
        always: those that go on in any case.
        keep: how many of the others.
    """
    others = sorted((row for row in losses if row not in always and math.isfinite(losses[row])), key=losses.__getitem__)
    chosen = {*always, *others[:keep]}
    return [row for row in losses if row in chosen]
