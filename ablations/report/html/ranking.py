"""The ranking of a report: a row per row of the study, with the drawing of its block, its configuration and its runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pandas as pd
from markupsafe import Markup

from ablations.analysis.tables import FINISHED, StudyRecord, each
from ablations.report.columns import AxisColumn, baseline_label
from ablations.report.html.diagram import diagram, words
from ablations.report.limits import MOST_ROWS, MOST_RUNS, first_of
from ablations.report.styles import styles_of
from ablations.report.tables import OTHER_SEEDS, WITHHELD, loss_of, number, state_of
from lit_simplified.config import RunConfig, to_dict

NO_RESULT = ("running", "waiting", "interrupted", "killed")
"""States of the cells of a row without a result, the one that is shown first."""
NUMBERS = ("val_loss_mean", "val_loss_low", "val_loss_high", "speed_ratio", "speed_ratio_low", "speed_ratio_high",
           "tokens_per_second", "params", "peak_memory_mb", "collapsed_loss_mean",
           "speed_withheld", "difference", "difference_low", "difference_high", "bits_per_byte_mean")


@dataclass(frozen=True)
class Column:
    """A column of the ranking."""

    title: str
    first: str = "ascending"
    """The order of a first click: the best on top."""
    text: bool = False
    wide: bool = False
    """On a narrow screen, whether it takes a line of its own."""
    meaning: str = ""
    """What is shown when the pointer is on its head."""


@dataclass(frozen=True)
class Value:
    """What stands in a column of the ranking, and by what it is sorted."""

    text: str
    key: float | str | None
    note: str = ""


@dataclass(frozen=True)
class RankedRow:
    """A row of the ranking."""

    id: str
    label: str
    preset: str
    colour: str
    state: str
    levels: tuple[str, ...]
    """On each axis that varies."""
    values: tuple[Value, ...]
    small: Markup
    large: Markup
    first: Markup | None
    """The first block of the stack, where it keeps parts that the others lack."""
    words: str
    """The block in words."""
    config: str
    """All fields of the run, as JSON."""
    runs: tuple[Mapping[str, str], ...]
    """Its cells, or the first of them."""
    more: str
    """How many of its cells those are, in a sentence; empty where all are."""


@dataclass(frozen=True)
class Filter:
    """A choice by which the ranking is filtered."""

    title: str
    meaning: str
    options: Mapping[str, str]
    """What is shown, by value."""


def columns_of(record: StudyRecord, axes: Sequence[AxisColumn]) -> list[Column]:
    """The columns of the ranking: those of the study's axes stand behind the name."""
    tuned = [Column(title, text=True) for title in [_tuned_title(record)] if title]
    bits = [] if math.isnan(record.bits_per_nat) else [Column("bits per byte")]
    return [
        Column("row", text=True), *(Column(axis.title, text=True, meaning=axis.meaning) for axis in axes if axis.asked),
        Column("validation loss", wide=True),
        Column("difference", wide=True, meaning=f"in loss to {baseline_label(record)}, paired by seed"), *bits,
        Column("seeds", "descending", meaning=f"{OTHER_SEEDS}: not those of {baseline_label(record)}"),
        Column("speed", "descending", wide=True, meaning=f"of the training step, relative to {baseline_label(record)}"),
        Column("tokens/s", "descending"), Column("parameters"), Column("peak MiB"), *tuned, Column("state", text=True),
    ]


def _tuned_title(record: StudyRecord) -> str:
    """Of the column of tuned values; empty where nothing is tuned."""
    return ", ".join(axis.title.replace("_", " ") for axis in record.design.tuned)


def filters_of(axes: Sequence[AxisColumn], rows: Sequence[RankedRow]) -> list[Filter]:
    """What can be chosen: a level of each axis, and a state."""
    states = sorted({row.state for row in rows})
    found = [Filter(axis.title, axis.meaning, axis.words) for axis in axes]
    return [*found, *([Filter("state", "", dict(zip(states, states, strict=True)))] if len(states) > 1 else [])]


def ranking(
    record: StudyRecord, rows: pd.DataFrame, *, axes: Sequence[AxisColumn], known: Mapping[str, RunConfig]
) -> list[RankedRow]:
    """The rows of the study: those with a result, best loss first, then those that were only screened or are to come.

    Of a large study the first of them, and those that have a colour.
    """
    there = set(rows.row)
    others = record.every[~record.every.row.isin(there)].groupby("row", sort=False)
    colours = {name: style.colour for name, style in styles_of(record.design).items()}
    kept = rows.row.isin(list(colours)) | (rows.row == record.design.baseline)
    kept[:MOST_ROWS] = True
    waiting = [cells for _, cells in islice(others, max(MOST_ROWS - len(rows), 0))]
    every = [*each(rows[kept]), *map(_without_result, waiting)]
    return [_ranked(row, record, axes, known[str(row.row)], colour=colours.get(str(row.row), "")) for row in every]


