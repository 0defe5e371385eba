"""Tables and values as the text of files: JSON, JSON lines, Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from lit_simplified.files import finite

NUMBER = re.compile(r"[<+-]?\d[\d.,e+-]*( ± .*| \[.*)?( \*)?")
"""What a number looks like in these tables, with its deviation or interval."""


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON with null for NaN and infinity."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except (TypeError, ValueError):  # few of thousands of lines hold what JSON has no word for
        return json.dumps(finite(_plain(value)), indent=indent, allow_nan=False)


def json_lines(values: Iterable[Any]) -> str:
    """A JSON text per line."""
    return "".join(to_json(value) + "\n" for value in values)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as dicts of plain Python values; what is missing is None."""
    return [{str(key): None if pd.isna(value) else _plain(value) for key, value in row.items()}
            for row in table.to_dict("records")]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown, as its values print; numbers to the right."""
    sides = ["right" if are_numbers(table.iloc[:, index]) else "left" for index in range(table.shape[1])]
    texts = pd.DataFrame([[_text(value) for value in row] for row in table.to_numpy(object)],
                         columns=[_text(column) for column in table.columns])
    padded = texts.to_markdown(index=False, disable_numparse=True, colalign=sides if len(texts) else None)
    return re.sub(" +", " ", str(padded))  # cells as wide as the longest sentence of their column read worse


def _text(value: Any) -> str:
    return "" if is_missing(value) else " ".join(str(value).replace("|", "\\|").splitlines())


def is_missing(value: Any) -> bool:
    """Whether a value of a table is none."""
    return value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value))


def moment(time: str | None) -> str:
    """A time of the log, to the minute; what stands behind it stays."""
    when, _, more = (time or "").partition(" ")
    return " ".join(filter(None, (f"{when[:10]} {when[11:16]} UTC", more))) if when else ""


def are_numbers(column: pd.Series) -> bool:
    """Whether most of what stands in a column is a number."""
    texts = [str(value) for value in column if not is_missing(value) and str(value)]
    return sum(NUMBER.fullmatch(text) is not None for text in texts) * 2 > len(texts)
