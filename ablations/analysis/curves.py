"""Losses along something: learning curves, and the final loss along an axis of numbers. Imports neither torch nor
lightning.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from ablations.analysis.intervals import mean_interval
from ablations.analysis.rates import tuned_axis
from ablations.analysis.tables import FINISHED, StudyRecord, each, mean_of, places_of
from ablations.design.axes import Axis
from ablations.design.collapse import COLLAPSED
from ablations.design.design import Row, StudyDesign

CURVE_COLUMNS = (
    "cell", "row", "label", "seed", "tuned", "step", "tokens", "seconds", "train_loss", "val_loss",
)
AXIS_COLUMNS = (
    "axis", "title", "x", "line", "row", "val_loss_mean", "low", "high", "n_seeds", "state", "collapsed_loss_mean",
)
ONLY_LINE = "all"
"""What the one line of an axis without any other is called."""


def row_curves(record: StudyRecord, rows: pd.DataFrame, *, state: str = "complete") -> dict[str, pd.DataFrame]:
    """Learning curve by row id, at its best tuned values, averaged over the seeds that ended in a state, with `seconds`
    of training.

    The seconds are tokens over the tokens per second of the table: the speed pass's, where there is one. Times of the
    training itself depend on what else the machine did.
    """
    cells = record.cells[record.cells.state == state]
    points = _points(record, cells[cells.tuned == cells.row.map(dict(zip(rows.row, rows.tuned, strict=True)))], "row")
    if points.empty:
        return {}
    means = points.groupby(["row", "step"], as_index=False).mean(numeric_only=True)
    means["seconds"] = means.tokens / means.row.map(dict(zip(rows.row, rows.tokens_per_second, strict=True)))
    found = {str(row): curve.reset_index(drop=True) for row, curve in means.drop(columns="row").groupby(means.row)}
    return {str(row): found[row] for row in rows.row if row in found}


def long_curves(record: StudyRecord) -> pd.DataFrame:
    """Every cell's learning curve, as it was recorded, in long form: `CURVE_COLUMNS`."""
    return _points(record, record.cells, *CURVE_COLUMNS[:5]).reindex(columns=list(CURVE_COLUMNS))


def _points(record: StudyRecord, cells: pd.DataFrame, *names: str) -> pd.DataFrame:
    """The points of the curves of some cells, with some of the columns of the table of cells."""
    cells = cells[cells.cell.isin(record.curves)]
    curves = [record.curves[cell] for cell in cells.cell]
    points = pd.DataFrame([point for curve in curves for point in curve])
    places = np.repeat(np.arange(len(curves)), [len(curve) for curve in curves])
    return points.assign(**{name: cells[name].to_numpy()[places] for name in names})


def loss_by_axis(record: StudyRecord, rows: pd.DataFrame) -> pd.DataFrame:
    """The final loss along each axis of numbers, compared or tuned, in long form: `AXIS_COLUMNS`.

    Along a compared axis every row is at its best tuned values. A line is a combination of the levels of all other
    axes; low and high are the 95 % t interval over its seeds. Points that collapsed or diverged stay, without a loss;
    the loss of the collapsed seeds stands beside it.
    """
    parts = [*_compared(record, rows), *_tuned(record)]
    table = pd.DataFrame([point for points in parts for point in points], columns=list(AXIS_COLUMNS))
    numbers = dict.fromkeys(("x", "val_loss_mean", "low", "high", "collapsed_loss_mean"), float)
    table = table.astype({**numbers, "n_seeds": int})
    return table.sort_values(["axis", "line", "x"], kind="stable", ignore_index=True)


def _compared(record: StudyRecord, rows: pd.DataFrame) -> Iterator[list[dict[str, Any]]]:
    """The points of each compared axis of numbers."""
    design, titles = record.design, record.design.titles()
    for axis in design.factors:
        if axis.numbers is None:
            continue
        points = []
        for found in each(rows):
            row = design.by_id.get(str(found.row))
            if row is None or axis.name not in row.levels:
                continue  # added by name: it is at no level of the axis
            points.append({
                "axis": axis.name, "title": titles[axis.name],
                "x": axis.numbers[axis.labels.index(row.levels[axis.name])], "line": _line(design, row, axis),
                "row": row.id, "val_loss_mean": found.val_loss_mean, "low": found.val_loss_low,
                "high": found.val_loss_high, "n_seeds": found.n_seeds, "state": found.state,
                "collapsed_loss_mean": found.collapsed_loss_mean,
            })
        yield points


def _line(design: StudyDesign, row: Row, axis: Axis) -> str:
    """The levels of a row on all other axes; those of its block by its name, where it has one."""
    others = [other for other in design.factors if other.name != axis.name and other.name in row.levels]
    of_block = [other for other in others if other.of_block]
    if row.preset and of_block and not axis.of_block:
        parts = [row.preset, *(_part(other, row) for other in others if not other.of_block)]
    else:
        parts = [_part(other, row) for other in others]
    return ", ".join(parts) or ONLY_LINE


def _part(axis: Axis, row: Row) -> str:
    label = row.levels[axis.name]
    return label if axis.named else f"{axis.title} {label}"


def _tuned(record: StudyRecord) -> Iterator[list[dict[str, Any]]]:
    """The points of each tuned axis of numbers: every row at every tuned value."""
    finished = record.tried[record.tried.state.isin(FINISHED)]
    columns = {name: finished[name].to_numpy() for name in ("row", "label", "tuned", "state", "val_loss")}
    for axis in record.design.tuned:
        known = tuned_axis(record, axis)
        if known is None or len(axis.levels) < 2:
            continue
        points = []
        for places in places_of(finished.row, finished.tuned):
            row, label, tuned = (columns[name][places[0]] for name in ("row", "label", "tuned"))
            if tuned not in known.values:
                continue  # trained before the axis was there
            states = columns["state"][places]
            losses = columns["val_loss"][places][states == "complete"]
            mean, low, high = mean_interval(losses)
            points.append({
                "axis": axis.name, "title": known.title, "x": known.values[tuned],
                "line": ", ".join((label, *_other_tuned(tuned, known.title))), "row": row,
                "val_loss_mean": mean, "low": low, "high": high, "n_seeds": len(losses),
                "state": next(state for state in FINISHED if (states == state).any()),
                "collapsed_loss_mean": mean_of(columns["val_loss"][places][states == COLLAPSED]),
            })
        yield points


def _other_tuned(tuned: str, title: str) -> list[str]:
    """What a tuned label says of the other tuned axes."""
    return [part for part in tuned.split(", ") if not part.startswith(f"{title} ")] if ", " in tuned else []
