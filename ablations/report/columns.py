"""What varies between the rows of a study: a column for each axis, whatever it is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from ablations.analysis.tables import StudyRecord, label_of
from ablations.design.axes import BLOCK, BLOCK_FIELDS, Axis, text_of
from ablations.report.formats import is_missing
from lit_simplified.config import SWITCHES, Switch


@dataclass(frozen=True)
class AxisColumn:
    """A column of a table of rows."""

    title: str
    meaning: str
    """The title in full."""
    levels: Mapping[str, str]
    """What each row has, by row id. Empty where the axis says nothing about a row."""
    words: Mapping[str, str]
    """What people call a level, by level, in the order of the axis."""
    asked: bool = True
    """Whether it is an axis of the study. Else it follows from another: the switches from an axis of named blocks."""


def axis_columns(record: StudyRecord) -> list[AxisColumn]:
    """A column for everything that varies: switches first, in the order of their table, then the further axes.

    Switches that have the same position as another in every row stand in one column. An axis that sets switches and
    nothing else takes their place, if every row is on it.
    """
    rows = record.every.drop_duplicates("row").set_index("row", drop=False)
    further = [_of_axis(title, axis, rows) for title, axis in record.further.items() if _adds(axis, title, rows)]
    taken = {path.removeprefix(BLOCK_FIELDS) for title, axis in record.further.items() if _adds(axis, title, rows)
             for path in axis.fields if path.startswith(BLOCK_FIELDS)}
    fields = {path.removeprefix(BLOCK_FIELDS) for axis in record.design.axes for path in axis.fields}
    switches = [_of_switches(names, rows, asked=bool(fields & set(names))) for names in _together(rows)
                if not set(names) <= taken]
    return [column for column in (*switches, *further) if len(set(column.levels.values())) > 1]


def _adds(axis: Axis, title: str, rows: pd.DataFrame) -> bool:
    """Whether an axis says more than the switches do; else these are shown."""
    names = [path.removeprefix(BLOCK_FIELDS) for path in axis.fields]
    complete = not any(map(is_missing, rows[title]))
    return complete if set(names) <= {*SWITCHES, BLOCK} else True


def _of_axis(title: str, axis: Axis, rows: pd.DataFrame) -> AxisColumn:
    levels = {row: "" if is_missing(value) else text_of(value) for row, value in rows[title].items()}
    known = [text_of(number) for number in axis.numbers] if axis.numbers is not None else axis.labels
    order = [*known, *(level for level in levels.values() if level and level not in known)]
    return AxisColumn(title, axis.name, {str(row): level for row, level in levels.items()},
                      {level: level for level in order})


def _together(rows: pd.DataFrame) -> Iterator[list[str]]:
    """The switches, those that are the same in every row as one."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, switch in SWITCHES.items():
        groups.setdefault((switch.names, *rows[name]), []).append(name)
    yield from groups.values()


def _of_switches(names: list[str], rows: pd.DataFrame, *, asked: bool) -> AxisColumn:
    switches = [SWITCHES[name] for name in names]
    words = {text_of(position.name): position.words for position in switches[0].positions}
    levels = {str(row): text_of(value) for row, value in rows[names[0]].items()}
    there = {level: words.get(level, level) for level in (*words, *levels.values()) if level in levels.values()}
    return AxisColumn(" + ".join(map(title_of, switches)), "; ".join(switch.title for switch in switches), levels,
                      there, asked)


def title_of(switch: Switch) -> str:
    """The name of a switch as the head of a column."""
    return switch.name.replace("_", " ")


def labels_of(record: StudyRecord) -> dict[str, str]:
    """What the rows of a study are called, by id, those without a run included."""
    return {**{row.id: row.label for row in record.design.rows},
            **{str(row): label_of(record.design, str(row)) for row in record.every.row.unique()}}


def has_sizes(record: StudyRecord) -> bool:
    """Whether an axis changes more than the block, so that rows are measured against baselines of several sizes."""
    return not all(axis.of_block for axis in record.design.factors)


def speeds(record: StudyRecord, rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows whose speed was measured and is not withheld, with `pace`, `pace_low`, `pace_high`, and what these are.

    It is the ratio to the baseline, or tokens per second where rows have several sizes, and so several baselines.
    """
    table = rows[rows.speed_withheld == ""].dropna(subset=["speed_ratio", "val_loss_mean"])
    table = table.astype(dict.fromkeys(("speed_ratio", "speed_ratio_low", "speed_ratio_high"), float))
    unit = table.tokens_per_second / table.speed_ratio if has_sizes(record) else 1.0
    table = table.assign(pace=table.speed_ratio * unit, pace_low=table.speed_ratio_low * unit,
                         pace_high=table.speed_ratio_high * unit)
    words = "training speed (tokens per second" if has_sizes(record) else \
        f"training speed relative to {baseline_label(record)} (ratio"
    return table, f"{words}, 95 % interval)"


def baseline_label(record: StudyRecord) -> str:
    """What the row is called that the others are measured against."""
    return labels_of(record).get(record.design.baseline, "the first row")
