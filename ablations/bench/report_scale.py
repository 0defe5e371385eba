"""How `summary` and `report` grow with a study: `python -m ablations.bench report`.

The studies are written without training anything. What is measured is the CPU time of this process, which other work
on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import io
import math
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console

from ablations.analysis.tables import read
from ablations.design.cells import Cell
from ablations.design.config import parse_study
from ablations.design.plan import plan_study
from ablations.design.scales import scale
from ablations.engine.run import StudyRun, queued_cell, spec_of
from ablations.engine.storage import JOURNAL, create_study, keep_design, open_study
from ablations.report.html import write_report
from ablations.report.summary import summarise
from lit_simplified.config import RunConfig

NAME = "scale"
POINTS = 10
"""Of a learning curve."""
DIVERGED, FAILED = 0.02, 0.01
"""Shares of the cells."""
SEEDS = {"seeds": 20, "rows": 5}
"""Of each row, by the shape of a study: few rows with many seeds, or many rows with few."""


@dataclass(frozen=True)
class Timing:
    """What one study took: seconds of CPU, bytes of the page."""

    cells: int
    rows: int
    load: float
    summary: float
    report: float
    page: int


def levels(count: int) -> dict[str, list[Any]]:
    """Four axes, the last three of numbers, that have about so many combinations."""
    half = max(count / 2, 1)
    first = max(round(half ** (1 / 3)), 1)
    second = max(round(math.sqrt(half / first)), 1)
    third = max(round(half / first / second), 1)
    return {
        "model.block.norm": ["rms", "layer"],
        "model.depth": [2 + index for index in range(first)],
        "optim.warmup": [round(0.02 * (1 + index), 2) for index in range(second)],
        "model.block.dropout": [round(0.01 * index, 2) for index in range(third)],
    }


def claims_of(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every level of every axis against its first."""
    return [{"left": {name: level}, "is": "worse", "right": {name: known[0]}}
            for name, known in axes.items() for level in known[1:]]


def make_study(folder: Path, *, cells: int, shape: str = "rows") -> optuna.Study:
    """A finished study of about so many cells, in a journal of the folder.

    Args:
        folder: where.
        cells: how many, about.
        shape: of `SEEDS`.
    """
    axes = levels(round(cells / SEEDS[shape]))
    config = parse_study({
        "question": "How do summary and report grow?", "compare": axes, "seeds": SEEDS[shape],
        "claims": claims_of(axes),
    })
    plan = plan_study(config, scale=scale("small", task="clm"))
    run = StudyRun(study=NAME, storage=str(folder / JOURNAL), folder=folder, scale=scale("small"), plan=plan)
    study = create_study(run.storage, name=NAME, spec=spec_of(run, corpus="abc"))
    keep_design(study, plan.design)
    rng = random.Random(0)
    titles = {title: CategoricalDistribution(plan.design.axis(name).labels)
              for name, title in plan.design.titles().items()}
    for cell in run.cells:
        study.add_trial(_trial(run, cell, rng, titles))
    study.set_user_attr("speed", {row: _speed(config, rng) for row, config in plan.rows.items()})
    return study


def _trial(
    run: StudyRun, cell: Cell, rng: random.Random, titles: Mapping[str, CategoricalDistribution]
) -> FrozenTrial:
    """A cell as its worker leaves it."""
    queued, ended = queued_cell(run, cell), _ending(cell.config, rng)
    begun = {"start": "2026-01-01T00:00:00.000+00:00", "end": "2026-01-01T00:01:00.000+00:00",
             "worker": f"host:{rng.randrange(8)}", "outcome": ended["state"]}
    value = ended["value"]
    return create_trial(
        state=TrialState.COMPLETE if value is not None else TrialState.FAIL, value=value,
        params={name: queued.params[name] for name in titles}, distributions=dict(titles),
        user_attrs={**queued.attrs, "executions": [begun], **ended},
        intermediate_values={point["step"]: point["val_loss"] for point in ended.get("curve", ())},
    )


