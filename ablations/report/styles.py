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


def styles_of(design: StudyDesign) -> dict[str, Style]:
    """The styles of the highlighted rows, by id."""
    return style_each(design.highlighted)
