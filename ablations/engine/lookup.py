"""Which study is meant: by a name, a path or a URL, or the one that was written to last. Answered here alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import optuna

from ablations.engine.storage import JOURNAL, StudyError, is_url, journal_path, open_storage, open_study

RESULTS = Path("results")
"""Where studies are kept, each in a folder of its name."""
KINDS = ("search", "table1")
"""Commands whose studies begin with their name; all others are those of `run`."""


@dataclass(frozen=True)
class Place:
    """Where a study is."""

    study: str
    storage: str
    folder: Path
    """Of its logs, runs and tables."""


def place_of(study: str, *, storage: str | None = None, out: Path | None = None, starts: bool = False) -> Place:
    """The place of a study by its name.

    Args:
        study: its name.
        storage: a path or a URL. None: the journal in its folder.
        out: its folder. None: the folder of its name in the results.
        starts: whether it may begin there; otherwise `out` may only be where tables are to go.
    """
    home = RESULTS / study
    folder = out or home
    own = starts or (folder / JOURNAL).exists()
    return Place(study, storage or str((folder if own else home) / JOURNAL), folder)


def newest(kind: str = "run") -> str:
    """The name of the study that was written to last: what someone who gives no name means.

    Args:
        kind: run, or one of `KINDS`; any: of whatever kind.

    Raises:
        StudyError: there is none.
    """
    found = [path.parent.name for path in journals() if kind in ("any", kind_of(path.parent.name))]
    if not found:
        raise StudyError("--study: which one? Give its name, or the --scale it was run with")
    return found[0]


def kind_of(study: str) -> str:
    """The command that trains a study of this name."""
    return next((kind for kind in KINDS if study.startswith(f"{kind}-")), "run")


def journals() -> list[Path]:
    """The journals of the results, the one that was written to last first."""
    return sorted(RESULTS.glob(f"*/{JOURNAL}"), key=lambda path: path.stat().st_mtime, reverse=True)


def known() -> str:
    """The names of the studies in the results, for errors."""
    return ", ".join(path.parent.name for path in journals()) or "none"


def find_study(given: str) -> optuna.Study:
    """The study that somebody means: a name, the path of its folder or journal, or a database URL; `#STUDY` behind it
    chooses one of several.

    Raises:
        StudyError: there is no such study, or several.
    """
    place, _, name = given.partition("#")
    if is_url(place):
        if not name:
            raise StudyError(f"{given!r}: a database may hold many studies. Write URL#STUDY, as in {place}#small-clm")
        return open_study(place, name=name)
    if not Path(place).exists():
        if not (RESULTS / place / JOURNAL).exists():
            raise StudyError(f"{given!r}: no such path, and no such study under {RESULTS}/. Studies there: {known()}")
        place = str(RESULTS / place)
    return open_study(place, name=name or _only_study(place))


def _only_study(place: str) -> str:
    names = [study.study_name for study in open_storage(place, create=False).get_all_studies()]
    if len(names) != 1:
        raise StudyError(f"{journal_path(place)}: holds {len(names)} studies ({', '.join(names) or 'none'}). Say which "
                         f"one: {place}#STUDY")
    return names[0]
