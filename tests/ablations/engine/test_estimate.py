"""How long a study will take: arithmetic on what is known, and the right order of magnitude when measured."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from test_run import execute, make_plan, quick_fit

from ablations.engine.estimate import FORWARD, Estimate, from_history, measure, steps_worth
from lit_simplified.config import PRESETS, RunConfig, block_id


def row_id(name: str) -> str:
    return block_id(PRESETS[name])


def test_a_run_is_worth_its_steps_and_the_forward_passes_of_its_validations() -> None:
    config = RunConfig()
    config = replace(config, data=replace(config.data, batch_size=8, val_windows=16, test_windows=20),
                     optim=replace(config.optim, steps=100), trainer=replace(config.trainer, val_every=50))
    assert steps_worth(config) == pytest.approx(100 + FORWARD * (2 * 2 + 3))
    assert steps_worth(replace(config, optim=replace(config.optim, accumulate=4))) == pytest.approx(
        100 + FORWARD / 4 * (2 * 2 + 3))


def test_rows_that_are_not_known_count_as_the_mean_of_the_others(tmp_path: Path) -> None:
    estimate = Estimate({row_id("pre_ln"): 10.0, row_id("sas"): 20.0}, "test")
    todo = make_plan(tmp_path, presets=("pre_ln", "sas", "sas_p"), seeds=(0, 1)).cells
    assert estimate.total(todo, workers=2) == pytest.approx(2 * (10 + 20 + 15) / 2)


def test_finished_cells_tell_how_long_they_took(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, presets=("pre_ln", "sas"), workers=1)
    trials, design = execute(plan, quick_fit), plan.plan.design
    estimate = from_history(trials.values(), design=design)
    assert estimate is not None
    assert set(estimate.seconds) == {row_id("pre_ln"), row_id("sas")}
    cell = plan.cells[0]
    assert 0.02 <= estimate.of(cell) < 5
    assert estimate.of(replace(cell, share=0.25)) == pytest.approx(estimate.of(cell) / 4)
    assert from_history([], design=design) is None


@pytest.mark.timed
def test_the_measured_estimate_is_of_the_right_size(tmp_path: Path) -> None:
    rows = make_plan(tmp_path, presets=("pre_ln", "sas")).plan.rows
    start = time.perf_counter()
    estimate = measure(rows, threads=1)
    spent = time.perf_counter() - start
    assert set(estimate.seconds) == set(rows)
    steps = 20 + FORWARD * (2 * 8 + 8)
    assert 0 < sum(estimate.seconds.values()) / steps * 3 < spent * 1.5
