"""Which combinations of levels a design asks for: full, one at a time, a path, a fraction, or rows written out.

A combination is a level label by axis. Whether it can be built is not asked here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

from ablations.design.axes import BLOCK, BLOCK_FIELDS, Axis, Level, text_of
from lit_simplified.config import ConfigError, RunConfig, get_field, preset

Combination = dict[str, str]
ROMAN = {"III": 3, "IV": 4, "V": 5}
MOST_FACTORS = 10
"""Of a fraction: above, the search for its generators takes too long."""


@dataclass(frozen=True)
class Asked:
    """What a design asks for."""

    axes: tuple[Axis, ...]
    combinations: tuple[Combination, ...]
    notes: tuple[str, ...] = ()
    ordered: bool = False
    """Whether each combination is a step from the one before (a path)."""
    whole: bool = False
    """Whether all of them are needed, so that one that cannot be built is an error."""
    around: Combination | None = None
    """The combination of which each of the others changes something; rows are called by that."""


def full(axes: Sequence[Axis]) -> Asked:
    """Every combination; the last axis varies fastest."""
    names = [axis.name for axis in axes]
    found = tuple(dict(zip(names, labels, strict=True)) for labels in product(*(axis.labels for axis in axes)))
    return Asked(tuple(axes), found)


def one_at_a_time(axes: Sequence[Axis], *, baseline: Combination) -> Asked:
    """The baseline, and every other level of every axis on its own."""
    found = [baseline]
    for axis in axes:
        found += [{**baseline, axis.name: label} for label in axis.labels if label != baseline[axis.name]]
    return Asked(tuple(axes), tuple(found), around=baseline)


def path(axes: Sequence[Axis], *, template: RunConfig) -> Asked:
    """From the first level of every axis to its last, an axis after the other.

    Two named blocks are taken apart into the fields in which they differ. A step that cannot be built on its own is
    taken together with the next (`plan` does so).
    """
    split = [part for axis in axes for part in _split(axis, template=template)]
    for axis in split:
        if len(axis.levels) < 2:
            raise ConfigError("design: path", axis.name, "a path needs where it begins and where it ends: two levels")
    at = {axis.name: axis.labels[0] for axis in split}
    found = [dict(at)]
    for axis in split:
        for label in axis.labels[1:]:
            at[axis.name] = label
            found.append(dict(at))
    return Asked(tuple(split), tuple(found), ordered=True)


def _split(axis: Axis, *, template: RunConfig) -> Iterator[Axis]:
    """An axis of two named blocks as the fields in which they differ; any other as it is."""
    if axis.fields != (BLOCK,):
        yield axis
        return
    if len(axis.levels) != 2:
        raise ConfigError("design: path", list(axis.labels), "give two blocks, where the path begins and where it ends")
    begin, end = (preset(level.values[BLOCK], task=template.task) for level in axis.levels)
    names = [name for name in vars(begin) if getattr(begin, name) != getattr(end, name)]
    groups = [["value", "projection"]] if {"value", "projection"} <= set(names) else []
    groups = [*groups, *([name] for name in names if not groups or name not in groups[0])]
    for group in sorted(groups, key=lambda group: names.index(group[0])):
        values = [{f"{BLOCK_FIELDS}{name}": getattr(block, name) for name in group} for block in (begin, end)]
        labels = [text_of(next(iter(value.values()))) for value in values]
        title = f"{BLOCK_FIELDS}{group[0]}" if len(group) == 1 else " + ".join(group)
        yield Axis(title, tuple(Level(label, value) for label, value in zip(labels, values, strict=True)))


def fraction(axes: Sequence[Axis], *, options: Any) -> Asked:
    """A two-level fractional factorial: a share of all combinations in which few effects are mixed up, and those said.

    Args:
        axes: of two levels each.
        options: {rows: 16} for a number of rows, a power of two, or {resolution: V}. None: resolution V.
    """
    rows, least = _fraction_options(options, n_factors=len(axes))
    for axis in axes:
        if len(axis.levels) != 2:
            raise ConfigError("design: fraction", {axis.name: list(axis.labels)}, "it takes two levels of every axis")
    if not 3 <= len(axes) <= MOST_FACTORS:
        raise ConfigError("design: fraction", len(axes), f"give from 3 to {MOST_FACTORS} axes; for others use full")
    possible = [base for base in range(2, len(axes)) if 2**base > len(axes)]  # as many products as further factors
    for base in ([rows.bit_length() - 1] if rows else possible):
        words = _generators(len(axes), base)
        resolution = _resolution(words, base)
        if rows or resolution >= least:
            return _fraction(axes, words, base=base, resolution=resolution)
    return Asked(tuple(axes), full(axes).combinations, ("no fraction has this resolution: all combinations",),
                 whole=True)


def _fraction_options(options: Any, *, n_factors: int) -> tuple[int, int]:
    """Rows (0: not said) and least resolution."""
    given = dict(options or {})
    rows, resolution = given.pop("rows", 0), given.pop("resolution", "V")
    least = ROMAN.get(str(resolution), resolution)
    if given or least not in (3, 4, 5):
        raise ConfigError("design: fraction", options, "write {rows: 16} or {resolution: III, IV or V}")
    if rows and (not isinstance(rows, int) or rows & (rows - 1) or not n_factors < rows < 2**n_factors):
        raise ConfigError("design: fraction.rows", rows, f"give a power of two above the number of axes, {n_factors}, "
                          f"and below all {2**n_factors} combinations")
    return rows, least


def _generators(n_factors: int, base: int) -> tuple[frozenset[int], ...]:
    """What each factor behind the first `base` is the product of, chosen for the highest resolution."""
    from pyDOE3 import fracfact_opt

    design, *_ = fracfact_opt(n_factors, n_factors - base)
    return tuple(frozenset(ord(letter) - ord("a") for letter in word) for word in design.split()[base:])


def _resolution(words: Sequence[frozenset[int]], base: int) -> int:
    """Length of the shortest product of factors that is constant over the rows."""
    relations = [word ^ {base + index} for index, word in enumerate(words)]
    shortest = 99
    for size in range(1, len(relations) + 1):
        for chosen in combinations(relations, size):
            joint: frozenset[int] = frozenset()
            for relation in chosen:
                joint ^= relation
            shortest = min(shortest, len(joint))
    return shortest


def _fraction(axes: Sequence[Axis], words: Sequence[frozenset[int]], *, base: int, resolution: int) -> Asked:
    found = []
    for signs in product((-1, 1), repeat=base):
        row = [*signs, *(_flip(word) * math.prod(signs[index] for index in word) for word in words)]
        found.append({axis.name: axis.labels[(sign + 1) // 2] for axis, sign in zip(axes, row, strict=True)})
    titles = [axis.title for axis in axes]
    products = [f"{'-' * (_flip(word) < 0)}{' x '.join(titles[j] for j in sorted(word))}" for word in words]
    generators = "; ".join(f"{titles[base + i]} = {word}" for i, word in enumerate(products))
    roman = next((name for name, number in ROMAN.items() if number == resolution), str(resolution))
    note = (f"fraction of {len(found)} of {2 ** len(axes)} combinations, resolution {roman}; "
            f"generated by {generators}, each factor coded -1 and +1")
    return Asked(tuple(axes), tuple(found), (note,), whole=True)


def _flip(word: frozenset[int]) -> int:
    """The sign that puts the first level of every factor into the fraction: there all codes are -1."""
    return 1 if len(word) % 2 else -1


def written_out(axes: Sequence[Axis], *, rows: Any, baseline: Combination) -> Asked:
    """The rows of a file; an axis that a row leaves out is at the baseline's level."""
    by_name = {axis.name: axis for axis in axes}
    found = []
    for index, row in enumerate(rows):
        unknown = [name for name in row if name not in by_name] if isinstance(row, Mapping) else [row]
        if unknown:
            raise ConfigError(f"design: rows[{index}]", unknown[0], f"the axes are {', '.join(by_name)}")
        chosen = {name: by_name[name].level(label).label for name, label in row.items()}
        found.append({**baseline, **chosen})
    return Asked(tuple(axes), tuple(found), whole=True)


