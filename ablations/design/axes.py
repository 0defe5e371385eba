"""An axis of a study: what differs between its rows or is tuned, level by level.

    model.depth: [6, 24]                                   a field of the run, by its dotted path
    block: [pre_ln, sas]                                   the named blocks
    size: {small: {model.width: 64}, large: {...}}         fields that move together, under a name
    matrices: {together: [model.block.value, model.block.projection], levels: [linear, identity]}
    model.block.norm: grid                                 the positions that the table of switches has for the grid

The level `default` leaves a field as scale and task have it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_simplified.config import (
    PRE_LN,
    PRESETS,
    SWITCHES,
    ConfigError,
    RunConfig,
    checked_fields,
    get_field,
    preset,
    set_fields,
)

BLOCK = "block"
"""The axis of named blocks, and the field that stands for all fields of a named block."""
BLOCK_FIELDS = "model.block."
DEFAULT, GRID = "default", "grid"
RESERVED = {"seed": "seeds", "task": "task", "out_dir": "--out", "data.cache_dir": "--set"}
"""Fields that are no axis, and what sets them."""


@dataclass(frozen=True)
class Level:
    """A position of an axis."""

    label: str
    values: Mapping[str, Any]
    """By dotted path. Empty: everything stays as it is."""


@dataclass(frozen=True)
class Axis:
    """Levels that exclude one another, and the name by which they are asked for."""

    name: str
    levels: tuple[Level, ...]

    @property
    def title(self) -> str:
        """Its last name alone: `norm` for `model.block.norm`."""
        return self.name.rpartition(".")[2]

    @property
    def fields(self) -> tuple[str, ...]:
        """What it sets, by dotted path."""
        return tuple(dict.fromkeys(path for level in self.levels for path in level.values)) or (self.name,)

    @property
    def of_block(self) -> bool:
        """Whether it changes the block and nothing else."""
        return all(path == BLOCK or path.startswith(BLOCK_FIELDS) for path in self.fields)

    @property
    def named(self) -> bool:
        """Whether its levels have names of their own, which say enough without the axis's."""
        own = (level.label not in map(text_of, level.values.values()) for level in self.levels if level.values)
        return self.name == BLOCK or any(own)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(level.label for level in self.levels)

    @property
    def numbers(self) -> tuple[float, ...] | None:
        """The levels as numbers, of an axis that is ordered; None for any other."""
        values = [next(iter(level.values.values()), None) for level in self.levels]
        if len(self.fields) != 1 or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            return None
        return tuple(float(value) for value in values)  # type: ignore[arg-type]

    def level(self, label: object) -> Level:
        """The level of a label or value.

        Raises:
            ConfigError: there is none; the message lists those there are.
        """
        wanted = text_of(label)
        for level in self.levels:
            if level.label == wanted or [text_of(value) for value in level.values.values()] == [wanted]:
                return level
        raise ConfigError(self.name, label, f"the axis has no such level: choose one of {', '.join(self.labels)}")


def parse_axis(name: str, spec: Any, *, template: RunConfig, where: str) -> Axis:
    """An axis as a study file or a flag has it.

    Args:
        name: a dotted path, `block`, or a name for fields that move together.
        spec: the levels, in one of the forms above.
        template: the run that the levels change; it says what `default` is.
        where: the key of the file or the flag, for errors.

    Raises:
        ConfigError: an unknown field, a value of another type, no level, or one twice.
    """
    if name in RESERVED:
        raise ConfigError(where, name, f"no axis: it is set by {RESERVED[name]}")
    if isinstance(spec, Mapping):
        levels = _together(name, spec, template=template, where=where) if "together" in spec else [
            Level(str(label), _bundle(name, values, where=f"{where}: {name}.{label}")) for label, values in spec.items()
        ]
    elif name == BLOCK:
        levels = [Level(text, {BLOCK: text}) for text in _named(_values(name, spec, where=where))]
    else:
        levels = [_level(name, value, template=template, where=where) for value in _values(name, spec, where=where)]
    axis = Axis(name, tuple(levels))
    _check_levels(axis, where=where)
    return axis


