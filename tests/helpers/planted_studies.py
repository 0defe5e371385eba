"""Studies as `run` would leave them, without the training: what comes of each cell is a function of its configuration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna

from ablations.engine.queue import Queue
from ablations.engine.run import queued_cell, spec_of
from ablations.engine.storage import create_study, keep_design
from ablations.study import Options, plan_run
from lit_simplified.config import PRESETS, RunConfig, from_dict

Outcome = Callable[[RunConfig, int], tuple[str, Any]]
"""What comes of a cell at its n-th execution: complete and a loss, diverged or failed and a reason, killed."""


def planted(config: RunConfig, execution: int = 1) -> tuple[str, Any]:
    """A loss with known effects; one block diverges."""
    block = config.model.block
    if block == PRESETS["naive_skipless"]:
        return "diverged", "loss nan"
    loss = 3.0 + 0.01 * config.seed + 10 * abs(config.optim.learning_rate - 3e-3) - 0.1 * math.log(config.model.depth)
    loss += 0.3 * (not block.attention_skip) * (block.attention == "softmax") + 0.2 * (not block.mlp_skip)
    return "complete", loss + 0.05 * (block.value == "identity") + 0.02 * (block.norm == "none")


def train(
    folder: Path, *, study: str | Mapping[str, Any] = "grid", outcome: Outcome = planted, points: int = 2,
    stop_after: int | None = None, speed: bool = True, legacy: bool = False, **options: Any,
) -> optuna.Study:
    """A study in a journal of the folder.

    Args:
        folder: where.
        study: the grid, or the keys of a study file.
        outcome: of each cell.
        points: of each learning curve.
        stop_after: so many executions. None: when all cells are finished.
        speed: whether the speed pass has been run.
        legacy: leave out what studies keep since they are files.
        options: further options of `run`.
    """
    options = {"select": 0, "scale": "smoke", **options}
    run = plan_run(Options(study=study, name="s", out=folder, **options))
    spec = spec_of(run, corpus="abc") | {"scale": "small" if study == "grid" else "smoke"}
    opened = create_study(run.storage, name="s", spec=spec)
    if not legacy:
        keep_design(opened, run.plan.design)
    queue = Queue(opened, storage=run.storage, folder=folder)
    queue.enqueue([queued_cell(run, cell) for cell in run.cells])
    for _ in range(stop_after if stop_after is not None else 10_000):
        claim = queue.claim()
        if claim is None:
            break
        state, told = outcome(from_dict(RunConfig, claim.config), len(claim.trial.user_attrs["executions"]))
        if state == "killed":
            claim.lock.release()
            queue.reap()
        else:
            queue.finish(claim, **ending(state, told, points=points))
    if speed:
        opened.set_user_attr("speed", {row: speed_row(config) for row, config in run.plan.rows.items()})
    return without_rows(opened) if legacy else opened


def without_rows(study: optuna.Study) -> optuna.Study:
    """The study as it was recorded before studies were files: neither a design, nor rows and tuned values of cells."""
    memory = optuna.storages.InMemoryStorage()
    old = optuna.create_study(study_name=study.study_name, storage=memory)
    for name, value in study.user_attrs.items():
        if name != "design":
            old.set_user_attr(name, value)
    for trial in study.get_trials(deepcopy=True):
        for name in ("row", "tuned"):
            trial.user_attrs.pop(name, None)
        old.add_trial(trial)
    return old


def ending(state: str, told: Any, *, points: int) -> dict[str, Any]:
    """What a worker writes down at the end of a cell."""
    if state != "complete":
        reason, trace = told if isinstance(told, tuple) else (told, "")
        return {"state": state, "reason": reason, **({"traceback": trace} if trace else {})}
    steps = [10 * (1 + index) for index in range(points)]
    curve = [{"step": step, "tokens": 256 * step, "seconds": step / 10, "train_loss": 6.0, "val_loss": told + 1 / step}
             for step in steps]
    result = {"val_loss": told, "parameters": 41_000, "tokens_per_second": 1e4, "peak_memory_mb": 300.0, "seconds": 2.0,
              "validation_seconds": 0.5, "test": {"loss": told, "perplexity": math.exp(told)}}
    return {"state": "complete", "value": told, "curve": curve, "result": result}


def speed_row(config: RunConfig) -> dict[str, float]:
    """What the speed pass finds of a row."""
    block = config.model.block
    ratio = 1.1 ** (block.norm == "none") * 1.2 ** (block.value == "identity")
    return {"ratio": ratio, "low": 0.95 * ratio, "high": 1.05 * ratio,
            "tokens_per_second": 1e4 * ratio / config.model.depth, "peak_memory_mb": 3.0}
