"""A study with everything decided: its rows as configurations, and its cells."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from ablations.design import designs
from ablations.design.axes import BLOCK, BLOCK_FIELDS, Axis, Level, apply, check_apart, get_or_none, parse_axis, text_of
from ablations.design.claims import QUANTITIES, RELATIONS, Claim
from ablations.design.config import StudyConfig
from ablations.design.design import Row, StudyDesign
from ablations.design.scales import Scale
from lit_simplified.config import (
    ConfigError,
    RunConfig,
    block_id,
    checked_fields,
    digest,
    get_field,
    preset_of,
    set_fields,
)

MAX_CELLS = 1000
LEARNING_RATE = "optim.learning_rate"
FEW_BLOCK_AXES = 2
"""Axes of the block up to which a row that is no named block is called by its levels."""


@dataclass(frozen=True)
class Cell:
    """One training run of a study: a row at one tuned value and one seed."""

    row: str
    """The row's id."""
    seed: int
    tuned: Mapping[str, Any]
    """Values of the tuned fields, by dotted path."""
    config: RunConfig

    @property
    def id(self) -> str:
        """Stable: the same content has the same id, in every process and every version of the suite."""
        others = "".join(f"-{name.rpartition('.')[2]}{_safe(value)}" for name, value in self.tuned.items()
                         if name != LEARNING_RATE)
        return f"{self.row}-s{self.seed}-lr{self.config.optim.learning_rate:g}{others}"

    def __hash__(self) -> int:
        return hash(self.id)


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """What a study trains."""

    design: StudyDesign
    template: RunConfig
    """What every cell shares; its fields are changed by the row, the tuned values and the seed."""
    rows: Mapping[str, RunConfig]
    """By id, in the order of the design."""
    seeds: Mapping[str, tuple[int, ...]]
    """Of every row."""

    def cells(self) -> tuple[Cell, ...]:
        """Each once; seed by seed, so that a study cut short still compares all rows."""
        points = list(product(*(axis.levels for axis in self.design.tuned)))
        found = [self._cell(row, seed, point) for point in points for row in self.rows for seed in self.seeds[row]]
        return tuple({cell.id: cell for cell in sorted(found, key=lambda cell: cell.seed)}.values())

    def _cell(self, row: str, seed: int, point: Sequence[Level]) -> Cell:
        tuned = {path: value for level in point for path, value in level.values.items()}
        return Cell(row, seed, tuned, replace(set_fields(self.rows[row], tuned), seed=seed))

    def check_size(self, most: int = MAX_CELLS) -> None:
        """Refuse a study of more cells than was meant; says how many, of what."""
        count = len(self.cells())
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
    if scale.presets and config.kind == "full" and BLOCK not in config.compare and _block_axes(config):
        config, partial = with_blocks(config, scale.presets), True
    base, held = _base(config, scale.template)
    asked = _asked(config, template=base.template, held=held)
    tuned = [parse_axis(name, spec, template=base.template, where="tune") for name, spec in config.tune.items()]
    check_apart([*asked.axes, *tuned])
    rows, configs, notes = _rows(asked, base)
    baseline = designs.baseline_of(asked.axes, given=_given(config, asked.axes), template=base.template)
    design = StudyDesign(
        name=config.name, question=config.question, source=config.source, kind=config.kind, axes=asked.axes,
        tuned=tuple(tuned), rows=tuple(rows), notes=(*asked.notes, *notes), figures=config.figures,
        baseline=_find(configs, base.at(asked.axes, baseline)) or rows[0].id,
    )
    claims, dropped = _claims(config, _Known(design, configs, base), partial=partial)
    design = replace(design, claims=tuple(claims), notes=(*design.notes, *dropped))
    seeds = {row.id: _seeds(config, scale, named=bool(row.preset)) for row in rows}
    return StudyPlan(design=design, template=base.template, rows=configs, seeds=seeds)


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


@dataclass(frozen=True)
class _Base:
    """What the levels of the axes change."""

    template: RunConfig
    fixed: Mapping[str, Any]
    """Fields of the block that every row has, whatever its named block."""

    def at(self, axes: Iterable[Axis], combination: Mapping[str, str]) -> RunConfig:
        """The run of a combination."""
        return apply(self.template, [axis.level(combination[axis.name]) for axis in axes], fixed=self.fixed)


