"""Which study is meant: by a name, a path or a URL, or the one that was written to last. Answered here alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import optuna

from ablations.engine.errors import StudyError
from ablations.engine.redact import redact
from ablations.engine.storage import JOURNAL, is_url, journal_path, open_storage, open_study

RESULTS = Path("results")
"""Where studies are kept, each in a folder of its name."""
RUNS = "runs"
"""Of a study's folder: where its runs are. `results/runs` has those of single `fit`s."""
EVENTS = "events.out.tfevents.*"
"""What a run writes for TensorBoard."""
KINDS = ("search", "table1")
"""Commands whose studies begin with their name; all others are those of `run`."""

NAME, LONGEST = re.compile(r"\w([\w.+ -]*[\w+-])?"), 150
"""What a study may be called, and in how many bytes: folders and files are called like it."""


@dataclass(frozen=True)
class Place:
    """Where a study is."""

    study: str
    storage: str
    folder: Path
    """Of its logs, runs and tables."""


def check_name(study: str) -> str:
    """A study's name, if it may be one.

    Raises:
        StudyError: it may not.
    """
    if not NAME.fullmatch(study) or len(study.encode()) > LONGEST:
        raise StudyError(f"--study={study!r}: this cannot be a study's name. A name has letters, digits, _ . + - and "
                         f"spaces; it begins with a letter, a digit or _, and has at most {LONGEST} bytes")
    return study


def place_of(study: str, *, storage: str | None = None, out: Path | None = None, starts: bool = False) -> Place:
    """The place of a study by its name.

    Args:
        study: its name.
        storage: a path or a URL. None: the journal in its folder.
        out: its folder. None: the folder of its name in the results.
        starts: whether it may be started there. Otherwise `out` may be a folder for tables alone, without a journal.

    Raises:
        StudyError: it cannot be called that.
    """
    home = RESULTS / check_name(study)
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
        command = "run" if kind == "any" else kind
        raise StudyError(f"--study: no study of `{command}` in {RESULTS} (studies there: {known()}). Start one with "
                         f"`python -m ablations {command}`, or give --study and --storage")
    return found[0]


def kind_of(study: str) -> str:
    """The command that trains a study of this name."""
    return next((kind for kind in KINDS if study.startswith(f"{kind}-")), "run")


def journals() -> list[Path]:
    """The journals of the results, the one that was written to last first."""
    return _newest_first({path: path.stat().st_mtime for path in RESULTS.glob(f"*/{JOURNAL}")})


def known() -> str:
    """The names of the studies in the results, for errors."""
    return ", ".join(path.parent.name for path in journals()) or "none"


def journal_of(study: str | None) -> Path:
    """The journal of a study by its name, or without a name of the one that was written to last.

    Raises:
        StudyError: there is none.
    """
    found = {path.parent.name: path for path in journals()}
    return _choose(found, study, what="no journal of it", remedy="For a database or another folder give --storage")


def runs_of(study: str | None) -> Path:
    """The folder of a study's runs that TensorBoard can show, or without a name of the one that was written to last.

    The study `RUNS` is none: its folder has the single runs of `fit`. A study in a database has a folder, too.

    Raises:
        StudyError: nothing was written for TensorBoard there.
    """
    written: dict[Path, float] = {}
    for pattern in (f"{RUNS}/*/{EVENTS}", f"*/{RUNS}/*/{EVENTS}"):
        for file in RESULTS.glob(pattern):
            with suppress(FileNotFoundError):  # a run that begins anew clears its folder
                folder = file.parent.parent
                written[folder] = max(file.stat().st_mtime, written.get(folder, 0.0))
    found = {RUNS if path == RESULTS / RUNS else path.parent.name: path for path in _newest_first(written)}
    return _choose(found, study, what="nothing that TensorBoard can show",
                   remedy="Train some first: `make ablation` or `make fit`")


def _newest_first(written: Mapping[Path, float]) -> list[Path]:
    return sorted(written, key=lambda path: written[path], reverse=True)


def _choose(found: Mapping[str, Path], study: str | None, *, what: str, remedy: str) -> Path:
    """The path of a study, or the first without a name."""
    if study is None and found:
        return next(iter(found.values()))
    if study is None or study not in found:
        raise StudyError(f"--study={study!r}: {what} in {RESULTS}. There are: {', '.join(found) or 'none'}. {remedy}")
    return found[study]


def find_study(given: str) -> optuna.Study:
    """The study that somebody means: a name, the path of its folder or journal, or a database URL; `#STUDY` behind it
    chooses one of several.

    Raises:
        StudyError: there is no such study, or several.
    """
    place, _, name = given.partition("#")
    if is_url(place):
        if not name:
            raise StudyError(f"{redact(given)!r}: a database may hold many studies. Add the name of one: URL#STUDY")
        return open_study(place, name=name)
    if not Path(place).exists():
        if not (RESULTS / place / JOURNAL).exists():
            raise StudyError(f"{redact(given)!r}: no such path, and no such study under {RESULTS}/. Studies "
                             f"there: {known()}")
        place = str(RESULTS / place)
    return open_study(place, name=name or _only_study(place))


def _only_study(place: str) -> str:
    names = [study.study_name for study in open_storage(place, create=False).get_all_studies()]
    if len(names) != 1:
        raise StudyError(f"{journal_path(place)}: holds {len(names)} studies ({', '.join(names) or 'none'}). Add the "
                         f"name of one: {place}#STUDY")
    return names[0]
