"""How much of a large study is shown, and the sentence that counts what is not. The files hold everything."""

from __future__ import annotations

import numpy as np
import pandas as pd

MOST_LINES = 100
"""Of a table of a document, a page or a terminal, except where it has a number of its own."""
MOST_ROWS = 100
"""Of the ranking of a page, where each comes with its drawing, its configuration and its runs."""
MOST_RUNS = 20
"""Of a row of the ranking."""
MOST_OTHERS = 100
"""Rows and lines without a colour of their own that are drawn in a plot."""


def first_of(shown: int, there: int, *, noun: str, file: str) -> str:
    """How many of a table's lines are shown; empty where all are."""
    return f"The first {shown:,} of {there:,} {noun}; all are in {file}." if shown < there else ""


def thinned(table: pd.DataFrame, own: pd.Series) -> pd.DataFrame:
    """The lines of a table that have a colour of their own, and of the others so many, evenly spread over their order.

    Args:
        table: as a rule best loss first, so that what is left covers all losses.
        own: whether a line has a colour of its own.
    """
    kept = own.to_numpy(dtype=bool, copy=True)
    others = np.flatnonzero(~kept)
    if len(others) <= MOST_OTHERS:
        return table
    kept[others[np.linspace(0, len(others) - 1, MOST_OTHERS).round().astype(int)]] = True
    return table[kept]


def drawn_of(shown: int, there: int, *, noun: str = "rows") -> str:
    """How many rows or lines a plot shows; empty where it shows all."""
    return f"{shown:,} of {there:,} {noun} are drawn, evenly spread; all are in the CSV files." if shown < there else ""
