"""When a run has collapsed: it was trained to its end, and learned nothing but how frequent each token is.

The engine calls such a run complete, and its record stays so. What chooses rows and tuned values, and what reports on
them, gives it a state of its own: a mean over collapsed and healthy seeds describes neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ablations.design.design import StudyDesign
from ablations.design.scales import PLUMBING

DISTANCE = 0.05
"""A run has collapsed if its validation loss ends less than this many nats below the unigram loss, or above it.

Of the recorded grid of 48 blocks (`docs/small-clm`) those on the plateau end from 0.03 below to 0.02 above it, and the
diverging ones further above; the next best, which learned a little, 0.07 to 0.10 below; then nothing down to 1.0 below,
where the healthy blocks begin. The sampling error of 128 validation windows, 0.007, is far smaller."""
COLLAPSED = "collapsed"
OF_CORPUS = {"data.recipe", "data.tokenizer", "model.vocab_size"}
"""Fields on which a data card depends."""


@dataclass(frozen=True)
class Plateau:
    """The unigram loss of the validation split, and whether runs can be judged by it."""

    loss: float | None
    """In nats per token; None where no run can be called collapsed."""
    note: str = ""
    """Why none can."""

    @property
    def edge(self) -> float:
        """Runs that end above it have collapsed."""
        return math.inf if self.loss is None else self.loss - DISTANCE

    def holds(self, loss: float) -> bool:
        """Whether a run that ended with this loss has collapsed."""
        return loss > self.edge


def card_of(design: StudyDesign, attrs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The data card of every row of a study; empty where an axis changes corpus or vocabulary."""
    fields = {field for axis in (*design.axes, *design.tuned) for field in axis.fields}
    found: Mapping[str, Any] = {} if fields & OF_CORPUS else attrs.get("corpus", {})
    return found


def plateau_of(card: Mapping[str, Any], losses: Iterable[float], *, scale: str) -> Plateau:
    """The plateau of a study.

    Where no run at all has got below it the budget is to blame, not a block: then no run is called collapsed.

    Args:
        card: its data card.
        losses: of all its runs that were trained to the end.
        scale: its size.
    """
    loss = card.get("splits", {}).get("validation", {}).get("unigram_loss")
    if scale == PLUMBING:
        return Plateau(None, f"Scale {PLUMBING} trains too little to tell whether a run collapsed.")
    if loss is None:
        return Plateau(None, "No run is called collapsed, because the study's data card has no unigram loss: it is "
                             "of an older version, or the rows differ in corpus or vocabulary.")
    plateau, ended = Plateau(float(loss)), list(losses)
    if ended and not any(own < plateau.edge for own in ended):
        return Plateau(None, f"No run got below the loss of token frequencies alone ({loss:.3f} nats): trained this "
                             "little, none is called collapsed.")
    return plateau
