"""Studies with losses drawn at random: the plan asks for the cells, stage by stage, as it does of a real study.

What a seed is lost at, what is chosen, which value gives way and what is reported are the suite's own code; only the
training is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from synthetic import card, plan_of, record_of

from ablations.analysis.tables import StudyRecord, by_stage, with_collapsed
from ablations.design.cells import Cell, Point, StudyPlan
from ablations.design.claims import Claim
from ablations.design.collapse import COLLAPSED
from ablations.design.selection import Outcome
from ablations.design.stages import FIRST_SEED, JUDGE, SCREEN, SELECT, Screen, Select

SEED, BLOCK, CELL = 0.034, 0.0088, 0.0074
"""Standard deviations in nats: of what a seed does to all rows, to all cells of a row, and to one cell. The last two
together are the 0.0115 that named blocks have at scale small (`docs/judge.md`)."""
UNIGRAM, PLATEAU = 5.974, 5.983
"""The loss of token frequencies, and where a run that collapses ends; with `CELL` above it."""
BASE = 4.41
SHORT = 0.5
"""What a run of a share of the steps has more."""


@dataclass(frozen=True)
class Truth:
    """A row: its mean loss at each rate, above `BASE`, and the probability that a seed is lost there."""

    means: Sequence[float]
    fails: Sequence[float]
    early: float = 0.0
    """What it has more in the shorter runs, beside `SHORT`."""


class _Remembered(StudyPlan):
    """A plan that makes each cell once: a simulation asks for the same ones again and again."""

    def _cell(self, row: str, seed: int, point: Point, stage: str = JUDGE) -> Cell:
        known: dict[Any, Cell] = self.__dict__.setdefault("known", {})
        key = row, seed, tuple(level.label for level in point), stage
        if key not in known:
            known[key] = super()._cell(row, seed, point, stage)
        return known[key]


@dataclass(frozen=True, eq=False)
class Simulation:
    """A study to be drawn many times."""

    plan: StudyPlan
    rates: tuple[float, ...]
    full: StudyRecord
    """All cells that it might ask for."""
    places: Mapping[tuple[str, int, float], int]
    """Where each stands there: by row, seed and rate."""

    def draw(
        self, truths: Sequence[Truth], rng: np.random.Generator, *, noise: float = 1.0, group: int = 0
    ) -> StudyRecord:
        """A study of these rows.

        Args:
            truths: the rows.
            rng: draws.
            noise: a factor on `CELL`.
            group: so many rows one after another share what a seed does; the next ones are like another study.
        """
        drawn = _Drawn(self, truths, rng, noise=noise, group=group or len(truths))
        ended: dict[str, Outcome] = {}
        while new := [cell for cell in self.plan.cells(ended) if cell.id not in ended]:
            ended |= {cell.id: drawn.outcome(cell) for cell in new}
        cells = self.plan.cells(ended)
        table = self.full.cells.iloc[[self.places[_key(cell)] for cell in cells]].reset_index(drop=True)
        losses = [ended[cell.id].loss for cell in cells]
        states = [ended[cell.id].state.replace(COLLAPSED, "complete") for cell in cells]  # as they are recorded
        table = table.assign(cell=[cell.id for cell in cells], state=states, val_loss=losses, test_loss=losses)
        record = with_collapsed(replace(self.full, design=self.plan.design, cells=table))
        return by_stage(record, [cell.stage for cell in cells])


class _Drawn:
    """How every cell of a study would end."""

    def __init__(
        self, study: Simulation, truths: Sequence[Truth], rng: np.random.Generator, *, noise: float, group: int
    ) -> None:
        rows, runs = list(study.plan.rows), _runs(study.plan)
        shape = len(rows), len(study.rates), len(runs)
        self.rows, self.rates, self.runs = (_places(keys) for keys in (rows, study.rates, runs))
        seeds = rng.normal(0, SEED, (-(-len(rows) // group), len(runs))).repeat(group, axis=0)[:len(rows)]
        own = rng.normal(0, BLOCK, (len(rows), len(runs)))
        self.cell = rng.normal(0, CELL * noise, shape)
        means = np.array([truth.means for truth in truths])[:, :, None]
        early = np.array([[study.plan.design.share_of(stage) < 1 for stage, _ in runs]]) * (
            np.array([[truth.early] for truth in truths]) + SHORT)
        self.loss = BASE + means + early[:, None, :] + (seeds + own)[:, None, :] + self.cell
        self.lost = rng.random(shape) < np.array([truth.fails for truth in truths])[:, :, None]
        self.collapsed = rng.random(shape) < 0.5

    def outcome(self, cell: Cell) -> Outcome:
        """Of a cell: half of those that are lost collapse, the others diverge."""
        row, _, rate = _key(cell)
        place = self.rows[row], self.rates[rate], self.runs[cell.stage, cell.seed]
        if not self.lost[place]:
            return Outcome("complete", float(self.loss[place]))
        if self.collapsed[place]:
            return Outcome(COLLAPSED, PLATEAU + abs(float(self.cell[place])))
        return Outcome("diverged")


def simulation(
    study: Mapping[str, Any], *, rates: Sequence[float], seeds: int, select: Select, screen: Screen | None = None,
    claims: Sequence[tuple[int, str, int]] = (),
) -> Simulation:
    """A study to be drawn.

    Args:
        study: its `compare`, and what else it has.
        rates: that are tuned.
        seeds: that judge.
        select: how the rates are chosen.
        screen: how rows are screened.
        claims: the place of a row, a relation, the place of another.
    """
    keys = {**study, "tune": {"optim.learning_rate": list(rates)}}
    plan = plan_of(keys, seeds=seeds, select=select, screen=screen)
    rows = list(plan.rows)
    asked = tuple(Claim(rows[left], relation, rows[right], "val_loss", "") for left, relation, right in claims)
    every = plan_of(keys, seeds=(*range(seeds), *range(FIRST_SEED, FIRST_SEED + max(1, select.seeds))))
    full = record_of(every, lambda config: BASE, corpus=card(UNIGRAM))
    places = _places(zip(full.cells.row, full.cells.seed, full.cells.learning_rate, strict=True))
    return Simulation(_Remembered(design=replace(plan.design, claims=asked), template=plan.template, rows=plan.rows,
                                  seeds=plan.seeds), tuple(rates), full, places)


def _runs(plan: StudyPlan) -> list[tuple[str, int]]:
    """Stage and seed of all runs of a row at one rate."""
    judging = sorted({seed for seeds in plan.seeds.values() for seed in seeds})
    return [*((JUDGE, seed) for seed in judging), *((SELECT, seed) for seed in plan.design.selects),
            (SCREEN, FIRST_SEED)]


def _key(cell: Cell) -> tuple[str, int, float]:
    return cell.row, cell.seed, cell.config.optim.learning_rate


def _places(keys: Any) -> dict[Any, int]:
    return {key: place for place, key in enumerate(keys)}