def left_out(shown: Sequence[RankedRow], record: StudyRecord) -> str:
    """How many rows of the study the ranking shows, in a sentence; empty where it shows all."""
    there = record.every.row.nunique()
    return (f"{len(shown):,} of {there:,} rows are shown: the first, and those that have a colour. All that have a "
            "result are in summary.csv.") if len(shown) < there else ""


def _without_result(cells: pd.DataFrame) -> Any:
    """A row as of the table of rows, for one without a finished cell that judges."""
    states, first = set(cells.state), cells.iloc[0]
    screened = "screened" if states <= set(FINISHED) else "waiting"
    state = next((state for state in NO_RESULT if state in states), screened)
    row = {"row": first.row, "label": first.label, "preset": first.preset, "state": state, "tuned": "",
           "same_seeds": True, **dict.fromkeys(("n_seeds", "n_collapsed", "n_diverged", "n_failed"), 0)}
    return next(each(pd.DataFrame([row]).reindex(columns=[*row, *NUMBERS])))


def _ranked(
    row: Any, record: StudyRecord, axes: Sequence[AxisColumn], config: RunConfig, *, colour: str
) -> RankedRow:
    block, depth, name = config.model.block, config.model.depth, str(row.row)
    plain, first = (diagram(block, large=True, depth=depth, first=is_first) for is_first in (False, True))
    levels = tuple(axis.levels.get(name, "") for axis in axes)
    shown = [level for level, axis in zip(levels, axes, strict=True) if axis.asked]
    # Markup: drawn from checked configurations, no text of a user in it
    return RankedRow(
        id=name, label=str(row.label), preset=str(row.preset), colour=colour, state=str(row.state), levels=levels,
        values=_values(row, shown, record), small=Markup(diagram(block, depth=depth)),
        large=Markup(plain), first=Markup(first) if first != plain else None, words=words(block),
        config=json.dumps(to_dict(config.model), indent=1), runs=tuple(_runs(record, name)),
        more=first_of(MOST_RUNS, len(record.runs_of(name)), noun="runs", file="trials.jsonl"),
    )


def _values(row: Any, levels: Sequence[str], record: StudyRecord) -> tuple[Value, ...]:
    bits = [] if math.isnan(record.bits_per_nat) else [_number(row.bits_per_byte_mean, "{:.4f}")]
    return (
        Value(str(row.label), str(row.label)), *(Value(level, level or None) for level in levels),
        _loss(row),
        _number(row.difference, "{:+.4f}", note=_bracket(row.difference_low, row.difference_high, "{:+.3f}")), *bits,
        Value(f"{row.n_seeds}{OTHER_SEEDS * (not row.same_seeds)}", row.n_seeds),
        _speed(row),
        _number(row.tokens_per_second, "{:,.0f}"), _number(row.params, "{:,.0f}"),
        _number(row.peak_memory_mb, "{:,.1f}"),
        *([Value(str(row.tuned), row.tuned or None)] if record.design.tuned else []),
        Value(state_of(row), row.state),
    )


def _loss(row: Any) -> Value:
    """Behind all others where every seed collapsed."""
    if pd.isna(row.val_loss_mean):
        return Value(loss_of(row), None)
    return _number(row.val_loss_mean, "{:.4f}", note=_bracket(row.val_loss_low, row.val_loss_high, "{:.3f}"))


def _speed(row: Any) -> Value:
    if isinstance(row.speed_withheld, str) and row.speed_withheld:  # NaN of a row without a result
        return Value(WITHHELD, None)
    return _number(row.speed_ratio, "{:.3f}", note=_bracket(row.speed_ratio_low, row.speed_ratio_high, "{:.3f}"))


def _number(value: Any, form: str, *, note: str = "") -> Value:
    missing = value is None or pd.isna(value) or not math.isfinite(value)
    return Value("", None) if missing else Value(form.format(value), float(value), note)


def _bracket(low: float, high: float, form: str) -> str:
    return "" if pd.isna(low) or pd.isna(high) else f"[{form.format(low)}, {form.format(high)}]"


def _runs(record: StudyRecord, row: str) -> Iterable[dict[str, str]]:
    """The cells of a row, as text."""
    cells = record.runs_of(row).sort_values(["learning_rate", "tuned", "seed"]).head(MOST_RUNS)
    tuned = _tuned_title(record) or "learning rate"
    values = cells.tuned if record.design.tuned else cells.learning_rate.map("{:g}".format)
    shown = cells.assign(tuned=values)[["cell", "seed", "tuned", "state", "val_loss", "test_loss", "test_perplexity",
                                        "seconds"]]
    for cell in each(shown):
        yield {
            "cell": cell.cell, "seed": str(cell.seed), tuned: cell.tuned, "state": cell.state,
            "validation loss": number(cell.val_loss, "{:.4f}"), "test loss": number(cell.test_loss, "{:.4f}"),
            "test perplexity": number(cell.test_perplexity, "{:,.2f}"), "seconds": number(cell.seconds, "{:,.1f}"),
        }
