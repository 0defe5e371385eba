"""Studies as `tables.read` would give them, made from a plan and a loss function without training anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd

from ablations.analysis.tables import CELL_COLUMNS, NUMBERS, StudyRecord, by_stage, tuned_label, with_collapsed
from ablations.design.cells import Cell, StudyPlan
from ablations.design.library import load_study
from ablations.design.plan import plan_study
from ablations.design.scales import scale
from ablations.design.selection import Outcome
from ablations.design.stages import Select
from ablations.engine.queue import Queue
from ablations.engine.run import StudyRun, outcomes, queued_cell
from ablations.engine.storage import JOURNAL, create_study, keep_design
from lit_simplified.config import RunConfig, Task, block_id, from_dict, preset_of

Loss = Callable[[RunConfig], Any]
"""Of a cell's configuration: its loss, or a word that is the state of a cell without one."""
N_PARAMS = 100.0


def plan_of(study: str | Mapping[str, Any], *, task: Task = "clm", **keys: Any) -> StudyPlan:
    """The plan of a study of the suite, or of one made from keys, e.g. `compare` and `seeds`; all seeds judge at all
    tuned values, unless `select` says otherwise. One of the suite is without its stages and tuned values, unless keys
    say so."""
    select = keys.pop("select", 0)
    select = select if isinstance(select, Select) else Select(select)
    config = load_study(study)
    if isinstance(study, str):
        config = replace(config, tune={}, seeds=None, screen=None, extend=None, at={})
    return plan_study(replace(config, select=select, **keys), scale=scale("small", task=task))


def record_of(
    plan: StudyPlan, loss: Loss, *, speed: Mapping[str, Any] | None = None, params: Callable[[RunConfig], float] |
    None = None, test_loss: Loss | None = None, **attrs: Any,
) -> StudyRecord:
    """A study with a cell for each of the plan's.

    Args:
        plan: what was trained.
        loss: of a cell's configuration.
        speed: by row id or label: what the speed pass found, or the ratio alone, or (ratio, low, high).
        params: the number of parameters, by configuration.
        test_loss: by configuration; the validation loss unless given.
        attrs: attributes of the study.
    """
    planned = played(plan, loss)
    rows = [_cell(plan, cell, loss, params=params, test_loss=test_loss) for cell in planned]
    cells = pd.DataFrame(rows, columns=list(CELL_COLUMNS)).astype(dict.fromkeys(NUMBERS, float))
    ids = {row.label: row.id for row in plan.design.rows}
    measured = {ids.get(name, name): _speed(value) for name, value in (speed or {}).items()}
    spec = {"scale": "small", "task": plan.template.task}
    record = StudyRecord("s", plan.design, {"spec": spec, "speed": measured, **attrs}, cells, {}, [])
    for title, axis in record.further.items():
        labels = [plan.design.by_id[row].levels.get(axis.name) for row in cells.row]
        numbers = axis.numbers
        cells[title] = labels if numbers is None else [
            None if label is None else numbers[axis.labels.index(label)] for label in labels]
    return by_stage(with_collapsed(record), [cell.stage for cell in planned])


def played(plan: StudyPlan, loss: Loss) -> tuple[Cell, ...]:
    """The cells that a study with these losses asks for."""
    ended: dict[str, Outcome] = {}
    while new := [cell for cell in plan.cells(ended) if cell.id not in ended]:
        for cell in new:
            value = loss(cell.config)
            ended[cell.id] = Outcome(value) if isinstance(value, str) else Outcome("complete", value)
    return plan.cells(ended)


def card(unigram_loss: float = 5.97) -> dict[str, Any]:
    """What a study keeps of a corpus, as far as the analysis reads it."""
    return {"splits": {"validation": {"unigram_loss": unigram_loss, "tokens": 100_000, "bytes": 300_000}}}


def _cell(plan: StudyPlan, cell: Cell, loss: Loss, **of: Any) -> dict[str, Any]:
    config, row = cell.config, plan.design.by_id[cell.row]
    value = loss(config)
    state = value if isinstance(value, str) else "complete"
    found = None if isinstance(value, str) else value
    return {
        "cell": cell.id, "row": row.id, "label": row.label, "block": block_id(config.model.block),
        **config.model.block.switches, "preset": preset_of(config.model.block), "seed": config.seed,
        "learning_rate": config.optim.learning_rate,
        "tuned": tuned_label(cell.tuned, config, plan.design), "state": state, "reason": "", "val_loss": found,
        "test_loss": of["test_loss"](config) if of["test_loss"] is not None else found,
        "params": of["params"](config) if of["params"] is not None else N_PARAMS, "tokens_per_second": 1e4,
    }


def _speed(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    values = tuple(value) if isinstance(value, tuple | list) else (value, value, value)
    return {**dict(zip(("ratio", "low", "high"), values, strict=True)), "tokens_per_second": 1e4 * values[0]}


def with_losses(record: StudyRecord, by_row: Mapping[str, float], *, noise: np.ndarray | float = 0.0) -> StudyRecord:
    """The same study with other losses: one per row, and noise per cell. Quick, for simulations."""
    cells = record.cells.copy()
    cells["val_loss"] = cells.row.map(by_row) + noise
    return replace(record, cells=cells)


def stored(
    folder: Path, plan: StudyPlan, loss: Loss, *, name: str = "s", speed: Mapping[str, Any] | None = None,
    stages: int | None = None,
) -> optuna.Study:
    """The same on disk, as `run` would leave it, without the training. A loss that is a word is a cell's state.

    Args:
        folder: of the study.
        plan: what was trained.
        loss: of a cell's configuration.
        name: of the study.
        speed: as of `record_of`.
        stages: how many have ended; the cells of the next one wait. None: all.
    """
    run = StudyRun(study=name, storage=str(folder / JOURNAL), folder=folder, scale=scale("small"), plan=plan)
    study = create_study(run.storage, name=name, spec={"scale": "small", "task": plan.template.task, "corpus": "abc"})
    keep_design(study, plan.design)
    queue = Queue(study, storage=run.storage, folder=folder)
    ended = 0
    while queue.enqueue([queued_cell(run, cell) for cell in plan.cells(outcomes(study))]) and ended != stages:
        _work_off(queue, loss)
        ended += 1
    ids = {row.label: row.id for row in plan.design.rows}
    study.set_user_attr("speed", {ids.get(row, row): _speed(value) for row, value in (speed or {}).items()})
    return study


def _work_off(queue: Queue, loss: Loss) -> None:
    while (claim := queue.claim()) is not None:
        value = loss(from_dict(RunConfig, claim.config))
        state, found = (value, None) if isinstance(value, str) else ("complete", value)
        curve = [{"step": step, "tokens": 256 * step, "seconds": step / 10, "train_loss": 6.0,
                  "val_loss": (found or 6.0) + 1 / step} for step in (10, 20)]
        result = {"val_loss": found, "parameters": 41_000, "tokens_per_second": 1e4, "peak_memory_mb": 300.0,
                  "seconds": 2.0, "validation_seconds": 0.5,
                  "test": {"loss": found, "perplexity": 20.0} if found is not None else {}}
        queue.finish(claim, state=state, value=found, reason="" if found is not None else "nan", curve=curve,
                     result=result)
