"""The disk: which checkpoints of finished cells stay, and whether it is full."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from ablations.design.stages import JUDGE
from ablations.engine.errors import FULL
from ablations.engine.queue import FINAL
from ablations.engine.storage import latest, ours, row_of, stage_of, state_of
from ablations.engine.trials import read_trials
from lit_simplified.config import RunConfig, from_dict, run_id
from lit_simplified.files import write_text

Keep = str
"""none; all; best: of every row its best finished cell; or a number: the best cells of the study."""
CELL = "cell.txt"
"""In a run's folder: the id of its cell."""
SPARE = 8 * 2**20
"""Bytes that must be free. Writers that hide the system's error, torch's among them, are recognised by too little."""


def keep_rule(text: str) -> Keep:
    """Check a rule, for the command line."""
    if text in ("none", "best", "all") or text.isdigit():
        return text
    raise argparse.ArgumentTypeError(f"{text}: give none, best, all or a number of cells")


def prune(study: optuna.Study, *, keep: Keep, folder: Path) -> None:
    """Delete the checkpoints of this machine's finished cells, except those that the rule keeps.

    Those of a failed cell go too: it is retried from its start, maybe by other code.
    """
    homes = [path.parent for path in (folder / "runs").glob("*/checkpoints")]
    if keep == "all" or not homes:
        return
    cells = _cells_of(study, homes)
    trials = latest(ours(read_trials(study, ("cell", "row", "stage", "state"))))
    kept = {trial.user_attrs["cell"] for trial in
            _chosen([trial for trial in trials.values()
                     if state_of(trial) == "complete" and stage_of(trial) == JUDGE], keep=keep)}
    for home, cell in cells.items():
        if cell not in kept and cell in trials and state_of(trials[cell]) in FINAL:
            shutil.rmtree(home / "checkpoints", ignore_errors=True)


def note_cell(home: str | Path, cell: str) -> None:
    """Write the id of a run's cell into its folder, so that none has to be searched for among all cells."""
    if home and Path(home).is_dir():
        write_text(Path(home) / CELL, cell)


def _cells_of(study: optuna.Study, homes: Sequence[Path]) -> dict[Path, str]:
    """The cell of each run's folder that is not of a running one; those of killed workers, and of an older version,
    are found by their names."""
    noted = {home: (home / CELL).read_text() for home in homes if (home / CELL).exists()}
    unnoted = {home.name: home for home in homes if home not in noted}
    if unnoted:  # most are of cells that run now, and will be noted
        for trial in ours(read_trials(study, ("cell", "config"), states=(TrialState.RUNNING,))):
            if trial.user_attrs.get("config"):
                unnoted.pop(run_name(trial), None)
    if unnoted:
        for trial in ours(read_trials(study, ("cell", "config"))):
            if trial.user_attrs.get("config") and (home := unnoted.get(run_name(trial))):
                noted[home] = trial.user_attrs["cell"]
                note_cell(home, trial.user_attrs["cell"])
    return noted


def run_name(trial: FrozenTrial) -> str:
    """The folder of a cell below `runs`, on every machine."""
    return _run_name(json.dumps(trial.user_attrs["config"], sort_keys=True))


@cache
def _run_name(config: str) -> str:
    return run_id(from_dict(RunConfig, json.loads(config)))  # milliseconds, for every cell after every cell


def _chosen(complete: list[FrozenTrial], *, keep: Keep) -> list[FrozenTrial]:
    best_first = sorted(complete, key=lambda trial: trial.value if trial.value is not None else float("inf"))
    if keep == "best":
        rows: dict[str, FrozenTrial] = {}
        for trial in best_first:
            rows.setdefault(row_of(trial), trial)
        return list(rows.values())
    return best_first[: int(keep)] if keep.isdigit() else []


def is_full(error: BaseException, *, folder: Path) -> bool:
    """Whether an error comes from a disk that can take no more."""
    if any(getattr(cause, "errno", None) in FULL for cause in _chain(error)):
        return True
    try:
        return shutil.disk_usage(folder).free < SPARE
    except OSError:
        return False


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
