"""The cells of a study, stage by stage: a pure function of how those before have ended."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from types import MappingProxyType
from typing import Any

from ablations.design.axes import Level
from ablations.design.design import StudyDesign
from ablations.design.rows import safe
from ablations.design.selection import Found, Outcome, best, survivors
from ablations.design.stages import EXTEND, FIRST_SEED, JUDGE, SCREEN, SELECT, apart, steps_at
from ablations.design.stopping import CONTINUE, Looks, decide
from lit_simplified.config import ConfigError, RunConfig, set_fields

MAX_CELLS = 1000
LEARNING_RATE = "optim.learning_rate"


@dataclass(frozen=True)
class Cell:
    """One training run of a study: a row at one tuned value and one seed."""

    row: str
    """The row's id."""
    seed: int
    tuned: Mapping[str, Any]
    """Values of the tuned fields, by dotted path."""
    config: RunConfig
    stage: str = JUDGE
    """What it is for: `stages`."""
    share: float = 1.0
    """Of the steps of a run that judges."""

    @cached_property
    def id(self) -> str:
        """Stable: the same content has the same id, in every process and every version of the suite."""
        stage = f"-{self.stage}" if self.stage == SCREEN or self.share != 1 else ""
        others = "".join(f"-{name.rpartition('.')[2]}{safe(value)}" for name, value in self.tuned.items()
                         if name != LEARNING_RATE)
        return f"{self.row}-s{self.seed}-lr{self.config.optim.learning_rate:g}{others}{stage}"

    def __hash__(self) -> int:
        return hash(self.id)