def axes_of_rows(rows: Any) -> dict[str, list[Any]]:
    """The axes that rows written out speak of, with the levels that they use, for a file without `compare`."""
    found: dict[str, list[Any]] = {}
    for index, row in enumerate(rows if isinstance(rows, list | tuple) else []):
        if not isinstance(row, Mapping) or not row:
            raise ConfigError(f"design: rows[{index}]", row, "write a row as {AXIS: LEVEL, ...}")
        for name, value in row.items():
            levels = found.setdefault(str(name), [])
            if value not in levels:
                levels.append(value)
    if not found:
        raise ConfigError("design: rows", rows, "give a list of rows: [{AXIS: LEVEL, ...}, ...]")
    return found


def baseline_of(axes: Sequence[Axis], *, given: Mapping[str, Any], template: RunConfig) -> Combination:
    """The baseline's level of every axis: as given, else that of the template, else the first."""
    chosen: Combination = {}
    for axis in axes:
        chosen[axis.name] = axis.level(given[axis.name]).label if axis.name in given else _usual(axis, template)
    return chosen


def _usual(axis: Axis, template: RunConfig) -> str:
    for level in axis.levels:
        if BLOCK in level.values:
            same = preset(level.values[BLOCK], task=template.task) == template.model.block
        else:
            same = all(get_field(template, path) == value for path, value in level.values.items())
        if same:
            return level.label
    return axis.labels[0]
