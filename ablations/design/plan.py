"""A study file written out: its rows as configurations, and who judges them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
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
from ablations.design.cells import StudyPlan
from ablations.design.config import StudyConfig
from ablations.design.design import StudyDesign
from ablations.design.resolve import Known, find_row, resolve_claims
from ablations.design.rows import Base, write_rows
from ablations.design.scales import Scale
from ablations.design.stages import FIRST_SEED, Screen, apart
from ablations.design.stopping import Looks
from lit_simplified.config import ConfigError, RunConfig, checked_fields, get_field, set_fields


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
    if config.screen is not None or config.extend is not None:
        _check_apart(config, apart(config.extend.seeds if config.extend else 1), seeds=seeds.values())
    return StudyPlan(design=design, template=base.template, rows=configs, seeds=seeds)


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
