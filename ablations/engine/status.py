"""The progress of a study: counts, running cells, failures with reasons, time left. Reads only the storage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ablations.design.design import StudyDesign
from ablations.engine.storage import latest, ours, read_design, row_of, stage_of, state_of
from ablations.engine.trials import LIGHT, read_trials

FINISHED = ("complete", "pruned", "diverged", "failed")
LOST = "lost: its process is gone; the next `run` gives the cell back"


@dataclass(frozen=True)
class Running:
    """A cell that trains now."""

    name: str
    worker: str
    step: int
    steps: int
    elapsed: float
    """Seconds since it began."""
    attempt: int
    """How many times it was begun, this one included."""
    lost: bool = False
    """Its process is gone."""
    share: float = 1.0
    """Of the steps of a whole run."""


@dataclass(frozen=True)
class Status:
    """The progress of a study."""

    counts: Mapping[str, int]
    """Cells by state."""
    running: tuple[Running, ...]
    failed: tuple[tuple[str, str, str], ...]
    """Name, state and reason of what diverged or failed."""
    seconds_left: float | None
    """At the present number of workers; None until a first cell is done."""

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def done(self) -> int:
        return sum(self.counts[state] for state in FINISHED)

    @property
    def left(self) -> int:
        return self.total - self.done

    @property
    def lost(self) -> int:
        """Cells that are recorded as running, and whose process is gone."""
        return sum(cell.lost for cell in self.running)


def status(study: optuna.Study, *, lost: Collection[int] = ()) -> Status:
    """Read the state of every cell.

    Args:
        study: the study.
        lost: numbers of the running trials whose process is gone.
    """
    trials = list(latest(ours(read_trials(study, LIGHT))).values())
    whole = {trial.number: trial for trial in read_trials(study, states=(TrialState.RUNNING,))}
    counts = Counter(state_of(trial) for trial in trials)
    counts["waiting"] += max(0, study.user_attrs.get("search", {}).get("trials", 0) - len(trials))  # still to be drawn
    design = read_design(study)
    now = [whole.get(trial.number, trial) for trial in trials if state_of(trial) == "running"]
    running = tuple(_running(trial, design, lost=trial.number in lost) for trial in now)
    failed = tuple(
        (name_of(trial, design), state_of(trial), str(trial.user_attrs.get("reason", "")))
        for trial in trials if state_of(trial) in ("diverged", "failed")
    )
    shares = {trial.number: design.share_of(stage_of(trial)) for trial in trials}
    took = [_seconds(trial.user_attrs["executions"][-1]) / shares[trial.number] for trial in trials
            if state_of(trial) == "complete"]
    left = [shares[trial.number] for trial in trials if state_of(trial) not in (*FINISHED, "running")]
    undrawn = counts.total() - len(trials)
    return Status(counts, running, failed, _time_to_go(took, waiting=sum(left) + undrawn, running=running))


def _time_to_go(took: list[float], *, waiting: float, running: tuple[Running, ...]) -> float | None:
    """Seconds, from those that whole runs took.

    Args:
        took: each, a short one counted up to a whole.
        waiting: runs that have not begun, the short ones as their share.
        running: those that have.
    """
    if not took:
        return None
    mean, alive = fmean(took), [cell for cell in running if not cell.lost]
    begun = sum(max(0.0, mean * cell.share - cell.elapsed) for cell in alive)
    return ((waiting + sum(cell.share for cell in running if cell.lost)) * mean + begun) / max(1, len(alive))


def _running(trial: FrozenTrial, design: StudyDesign, *, lost: bool) -> Running:
    execution = trial.user_attrs["executions"][-1] if trial.user_attrs["executions"] else None
    begun = execution is not None and execution["outcome"] is None
    return Running(
        name=name_of(trial, design),
        worker=execution["worker"] if execution and begun else "",
        step=max(trial.intermediate_values, default=0),
        # A cell that ended between two looks comes without its configuration.
        steps=trial.user_attrs.get("config", {}).get("optim", {}).get("steps", 0),
        elapsed=_seconds(execution) if execution and begun else 0.0,
        attempt=len(trial.user_attrs["executions"]),
        lost=lost, share=design.share_of(stage_of(trial)),
    )


def _seconds(execution: Mapping[str, Any]) -> float:
    end = datetime.fromisoformat(execution["end"]) if execution["end"] else datetime.now(UTC)
    return (end - datetime.fromisoformat(execution["start"])).total_seconds()


def name_of(trial: FrozenTrial, design: StudyDesign) -> str:
    """The cell's id, with the label of its row in place of the row's id."""
    cell, row = str(trial.user_attrs["cell"]), str(trial.user_attrs.get("row", ""))
    if not row and trial.user_attrs.get("config") and not cell.startswith("trial-"):  # recorded before rows were kept
        row = row_of(trial)
    label = design.by_id[row].label if row in design.by_id else ""
    return f"{label}{cell.removeprefix(row)}" if label and cell.startswith(row) else cell


def clock(seconds: float | None) -> str:
    """Seconds as h:mm:ss or m:ss."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def line(now: Status) -> str:
    """The status in a line."""
    counts = ", ".join(f"{now.counts[state]} {state}" for state in FINISHED if now.counts[state]) or "none done"
    return (f"{now.done}/{now.total} cells ({counts}), {len(now.running) - now.lost} running, "
            f"{f'{now.lost} lost, ' if now.lost else ''}{now.left} left, "
            f"{clock(now.seconds_left)} remaining")


def render(now: Status, *, title: str, failures: bool = True) -> RenderableType:
    """The status as a table for the terminal."""
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    for column in ("running", "worker", "step", "elapsed", "attempt"):
        table.add_column(column, justify="left" if column in ("running", "worker") else "right", no_wrap=True)
    for cell in now.running:
        worker = f"lost: {cell.worker}" if cell.lost else cell.worker
        texts = cell.name, worker, f"{cell.step}/{cell.steps}", clock(cell.elapsed), str(cell.attempt)
        table.add_row(*map(Text, texts))
    parts: list[RenderableType] = [table, Text(line(now), style="bold")]
    if now.lost:
        parts.append(Text(LOST))
    if failures and now.failed:
        problems = Table(box=None, pad_edge=False)
        for column in ("cell", "state", "reason"):
            problems.add_column(column, overflow="fold")
        for problem in now.failed:
            problems.add_row(*map(Text, problem))  # a reason in brackets is no markup
        parts.append(problems)
    return Group(*parts)
