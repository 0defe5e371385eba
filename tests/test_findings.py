"""What is computed from a stored study: tables, curves, losses along axes, the time of its workers."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import scipy.stats
from synthetic import plan_of, record_of, stored

from ablations.analysis.curves import AXIS_COLUMNS, CURVE_COLUMNS, long_curves, loss_by_axis, row_curves
from ablations.analysis.findings import Findings, find, of_record
from ablations.analysis.tables import read, rows_table
from ablations.analysis.worker_time import worker_time, worker_time_sentence
from lit_simplified.config import PRESETS, RunConfig

NORM, DEPTH, RATE = "model.block.norm", "model.depth", "optim.learning_rate"
GRID = plan_of("grid", seeds=1)


def planted(config: RunConfig) -> float | str:
    """A loss with known effects; naive_skipless diverges."""
    block = config.model.block
    if block == PRESETS["naive_skipless"]:
        return "diverged"
    loss = 3.0 + 0.01 * config.seed
    loss += 0.3 * (not block.attention_skip) * (block.layout == "sequential")
    loss += 0.2 * (not block.mlp_skip) * (block.layout == "sequential")
    loss -= 0.1 * (block.attention == "shaped")
    return loss + 0.05 * (block.value == "identity") + 0.02 * (block.norm == "none")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> optuna.Study:
    """The grid on disk, with one row that diverged."""
    speed = {row: 1.1 ** (config.model.block.norm == "none") * 1.2 ** (config.model.block.value == "identity")
             for row, config in GRID.rows.items()}
    return stored(tmp_path_factory.mktemp("grid"), GRID, planted, speed=speed)


@pytest.fixture(scope="module")
def found(study: optuna.Study) -> Findings:
    return find(study)


def test_planted_effects_are_found_in_a_stored_study(found: Findings) -> None:
    main = found.effects[found.effects.kind == "main"]
    loss = main[main.measure == "loss"].set_index("term")
    assert loss.estimate[["attention_skip", "mlp_skip", "layout"]].to_dict() == pytest.approx({
        "attention_skip": 0.3, "mlp_skip": 0.2, "layout": -0.25})
    assert loss.estimate[["attention", "value + projection", "norm"]].to_list() == pytest.approx(
        [-0.1, 0.05, 0.02], abs=0.02)
    assert loss.n_left_out.to_dict() == {name: 0 if name == "layout" else 1 for name in loss.index}
    assert found.left_out[["measure", "label", "reason"]].to_numpy().tolist() == [
        ["loss", "naive_skipless", "diverged (seed 0)"]]
    speed = main[main.measure == "speed"].set_index("term").estimate
    assert speed.to_dict() == pytest.approx({
        "attention_skip": 1, "mlp_skip": 1, "layout": 1, "attention": 1, "value + projection": 1.2, "norm": 1.1})


def test_the_findings_are_complete(found: Findings) -> None:
    assert len(found.rows) == len(found.tuned) == len(GRID.rows)
    assert not found.is_tuned
    assert len(found.claims) == len(GRID.design.claims)
    highlighted = len(GRID.design.highlighted)
    assert len(found.pairs) == highlighted * (highlighted - 1) // 2
    assert found.sensitivity.empty
    assert found.by_axis.empty


def test_a_study_that_was_just_queued_has_findings(tmp_path: Path) -> None:
    record = record_of(GRID, lambda config: "waiting")
    found = of_record(record)
    assert (found.rows.empty, found.effects.empty, found.pairs.empty) == (True, True, True)
    assert set(found.claims.verdict) == {"inconclusive"}
    assert all(why.startswith("no finished cell of ") for why in found.claims.why)
    empty = of_record(replace(record, cells=record.cells.head(0)))
    assert empty.effects.empty


def test_rows_are_shown_at_their_best_tuned_value(tmp_path: Path) -> None:
    def loss(config: RunConfig) -> float | str:
        rate, name = config.optim.learning_rate, config.model.block
        if name == PRESETS["sas"] and rate == 1e-2 and config.seed == 1:
            return "diverged"  # the best mean, but not to be trusted
        best = {PRESETS["pre_ln"]: 3e-3, PRESETS["sas"]: 1e-2}[name]
        return 3.0 + (rate != best) + 0.1 * config.seed

    plan = plan_of({"compare": {"block": ["pre_ln", "sas"]}, "seeds": 2, "tune": {RATE: [1e-3, 3e-3, 1e-2]}})
    record = read(stored(tmp_path, plan, loss))
    table = rows_table(record).set_index("preset")
    assert table.tuned.to_dict() == {"pre_ln": "0.003", "sas": "0.001"}
    assert table.loc["pre_ln", "val_loss_mean"] == pytest.approx(3.05)
    assert table.loc["pre_ln", "val_loss_std"] == pytest.approx(0.1 / math.sqrt(2))
    assert of_record(record).is_tuned
    by_rate = of_record(record).by_axis
    assert list(by_rate.columns) == list(AXIS_COLUMNS)
    sas = by_rate[by_rate.line == "sas"]
    assert (sas.x.to_list(), sas.n_seeds.to_list()) == ([1e-3, 3e-3, 1e-2], [2, 2, 1])


def test_axes_called_like_a_column_keep_out_of_its_way() -> None:
    plan = plan_of({"compare": {RATE: [1e-3, 1e-2], "state": {
        "a": {DEPTH: 2, "model.width": 32}, "b": {DEPTH: 4, "model.width": 64}}}, "seeds": 2})
    found = of_record(record_of(plan, lambda config: 4.0 + config.optim.learning_rate))
    assert found.rows.columns.is_unique
    assert set(found.rows.state) == {"complete"}
    assert set(found.rows["state (axis)"]) == {"a", "b"}
    assert set(found.rows.learning_rate) == {1e-3, 1e-2}
    assert not found.is_tuned
    assert set(found.effects.term) >= {"learning_rate", "state"}


def test_rows_with_several_seeds_have_intervals() -> None:
    losses = {0: 3.0, 1: 3.3, 2: 3.1}
    plan = plan_of({"compare": {"block": ["pre_ln", "sas"]}, "seeds": 3})
    table = rows_table(record_of(plan, lambda config: losses[config.seed]))
    values = [*losses.values()]
    low, high = scipy.stats.t.interval(0.95, 2, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert table.val_loss_low.to_list() == pytest.approx([low] * 2)
    assert table.val_loss_high.to_list() == pytest.approx([high] * 2)


def test_curves_of_rows_are_means_over_seeds_at_the_best_tuned_value(tmp_path: Path) -> None:
    plan = plan_of({"compare": {"block": ["pre_ln", "sas"]}, "seeds": 2, "tune": {RATE: [1e-3, 1e-2]}})
    record = read(stored(tmp_path, plan, lambda c: 4.0 + c.seed + (c.optim.learning_rate == 1e-2)))
    curves = row_curves(record, rows_table(record))
    assert list(curves) == list(plan.rows)
    curve = curves[plan.design.baseline]
    assert curve.val_loss.to_list() == pytest.approx([4.5 + 0.1, 4.5 + 0.05])
    assert curve.seconds.to_list() == pytest.approx([0.256, 0.512])  # at the speed of the table
    long = long_curves(record)
    assert list(long.columns) == list(CURVE_COLUMNS)
    assert len(long) == 2 * len(plan.cells())
    first = long[(long.label == "sas") & (long.seed == 1) & (long.tuned == "0.01")]
    assert first.val_loss.to_list() == pytest.approx([6.1, 6.05])
    assert first.seconds.to_list() == [1.0, 2.0]  # as recorded
    assert list(long_curves(record_of(plan, lambda c: 4.0)).columns) == list(CURVE_COLUMNS)


def test_the_loss_along_a_compared_axis_has_a_line_per_combination_of_the_others() -> None:
    def loss(config: RunConfig) -> float | str:
        if config.model.block == PRESETS["v_skipinit"] and config.model.depth == 8:
            return "diverged"
        return 4.0 - 0.1 * config.model.depth + 0.01 * config.seed

    plan = plan_of({"compare": {"block": ["pre_ln", "v_skipinit"], DEPTH: [2, 8, 4]}, "seeds": 2})
    record = record_of(plan, loss)
    table = loss_by_axis(record, rows_table(record))
    assert set(table.axis) == {DEPTH}
    assert set(table.title) == {"depth"}
    line = table[table.line == "v_skipinit"]
    assert line.x.to_list() == [2, 4, 8]
    assert line.state.to_list() == ["complete", "complete", "diverged"]
    assert line.val_loss_mean.to_list() == pytest.approx([3.805, 3.605, math.nan], nan_ok=True)
    assert line.n_seeds.to_list() == [2, 2, 0]
    expected = scipy.stats.t.interval(0.95, 1, loc=3.805, scale=0.005)
    assert (line.low.iloc[0], line.high.iloc[0]) == pytest.approx(expected)
    alone = record_of(plan_of({"compare": {DEPTH: [2, 4]}, "seeds": 2}), loss)
    assert set(loss_by_axis(alone, rows_table(alone)).line) == {"all"}
    of_block = plan_of({"compare": {"model.block.mlp_ratio": [2.0, 4.0], NORM: ["rms", "none"]}, "seeds": 2})
    record = record_of(of_block, loss)
    assert set(loss_by_axis(record, rows_table(record)).line) == {"norm rms", "norm none"}


def test_the_loss_along_several_tuned_axes() -> None:
    plan = plan_of({"compare": {"block": ["pre_ln"]}, "seeds": 1,
                    "tune": {RATE: [1e-3, 1e-2], "optim.weight_decay": [0.0, 0.1]}})
    record = record_of(plan, lambda c: 4.0 + c.optim.weight_decay)
    table = loss_by_axis(record, rows_table(record))
    assert set(table.axis) == {RATE, "optim.weight_decay"}
    assert set(table[table.axis == RATE].line) == {"pre_ln, weight_decay 0", "pre_ln, weight_decay 0.1"}
    assert table[table.axis == "optim.weight_decay"].x.to_list() == [0.0, 0.1, 0.0, 0.1]


def test_how_the_workers_spent_their_time(study: optuna.Study) -> None:
    record = read(study)
    assert worker_time(record) is None  # no worker signed
    [name] = {trial["executions"][-1]["worker"] for trial in record.trials}
    workers = {name: {"start": "2026-01-01T00:00:00+00:00", "end": "2026-01-01T00:03:20+00:00", "machine": "m"},
               "other:1": {"start": "2026-01-01T00:00:00+00:00", "end": "2026-01-01T00:00:40+00:00", "machine": "m"}}
    record = replace(record, attrs={**record.attrs, "workers": workers})
    assert worker_time(record) == {
        "workers": 2, "lifetime": 240.0, "training": 96.0, "validation": 24.0, "share": 0.5}
    assert worker_time_sentence(record) == "workers: 2, together 4:00, of which 50% in training and validation steps"
    other = replace(record, attrs={**record.attrs, "workers": {"other:1": workers["other:1"]}})
    assert worker_time(other) is None  # the cells are none of its


def test_an_older_study_is_read_and_has_effects(study: optuna.Study, found: Findings, tmp_path: Path) -> None:
    old = stored(tmp_path, GRID, planted, name="old")
    old.set_user_attr("design", None)
    again = find(old)
    loss = [one.effects[one.effects.measure == "loss"] for one in (found, again)]
    pd.testing.assert_frame_equal(*loss)


def test_the_analysis_imports_neither_torch_nor_lightning() -> None:
    script = """
import sys
import ablations.analysis.changes, ablations.analysis.findings, ablations.analysis.worker_time
heavy = sorted({name.split(".")[0] for name in sys.modules} & {"torch", "lightning", "datasets", "tokenizers"})
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
