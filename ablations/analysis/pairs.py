"""Rows of a study against each other, paired by seed. Imports neither torch nor lightning."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from ablations.analysis.intervals import mean_interval
from ablations.analysis.speeds import reference_block, speed_between
from ablations.analysis.tables import StudyRecord, each, lost_seeds
from ablations.design.design import StudyDesign

PAIR_COLUMNS = (
    "left", "right", "left_row", "right_row", "loss_difference", "loss_low", "loss_high", "n_seeds", "speed_ratio",
    "speed_low", "speed_high", "note",
)
MOST_PAIRED = 100
"""Rows that are set against each other: pairs grow with their square."""
NUMBERS = ("loss_difference", "loss_low", "loss_high", "speed_ratio", "speed_low", "speed_high")


def pairwise(record: StudyRecord, rows: pd.DataFrame) -> pd.DataFrame:
    """Every pair of `paired_rows` that have a finished cell: loss of left minus right in nats, speed of left over
    right.

    Each row is taken at its best tuned values. Losses are paired by seed, as a seed gives both the same data in the
    same order; the interval is that of the mean difference over the seeds that both were trained to the end with, and
    neither collapsed. The note says where seeds are missing for that, which flatters a row.
    """
    lines = {str(row.row): row for row in each(rows)}
    losses = {row: _by_seed(record, row, str(lines[row].tuned), "val_loss")
              for row in paired_rows(record.design) if row in lines}
    reference = reference_block(record) if losses else ""
    found = []
    for left, right in combinations(losses, 2):
        differences = _paired(losses[left], losses[right])
        speed = speed_between(record, lines[left], lines[right], reference)
        lost = [lost_seeds(lines[row], name=lines[row].label) for row in (left, right)]
        found.append((lines[left].label, lines[right].label, left, right, *mean_interval(differences), len(differences),
                      *speed, "; ".join(filter(None, lost))))
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
    tuned = dict(zip(rows.row, rows.tuned, strict=True))  # a line as a tuple of 60 columns takes a millisecond
    return _paired(*(_by_seed(record, row, tuned[row], column) for row in (left, right)))


def _paired(left: Mapping[int, float], right: Mapping[int, float]) -> np.ndarray:
    differences = np.array([left[seed] - right[seed] for seed in sorted(left.keys() & right.keys())], dtype=float)
    return differences[~np.isnan(differences)]


def _by_seed(record: StudyRecord, row: str, tuned: str, column: str) -> dict[int, float]:
    places = record.places.get(row, np.arange(0))
    at, state, seeds, losses = (record.cells[name].to_numpy()[places] for name in ("tuned", "state", "seed", column))
    used = (at == tuned) & (state == "complete")
    return dict(zip(map(int, seeds[used]), map(float, losses[used]), strict=True))