@dataclass(frozen=True)
class _Known:
    """What a claim is resolved with."""

    design: StudyDesign
    configs: Mapping[str, RunConfig]
    base: _Base


def _base(config: StudyConfig, template: RunConfig) -> tuple[_Base, dict[str, Any]]:
    """The run that the axes change, and the fields of the baseline that no axis has."""
    held = {name: value for name, value in config.baseline.items()
            if name not in config.compare and (name == BLOCK or get_or_none(template, name) is not None)}
    others = checked_fields(RunConfig, {name: value for name, value in held.items() if name != BLOCK}, where="baseline")
    given = {**config.set, **others}
    fixed = {path: value for path, value in given.items() if path.startswith(BLOCK_FIELDS)}
    block = Level("", {BLOCK: str(held.get(BLOCK, "pre_ln"))})
    return _Base(apply(set_fields(template, given), [block], fixed=fixed), fixed), held


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


def _rows(asked: designs.Asked, base: _Base) -> tuple[list[Row], dict[str, RunConfig], list[str]]:
    """Rows, their configurations by id, and in words what was left out or is one with another."""
    rows: dict[str, Row] = {}
    configs: dict[str, RunConfig] = {}
    refused: Counter[str] = Counter()
    merged: list[str] = []
    before = asked.around
    for combination in asked.combinations:
        config = _built(asked, combination, base, refused=refused)
        if config is None:
            continue
        row = _row(asked, combination, config, before=before, step=len(rows))
        if row.id in rows and rows[row.id].digest == row.digest:
            merged.append(f"{_words(asked.axes, combination)} is {rows[row.id].label}")
            continue
        row = row if row.id not in rows else replace(row, id=f"{row.id}-{row.digest}")
        rows[row.id], configs[row.id] = row, config
        before = combination if asked.ordered else before
    if not rows:
        raise ConfigError("compare", [axis.name for axis in asked.axes], "no combination of these levels can be built: "
                          f"{next(iter(refused))}")
    return _labelled(list(rows.values())), configs, _notes(asked, refused, merged)


def _built(
    asked: designs.Asked, combination: Mapping[str, str], base: _Base, *, refused: Counter[str]
) -> RunConfig | None:
    """The run of a combination; None, with the reason counted, where it cannot be built."""
    try:
        return base.at(asked.axes, combination)
    except ConfigError as error:
        if asked.whole:
            raise ConfigError("design", _words(asked.axes, combination), "the design needs this row, which cannot be "
                              f"built ({error}). Make fields that only go together one axis") from error
        refused[str(error)] += 1
        return None


def _notes(asked: designs.Asked, refused: Counter[str], merged: Sequence[str]) -> list[str]:
    notes = []
    if refused and asked.ordered:
        notes.append(f"steps of the path that are taken together with the next, as they cannot be built on their own: "
                     f"{sum(refused.values())} ({'; '.join(refused)})")
    elif refused:
        notes.append(f"{sum(refused.values())} of {len(asked.combinations)} combinations cannot be built and are left "
                     f"out: {'; '.join(list(refused)[:3])}")
    if merged:
        more = f"; and {len(merged) - 5} more" if len(merged) > 5 else ""
        notes.append(f"{len(merged)} combinations build a run that is there already: {'; '.join(merged[:5])}{more}")
    return notes


def _words(axes: Iterable[Axis], combination: Mapping[str, str]) -> str:
    return ", ".join(f"{axis.title}={combination[axis.name]}" for axis in axes)


def _row(
    asked: designs.Asked, combination: Mapping[str, str], config: RunConfig, *, before: Mapping[str, str] | None,
    step: int,
) -> Row:
    block = config.model.block
    others = [(axis, combination[axis.name]) for axis in asked.axes if not axis.of_block]
    identity = block_id(block) + "".join(f"-{_safe(axis.title)}{_safe(label)}" for axis, label in others)
    label = _label(asked.axes, combination, config)
    changed = [axis for axis in asked.axes if before is not None and combination[axis.name] != before[axis.name]]
    if changed:
        what = ", ".join(_part(axis, combination[axis.name]) for axis in changed)
        label = f"{step}. {what}" if asked.ordered else what
    return Row(identity, label, dict(combination), row_digest(config), preset_of(block))


def row_digest(config: RunConfig) -> str:
    """Stands for what decides the result of a row's runs, whatever their seed and folders."""
    return digest(replace(config, seed=0, out_dir="", data=replace(config.data, cache_dir="", num_workers=0),
                          trainer=replace(config.trainer, accelerator="", devices=1, threads=None)))


