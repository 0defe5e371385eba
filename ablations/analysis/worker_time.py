"""How the workers of a study spent their time. Imports neither torch nor lightning."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from ablations.analysis.tables import StudyRecord
from ablations.engine.status import clock


def worker_time(record: StudyRecord) -> dict[str, Any] | None:
    """How long the workers lived, and how much of that was training and validation steps. None: it was not recorded.

    Counted are the cells whose last execution one of the recorded workers ended; what was trained and lost when a
    worker was killed, and what older runs of the study trained, is in no cell or of no recorded worker.

    Returns:
        workers: how many; lifetime, training, validation: seconds, added up; share: of the lifetime in training and
        validation steps. The rest is start-up, reading, building, test, checkpoints, looking inside and waiting.
    """
    workers: dict[str, dict[str, Any]] = record.attrs.get("workers") or {}
    last = {trial["cell"]: trial["executions"][-1]["worker"] for trial in record.trials if trial["executions"]}
    cells = record.every[record.every.cell.map(last).isin(workers)].dropna(subset=["seconds", "validation_seconds"])
    lifetime = sum(_lifetime(name, worker, record) for name, worker in workers.items())
    if cells.empty or lifetime <= 0:
        return None
    training, validation = float(cells.seconds.sum()), float(cells.validation_seconds.sum())
    return {
        "workers": len(workers), "lifetime": lifetime, "training": training, "validation": validation,
        "share": (training + validation) / lifetime,
    }


def _lifetime(name: str, worker: dict[str, Any], record: StudyRecord) -> float:
    """Seconds from start to end; of a worker that was killed, or still works, to the end of its last cell."""
    ends = [execution["end"] for trial in record.trials for execution in trial["executions"]
            if execution["worker"] == name and execution["end"]]
    end = worker.get("end") or max(ends, default=None)
    if end is None:
        return 0.0
    return (datetime.fromisoformat(end) - datetime.fromisoformat(worker["start"])).total_seconds()


def worker_time_sentence(record: StudyRecord) -> str:
    """How the workers spent their time, in a sentence; empty where it was not recorded."""
    found = worker_time(record)
    if found is None:
        return ""
    return (f"workers: {found['workers']}, together {clock(found['lifetime'])}, of which {found['share']:.0%} in "
            "training and validation steps")
