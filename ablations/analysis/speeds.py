"""Training speeds of rows against each other, with the noise of the measurement in their intervals. Imports neither
torch nor lightning.

Every row is timed against the baseline's block at its own size, and so is the baseline's block itself: the ratio of two
instances of one block is 1, and what that row shows instead is noise that the rounds of another row do not show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from ablations.analysis.intervals import NOTHING, Interval, inverse, ratio_interval, with_noise
from ablations.design.design import StudyDesign

if TYPE_CHECKING:
    from ablations.analysis.tables import StudyRecord

TOO_NOISY = "the speed pass was too noisy"
REMEDY = "run `speed --redo` when nothing else runs"


def noises(record: StudyRecord) -> dict[str, Interval]:
    """What the baseline's block measured against itself at the size of each row, by row id.

    Where that was not measured, what is farthest from 1 of the other sizes; nothing where it was measured at none.
    """
    design, reference = record.design, reference_block(record)
    blocks = dict(zip(record.cells.row, record.cells["block"], strict=True))
    known = {_size(design, row): found for row in record.speed if blocks.get(row) == reference
             and not math.isnan((found := recorded_speed(record.speed[row])).low)}
    widest = max(known.values(), key=farthest, default=NOTHING)
    return {row: known.get(_size(design, row), widest) for row in record.speed}


def farthest(noise: Interval) -> float:
    """How far from 1 the noise reaches, as a logarithm."""
    return max(-math.log(noise.low), math.log(noise.high))


def _size(design: StudyDesign, row: str) -> tuple[str | None, ...]:
    """The levels of a row on all axes that change more than the block."""
    levels = design.by_id[row].levels if row in design.by_id else {}
    return tuple(levels.get(axis.name) for axis in design.axes if not axis.of_block)


def recorded_speed(found: Mapping[str, Any]) -> Interval:
    """The ratio to the baseline as the speed pass recorded it."""
    values: list[Any] = [found.get(name) for name in ("ratio", "low", "high")]
    return NOTHING if any(value is None for value in values) else Interval(*map(float, values))


def withheld(noise: Interval) -> str:
    """Why no speed is to be told from a measurement with this noise; empty where one may."""
    if math.isnan(noise.low) or noise.contains(1.0):
        return ""
    return (f"{TOO_NOISY}: the baseline measured {noise.estimate:.3f} [{noise.low:.3f}, {noise.high:.3f}] times as "
            f"fast as itself, which excludes 1: {REMEDY}")


def speed_columns(record: StudyRecord) -> dict[str, dict[str, Any]]:
    """Of the table of rows, by row id: the ratio to the baseline with the noise in its interval, and `speed_withheld`.

    The baseline's own interval is the noise itself.
    """
    noise, reference = noises(record), reference_block(record)
    blocks = dict(zip(record.cells.row, record.cells["block"], strict=True))
    found = {}
    for row, measured in record.speed.items():
        own = recorded_speed(measured)
        ratio = own if blocks.get(row) == reference else with_noise(own, noise[row])
        found[row] = {"speed_ratio": ratio.estimate, "speed_ratio_low": ratio.low, "speed_ratio_high": ratio.high,
                      "speed_withheld": withheld(noise[row])}
    return found


def of_one_size(design: StudyDesign, left: str, right: str) -> bool:
    """Whether two rows differ in their blocks at most, so that both were timed against the same baseline."""
    levels = [design.by_id[row].levels for row in (left, right)]
    return all(levels[0].get(axis.name) == levels[1].get(axis.name) for axis in design.axes if not axis.of_block)


def speed_of(record: StudyRecord, rows: pd.DataFrame, *, left: str, right: str) -> Interval:
    """Training speed of left over right, with its interval.

    Against the block of the baseline that is what was measured. Two others were each measured against it. Nothing for
    rows of different sizes, whose baselines are different, and where the measurement was too noisy.
    """
    lines = [next(rows[rows.row == row].itertuples(index=False)) for row in (left, right)]
    return speed_between(record, lines[0], lines[1], reference_block(record))


def speed_between(record: StudyRecord, left: Any, right: Any, reference: str) -> Interval:
    """As `speed_of`, of two lines of the table of rows.

    Args:
        record: the study.
        left: a line.
        right: another.
        reference: of `reference_block`.
    """
    of_left, of_right = measured_speed(left), measured_speed(right)
    unknown = math.isnan(of_left.estimate) or math.isnan(of_right.estimate)
    if unknown or not of_one_size(record.design, left.row, right.row):
        return NOTHING
    if right.block == reference:
        return of_left
    return inverse(of_right) if left.block == reference else ratio_interval(of_left, of_right)


def reference_block(record: StudyRecord) -> str:
    """The block that the speed pass measures all others against: the baseline's, else that of the first cell."""
    cells = record.cells
    own = cells[cells.row == record.design.baseline]
    found = cells if own.empty else own
    return str(found["block"].iloc[0]) if len(found) else ""


def measured_speed(row: Any) -> Interval:
    """What the speed pass found of a line of the table of rows, relative to the baseline's block at its size."""
    values = (row.speed_ratio, row.speed_ratio_low, row.speed_ratio_high)
    unknown = bool(row.speed_withheld) or any(pd.isna(value) for value in values)
    return NOTHING if unknown else Interval(*map(float, values))
