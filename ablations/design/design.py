"""The design of a study as its storage keeps it: axes, rows, baseline and claims. All that an analysis needs of it.

A row is a point of the compared axes; a cell is a row at one tuned value and one seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from ablations.design.axes import Axis, Level
from ablations.design.claims import LOSSES, Claim
from ablations.design.stages import EXTEND, SCREEN, SELECT, Extend, Screen
from ablations.design.stopping import Looks
from lit_simplified.config import ConfigError


@dataclass(frozen=True)
class Row:
    """A point of the compared axes."""

    id: str
    """From the content of its configuration: the same in every process and every study."""
    label: str
    """What people call it in this study."""
    levels: Mapping[str, str]
    """Label of the level by axis. Empty for a row that was added by name."""
    digest: str
    """Stands for its configuration."""
    preset: str = ""
    """The named block that it has, if it has one."""


@dataclass(frozen=True, kw_only=True)
class StudyDesign:
    """What a study asks, with its rows written out."""

    name: str = ""
    """Of the study file; empty for one made from flags."""
    question: str = ""
    source: str = ""
    kind: str = "full"
    """full, one_at_a_time, path, fraction or rows."""
    axes: tuple[Axis, ...] = ()
    """The compared axes."""
    tuned: tuple[Axis, ...] = ()
    selects: tuple[int, ...] = ()
    """Seeds that choose the tuned values. None: those that judge do, as in studies of older versions."""
    select_share: float = 1.0
    """Of the steps, of the runs that choose."""
    screen: Screen | None = None
    """How rows were screened. None: all rows are judged."""
    extend: Extend | None = None
    """With how many more steps rows of claims are trained, too. None: with none."""
    looks: Looks | None = None
    """After how many seeds the claims about losses are looked at. None: all seeds are trained at once."""
    rows: tuple[Row, ...] = ()
    baseline: str = ""
    """The row that the others are measured against, by id."""
    claims: tuple[Claim, ...] = ()
    figures: tuple[Mapping[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    """What was left out or merged, and how much of it; of a fraction its generators."""

    @cached_property
    def by_id(self) -> dict[str, Row]:
        return {row.id: row for row in self.rows}

    def axis(self, name: str) -> Axis:
        """The compared or tuned axis of a name."""
        return next(axis for axis in (*self.axes, *self.tuned) if axis.name == name)

    def titles(self) -> dict[str, str]:
        """What each axis is called in a table: its last name, or the whole where two share it."""
        short = [axis.title for axis in (*self.axes, *self.tuned)]
        return {axis.name: axis.title if short.count(axis.title) == 1 else axis.name
                for axis in (*self.axes, *self.tuned)}

    @property
    def factors(self) -> tuple[Axis, ...]:
        """The compared axes that have several levels."""
        return tuple(axis for axis in self.axes if len(axis.levels) > 1)

    def reference(self, axis: Axis) -> str:
        """The level of an axis that its effects are measured against: the baseline's, else the first."""
        base = self.by_id.get(self.baseline)
        return base.levels.get(axis.name, axis.labels[0]) if base is not None else axis.labels[0]

    @property
    def about_losses(self) -> tuple[Claim, ...]:
        """The claims that seeds settle."""
        return tuple(claim for claim in self.claims if claim.quantity in LOSSES)

    @property
    def shared_looks(self) -> Looks | None:
        """The looks, with alpha shared among the claims about losses."""
        return self.looks and replace(self.looks, claims=max(1, len(self.about_losses)))

    def share_of(self, stage: str) -> float:
        """The share of the steps that the runs of a stage have."""
        screen = self.screen.share if self.screen is not None else 1.0
        times = self.extend.times if self.extend is not None else 1.0
        return {SCREEN: screen, SELECT: self.select_share, EXTEND: times}.get(stage, 1.0)

    @property
    def screening_chooses(self) -> bool:
        """Whether the runs that screen are as long as those that choose tuned values, and so need not be repeated."""
        return bool(self.selects) and self.screen is not None and self.screen.share == self.select_share

    @property
    def in_any_case(self) -> frozenset[str]:
        """The rows that go on from a screening whatever their loss: the baseline, rows of claims, and the named blocks
        that differ from the baseline in nothing but the block."""
        asked = {row for claim in self.claims for row in (claim.left, claim.right)}
        others = [axis for axis in self.axes if not axis.of_block]
        named = {row.id for row in self.rows if row.preset
                 and all(row.levels.get(axis.name) == self.reference(axis) for axis in others)}
        return frozenset({self.baseline, *asked, *named})

    @property
    def highlighted(self) -> tuple[str, ...]:
        """The rows to be named in plots and set in pairs, by id: all of a small study, else the named blocks."""
        if len(self.rows) <= MOST_NAMED:
            return tuple(row.id for row in self.rows)
        return tuple(row.id for row in self.rows if row.preset or row.id == self.baseline)


