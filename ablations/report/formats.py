"""Tables and values as the text of files: JSON, JSON lines, Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from lit_simplified.files import finite


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON with null for NaN and infinity."""
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
    """A table in Markdown, as its cells print; numbers to the right."""
    sides = ["---:" if pd.api.types.is_numeric_dtype(dtype) else "---" for dtype in table.dtypes]
    rows = [list(map(str, table.columns)), sides, *([_cell(value) for value in row] for row in table.to_numpy(object))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and np.isnan(value)) else str(value).replace("|", "\\|")
