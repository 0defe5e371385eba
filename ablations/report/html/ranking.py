"""The ranking of a report: a row per block, with its drawing, its configuration and its runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
import pandas as pd
from markupsafe import Markup

from ablations.analysis.tables import CELL_COLUMNS, Record, each
from ablations.design.space import block_id
from ablations.engine.storage import ours
from ablations.report.html.diagram import diagram
from ablations.report.html.figures import SERIES
from ablations.report.plots import COLOURS
from ablations.report.tables import number
from lit_simplified.config import SWITCHES, BlockConfig, RunConfig, from_dict, to_dict

NO_RESULT = ("running", "waiting", "interrupted", "killed")
"""States of the cells of a block that has no row in the table of blocks, the one that is shown first."""


@dataclass(frozen=True)
class Column:
    """A column of the ranking."""

    title: str
    first: str = "ascending"
    """The order of a first click: the best on top."""
    text: bool = False


@dataclass(frozen=True)
class Value:
    """What a cell of the ranking shows, and by what it is sorted."""

    text: str
    key: float | str | None
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A block of the ranking."""

    id: str
    name: str
    preset: str
    colour: str
    state: str
    switches: Mapping[str, str]
    values: tuple[Value, ...]
    small: Markup
    large: Markup
    first: Markup | None
    """The first block of the stack, where it keeps parts that the others lack."""
    config: str
    """All fields, as JSON."""
    runs: tuple[Mapping[str, str], ...]
    """The cells of this block."""


COLUMNS = (
    Column("block", text=True), Column("validation loss"), Column("seeds", "descending"),
    Column("speed to Pre-LN", "descending"), Column("tokens/s", "descending"), Column("parameters"),
    Column("peak MiB"), Column("learning rate"), Column("state", text=True),
)


def configs(study: optuna.Study) -> dict[str, RunConfig]:
    """A configuration of each block that the study has a cell of, by block id."""
    found: dict[str, RunConfig] = {}
    for trial in ours(study.get_trials(deepcopy=False)):
        config = from_dict(RunConfig, trial.user_attrs["config"])
        found.setdefault(block_id(config.model.block), config)
    return found


def ranking(record: Record, blocks: pd.DataFrame, *, known: Mapping[str, RunConfig]) -> list[Row]:
    """Every block of the study: those with a result, best loss first, then those that are still to come."""
    ranked = [_row(row, record, known[str(row.block)]) for row in each(blocks)]
    there = set(blocks["block"])
    others = record.cells[~record.cells["block"].isin(there)].groupby("block", sort=False)
    return ranked + [_row(_without_result(cells), record, known[str(name)]) for name, cells in others]


def _without_result(cells: pd.DataFrame) -> Any:
    """A row as of the table of blocks, for a block without a finished cell."""
    states = set(cells.state)
    state = next((state for state in NO_RESULT if state in states), "waiting")
    row = pd.DataFrame([{
        "block": cells["block"].iloc[0], "preset": cells.preset.iloc[0], "state": state, "n_seeds": 0,
        "learning_rate": cells.learning_rate.iloc[0],
    }]).reindex(columns=[
        "block", "preset", "state", "n_seeds", "learning_rate", "val_loss_mean", "val_loss_low", "val_loss_high",
        "speed_ratio", "speed_ratio_low", "speed_ratio_high", "tokens_per_second", "params", "peak_memory_mb",
    ])
    return next(each(row))


def _row(row: Any, record: Record, config: RunConfig) -> Row:
    block, depth = config.model.block, config.model.depth
    plain, first = (diagram(block, large=True, depth=depth, first=is_first) for is_first in (False, True))
    return Row(
        id=str(row.block), name=str(row.preset or row.block), preset=str(row.preset),
        colour=SERIES[row.preset] if row.preset in COLOURS else "", state=str(row.state),
        switches={name: _plain(getattr(block, name)) for name in SWITCHES}, values=_values(row),
        small=Markup(diagram(block, depth=depth)),  # drawn from checked configurations, no text of a user in it
        large=Markup(plain), first=Markup(first) if _differ(block, plain, first) else None,
        config=json.dumps(to_dict(block), indent=1), runs=tuple(_runs(record, str(row.block))),
    )


def _differ(block: BlockConfig, plain: str, first: str) -> bool:
    return plain != first and (block.norm == "none" or block.value == "identity")


def _plain(value: object) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _values(row: Any) -> tuple[Value, ...]:
    speed = _bracket(row.speed_ratio_low, row.speed_ratio_high, "{:.3f}")
    return (
        Value(str(row.preset or row.block), str(row.preset or row.block)),
        _number(row.val_loss_mean, "{:.4f}", note=_bracket(row.val_loss_low, row.val_loss_high, "{:.3f}")),
        _number(row.n_seeds, "{:d}"),
        _number(row.speed_ratio, "{:.3f}", note=speed),
        _number(row.tokens_per_second, "{:,.0f}"), _number(row.params, "{:,.0f}"),
        _number(row.peak_memory_mb, "{:,.1f}"), _number(row.learning_rate, "{:g}"), Value(str(row.state), row.state),
    )


def _number(value: Any, form: str, *, note: str = "") -> Value:
    missing = value is None or pd.isna(value) or not math.isfinite(value)
    return Value("", None) if missing else Value(form.format(value), float(value), note)


def _bracket(low: float, high: float, form: str) -> str:
    return "" if pd.isna(low) or pd.isna(high) else f"[{form.format(low)}, {form.format(high)}]"


def _runs(record: Record, block: str) -> Iterable[dict[str, str]]:
    """The cells of a block, as text."""
    cells = record.cells[record.cells["block"] == block].sort_values(["learning_rate", "seed"])
    for cell in each(cells[list(CELL_COLUMNS)]):
        yield {
            "cell": cell.cell, "seed": str(cell.seed), "learning rate": f"{cell.learning_rate:g}", "state": cell.state,
            "validation loss": number(cell.val_loss, "{:.4f}"), "test loss": number(cell.test_loss, "{:.4f}"),
            "test perplexity": number(cell.test_perplexity, "{:,.2f}"), "seconds": number(cell.seconds, "{:,.1f}"),
        }
