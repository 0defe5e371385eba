"""Which rows of a study answer which question about its axes. It follows from the combinations that exist.

The effect of an axis is asked of those rows that the design has with the axis at its reference level and at the level
asked, all other axes equal; an interaction of those that it has in all four combinations. So the effects of the two
skips of a block are asked of sequential blocks where a parallel one has a single skip, and that of the layout of the
blocks whose skips are equal, without a line about skips or layouts here. In a fraction no two rows differ in one axis
alone: there every question is asked of all rows. Imports neither torch nor lightning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product

from ablations.design.axes import Axis
from ablations.design.design import Row, StudyDesign

Contrast = tuple[tuple[str, str], ...]
"""Factor and level, which is against the factor's reference: one of a main effect, two of an interaction."""
Rows = tuple[str, ...]
"""Row ids, in the order of the design."""


@dataclass(frozen=True, eq=False)
class Factor:
    """A question about some rows with several answers."""

    name: str
    """The title of its axis; `a = b` of axes that move together among these rows."""
    levels: Mapping[str, str]
    """Label by row id."""
    reference: str
    """The level that the others are measured against."""
    labels: tuple[str, ...]
    """Those that the rows have, in the order of the axis."""

    @property
    def contrasts(self) -> tuple[str, ...]:
        """The levels but the reference."""
        return tuple(label for label in self.labels if label != self.reference)

    @cached_property
    def shares(self) -> Mapping[str, float]:
        """The share of the rows that have each level."""
        return {label: count / len(self.levels) for label, count in Counter(self.levels.values()).items()}

    def within(self, rows: Iterable[str]) -> Factor:
        """The same among some of the rows."""
        levels = {row: self.levels[row] for row in rows}
        return factor(self.name, levels, reference=self.reference, order=self.labels)


@dataclass(frozen=True, eq=False)
class RowSet:
    """Rows that answer some questions together."""

    name: str
    """Which they are, in words."""
    rows: Rows
    factors: tuple[Factor, ...]
    """Those that vary among them."""
    asked: tuple[Contrast, ...]
    """What is reported from them; all else that varies is in the model for the sake of these."""


def factor(name: str, levels: Mapping[str, str], *, reference: str, order: Sequence[str]) -> Factor:
    """A factor with the labels that its rows have; its reference is the first of them where they lack it."""
    there = set(levels.values())
    labels = tuple(label for label in order if label in there)
    return Factor(name, levels, reference if reference in there else labels[0], labels)


def rows_without_level(design: StudyDesign) -> dict[str, str]:
    """The rows that no model of the axes can have, and why: those added by name, above all."""
    found = {}
    for row in design.rows:
        missing = [axis for axis in design.factors if axis.name not in row.levels]
        if missing:
            found[row.id] = f"it has no level on {', '.join(design.titles()[axis.name] for axis in missing)}"
    return found


def factors_of(design: StudyDesign) -> tuple[Factor, ...]:
    """The compared axes with several levels as factors; axes that move together in all rows are one.

    Raises:
        ValueError: a row is at a level that its axis does not have.
    """
    without = rows_without_level(design)
    rows = [row for row in design.rows if row.id not in without]
    found = [_factor_of(axis, rows, design) for axis in design.factors] if rows else []
    return merged([one for one in found if len(one.labels) > 1])


def _factor_of(axis: Axis, rows: Sequence[Row], design: StudyDesign) -> Factor:
    strange = [row for row in rows if row.levels[axis.name] not in axis.labels]
    if strange:
        raise ValueError(f"{axis.name}: {strange[0].id} is at the level {strange[0].levels[axis.name]!r}, which the "
                         f"axis does not have: {', '.join(axis.labels)}")
    levels = {row.id: row.levels[axis.name] for row in rows}
    return factor(design.titles()[axis.name], levels, reference=design.reference(axis), order=axis.labels)


def merged(factors: Sequence[Factor]) -> tuple[Factor, ...]:
    """The factors, those that divide the rows alike as one."""
    groups: dict[tuple[int, ...], list[Factor]] = {}
    for one in factors:
        place: dict[str, int] = {}
        groups.setdefault(tuple(place.setdefault(label, len(place)) for label in one.levels.values()), []).append(one)
    return tuple(group[0] if len(group) == 1 else _one(group) for group in groups.values())


def _one(group: Sequence[Factor]) -> Factor:
    def label(row: str) -> str:
        return "/".join(dict.fromkeys(one.levels[row] for one in group))

    levels = {row: label(row) for row in group[0].levels}
    at_reference = next(row for row, own in group[0].levels.items() if own == group[0].reference)
    order = [levels[next(row for row, own in group[0].levels.items() if own == label)] for label in group[0].labels]
    return factor(" = ".join(one.name for one in group), levels, reference=levels[at_reference], order=order)


