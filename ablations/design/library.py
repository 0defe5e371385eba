"""The studies that come with the suite, and those of a user: found by name or path."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablations.design.config import StudyConfig, parse_study, read_study
from lit_simplified.config import ConfigError

FOLDER = Path(__file__).parent.parent / "studies"
ENDING = ".yaml"


def names() -> list[str]:
    """The studies of the suite, by name: `grid`, `he2024/fig06-depth`."""
    return sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob(f"*{ENDING}"))


def load_study(study: str | Path | Mapping[str, Any] | StudyConfig) -> StudyConfig:
    """A study by its name, by the path of its file, or from a mapping with the keys of such a file.

    Raises:
        ConfigError: no such study; the message lists those there are. Or one with a mistake: which key, and the remedy.
    """
    if isinstance(study, StudyConfig):
        return study
    if isinstance(study, Mapping):
        return parse_study(study)
    text = str(study)
    if text in names():
        return read_study(FOLDER / f"{text}{ENDING}", name=text)
    if os.path.isfile(text):  # unlike that of a `Path`, false for whatever cannot be the name of a file
        return read_study(Path(text))
    near = difflib.get_close_matches(text, names(), n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError("study", text, f"neither a file nor a study of the suite. {hint}There are {', '.join(names())}")
