"""Rows of a study against each other, paired by seed. Imports neither torch nor lightning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from ablations.analysis.intervals import NOTHING, Interval, inverse, mean_interval, ratio_interval
from ablations.analysis.tables import StudyRecord, each
from ablations.design.design import StudyDesign

PAIR_COLUMNS = (
    "left", "right", "left_row", "right_row", "loss_difference", "loss_low", "loss_high", "n_seeds", "speed_ratio",
    "speed_low", "speed_high",
)
MOST_PAIRED = 100
"""Rows that are set against each other: pairs grow with their square."""
NUMBERS = ("loss_difference", "loss_low", "loss_high", "speed_ratio", "speed_low", "speed_high")


def pairwise(record: StudyRecord, rows: pd.DataFrame) -> pd.DataFrame:
    """Every pair of `paired_rows` that have a finished cell: loss of left minus right in nats, speed of left over
    right.

    Each row is taken at its best tuned values. Losses are paired by seed, as a seed gives both the same data in the
    same order; the interval is that of the mean difference over the seeds that both were trained to the end with.
    """
    lines = {str(row.row): row for row in each(rows)}
    losses = {row: _by_seed(record, lines[row], "val_loss") for row in paired_rows(record.design) if row in lines}
    reference = _reference_block(record) if losses else ""
    found = []
    for left, right in combinations(losses, 2):
        differences = _paired(losses[left], losses[right])
        speed = _speed_of(record, lines[left], lines[right], reference)
        found.append((lines[left].label, lines[right].label, left, right, *mean_interval(differences), len(differences),
                      *speed))
    table = pd.DataFrame(found, columns=list(PAIR_COLUMNS))
    return table.astype({**dict.fromkeys(NUMBERS, float), "n_seeds": int})


def paired_rows(design: StudyDesign) -> tuple[str, ...]:
    """The highlighted rows, of more than `MOST_PAIRED` the baseline and the first of the others, in their order."""
    chosen = set(sorted(design.highlighted, key=lambda row: row != design.baseline)[:MOST_PAIRED])
    return tuple(row for row in design.highlighted if row in chosen)


def row_of(rows: pd.DataFrame, row: str) -> Any:
    """The line of a row in the table of rows, its columns as attributes."""
    return next(rows[rows.row == row].itertuples(index=False))


def paired_differences(
    record: StudyRecord, rows: pd.DataFrame, *, left: str, right: str, column: str = "val_loss"
) -> np.ndarray:
    """Left minus right by seed, of a column of the table of cells, over the seeds that both have."""
    return _paired(*(_by_seed(record, row_of(rows, row), column) for row in (left, right)))


def _paired(left: Mapping[int, float], right: Mapping[int, float]) -> np.ndarray:
    differences = np.array([left[seed] - right[seed] for seed in sorted(left.keys() & right.keys())], dtype=float)
    return differences[~np.isnan(differences)]


def _by_seed(record: StudyRecord, row: Any, column: str) -> dict[int, float]:
    cells = record.of_row(row.row)
    own = cells[(cells.tuned == row.tuned) & (cells.state == "complete")]
    return dict(zip(own.seed, own[column], strict=True))


def of_one_size(design: StudyDesign, left: str, right: str) -> bool:
    """Whether two rows differ in their blocks at most, so that both were timed against the same baseline."""
    levels = [design.by_id[row].levels for row in (left, right)]
    return all(levels[0].get(axis.name) == levels[1].get(axis.name) for axis in design.axes if not axis.of_block)


def speed_of(record: StudyRecord, rows: pd.DataFrame, *, left: str, right: str) -> Interval:
    """Training speed of left over right, with its interval.

    Against the block of the baseline that is what was measured. Two others were each measured against it. Nothing for
    rows of different sizes, whose baselines are different.
    """
    return _speed_of(record, row_of(rows, left), row_of(rows, right), _reference_block(record))


def _speed_of(record: StudyRecord, left: Any, right: Any, reference: str) -> Interval:
    of_left, of_right = measured_speed(left), measured_speed(right)
    unknown = math.isnan(of_left.estimate) or math.isnan(of_right.estimate)
    if unknown or not of_one_size(record.design, left.row, right.row):
        return NOTHING
    if right.block == reference:
        return of_left
    return inverse(of_right) if left.block == reference else ratio_interval(of_left, of_right)


def _reference_block(record: StudyRecord) -> str:
    """The block that the speed pass measures all others against: the baseline's, else that of the first cell."""
    cells = record.cells
    own = cells[cells.row == record.design.baseline]
    return str((cells if own.empty else own)["block"].iloc[0])


def measured_speed(row: Any) -> Interval:
    """What the speed pass found of a row, relative to the baseline's block at its size."""
    values = (row.speed_ratio, row.speed_ratio_low, row.speed_ratio_high)
    return NOTHING if any(pd.isna(value) for value in values) else Interval(*map(float, values))
