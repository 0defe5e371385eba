"""The design of a study that was recorded before studies were files: the default grid, and blocks added by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ablations.design.axes import Axis, Level
from ablations.design.cells import LEARNING_RATE
from ablations.design.design import Row, StudyDesign
from ablations.design.space import grid_plan
from lit_simplified.config import BlockConfig, Task, preset_of


def legacy_design(
    blocks: Mapping[str, BlockConfig], *, task: Task, learning_rates: Iterable[float]
) -> StudyDesign:
    """The design of such a study.

    Args:
        blocks: those that it has cells of, by their ids.
        task: the study's.
        learning_rates: at which it has cells.
    """
    grid = grid_plan(task).design
    rows = [replace(row, digest="") for row in grid.rows if row.id in blocks]
    known = {row.id for row in rows}
    rows += [Row(name, preset_of(block) or name, {}, "", preset_of(block))
             for name, block in blocks.items() if name not in known]
    rates = sorted(set(learning_rates))
    tuned = (Axis(LEARNING_RATE, tuple(Level(f"{rate:g}", {LEARNING_RATE: rate}) for rate in rates)),)
    there = {row.id for row in rows}
    claims = tuple(claim for claim in grid.claims if {claim.left, claim.right} <= there)
    return replace(
        grid, rows=tuple(rows), tuned=tuned if len(rates) > 1 else (), claims=claims, notes=(),
        baseline=grid.baseline if grid.baseline in there else "",
    )
