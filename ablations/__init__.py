"""Studies of transformer blocks: a question in a file, trained, measured and judged.

    from ablations import run_study
    run_study("grid", scale="smoke").rows

Names load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablations.design.library import load_study
    from ablations.study import StudyResults, results, run_study

_HOMES = {"load_study": "design.library", "StudyResults": "study", "results": "study", "run_study": "study"}

__all__ = ["StudyResults", "load_study", "results", "run_study"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
