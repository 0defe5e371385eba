"""Designs of single steps: one change at a time from a baseline, or a path. A step is a paired difference of two rows.

Imports neither torch nor lightning.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

from ablations.analysis.intervals import NOTHING, Interval, mean_interval, mean_p
from ablations.analysis.observed import NO_CELL, NO_SPEED, NOT_FINISHED, nothing_known
from ablations.analysis.pairs import paired_differences
from ablations.analysis.row_sets import rows_without_level
from ablations.analysis.speeds import TOO_NOISY, speed_of
from ablations.analysis.tables import FINISHED, StudyRecord, each, lost_seeds
from ablations.design.design import Row, StudyDesign

STEPWISE = ("one_at_a_time", "path")
"""Kinds of designs without rows for a model."""
WHOLE = "whole path"
"""The term of a path's last row against its first."""


@dataclass(frozen=True)
class Step:
    """A row against another."""

    term: str
    change: str
    where: str
    left: str
    right: str


@dataclass(frozen=True)
class Measured:
    """What a step does; of speed, its logarithm."""

    step: Step
    interval: Interval
    p: float
    basis: str
    """seeds, rounds (of the speed pass, whose interval is free of a distribution: no p) or none."""
    n_seeds: int
    n_left_out: int


@dataclass(frozen=True)
class Steps:
    """The steps of a design in one measure."""

    measure: str
    name: str
    found: tuple[Measured, ...]
    n_rows: int
    missing: Mapping[str, str]
    """Why a row has no number, by its id."""
    seeds: tuple[int, ...]
    """Of any pair."""
    tuned: tuple[str, ...]
    note: str
    ordered: bool
    """Whether the order of the steps means something: a path."""


def steps_of(design: StudyDesign) -> list[Step]:
    """Each row against the baseline; of a path each against the one before, and the last against the first."""
    without = rows_without_level(design)
    rows = [row for row in design.rows if row.id not in without]
    if design.kind == "path":
        found = [_step(design, row, before, where=f"step {number}")
                 for number, (before, row) in enumerate(pairwise(rows), start=1)]
        if len(rows) > 2:
            first, last = rows[0], rows[-1]
            found.append(Step(WHOLE, f"{first.label} -> {last.label}", "first to last", last.id, first.id))
        return found
    base = design.by_id.get(design.baseline)
    if base is None or base.id in without:
        return []
    return [_step(design, row, base, where=f"against {base.label}") for row in rows if row.id != base.id]


def _step(design: StudyDesign, row: Row, before: Row, *, where: str) -> Step:
    titles = design.titles()
    changed = [axis for axis in design.axes if row.levels.get(axis.name) != before.levels.get(axis.name)]
    change = ", ".join(f"{before.levels.get(axis.name)} -> {row.levels.get(axis.name)}" for axis in changed)
    return Step(", ".join(titles[axis.name] for axis in changed), change, where, row.id, before.id)


def fit_steps(record: StudyRecord, rows: pd.DataFrame, *, measure: str) -> Steps:
    """The steps of a design in loss (nats) or in speed (its logarithm)."""
    steps = steps_of(record.design)
    asked = list(dict.fromkeys(row for step in steps for row in (step.right, step.left)))
    missing = dict(_missing(record, rows, asked, measure=measure))
    found = tuple(_measure(record, rows, step, missing, measure=measure) for step in steps)
    known = rows[rows.row.isin(set(asked) - set(missing))]
    cells = record.cells[record.cells.row.isin(known.row) & (record.cells.state == "complete")]
    loss = measure == "loss"
    return Steps(
        measure, "path" if record.design.kind == "path" else "one at a time", found, len(asked) - len(missing), missing,
        tuple(sorted(map(int, cells.seed.unique()))) if loss else (), tuple(known.tuned.unique()) if loss else (),
        _note(found, len(asked) - len(missing), missing, measure=measure), record.design.kind == "path",
    )


def _missing(
    record: StudyRecord, rows: pd.DataFrame, asked: Sequence[str], *, measure: str
) -> Iterator[tuple[str, str]]:
    table, lines = rows.set_index("row"), {str(line.row): line for line in each(rows)}
    for row in asked:
        if measure == "speed":
            speed = record.speed.get(row, {})
            if row not in table.index or not speed.get("ratio"):
                yield row, f"its speed pass failed: {speed['error']}" if "error" in speed else NO_SPEED
            elif table.speed_withheld[row]:
                yield row, TOO_NOISY
        elif row not in table.index:
            yield row, NOT_FINISHED if row in record.places else NO_CELL
        elif not table.n_seeds[row]:
            yield row, " and ".join(sorted(set(record.of_row(row).state) & set(FINISHED)))
        elif lost := lost_seeds(lines[row]):
            yield row, lost


def _measure(
    record: StudyRecord, rows: pd.DataFrame, step: Step, missing: Mapping[str, str], *, measure: str
) -> Measured:
    n_left_out = len({step.left, step.right} & set(missing))
    if n_left_out:
        return Measured(step, NOTHING, math.nan, "none", 0, n_left_out)
    if measure == "speed":
        ratio = speed_of(record, rows, left=step.left, right=step.right)
        if math.isnan(ratio.estimate):  # of two sizes
            pace = [float(record.speed[row].get("tokens_per_second", math.nan)) for row in (step.left, step.right)]
            return Measured(step, Interval(math.log(pace[0] / pace[1]), math.nan, math.nan), math.nan, "none", 0, 0)
        return Measured(step, Interval(*map(math.log, ratio)), math.nan, "rounds", 0, 0)
    differences = paired_differences(record, rows, left=step.left, right=step.right)
    basis = "seeds" if len(differences) > 1 else "none"
    return Measured(step, mean_interval(differences), mean_p(differences), basis, len(differences), 0)


def _note(found: Sequence[Measured], n_rows: int, missing: Mapping[str, str], *, measure: str) -> str:
    if not n_rows:
        return nothing_known(missing, measure=measure)
    if measure == "loss" and not any(one.n_seeds > 1 for one in found):
        return "No two rows have two seeds in common: differences have no intervals."
    return ""
