"""The named blocks of a study against each other, paired by seed. Imports neither torch nor lightning."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from ablations.analysis.intervals import NOTHING, Interval, inverse, mean_interval, ratio_interval
from ablations.analysis.tables import Record
from lit_simplified.config import PRESETS

BASELINE = "pre_ln"
"""The block that all others are measured against in the speed pass."""
PAIR_COLUMNS = (
    "left", "right", "loss_difference", "loss_low", "loss_high", "n_seeds", "speed_ratio", "speed_low", "speed_high",
)


def pairwise(record: Record, blocks: pd.DataFrame) -> pd.DataFrame:
    """Every pair of named blocks of the study: loss of left minus right in nats, speed of left over right.

    Each block is taken at its best learning rate. Losses are paired by seed, as a seed gives both the same data in the
    same order; the interval is that of the mean difference over the seeds that both were trained to the end with.
    """
    rows = []
    for left, right in combinations(named(blocks), 2):
        differences = paired_differences(record, blocks, left=left, right=right)
        loss, speed = mean_interval(differences), speed_of(blocks, left=left, right=right)
        rows.append((left, right, *loss, len(differences), *speed))
    table = pd.DataFrame(rows, columns=list(PAIR_COLUMNS))
    numbers = [name for name in PAIR_COLUMNS[2:] if name != "n_seeds"]
    return table.astype({**dict.fromkeys(numbers, float), "n_seeds": int})


def named(blocks: pd.DataFrame) -> list[str]:
    """The presets that a table of blocks has, in the order of `PRESETS`."""
    return [name for name in PRESETS if name in set(blocks.preset)]


def row_of(blocks: pd.DataFrame, preset: str) -> Any:
    """The row of a named block, its columns as attributes."""
    return next(blocks[blocks.preset == preset].itertuples(index=False))


def paired_differences(record: Record, blocks: pd.DataFrame, *, left: str, right: str) -> np.ndarray:
    """Validation loss of left minus right by seed, in nats."""
    losses = [_by_seed(record, row_of(blocks, name)) for name in (left, right)]
    return (losses[0] - losses[1]).dropna().to_numpy(dtype=float)


def _by_seed(record: Record, row: Any) -> pd.Series:
    cells = record.cells
    own = (cells["block"] == row.block) & (cells.learning_rate == row.learning_rate) & (cells.state == "complete")
    return cells[own].set_index("seed").val_loss


def speed_of(blocks: pd.DataFrame, *, left: str, right: str) -> Interval:
    """Training speed of left over right, with its interval.

    Against the baseline that is what was measured. Two others were each measured against it.
    """
    of_left, of_right = (_measured(row_of(blocks, name)) for name in (left, right))
    if math.isnan(of_left.estimate) or math.isnan(of_right.estimate):
        return NOTHING
    if right == BASELINE:
        return of_left
    return inverse(of_right) if left == BASELINE else ratio_interval(of_left, of_right)


def _measured(row: Any) -> Interval:
    values = (row.speed_ratio, row.speed_ratio_low, row.speed_ratio_high)
    return NOTHING if any(pd.isna(value) for value in values) else Interval(*map(float, values))