MOST_NAMED = 12
"""Rows up to which a study names all of them in its plots and compares all pairs."""


def to_plain(design: StudyDesign) -> dict[str, Any]:
    """The design as the storage keeps it."""
    return dataclasses.asdict(design)


def from_plain(values: Mapping[str, Any]) -> StudyDesign:
    """The design that `to_plain` made."""
    def axis(given: Mapping[str, Any]) -> Axis:
        return Axis(given["name"], tuple(Level(**level) for level in given["levels"]))

    return StudyDesign(**{
        **values, "axes": tuple(map(axis, values["axes"])), "tuned": tuple(map(axis, values["tuned"])),
        "selects": tuple(values.get("selects", ())), "screen": _screen(values.get("screen")),
        "extend": Extend(**values["extend"]) if values.get("extend") else None,
        "looks": _looks(values.get("looks")),
        "rows": tuple(Row(**row) for row in values["rows"]),
        "claims": tuple(Claim(**claim) for claim in values["claims"]),
        "figures": tuple(values["figures"]), "notes": tuple(values["notes"]),
    })


def _screen(given: Mapping[str, Any] | None) -> Screen | None:
    if given is None:
        return None
    return Screen(**{**given, "tune": {name: tuple(levels) for name, levels in given["tune"].items()}})


def _looks(given: Mapping[str, Any] | None) -> Looks | None:
    return None if given is None else Looks(**{**given, "seeds": tuple(given["seeds"])})


class _Kept(NamedTuple):
    """Something that a study cannot change when it goes on: runs that are there were trained otherwise."""

    key: str
    """Of the study file."""
    value: Any
    """False where the study does not have it."""
    words: str


def _kept(design: StudyDesign) -> list[_Kept]:
    selects, share, screen, extend = len(design.selects), design.select_share, design.screen, design.extend
    of_screen, times, looks = screen and screen.share, extend and extend.times, design.looks
    return [
        _Kept("select", selects, f"has chosen its tuned values on {selects} seeds"),
        _Kept("select: share", selects and share, f"has chosen its tuned values at a share of {share:g} of the steps"),
        _Kept("screen: share", of_screen, f"has screened its rows at a share of {of_screen or 0:g} of the steps"),
        _Kept("extend: times", times, f"has extended its runs to {times or 0:g} times the steps"),
        _Kept("seeds: looks", looks and (looks.seeds, looks.spending), f"looks at {looks.words if looks else ''}"),
    ]


def merge(known: StudyDesign, more: StudyDesign) -> StudyDesign:
    """The design of a study that goes on with further rows, levels or claims.

    Raises:
        ConfigError: a row of the same id has another configuration by now, or a stage another length.
    """
    for row in more.rows:
        before = known.by_id.get(row.id)
        if before is not None and before.digest and before.digest != row.digest:
            raise ConfigError("row", row.id, "its configuration is not the one that this study has trained: give the "
                              "study another name with --study")
    for old, new in zip(_kept(known), _kept(more), strict=True):
        if old.value and new.value and old.value != new.value:
            raise ConfigError(new.key, new.value, f"the study {old.words}: keep that, or give the study another name "
                              "with --study")
    rows = {row.id: row for row in (*known.rows, *more.rows)}
    rows |= {row.id: row for row in known.rows if row.levels}  # a row keeps the levels that it was planned with
    said = {claim.sentence: claim for claim in (*more.claims, *known.claims)}  # what was registered first stays
    return dataclasses.replace(
        known, axes=_joined(known.axes, more.axes), tuned=_joined(known.tuned, more.tuned),
        selects=known.selects or more.selects, select_share=(known if known.selects else more).select_share,
        screen=more.screen or known.screen, extend=more.extend or known.extend, looks=known.looks or more.looks,
        rows=tuple(rows.values()), claims=tuple(said.values()), baseline=known.baseline or more.baseline,
        notes=tuple(dict.fromkeys((*known.notes, *more.notes))),
        figures=tuple({str(figure): figure for figure in (*known.figures, *more.figures)}.values()),
    )


def _joined(known: tuple[Axis, ...], more: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """Axes of either, with the levels of both."""
    found = {axis.name: axis for axis in known}
    for axis in more:
        levels = {level.label: level for level in (*found.get(axis.name, axis).levels, *axis.levels)}
        found[axis.name] = Axis(axis.name, tuple(levels.values()))
    return tuple(found.values())
