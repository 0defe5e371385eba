"""Whose result it is: every result carries a signature of the cell that was trained, and is read for no other.

Results of older versions have none. For them the parameters must do, which their workers declared one by one.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState

from ablations.engine.errors import StudyError
from ablations.engine.optuna_private import enqueued_params
from lit_simplified.config import ConfigError, RunConfig, digest_text, from_record

SIGNATURE = "of"
"""Where a result keeps the signature of its cell."""
EXECUTION = {"start", "end", "worker", "outcome"}


def signature(cell: str, config: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that stand for a cell and its configuration."""
    return digest_text(json.dumps([cell, config], sort_keys=True))


def _is_execution(value: Any) -> bool:
    return isinstance(value, dict) and EXECUTION.issubset(value)


def misplaced(trial: FrozenTrial) -> str:
    """Why what a trial holds cannot be that of its cell; empty where it can."""
    attrs = trial.user_attrs
    executions = attrs.get("executions")
    if not isinstance(executions, list) or not all(map(_is_execution, executions)):
        return "its executions are not whole"
    if not isinstance(attrs.get("config"), dict):
        return "its configuration is gone"
    if trial.state.is_finished() and not ("state" in attrs and all(execution["outcome"] for execution in executions)):
        return "its end is not whole"
    result = attrs.get("result")
    if result is not None and not isinstance(result, dict):
        return "its result cannot be read"
    if result and result.get(SIGNATURE, "") not in ("", signature(str(attrs["cell"]), attrs["config"])):
        return "its result is that of another cell"
    fixed = enqueued_params(trial)
    wrong = [name for name, value in trial.params.items() if fixed.get(name, value) != value]
    if wrong:
        return f"it was trained with another {', '.join(wrong)} than its cell has"
    if trial.state == TrialState.COMPLETE:
        told = {trial.value, attrs.get("value", trial.value), (result or {}).get("val_loss", trial.value)}
        if len(told) > 1:
            return f"its loss is recorded as {' and as '.join(map(str, told))}"
    return ""


def flaw(trial: FrozenTrial) -> str:
    """Why a trial's record cannot be used, its configuration read as well; empty where it can."""
    found = misplaced(trial)
    if not found and trial.user_attrs["config"]:
        try:
            from_record(RunConfig, trial.user_attrs["config"])
        except ConfigError as error:
            return f"its configuration cannot be read ({error})"
    return found


def check_results(storage: JournalStorage, path: Path) -> None:
    """Check that every result of a journal stands where it belongs, before anything is done with its studies.

    Raises:
        StudyError: one does not.
    """
    for study in storage.get_all_studies():
        number = storage.get_study_id_from_name(study.study_name)
        trials = storage.get_all_trials(number, deepcopy=False)
        check_trials(trials, where=f"{path}, study {study.study_name}", storage=str(path), flaw_of=flaw)


def check_trials(
    trials: Sequence[FrozenTrial], *, where: str, storage: str | None,
    flaw_of: Callable[[FrozenTrial], str] = misplaced,
) -> None:
    """Check that every result stands where it belongs, before a conclusion is drawn from it.

    Args:
        trials: of a study. Those that stand for no cell are passed over.
        where: they are, for the message.
        storage: the journal, which can be repaired. None: a database.
        flaw_of: tells what is wrong with a trial.

    Raises:
        StudyError: one does not.
    """
    for trial in trials:
        reason = "cell" in trial.user_attrs and flaw_of(trial)
        if reason:
            remedy = "Restore the database from its backup, or train the study again under another name with --study"
            if storage is not None:
                remedy = f"Repair it; a copy is kept: python -m ablations repair --storage {shlex.quote(storage)}"
            raise StudyError(f"{where}, trial {trial.number}: {reason}. The record is damaged, and nothing is read "
                             f"from it. {remedy}")