def _label(axes: Sequence[Axis], combination: Mapping[str, str], config: RunConfig) -> str:
    """The named block, else its levels where these are few, and the level of every other axis."""
    of_block = [axis for axis in axes if axis.of_block]
    parts = [_part(axis, combination[axis.name]) for axis in of_block]
    name = preset_of(config.model.block)
    if name and of_block:
        parts = [name]
    elif len(parts) > FEW_BLOCK_AXES:
        parts = [block_id(config.model.block)]
    return ", ".join([*parts, *(_part(axis, combination[axis.name]) for axis in axes if not axis.of_block)])


def _part(axis: Axis, label: str) -> str:
    return label if axis.named else f"{axis.title} {label}"


def _labelled(rows: list[Row]) -> list[Row]:
    """The rows with labels that tell them apart: by id where two are called the same."""
    counts = Counter(row.label for row in rows)
    return [row if counts[row.label] == 1 else replace(row, label=row.id) for row in rows]


def _safe(value: Any) -> str:
    """A value in an id, which is a name of files and elements of a page, too."""
    return re.sub(r"[^A-Za-z0-9.+_-]+", "_", text_of(value))


def _find(configs: Mapping[str, RunConfig], config: RunConfig) -> str:
    return next((name for name, known in configs.items() if known == config), "")


def _claims(config: StudyConfig, known: _Known, *, partial: bool) -> tuple[list[Claim], list[str]]:
    """The claims about rows of the study, and in words how many were left out."""
    wanted = [claim for claim in config.claims if claim.get("task") in (None, known.base.template.task)]
    found, without = [], 0
    for index, claim in enumerate(wanted):
        try:
            found.append(_claim(claim, index, known))
        except ConfigError:
            if not partial:
                raise
            without += 1
    other = len(config.claims) - len(wanted)
    notes = [f"{other} claims are about the other task and are left out"] if other else []
    return found, [*notes, f"{without} claims are about rows that are not trained here"] if without else notes


def _claim(claim: Mapping[str, Any], index: int, known: _Known) -> Claim:
    left, right = (side_of(claim[side], f"claims[{index}]: {side}", known) for side in ("left", "right"))
    relation = RELATIONS[claim["is"]]
    quantity = str(claim.get("in") or relation.quantity)
    by_id = known.design.by_id
    sentence = relation.sentence.format(left=by_id[left].label, right=by_id[right].label)
    sentence += f" in {QUANTITIES[quantity]}" if quantity != relation.quantity else ""
    return Claim(left, claim["is"], right, quantity, sentence, str(claim.get("paper") or ""), claim.get("margin"),
                 str(claim.get("name") or ""))


def side_of(side: Any, where: str, known: _Known) -> str:
    """The row that a claim speaks of, by id: a named block, or levels and fields; the rest is the baseline's.

    Raises:
        ConfigError: the study has no such row.
    """
    given = {BLOCK: side} if isinstance(side, str) else side
    if not isinstance(given, Mapping):
        raise ConfigError(where, side, "give a named block, or {AXIS: LEVEL, ...}")
    design, configs = known.design, known.configs
    by_name = {axis.name: axis for axis in design.axes}
    start = known.base.template if BLOCK in given else configs[design.baseline]
    base = design.by_id[design.baseline].levels
    others = [axis for axis in design.axes if axis.name not in given and not (BLOCK in given and axis.of_block)]
    levels = [axis.level(base[axis.name]) for axis in others if axis.name in base]
    levels += [by_name[name].level(value) if name in by_name else Level(str(value), _fields(name, value, where))
               for name, value in given.items()]
    found = _find(configs, apply(start, levels, fixed=known.base.fixed))
    if not found:
        names = ", ".join(row.label for row in design.rows[:12])
        raise ConfigError(where, side, f"the study has no such row; it has {names}" + ", ..." * (len(configs) > 12))
    return found


def _fields(name: str, value: Any, where: str) -> dict[str, Any]:
    return {BLOCK: str(value)} if name == BLOCK else checked_fields(RunConfig, {name: value}, where=where)


def _seeds(config: StudyConfig, scale: Scale, *, named: bool) -> tuple[int, ...]:
    if isinstance(config.seeds, int):
        return tuple(range(config.seeds))
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