Point = tuple[Level, ...]
"""A level of each tuned axis."""


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """What a study trains."""

    design: StudyDesign
    template: RunConfig
    """What every cell shares; its fields are changed by the row, the tuned values and the seed."""
    rows: Mapping[str, RunConfig]
    """By id, in the order of the design."""
    seeds: Mapping[str, tuple[int, ...]]
    """Of every row, those that judge."""

    @property
    def points(self) -> list[Point]:
        """Every combination of tuned values."""
        return list(product(*(axis.levels for axis in self.design.tuned)))

    @cached_property
    def screened(self) -> list[Point]:
        """The tuned values at which rows are screened; none where no row has to be."""
        screen, always = self.design.screen, self.design.in_any_case
        if screen is None or len(self.rows) - len(always) <= screen.keep:
            return []
        return [point for point in self.points
                if all(level.label in screen.tune.get(axis.name, (level.label,))
                       for axis, level in zip(self.design.tuned, point, strict=True))]

    def cells(self, ended: Mapping[str, Outcome] = MappingProxyType({})) -> tuple[Cell, ...]:
        """Those that the study needs, as far as that is known: what a stage trains is known when all of the ones before
        have ended.

        Each once; seed by seed, so that a study cut short still compares all rows.

        Args:
            ended: how cells have ended, by id.
        """
        found: list[Cell] = []
        for stage in (self._screening, self._selecting, self._judging, self._extending):
            found += stage(ended)
            if not all(cell.id in ended for cell in found):
                break
        return tuple({cell.id: cell for cell in found}.values())

    def _screening(self, _: Mapping[str, Outcome]) -> list[Cell]:
        return [self._cell(row, FIRST_SEED, point, SCREEN) for point in self.screened for row in self.rows]

    def _selecting(self, ended: Mapping[str, Outcome]) -> list[Cell]:
        rows = self.kept(ended) if self.design.selects else ()
        return _by_seed(cell for point in self.points for row in rows for cell in self._choosing(row, point))

    def _choosing(self, row: str, point: Point) -> list[Cell]:
        """The cells that tell how good a row is at a point; a run that screened it tells that, too, if it was as long.
        """
        screened = self.design.screening_chooses and point in self.screened
        return [self._cell(row, seed, point, SCREEN if screened and seed == FIRST_SEED else SELECT)
                for seed in self.design.selects]

    def _judging(self, ended: Mapping[str, Outcome]) -> list[Cell]:
        """All seeds at once, or look by look: those of the next look where a claim is not decided."""
        return [cell for seeds in self._looked(ended) for cell in self._judged(seeds, ended)]

    def _looked(self, ended: Mapping[str, Outcome]) -> list[dict[str, tuple[int, ...]]]:
        """The seeds by row at each look that is begun; without looks there is one, at all seeds."""
        seeds, looks = {row: self.seeds[row] for row in self.kept(ended)}, self.design.shared_looks
        if looks is None:
            return [seeds]
        found = [{row: own[:looks.seeds[0]] for row, own in seeds.items()}]
        while all(cell.id in ended for cell in self._judged(found[-1], ended)):
            further = self._further(found[-1], ended, looks=looks)
            if further == found[-1]:
                break
            found.append(further)
        return found

    def _judged(self, seeds: Mapping[str, Sequence[int]], ended: Mapping[str, Outcome]) -> list[Cell]:
        return _by_seed(self._cell(row, seed, point) for row, own in seeds.items()
                        for point in self.chosen(row, ended, seeds=own) for seed in own)

    def _further(
        self, seeds: Mapping[str, tuple[int, ...]], ended: Mapping[str, Outcome], *, looks: Looks
    ) -> dict[str, tuple[int, ...]]:
        """The seeds by row, when these have ended: more where a claim is not decided."""
        further, claims = dict(seeds), self.design.about_losses
        asked = dict.fromkeys(row for claim in claims for row in (claim.left, claim.right))
        stands = {row: self._standing(row, ended, seeds=seeds[row]) for row in asked}
        for claim in claims:
            left, right = stands[claim.left], stands[claim.right]
            found = decide(claim, looks=looks, left=left, right=right)
            guessed = any(left[seed].assumed or right[seed].assumed for seed in left.keys() & right.keys())
            if guessed or found.outcome == CONTINUE:
                own = self.seeds[claim.left][:looks.after(min(len(left), len(right)))]
                further |= {row: max(further[row], own, key=len) for row in (claim.left, claim.right)}
        return further

    def _standing(self, row: str, ended: Mapping[str, Outcome], *, seeds: Sequence[int]) -> dict[int, Outcome]:
        """How a row's cells have ended at the tuned values at which it is shown, by seed."""
        tried, stands = self._tried(row, ended, seeds=seeds)
        cells = {seed: self._cell(row, seed, tried[stands]).id for seed in seeds}
        return {seed: ended[cell] for seed, cell in cells.items() if cell in ended}

    def _extending(self, ended: Mapping[str, Outcome]) -> list[Cell]:
        """Those rows of claims about losses that trained."""
        if self.design.extend is None:
            return []
        asked = {row for claim in self.design.about_losses for row in (claim.left, claim.right)}
        points = {}
        for row, seeds in self._looked(ended)[-1].items():
            if row in asked and any(one.trained for one in self._standing(row, ended, seeds=seeds).values()):
                tried, stands = self._tried(row, ended, seeds=seeds)
                points[row] = tried[stands]
        return _by_seed(self._cell(row, seed, point, EXTEND) for row, point in points.items()
                        for seed in apart(self.design.extend.seeds))

    def kept(self, ended: Mapping[str, Outcome]) -> list[str]:
        """The rows that go on from the screening: all where none is screened."""
        if not self.screened:
            return list(self.rows)
        screen = self.design.screen
        losses = {row: self._screen_loss(row, ended) for row in self.rows}
        return survivors(losses, always=self.design.in_any_case, keep=screen.keep if screen else 0)

    def _screen_loss(self, row: str, ended: Mapping[str, Outcome]) -> float:
        """Of a row at its best tuned value; infinite where it trained at none."""
        found = [outcome for point in self.screened
                 for outcome in _ended([self._cell(row, FIRST_SEED, point, SCREEN)], ended)]
        return min((outcome.loss for outcome in found if outcome.trained), default=math.inf)

    def chosen(
        self, row: str, ended: Mapping[str, Outcome], *, seeds: Sequence[int] | None = None
    ) -> list[Point]:
        """The tuned values at which a row is judged: the best one, and after it those that its seeds made turn out
        best, until one stands. All of them where nothing chooses."""
        return self._tried(row, ended, seeds=self.seeds[row] if seeds is None else seeds)[0]

    def _tried(self, row: str, ended: Mapping[str, Outcome], *, seeds: Sequence[int]) -> tuple[list[Point], int]:
        """As `chosen`, when a row is judged on some seeds; and the place of the one that stands."""
        points = self.points
        if not self.design.selects:  # those that judge have run at all of them, and choose, too
            return points, best([Found(_ended([self._cell(row, seed, point) for seed in seeds], ended))
                                 for point in points])
        found = [Found(_ended(self._choosing(row, point), ended)) for point in points]
        tried: list[int] = []
        while (place := best(found)) not in tried:
            tried.append(place)
            own = _ended([self._cell(row, seed, points[place]) for seed in seeds], ended)
            if len(own) < len(seeds):
                break
            found[place] = replace(found[place], judged=own)
        return [points[place] for place in tried], tried.index(place)

    def _cell(self, row: str, seed: int, point: Point, stage: str = JUDGE) -> Cell:
        tuned = {path: value for level in point for path, value in level.values.items()}
        config = replace(set_fields(self.rows[row], tuned), seed=seed)
        share = self.design.share_of(stage)
        return Cell(row, seed, tuned, config if share == 1 else scheduled(config, share), stage, share)

    def likely(self, ended: Mapping[str, Outcome] = MappingProxyType({})) -> tuple[Cell, ...]:
        """All cells of the study if those that have not ended go well, are equally good and settle nothing: how much it
        is, of looks at most, not which.

        Args:
            ended: how cells have ended, by id.
        """
        known = dict(ended)
        while new := [cell for cell in self.cells(known) if cell.id not in known]:
            known |= dict.fromkeys((cell.id for cell in new), Outcome("complete", 0.0, assumed=True))
        return self.cells(known)

    def check_size(self, most: int = MAX_CELLS) -> None:
        """Refuse a study of more cells than was meant; says how many, of what."""
        count = len(self.likely())
        if count > most:
            tuned = " x ".join(str(len(axis.levels)) for axis in self.design.tuned) or "1"
            axes = ", ".join(f"{axis.title} ({len(axis.levels)})" for axis in self.design.axes)
            raise ConfigError("--max-cells", most, f"the study has {count} cells: {len(self.rows)} rows from the axes "
                              f"{axes}, {tuned} tuned values, {max(map(len, self.seeds.values()))} seeds. Cut one of "
                              "them, choose the design one_at_a_time or fraction, or raise --max-cells")


def scheduled(config: RunConfig, share: float) -> RunConfig:
    """A run of a share of the steps, or several times as many, on a schedule of its own, validated at its end alone."""
    steps = steps_at(share, config.optim.steps)
    return replace(config, optim=replace(config.optim, steps=steps), trainer=replace(config.trainer, val_every=steps))


def _ended(cells: Iterable[Cell], ended: Mapping[str, Outcome]) -> tuple[Outcome, ...]:
    """How cells have ended, of those that have."""
    return tuple(ended[cell.id] for cell in cells if cell.id in ended)


def _by_seed(cells: Iterable[Cell]) -> list[Cell]:
    return sorted(cells, key=lambda cell: cell.seed)
