"""The rows of a study as a space that a search samples: one conditional question per axis."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

from ablations.design.cells import StudyPlan
from ablations.design.design import Row, StudyDesign
from ablations.design.library import load_study
from ablations.design.plan import plan_study
from ablations.design.scales import scale
from lit_simplified.config import BlockConfig, Task

GRID = "grid"
"""The study over whose rows `search --blocks` searches."""


class Suggests(Protocol):
    """What `suggest_row` needs of an `optuna.Trial`."""

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any: ...


class _Given:
    """A trial that answers with the levels of a row, and remembers what it was asked."""

    def __init__(self, row: Row, titles: dict[str, str]) -> None:
        self.row = row
        self.axes = {title: name for name, title in titles.items()}
        self.params: dict[str, str] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any:
        self.params[name] = self.row.levels[self.axes[name.split(" of ")[0]]]
        return self.params[name]


def suggest_row(trial: Suggests, design: StudyDesign) -> Row:
    """A row, axis by axis. A level that no row has beside those chosen so far is not offered, and an axis with a single
    level left is not asked for: a parallel block has one skip, so its second is not asked."""
    rows = [row for row in design.rows if row.levels]
    titles = design.titles()
    for axis in design.axes:
        there = [label for label in axis.labels if any(row.levels[axis.name] == label for row in rows)]
        # A parameter of Optuna has the same choices in every trial: a part of them is another parameter.
        some = f" of {', '.join(there)}" if len(there) < len(axis.labels) else ""
        chosen = trial.suggest_categorical(f"{titles[axis.name]}{some}", there) if len(there) > 1 else there[0]
        rows = [row for row in rows if row.levels[axis.name] == chosen]
    return rows[0]


def row_params(row: Row, design: StudyDesign) -> dict[str, str]:
    """The answers that lead `suggest_row` to a row."""
    given = _Given(row, design.titles())
    suggest_row(given, design)
    return given.params


@cache
def grid_plan(task: Task = "clm") -> StudyPlan:
    """The default grid of a task; of its runs the block alone matters here."""
    return plan_study(load_study(GRID), scale=scale("small", task=task))


def grid(task: Task = "clm") -> tuple[BlockConfig, ...]:
    """Every distinct block of the default grid."""
    return tuple(config.model.block for config in grid_plan(task).rows.values())


def suggest_block(trial: Suggests, *, task: Task = "clm") -> BlockConfig:
    """One block of the default grid, in the setting of a task."""
    plan = grid_plan(task)
    return plan.rows[suggest_row(trial, plan.design).id].model.block


def grid_params(block: BlockConfig, *, task: Task = "clm") -> dict[str, str] | None:
    """The answers that lead `suggest_block` to this block, or None for a block outside the grid."""
    plan = grid_plan(task)
    found = next((row for row, config in plan.rows.items() if config.model.block == block), None)
    return None if found is None else row_params(plan.design.by_id[found], plan.design)
