"""How much the learning rate matters, and whether the axis was long enough. Imports neither torch nor lightning."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from ablations.analysis.tables import FINISHED, Record, best_learning_rate, label

TOLERANCE = 0.02
"""A learning rate is as good as the best if its loss is at most this share above: the margin of `claims`."""
SENSITIVITY_COLUMNS = ("block", "preset", "n_rates", "best", "edge", "still_falling", "spread", "factor", "n_spoilt")


def sensitivity(record: Record) -> pd.DataFrame:
    """A row per block: how its loss depends on the learning rate.

    Returns:
        best: its best learning rate; edge: "lowest" or "highest" where that is the first or last of an axis of two or
        more; still_falling: at an edge, and its neighbour is worse by more than `TOLERANCE`, so that more may be gained
        beyond; spread: loss at the worst learning rate minus that at the best, in nats, of those that were trained to
        the end; factor: by how much the learning rate may be off and cost at most `TOLERANCE` of the loss (the largest
        over the smallest of the neighbours that are this good; 1: only the best is); n_spoilt: learning rates at which
        a seed diverged or failed.
    """
    finished = record.cells[record.cells.state.isin(FINISHED)]
    rows = [sensitivity_of(own) for _, own in finished.groupby("block", sort=False)]
    return pd.DataFrame(rows, columns=list(SENSITIVITY_COLUMNS))


def sensitivity_of(cells: pd.DataFrame) -> dict[str, Any]:
    """A row of `sensitivity`, from the finished cells of one block."""
    rates = sorted(map(float, cells.learning_rate.unique()))
    best = best_learning_rate(cells)
    complete = cells[cells.state == "complete"]
    spoilt = set(cells[cells.state != "complete"].learning_rate)
    means = {rate: float(complete[complete.learning_rate == rate].val_loss.mean())
             for rate in rates if (complete.learning_rate == rate).any()}
    edge = "" if len(rates) < 2 or not means else {rates[0]: "lowest", rates[-1]: "highest"}.get(best, "")
    return {
        "block": cells["block"].iloc[0], "preset": cells.preset.iloc[0], "n_rates": len(rates), "best": best,
        "edge": edge,
        "still_falling": bool(edge) and _still_falling(rates, means, best=best, spoilt=spoilt),
        "spread": max(means.values()) - means[best] if len(means) > 1 else math.nan,
        "factor": _factor(rates, means, best=best, spoilt=spoilt) if len(rates) > 1 and means else math.nan,
        "n_spoilt": len(spoilt),
    }


def _still_falling(rates: list[float], means: dict[float, float], *, best: float, spoilt: set[float]) -> bool:
    neighbour = rates[1] if best == rates[0] else rates[-2]
    return neighbour in spoilt or means[neighbour] > (1 + TOLERANCE) * means[best]


def _factor(rates: list[float], means: dict[float, float], *, best: float, spoilt: set[float]) -> float:
    """The largest over the smallest learning rate of the unbroken run of good ones around the best."""
    good = [rate == best or (rate not in spoilt and means[rate] <= (1 + TOLERANCE) * means[best]) for rate in rates]
    first = last = rates.index(best)
    while first > 0 and good[first - 1]:
        first -= 1
    while last + 1 < len(rates) and good[last + 1]:
        last += 1
    return rates[last] / rates[first]


def edge_warnings(table: pd.DataFrame) -> list[str]:
    """A sentence for each edge of the axis at which blocks have their best learning rate.

    Args:
        table: of `sensitivity`.
    """
    found = []
    for edge, direction in (("lowest", "downwards"), ("highest", "upwards")):
        own = table[table.edge == edge]
        for best, at_edge in own.groupby("best"):
            falling = at_edge[at_edge.still_falling]
            names = ", ".join(label(row) for row in at_edge.itertuples(index=False))
            more = f" ({len(falling)} of them still gain there)" if len(falling) else ""
            found.append(f"best at the {edge} learning rate, {best:g}{more}: {names}. Extend the axis {direction} "
                         "(--lr) before you compare them.")
    return found