def _ending(config: RunConfig, rng: random.Random) -> dict[str, Any]:
    """What came of a cell: known effects, and noise of its seed and of its own."""
    block, chance = config.model.block, rng.random()
    if chance < DIVERGED + FAILED:
        state = "diverged" if chance < DIVERGED else "failed"
        return {"state": state, "value": None, "reason": "loss nan" if state == "diverged" else "out of memory"}
    loss = 4.0 - 0.1 * math.log(config.model.depth) + 2 * (config.optim.warmup - 0.1) ** 2 + block.dropout
    loss += 0.05 * (block.norm == "layer") * config.model.depth ** 0.5 + 0.01 * (config.seed % 5) + rng.gauss(0, 0.02)
    steps = [25 * (1 + index) for index in range(POINTS)]
    curve = [{"step": step, "tokens": 1024 * step, "seconds": step / 10, "train_loss": loss + 3 / step,
              "val_loss": loss + 4 / step} for step in steps]
    result = {"val_loss": loss, "parameters": 40_000 * config.model.depth, "tokens_per_second": 1e4,
              "peak_memory_mb": 300.0, "seconds": 25.0, "validation_seconds": 2.0,
              "test": {"loss": loss + 0.01, "perplexity": math.exp(loss + 0.01)}}
    return {"state": "complete", "value": loss, "curve": curve, "result": result}


def _speed(config: RunConfig, rng: random.Random) -> dict[str, float]:
    """What the speed pass finds of a row."""
    ratio = 1 + 0.05 * (config.model.block.norm == "layer") + rng.gauss(0, 0.01)
    return {"ratio": ratio, "low": 0.97 * ratio, "high": 1.03 * ratio, "peak_memory_mb": 30.0 * config.model.depth,
            "tokens_per_second": 2e5 * ratio / config.model.depth}


def measure(cells: int, *, shape: str) -> Timing:
    """Make a study of about so many cells, load it, summarise it and write its report."""
    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        make_study(folder, cells=cells, shape=shape)
        load = _seconds(lambda: open_study(str(folder / JOURNAL), name=NAME).get_trials(deepcopy=False))
        study = open_study(str(folder / JOURNAL), name=NAME)
        summary = _seconds(lambda: summarise(study, folder=folder, console=Console(file=io.StringIO(), width=110)))
        report = _seconds(lambda: write_report(study, folder=folder))
        record = read(study)
        return Timing(len(record.cells), len(record.design.rows), load, load + summary, load + report,
                      (folder / "report.html").stat().st_size)


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def table(timings: Sequence[Timing]) -> str:
    """The timings, and under each column the exponent of its growth with the cells, from the first to the last."""
    lines = [f"{'cells':>8}{'rows':>8}{'load (s)':>10}{'summary (s)':>13}{'report (s)':>12}{'page (MB)':>11}"]
    lines += [f"{one.cells:>8,}{one.rows:>8,}{one.load:>10.2f}{one.summary:>13.2f}{one.report:>12.2f}"
              f"{one.page / 1e6:>11.2f}" for one in timings]
    if len(timings) > 1:
        first, last = timings[0], timings[-1]
        grown = [_exponent(last.cells / first.cells, getattr(last, name) / getattr(first, name))
                 for name in ("load", "summary", "report", "page")]
        lines.append("exponent".rjust(16) + "".join(f"{value:>{width}.2f}" for value, width in
                                                   zip(grown, (10, 13, 12, 11), strict=True)))
    return "\n".join(lines)


def _exponent(cells: float, grown: float) -> float:
    return math.log(grown) / math.log(cells) if cells != 1 else math.nan


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ablations.bench report", description=__doc__)
    parser.add_argument("--cells", nargs="+", type=int, default=[500, 2000, 10_000], metavar="N",
                        help="sizes of the studies, about (default: 500 2000 10000)")
    parser.add_argument("--shape", choices=list(SEEDS), default="rows",
                        help="many rows with 5 seeds (rows, the default) or few with 20 (seeds)")
    given = parser.parse_args(arguments)
    measure(min(given.cells), shape=given.shape)  # what is imported and set up once is no part of a study
    print("CPU seconds; summary and report include loading")
    print(table([measure(cells, shape=given.shape) for cells in sorted(given.cells)]))
    return 0
