"""Runs that end on the plateau of token frequencies: they were trained to the end, and learned nothing else. Imports
neither torch nor lightning.

The engine calls such a run complete, and its record stays. Here it has a state of its own, as a mean over collapsed
and healthy seeds describes neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

DISTANCE = 0.05
"""A run has collapsed if its validation loss ends less than this many nats below the unigram loss, or above it.

Of the recorded grid of 48 blocks (`docs/small-clm`) those on the plateau end from 0.03 below to 0.02 above it, and the
diverging ones further above; the next best, which learned a little, 0.07 to 0.10 below; then nothing down to 1.0 below,
where the healthy blocks begin. The sampling error of 128 validation windows, 0.007, is far smaller."""
COLLAPSED = "collapsed"


@dataclass(frozen=True)
class Plateau:
    """The unigram loss of the validation split, and whether runs can be judged by it."""

    loss: float | None
    """In nats per token; None where no run can be called collapsed."""
    note: str = ""
    """Why none can."""


def plateau_of(card: Mapping[str, Any], cells: pd.DataFrame, *, scale: str) -> Plateau:
    """The plateau of a study, from its data card and its cells.

    Where no run at all has got below it the budget is to blame, not a block: then no run is called collapsed.
    """
    loss = card.get("splits", {}).get("validation", {}).get("unigram_loss")
    if scale == "smoke":
        return Plateau(None, "Scale smoke trains too little to tell whether a run collapsed.")
    if loss is None:
        return Plateau(None, "No run is called collapsed, because the study's data card has no unigram loss: it is "
                             "of an older version, or the rows differ in corpus or vocabulary.")
    ended = cells[cells.state.isin(("complete", COLLAPSED))]
    if len(ended) and not (ended.val_loss < loss - DISTANCE).any():
        return Plateau(None, f"No run got below the loss of token frequencies alone ({loss:.3f} nats): trained this "
                             "little, none is called collapsed.")
    return Plateau(float(loss))


def mark_collapsed(cells: pd.DataFrame, plateau: Plateau) -> pd.DataFrame:
    """The cells, with the state of those complete ones that ended on the plateau changed. They keep their loss."""
    if plateau.loss is None:
        return cells
    on_it = (cells.state == "complete") & (cells.val_loss > plateau.loss - DISTANCE)
    reason = f"ended on the loss of token frequencies ({plateau.loss:.3f} nats)"
    return cells.assign(state=cells.state.mask(on_it, COLLAPSED), reason=cells.reason.mask(on_it, reason))
