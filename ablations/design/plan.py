"""A study with everything decided: its rows as configurations, and its cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from types import MappingProxyType
from typing import Any

from ablations.design import designs
from ablations.design.axes import (
    BLOCK,
    BLOCK_FIELDS,
    Axis,
    Level,
    apply,
    check_apart,
    get_or_none,
    parse_axis,
    text_of,
)
from ablations.design.config import StudyConfig
from ablations.design.design import StudyDesign
from ablations.design.resolve import Known, find_row, resolve_claims
from ablations.design.rows import Base, safe, write_rows
from ablations.design.scales import Scale
from ablations.design.selection import Found, Outcome, best, survivors
from ablations.design.stages import EXTEND, FIRST_SEED, JUDGE, SCREEN, SELECT, Screen, apart
from ablations.design.stopping import CONTINUE, Looks, decide
from lit_simplified.config import ConfigError, RunConfig, checked_fields, get_field, set_fields

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
        if not self.design.selects:
            return points, 0
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


def plan_study(config: StudyConfig, *, scale: Scale, partial: bool = False) -> StudyPlan:
    """Write a study's rows out, each distinct run once.

    Args:
        config: the study.
        scale: the size of its runs; their task is that of its template.
        partial: whether claims about rows that are left out are left out, too, and counted.

    Raises:
        ConfigError: a level, row or claim that does not exist, or nothing to train.
    """
    config = config.at_scale(scale.name)
    if scale.presets and config.kind == "full" and BLOCK not in config.compare and _block_axes(config):
        config, partial = with_blocks(config, scale.presets), True
    base, held = _base(config, scale.template)
    asked = _asked(config, template=base.template, held=held)
    tuned = [parse_axis(name, spec, template=base.template, where="tune") for name, spec in config.tune.items()]
    check_apart([*asked.axes, *tuned])
    rows, configs, notes = write_rows(asked, base)
    baseline = designs.baseline_of(asked.axes, given=_given(config, asked.axes), template=base.template)
    design = StudyDesign(
        name=config.name, question=config.question, source=config.source, kind=config.kind, axes=asked.axes,
        tuned=tuple(tuned), screen=_screen(config.screen, tuned, base.template),
        select_share=config.select.share, extend=config.extend,
        rows=tuple(rows), notes=(*asked.notes, *notes), figures=config.figures,
        baseline=find_row(configs, base.at(asked.axes, baseline)) or rows[0].id,
    )
    claims, dropped = resolve_claims(config, Known(design, configs, base), partial=partial)
    seeds = {row.id: _seeds(config, scale, named=bool(row.preset)) for row in rows}
    design = replace(design, claims=tuple(claims), notes=(*design.notes, *dropped),
                     selects=_selects(config, tuned, seeds=seeds.values()))
    if isinstance(config.seeds, Looks):
        design = _with_looks(design, config.seeds)
    _check_stages(config, design, seeds=seeds.values())
    return StudyPlan(design=design, template=base.template, rows=configs, seeds=seeds)


def _check_stages(config: StudyConfig, design: StudyDesign, *, seeds: Iterable[Sequence[int]]) -> None:
    """Refuse an extension of rows at no tuned value in particular, and seeds that judge and do something else."""
    if config.extend is not None and not design.selects and math.prod(len(axis.levels) for axis in design.tuned) > 1:
        raise ConfigError("extend", dict(vars(config.extend)), "which tuned values to extend? Let seeds of their own "
                          "choose them: select: 1")
    if config.screen is not None or config.extend is not None:
        _check_apart(config, apart(config.extend.seeds if config.extend else 1), seeds=seeds)


def _selects(config: StudyConfig, tuned: Sequence[Axis], *, seeds: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """The seeds that choose the tuned values; none where nothing is tuned, or all seeds judge at all values."""
    if math.prod(len(axis.levels) for axis in tuned) < 2:
        return ()
    found = apart(config.select.seeds)
    _check_apart(config, found, seeds=seeds)
    return found


def _with_looks(design: StudyDesign, looks: Looks) -> StudyDesign:
    """The design with looks, where they have something to decide and can.

    Raises:
        ConfigError: no claim is about a loss; the seeds that judge choose the tuned values; a margin in bits per byte.
    """
    if not design.about_losses:
        raise ConfigError("seeds: looks", looks.seeds, "no claim of the study is about a loss, so nothing settles: "
                          f"write claims, or give a number of seeds, e.g. seeds: {looks.seeds[0]}")
    if not design.selects and math.prod(len(axis.levels) for axis in design.tuned) > 1:
        raise ConfigError("select", 0, "seeds that choose the tuned values cannot settle claims look by look: give "
                          "select: 1, or a number of seeds without looks")
    for claim in design.about_losses:
        if claim.quantity == "bits_per_byte" and claim.relation == "level" and claim.margin is not None:
            raise ConfigError("margin", claim.margin, "looks decide before the bits per byte of a nat are known: leave "
                              "the margin of this claim out, or claim val_loss with one in nats")
    return replace(design, looks=looks)


def _check_apart(config: StudyConfig, choosing: Sequence[int], *, seeds: Iterable[Sequence[int]]) -> None:
    both = sorted(set(choosing) & {seed for own in seeds for seed in own})
    if both:
        only = config.screen is None and config.extend is None
        raise ConfigError("seeds", both, "these screen rows, choose tuned values or extend runs, and so cannot judge: "
                          f"give seeds below {FIRST_SEED}{', or select: 0 to choose on those that judge' * only}")


def scheduled(config: RunConfig, share: float) -> RunConfig:
    """A run of a share of the steps, or several times as many, on a schedule of its own, validated at its end alone."""
    steps = max(1, round(config.optim.steps * share))
    return replace(config, optim=replace(config.optim, steps=steps), trainer=replace(config.trainer, val_every=steps))


def _screen(screen: Screen | None, tuned: Sequence[Axis], template: RunConfig) -> Screen | None:
    """The screening with its tuned values as labels of the tuned axes.

    Raises:
        ConfigError: an axis that is not tuned, or a value that it does not have.
    """
    if screen is None:
        return None
    known = {axis.name: axis for axis in tuned}
    unknown = [name for name in screen.tune if name not in known]
    if unknown:
        raise ConfigError("screen: tune", unknown[0], f"the study tunes {', '.join(known) or 'nothing'}")
    asked = {name: parse_axis(name, list(levels), template=template, where="screen: tune").labels
             for name, levels in screen.tune.items()}
    return replace(screen, tune={name: tuple(known[name].level(label).label for label in labels)
                                 for name, labels in asked.items()})


def _ended(cells: Iterable[Cell], ended: Mapping[str, Outcome]) -> tuple[Outcome, ...]:
    """How cells have ended, of those that have."""
    return tuple(ended[cell.id] for cell in cells if cell.id in ended)


def _by_seed(cells: Iterable[Cell]) -> list[Cell]:
    return sorted(cells, key=lambda cell: cell.seed)


def _block_axes(config: StudyConfig) -> list[str]:
    """The axes that change the block, by their names or the fields that move together on them."""
    def fields(name: str, spec: Any) -> Iterator[str]:
        yield name
        if isinstance(spec, Mapping):
            yield from map(str, spec.get("together", ()))
            yield from (str(path) for level in spec.values() if isinstance(level, Mapping) for path in level)

    return [name for name, spec in config.compare.items()
            if any(path == BLOCK or path.startswith(BLOCK_FIELDS) for path in fields(name, spec))]


def with_blocks(config: StudyConfig, names: Sequence[str]) -> StudyConfig:
    """A study of these named blocks, in place of those that it compares.

    Raises:
        ConfigError: the study's design is about blocks of its own.
    """
    if config.kind not in ("full", "one_at_a_time"):
        raise ConfigError("--presets", list(names), f"the design of this study, {config.kind}, is made of its own "
                          "blocks: write a study with an axis block")
    of_block = _block_axes(config)
    others = {name: spec for name, spec in config.compare.items() if name not in of_block}
    kept = {name: level for name, level in config.baseline.items() if name not in of_block and name != BLOCK}
    return replace(config, compare={BLOCK: list(names), **others}, baseline=kept)


def _base(config: StudyConfig, template: RunConfig) -> tuple[Base, dict[str, Any]]:
    """The run that the axes change, and the fields of the baseline that no axis has."""
    held = {name: value for name, value in config.baseline.items()
            if name not in config.compare and (name == BLOCK or get_or_none(template, name) is not None)}
    others = checked_fields(RunConfig, {name: value for name, value in held.items() if name != BLOCK}, where="baseline")
    given = {**config.set, **others}
    fixed = {path: value for path, value in given.items() if path.startswith(BLOCK_FIELDS)}
    block = Level("", {BLOCK: str(held.get(BLOCK, "pre_ln"))})
    return Base(apply(set_fields(template, given), [block], fixed=fixed), fixed), held


def _given(config: StudyConfig, axes: Iterable[Axis]) -> dict[str, Any]:
    names = {axis.name for axis in axes}
    return {name: value for name, value in config.baseline.items() if name in names}


def _asked(config: StudyConfig, *, template: RunConfig, held: Mapping[str, Any]) -> designs.Asked:
    """The design's combinations of the compared axes."""
    compare = dict(config.compare)
    if not compare and config.kind == "rows":
        compare = dict(designs.axes_of_rows(config.options["rows"] if isinstance(config.options, Mapping)
                                            else config.options))
    if not compare:
        raise ConfigError("compare", {}, "name at least one axis, e.g. compare: {model.block.norm: [rms, none]}, or on "
                          "the command line --axis model.block.norm=rms,none")
    axes = [parse_axis(name, spec, template=template, where="compare") for name, spec in compare.items()]
    unknown = [name for name in config.baseline if name not in (*compare, *held)]
    if unknown:
        raise ConfigError("baseline", unknown[0], f"neither an axis ({', '.join(compare)}) nor a field of a run")
    if config.kind in ("one_at_a_time", "rows"):
        axes = [_with_usual(axis, template) if axis.name not in config.baseline else axis for axis in axes]
    baseline = designs.baseline_of(axes, given=_given(config, axes), template=template)
    match config.kind:
        case "one_at_a_time":
            return designs.one_at_a_time(axes, baseline=baseline)
        case "path":
            return designs.path(axes, template=template)
        case "fraction":
            return designs.fraction(axes, options=config.options)
        case "rows":
            return designs.written_out(axes, rows=config.options, baseline=baseline)
    return designs.full(axes)


