"""Colours, markers and dashes, for any number of rows: the highlighted ones of a study have one each, the others are
grey."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import matplotlib as mpl

from ablations.design.design import StudyDesign

GREY = "#c7c7c7"
PALETTE = tuple(mpl.colors.to_hex(colour) for colour in mpl.color_sequences["tab10"] if colour[0] != colour[1])
"""Without its grey, which is for the other rows."""
MARKERS = "osD^vPX*"
DASHES = ("solid", "dashed", "dotted", "dashdot")
MOST_COLOURED = len(PALETTE) * len(DASHES)
"""Rows with a colour of their own: more could not be told apart."""


@dataclass(frozen=True)
class Style:
    """How a row is drawn."""

    colour: str
    marker: str
    dash: str


def style(index: int) -> Style:
    """The style of the n-th row. Colours come again after nine rows, then with another marker and dash."""
    return Style(PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)],
                 DASHES[index // len(PALETTE) % len(DASHES)])


def style_each(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name, in their order."""
    return {name: style(index) for index, name in enumerate(dict.fromkeys(names))}


def colours_said(design: StudyDesign) -> str:
    """A sentence where more rows are highlighted than have a colour."""
    count = len(design.highlighted)
    return f"{MOST_COLOURED} of the {count:,} named rows are in colour." if count > MOST_COLOURED else ""


def styles_of(design: StudyDesign) -> dict[str, Style]:
    """The styles of the highlighted rows, by id: of the baseline and the first of the others."""
    named = sorted(design.highlighted, key=lambda row: row != design.baseline)
    chosen = set(named[:MOST_COLOURED])
    return style_each(row for row in design.highlighted if row in chosen)
