"""On what a study stands, for a report: what is fixed, what failed, and all that is needed to do it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from ablations.analysis import usage
from ablations.analysis.tables import Record
from ablations.design.space import space_digest
from ablations.engine.status import name_of
from ablations.engine.storage import latest, ours, state_of
from ablations.report.formats import to_json

ENDED_WITH_A_RESULT = ("complete", "diverged")


def head(record: Record, executions: list[dict[str, Any]]) -> dict[str, Any]:
    """Name, scale, task, counts of the cells and dates of the study."""
    spec = record.attrs.get("spec", {})
    ends = [execution["end"] for execution in executions if execution["end"]]
    begins = [execution["start"] for execution in executions if execution["start"]]
    return {
        "name": record.name, "scale": spec.get("scale", "unknown"), "task": spec.get("task", "unknown"),
        "states": {str(state): int(count) for state, count in record.cells.state.value_counts().items()},
        "cells": len(record.cells), "blocks": int(record.cells["block"].nunique()),
        "first": moment(min(begins, default="")), "last": moment(max(ends, default="")),
    }


def moment(time: str | None) -> str:
    """A time of the log, to the minute."""
    return f"{time[:10]} {time[11:16]} UTC" if time else ""


def facts(record: Record) -> list[tuple[str, str]]:
    """What all cells share, as terms and texts."""
    spec, cells = record.attrs.get("spec", {}), record.cells
    seeds = cells.groupby("seed")["block"].nunique()
    found = [
        ("model", _items(spec.get("model", {}))),
        ("training", _items({**spec.get("optim", {}), **spec.get("trainer", {})})),
        ("data", _items(spec.get("data", {}))),
        ("corpus digest", str(spec.get("corpus", ""))),
        ("seeds", ", ".join(f"{seed} ({count} blocks)" for seed, count in seeds.items())),
        ("learning rates", ", ".join(f"{rate:g}" for rate in sorted(cells.learning_rate.unique()))),
        ("workers", usage.words(record).removeprefix("workers: ")),
        ("speed pass", _items(record.attrs.get("speed_conditions", {})) or "not run yet"),
    ]
    return [(term, text) for term, text in found if text]


def _items(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def executions(study: optuna.Study) -> list[dict[str, Any]]:
    """Every time a cell was begun, in order of time."""
    standing = latest(ours(study.get_trials(deepcopy=False))).values()
    found = [{**begun, "cell": name_of(trial)} for trial in standing for begun in trial.user_attrs["executions"]]
    return sorted(found, key=lambda execution: str(execution["start"]))


def problems(study: optuna.Study) -> list[dict[str, str]]:
    """Every cell that diverged or failed: its reason, and where it came from, if that is known."""
    standing = latest(ours(study.get_trials(deepcopy=False))).values()
    found = [_problem(trial) for trial in standing if state_of(trial) in ("diverged", "failed")]
    return sorted(found, key=lambda problem: (problem["state"] != "failed", problem["cell"]))


def _problem(trial: FrozenTrial) -> dict[str, str]:
    begun = trial.user_attrs["executions"]
    kills = sum(execution["outcome"] == "killed" for execution in begun)
    given_up = state_of(trial) == "failed" and bool(begun) and begun[-1]["outcome"] == "killed"
    return {
        "cell": name_of(trial), "state": "given up" if given_up else state_of(trial), "kind": state_of(trial),
        "reason": str(trial.user_attrs.get("reason", "")), "traceback": str(trial.user_attrs.get("traceback", "")),
        "begun": str(len(begun)), "kills": str(kills),
    }


def stopped(begun: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Executions that ended without a result: killed, interrupted, or failed."""
    names = aliases(execution["worker"] for execution in begun)
    return [
        {"cell": execution["cell"], "worker": names[str(execution["worker"])], "start": moment(execution["start"]),
         "end": moment(execution["end"]), "outcome": str(execution["outcome"])}
        for execution in begun if execution["outcome"] and execution["outcome"] not in ENDED_WITH_A_RESULT
    ]


def workers(record: Record) -> list[dict[str, str]]:
    """The processes that trained, and from when to when."""
    known: dict[str, dict[str, Any]] = record.attrs.get("workers") or {}
    names = aliases(known)
    return [{"worker": names[name], "start": moment(worker.get("start")), "end": moment(worker.get("end"))}
            for name, worker in known.items()]


def aliases(processes: Iterable[str]) -> dict[str, str]:
    """Names of processes with a number in place of that of the host: reports are shared."""
    hosts: dict[str, int] = {}
    found: dict[str, str] = {}
    for name in map(str, processes):
        host, _, process = name.rpartition(":")
        found[name] = f"host {hosts.setdefault(host, len(hosts) + 1)}, process {process}"
    return found


def commands(record: Record) -> list[dict[str, str]]:
    """The commands that trained the study, or, where they were not kept, one that plans the same."""
    kept = record.attrs.get("commands", [])
    if kept:
        return [{"command": str(entry.get("command", "")), "time": moment(entry.get("time"))}
                for entry in kept]
    spec = record.attrs.get("spec", {})
    scale, task = str(spec.get("scale", "auto")), str(spec.get("task", "clm"))
    words = shlex.join(["run", "--scale", scale, "--task", task, "--study", record.name])
    return [{"command": f"python -m ablations {words}", "time": ""}]


def machines(record: Record) -> list[dict[str, str]]:
    """The machines that took part, and what was installed there."""
    rows = []
    for machine in record.attrs.get("machines", []):
        more = {key: machine.get(key) for key in ("cpu", "cores", "threads", "system", "gpu")}
        versions = machine.get("versions") or {}
        rows.append({**{key: str(value or "") for key, value in more.items()},
                     "versions": ", ".join(f"{name} {version}" for name, version in versions.items())})
    return rows


def grid_note(record: Record) -> str:
    """Whether the grid is still what it was."""
    then = record.attrs.get("spec", {}).get("space")
    if then is None:
        return ""
    same = then == space_digest()
    return f"{then}, the present grid" if same else f"{then}; the grid has changed since and is now {space_digest()}"


def attributes(record: Record) -> Iterator[tuple[str, str]]:
    """What the study keeps of its conditions, as JSON."""
    for name, title in (("spec", "specification: what may not differ between cells"), ("corpus", "data card"),
                        ("speed_conditions", "conditions of the speed pass"), ("speed", "speed pass, by block"),
                        ("machines", "machines and versions")):
        values = record.attrs.get(name)
        if values:
            if name == "corpus":  # without the path of a file that is on one machine alone
                values = {key: value for key, value in values.items() if key != "card"}
            yield title, to_json(values, indent=1)