def _with_usual(axis: Axis, template: RunConfig) -> Axis:
    """An axis of one field with the template's own level, where it lacks it: what the changes are made to."""
    if len(axis.fields) != 1 or axis.fields == (BLOCK,) or any(not level.values for level in axis.levels):
        return axis
    usual = get_field(template, axis.fields[0])
    if any(value == usual for level in axis.levels for value in level.values.values()):
        return axis
    return Axis(axis.name, (Level(text_of(usual), {axis.fields[0]: usual}), *axis.levels))


def _seeds(config: StudyConfig, scale: Scale, *, named: bool) -> tuple[int, ...]:
    if isinstance(config.seeds, int):
        return tuple(range(config.seeds))
    if isinstance(config.seeds, Looks):
        return tuple(range(config.seeds.seeds[-1]))
    return config.seeds or (*scale.seeds, *(scale.named_seeds if named else ()))


def axes_by_flag(texts: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """`FIELD=A,B` texts as axes with their levels.

    Raises:
        ConfigError: no `=`.
    """
    for text in texts:
        name, sign, levels = text.partition("=")
        if not sign or not name or not levels:
            raise ConfigError("--axis", text, "write FIELD=LEVEL,LEVEL, e.g. model.block.norm=rms,none")
        yield name.strip(), [level.strip() for level in levels.split(",")]
