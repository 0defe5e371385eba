"""How much the tuned axis matters (as a rule the learning rate), and whether it was long enough. Imports neither torch
nor lightning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ablations.analysis.margins import MARGIN
from ablations.analysis.tables import (
    FINISHED,
    LEARNING_RATE,
    StudyRecord,
    best_tuned,
    each,
    mean_of,
    places_of,
    tuned_text,
)
from ablations.design.axes import Axis

SENSITIVITY_COLUMNS = (
    "row", "label", "preset", "axis", "n_values", "best", "edge", "still_falling", "spread", "factor", "n_spoilt",
    "flag",
)


class TunedAxis(NamedTuple):
    """A tuned axis of numbers."""

    title: str
    flag: str
    """What extends it: a flag of the command line, or the axis in the study file."""
    values: Mapping[str, float]
    """Its value by the tuned label of a cell."""


def tuned_axis(record: StudyRecord, axis: Axis) -> TunedAxis | None:
    """A tuned axis with the place of each tuned label on it; None for one that is not of numbers."""
    numbers = axis.numbers
    if numbers is None:
        return None
    tuned = record.design.tuned
    places = {}
    for point in product(*(other.levels for other in tuned)):
        text = tuned_text({path: value for level in point for path, value in level.values.items()})
        own = next(level for other, level in zip(tuned, point, strict=True) if other.name == axis.name)
        places[text] = numbers[axis.labels.index(own.label)]
    is_rate = axis.name == LEARNING_RATE
    return TunedAxis(record.design.titles()[axis.name], "--lr" if is_rate else axis.name, places)


def only_tuned_axis(record: StudyRecord) -> TunedAxis | None:
    """The tuned axis of a study that tunes exactly one, of numbers, with every finished cell on it; else None."""
    tuned = [axis for axis in record.design.tuned if len(axis.levels) > 1]
    found = tuned_axis(record, tuned[0]) if len(tuned) == 1 else None
    finished = record.tried[record.tried.state.isin(FINISHED)]
    return found if found is not None and set(finished.tuned) <= set(found.values) else None


def sensitivity(record: StudyRecord) -> pd.DataFrame:
    """A row per row of the study: how its loss depends on the tuned axis. Empty unless exactly one of numbers is tuned.

    Returns:
        axis: its title; n_values: at how many of its values the row has finished cells; best: the best of them; edge:
        "lowest" or "highest" where that is the first or last of two or more; still_falling: at an edge, and its
        neighbour is worse by more than `MARGIN`, so that more may be gained beyond; spread: loss at the worst value
        minus that at the best, in nats, of those that were trained to the end; factor: by how much the value may be off
        and cost at most `MARGIN` (the largest over the smallest of the neighbours that are this good; 1:
        only the best is); n_spoilt: values at which a seed diverged or failed; flag: what extends the axis.
    """
    axis = only_tuned_axis(record)
    finished = record.tried[record.tried.state.isin(FINISHED)]
    found = sensitivity_of(finished, axis) if axis is not None else []
    return pd.DataFrame(found, columns=list(SENSITIVITY_COLUMNS))


def sensitivity_of(finished: pd.DataFrame, axis: TunedAxis) -> list[dict[str, Any]]:
    """The rows of `sensitivity`, from the finished cells of some rows."""
    best = best_tuned(finished)
    names = ("row", "label", "preset", "state", "val_loss")
    columns = {**{name: finished[name].to_numpy() for name in names},
               "place": finished.tuned.map(axis.values).to_numpy(dtype=float)}
    rows = [{name: column[places] for name, column in columns.items()} for places in places_of(finished.row)]
    return [_sensitivity(cells, axis, best=axis.values[best[cells["row"][0]]]) for cells in rows]


def _sensitivity(cells: Mapping[str, np.ndarray], axis: TunedAxis, *, best: float) -> dict[str, Any]:
    """A row of `sensitivity`, from the columns of its cells."""
    places, complete = cells["place"], cells["state"] == "complete"
    values = sorted(set(places.tolist()))
    spoilt = set(places[~complete].tolist())
    means = {value: mean_of(cells["val_loss"][complete & (places == value)])
             for value in values if (complete & (places == value)).any()}
    edge = "" if len(values) < 2 or not means else {values[0]: "lowest", values[-1]: "highest"}.get(best, "")
    return {
        "row": cells["row"][0], "label": cells["label"][0], "preset": cells["preset"][0], "axis": axis.title,
        "n_values": len(values), "best": best, "edge": edge,
        "still_falling": bool(edge) and _still_falling(values, means, best=best, spoilt=spoilt),
        "spread": max(means.values()) - means[best] if len(means) > 1 else math.nan,
        "factor": _factor(values, means, best=best, spoilt=spoilt) if len(values) > 1 and means else math.nan,
        "n_spoilt": len(spoilt), "flag": axis.flag,
    }


def _still_falling(values: list[float], means: dict[float, float], *, best: float, spoilt: set[float]) -> bool:
    neighbour = values[1] if best == values[0] else values[-2]
    return neighbour in spoilt or means[neighbour] > means[best] + MARGIN


def _factor(values: list[float], means: dict[float, float], *, best: float, spoilt: set[float]) -> float:
    """The largest over the smallest value of the unbroken run of good ones around the best."""
    good = [value == best or (value not in spoilt and means[value] <= means[best] + MARGIN)
            for value in values]
    first = last = values.index(best)
    while first > 0 and good[first - 1]:
        first -= 1
    while last + 1 < len(values) and good[last + 1]:
        last += 1
    return values[last] / values[first] if values[first] > 0 else math.nan


def edge_warnings(table: pd.DataFrame) -> list[str]:
    """A sentence for each edge of the tuned axis at which rows are at their best.

    Args:
        table: of `sensitivity`.
    """
    found = []
    for edge, direction in (("lowest", "downwards"), ("highest", "upwards")):
        own = table[table.edge == edge]
        for (title, best), at_edge in own.groupby(["axis", "best"]):
            falling = at_edge[at_edge.still_falling.astype(bool)]
            names = "; ".join(row.label for row in each(at_edge))
            more = f" ({len(falling)} of them still gain there)" if len(falling) else ""
            found.append(f"best at the {edge} {title}, {best:g}{more}: {names}. Extend the axis {direction} "
                         f"({at_edge.flag.iloc[0]}) before you compare them.")
    return found
