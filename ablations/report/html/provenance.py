"""Where the results of a study come from, for a report: its runs, what failed, and what is needed to reproduce it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from itertools import islice
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from ablations.analysis.tables import StudyRecord
from ablations.design.design import StudyDesign
from ablations.engine.status import name_of
from ablations.engine.storage import latest, ours, read_design, state_of
from ablations.engine.trials import LIGHT, read_trials
from ablations.report.conditions import counted, worker_names
from ablations.report.formats import moment, to_json
from ablations.report.limits import MOST_LINES, first_of

ENDED_WITH_A_RESULT = ("complete", "diverged")


def head(record: StudyRecord, executions: list[dict[str, Any]]) -> dict[str, Any]:
    """Name, scale, task, counts of the cells and dates of the study."""
    spec = record.attrs.get("spec", {})
    ends = [execution["end"] for execution in executions if execution["end"]]
    begins = [execution["start"] for execution in executions if execution["start"]]
    return {
        "name": record.name, "scale": spec.get("scale", "unknown"), "task": spec.get("task", "unknown"),
        "states": {str(state): int(count) for state, count in record.every.state.value_counts().items()},
        "cells": len(record.every), "rows": int(record.every.row.nunique()),
        "first": moment(min(begins, default="")), "last": moment(max(ends, default="")),
    }


def executions(study: optuna.Study) -> list[dict[str, Any]]:
    """Every time a cell was begun, in order of time."""
    standing = latest(ours(read_trials(study, (*LIGHT, "traceback")))).values()
    design = read_design(study)
    found = [{**begun, "cell": name_of(trial, design)} for trial in standing
             for begun in trial.user_attrs["executions"]]
    return sorted(found, key=lambda execution: str(execution["start"]))


def problems(study: optuna.Study) -> list[dict[str, str]]:
    """Every cell that diverged or failed: its reason, and where it came from, if that is known."""
    standing = latest(ours(read_trials(study, (*LIGHT, "traceback")))).values()
    design = read_design(study)
    found = [_problem(trial, design) for trial in standing if state_of(trial) in ("diverged", "failed")]
    return sorted(found, key=lambda problem: (problem["state"] != "failed", problem["cell"]))


def _problem(trial: FrozenTrial, design: StudyDesign) -> dict[str, str]:
    begun = trial.user_attrs["executions"]
    kills = sum(execution["outcome"] == "killed" for execution in begun)
    given_up = state_of(trial) == "failed" and bool(begun) and begun[-1]["outcome"] == "killed"
    return {
        "cell": name_of(trial, design), "state": "given up" if given_up else state_of(trial), "kind": state_of(trial),
        "reason": str(trial.user_attrs.get("reason", "")), "traceback": str(trial.user_attrs.get("traceback", "")),
        "begun": str(len(begun)), "kills": str(kills),
    }


def stopped(record: StudyRecord, begun: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Executions that ended without a result: killed, interrupted, or failed."""
    names = worker_names(record)
    return [
        {"cell": execution["cell"], "worker": names[str(execution["worker"])], "start": moment(execution["start"]),
         "end": moment(execution["end"]), "outcome": str(execution["outcome"])}
        for execution in begun if execution["outcome"] and execution["outcome"] not in ENDED_WITH_A_RESULT
    ]


def workers(record: StudyRecord) -> list[dict[str, str]]:
    """The processes that trained, and from when to when."""
    known: dict[str, dict[str, Any]] = record.attrs.get("workers") or {}
    names = worker_names(record)
    return [{"worker": names[name], "start": moment(worker.get("start")), "end": moment(worker.get("end"))}
            for name, worker in known.items()]


def commands(record: StudyRecord) -> list[dict[str, str]]:
    """The commands that trained the study, or, where they were not kept, one that plans the same."""
    kept = record.attrs.get("commands", [])
    if kept:
        return [{"command": str(entry.get("command", "")), "time": moment(entry.get("time"))}
                for entry in kept]
    spec = record.attrs.get("spec", {})
    scale, task = str(spec.get("scale", "auto")), str(spec.get("task", "clm"))
    study = [record.design.name] if record.design.name else []
    words = shlex.join(["run", *study, "--scale", scale, "--task", task, "--study", record.name])
    return [{"command": f"python -m ablations {words}", "time": ""}]


def machines(record: StudyRecord) -> list[dict[str, str]]:
    """The machines that took part, and what was installed there."""
    rows = []
    for machine in record.attrs.get("machines", []):
        more = {key: machine.get(key) for key in ("cpu", "cores", "threads", "system", "gpu")}
        versions = machine.get("versions") or {}
        rows.append({**{key: str(value or "") for key, value in more.items()},
                     "versions": ", ".join(f"{name} {version}" for name, version in versions.items())})
    return rows


def file_note(record: StudyRecord) -> str:
    """Which study file this is, and where it is kept."""
    design = record.design
    name = f"the study file {design.name}" if design.name else "a study made from flags"
    return (f"This is {name}: design {design.kind}, {counted(len(design.rows), 'row')}. Its file is study.yaml in the "
            "study's folder; `python -m ablations run study.yaml` plans the same rows.")


def attributes(record: StudyRecord) -> Iterator[tuple[str, str]]:
    """What the study keeps of its conditions, as JSON."""
    for name, title in (("spec", "specification: what may not differ between cells"), ("corpus", "data card"),
                        ("speed_conditions", "conditions of the speed pass"), ("speed", "speed pass, by row"),
                        ("machines", "machines and versions")):
        values = record.attrs.get(name)
        if values:
            if name == "corpus":  # without the path of a file that is on one machine alone
                values = {key: value for key, value in values.items() if key != "card"}
            if name == "speed" and len(values) > MOST_LINES:
                title = f"{title}. {first_of(MOST_LINES, len(values), noun='rows', file='summary.csv')}"
                values = dict(islice(values.items(), MOST_LINES))
            yield title, to_json(values, indent=1)