def _values(name: str, spec: Any, *, where: str) -> list[Any]:
    if spec == GRID:
        field = name.removeprefix(BLOCK_FIELDS)
        if field not in SWITCHES:
            raise ConfigError(where, f"{name}: {GRID}", f"only switches have it: {', '.join(SWITCHES)}")
        usual = getattr(PRE_LN, field)
        return [DEFAULT if position == usual else position for position in SWITCHES[field].grid]
    if not isinstance(spec, list | tuple):
        raise ConfigError(where, {name: spec}, f"give the levels as a list: {name}: [{text_of(spec)}, ...]")
    return list(spec)


def _named(names: Iterable[Any]) -> list[str]:
    for name in names:
        preset(str(name))
    return [str(name) for name in names]


def _level(path: str, value: Any, *, template: RunConfig, where: str) -> Level:
    if value == DEFAULT:
        checked_fields(RunConfig, {path: get_or_none(template, path)}, where=where)
        return Level(text_of(get_field(template, path)), {})
    found = checked_fields(RunConfig, {path: value}, where=where)
    return Level(text_of(found[path]), found)


def get_or_none(config: RunConfig, path: str) -> Any:
    """The value of a field; None where there is no such field, which the check of it then says."""
    try:
        return get_field(config, path)
    except AttributeError:
        return None


def _together(name: str, spec: Mapping[str, Any], *, template: RunConfig, where: str) -> list[Level]:
    """Fields that take the same value."""
    unknown = set(spec) - {"together", "levels"}
    fields = spec["together"]
    if unknown or not isinstance(fields, list | tuple) or not fields or "levels" not in spec:
        raise ConfigError(where, {name: dict(spec)}, "write {together: [FIELD, ...], levels: [VALUE, ...]}")
    levels = []
    for value in _values(str(fields[0]), spec["levels"], where=where):
        parts = [_level(str(path), value, template=template, where=where) for path in fields]
        levels.append(Level(parts[0].label, {path: v for part in parts for path, v in part.values.items()}))
    return levels


def _bundle(name: str, values: Any, *, where: str) -> dict[str, Any]:
    """The fields of a level that has a name."""
    if not isinstance(values, Mapping):
        raise ConfigError(where, values, "give the fields of the level: {FIELD: VALUE, ...}")
    named = {BLOCK: _named([values[BLOCK]])[0]} if BLOCK in values else {}
    return {**named, **checked_fields(RunConfig, {k: v for k, v in values.items() if k != BLOCK}, where=where)}


def _check_levels(axis: Axis, *, where: str) -> None:
    if not axis.levels:
        raise ConfigError(where, axis.name, "the axis has no level: give two or more")
    for index, level in enumerate(axis.levels):
        if level.label in axis.labels[:index]:
            raise ConfigError(where, level.label, f"the level stands twice on the axis {axis.name}: leave one out")


def check_apart(axes: Sequence[Axis]) -> None:
    """Refuse two axes that set the same field, of which one would undo the other."""
    owner: dict[str, str] = {}
    for axis in axes:
        for path in axis.fields:
            if path in owner:
                raise ConfigError(axis.name, path, f"the axis {owner[path]} sets this field too: make them one axis")
            owner[path] = axis.name


def apply(template: RunConfig, levels: Iterable[Level], *, fixed: Mapping[str, Any] | None = None) -> RunConfig:
    """The run at some levels, all changed together: named blocks first, single fields on top.

    Args:
        template: what is changed.
        levels: one of each axis.
        fixed: fields that a named block does not change.

    Raises:
        ConfigError: a combination that cannot be built.
    """
    values: dict[str, Any] = dict(fixed or {})
    for level in levels:
        values |= level.values
    if BLOCK in values:
        block = preset(values.pop(BLOCK), task=template.task)
        template = dataclasses.replace(template, model=dataclasses.replace(template.model, block=block))
    return set_fields(template, values) if values else template


def text_of(value: Any) -> str:
    """A value as labels and ids have it."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(value)


def preset_axis(names: Iterable[str] = tuple(PRESETS)) -> Axis:
    """The axis of some named blocks; raises `ConfigError` with the known names."""
    return Axis(BLOCK, tuple(Level(name, {BLOCK: name}) for name in _named(names)))