def row_sets(factors: Sequence[Factor], *, whole: bool = False) -> list[RowSet]:
    """Every question about the factors, with the rows that answer it; questions that the same rows answer together.

    Args:
        factors: of the study.
        whole: whether all rows answer every question, as in a fraction.
    """
    if not factors:
        return []
    rows = tuple(factors[0].levels)
    asked: dict[Rows, list[Contrast]] = {}
    if not whole:
        for term in (*((one,) for one in factors), *combinations(factors, 2)):
            for own, contrasts in _crossed(factors, term):
                asked.setdefault(own, []).extend(contrasts)
        for own, contrasts in _joint_questions(factors, asked):
            asked.setdefault(own, []).extend(contrasts)
    known = {contrast[0][0] for contrasts in asked.values() for contrast in contrasts if len(contrast) == 1}
    alone = {one.name for one in factors if one.name not in known}
    if alone:  # never asked on its own: of all rows together, as far as these tell it apart
        asked.setdefault(rows, []).extend(contrast for contrast in contrasts_of(factors)
                                          if alone & {name for name, _ in contrast})
    return [_row_set(own, contrasts, factors) for own, contrasts in asked.items()]


def contrasts_of(factors: Sequence[Factor]) -> list[Contrast]:
    """Every main effect and two-way interaction of some factors, level by level."""
    main: list[Contrast] = [((one.name, label),) for one in factors for label in one.contrasts]
    return main + [((one.name, label), (other.name, second)) for one, other in combinations(factors, 2)
                   for label, second in product(one.contrasts, other.contrasts)]


def _crossed(factors: Sequence[Factor], term: Sequence[Factor]) -> list[tuple[Rows, list[Contrast]]]:
    """The contrasts of a main effect or interaction, with the rows that have all of its combinations, others equal.

    Levels for which the same combinations of the others exist share one set of rows.
    """
    rows = tuple(factors[0].levels)
    at = {tuple(one.levels[row] for one in factors): row for row in rows}
    places = [factors.index(one) for one in term]
    starts = [point for point in at
              if all(point[place] == one.reference for place, one in zip(places, term, strict=True))]
    groups: dict[frozenset[tuple[str, ...]], tuple[set[str], list[Contrast]]] = {}
    for labels in product(*(one.contrasts for one in term)):
        corners = {}
        for point in starts:
            own = [_moved(point, places, chosen) for chosen in product(
                *((one.reference, label) for one, label in zip(term, labels, strict=True)))]
            if all(corner in at for corner in own):
                corners[point] = [at[corner] for corner in own]
        if corners:
            found = groups.setdefault(frozenset(corners), (set(), []))
            found[0].update(row for own in corners.values() for row in own)
            found[1].append(tuple((one.name, label) for one, label in zip(term, labels, strict=True)))
    return [(tuple(row for row in rows if row in own), contrasts) for own, contrasts in groups.values()]


def _moved(point: tuple[str, ...], places: Sequence[int], labels: Sequence[str]) -> tuple[str, ...]:
    moved = list(point)
    for place, label in zip(places, labels, strict=True):
        moved[place] = label
    return tuple(moved)


def _joint_questions(
    factors: Sequence[Factor], asked: Mapping[Rows, Sequence[Contrast]]
) -> list[tuple[Rows, list[Contrast]]]:
    """Interactions with factors that can only move together where a main effect is asked, such as `layout x a = b`."""
    names = {one.name for one in factors}
    found = []
    for rows, contrasts in asked.items():
        own = _varying(factors, rows)
        for main in dict.fromkeys(contrast[0][0] for contrast in contrasts if len(contrast) == 1):
            mine = next(one for one in own if one.name == main)
            for joint in (one for one in own if one.name not in names):
                found += _crossed(own, (mine, joint))
    return found


def _varying(factors: Sequence[Factor], rows: Rows) -> tuple[Factor, ...]:
    """The factors that vary among some rows, those that move together there as one."""
    within = [one.within(rows) for one in factors]
    return merged([one for one in within if len(one.labels) > 1])


def _row_set(rows: Rows, asked: Sequence[Contrast], factors: Sequence[Factor]) -> RowSet:
    own = _varying(factors, rows)
    return RowSet(_words(rows, own, factors), rows, own, tuple(asked))


def _words(rows: Rows, own: Sequence[Factor], factors: Sequence[Factor]) -> str:
    """Which rows they are: what is the same in all of them, and which axes move together."""
    if len(rows) == len(factors[0].levels):
        return "all rows"
    fixed = [f"{one.name}={one.levels[rows[0]]}" for one in factors if len({one.levels[row] for row in rows}) == 1]
    joint = [one.name for one in own if one.name not in {other.name for other in factors}]
    return "rows with " + ", ".join([*fixed, *joint]) if fixed or joint else f"{len(rows)} rows"
