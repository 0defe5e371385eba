"""Tuned values that are chosen on seeds of their own: what is shown comes from the seeds that judge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from synthetic import plan_of, record_of, stored

from ablations.analysis.claims import HOLDS, UNKNOWN, verdicts
from ablations.analysis.curves import loss_by_axis
from ablations.analysis.effects import effects
from ablations.analysis.rates import sensitivity
from ablations.analysis.tables import read, rows_table, tuned_table
from ablations.analysis.worker_time import worker_time
from ablations.design.cells import StudyPlan
from ablations.design.stages import FIRST_SEED
from ablations.report.conditions import fixed, states
from lit_simplified.config import RunConfig, preset_of

RATES = [2.5e-3, 5e-3, 1e-2, 2e-2]
CLAIM = {"left": "sas", "is": "better", "right": "pre_ln"}


def planned(**keys: Any) -> StudyPlan:
    study = {"compare": {"block": ["pre_ln", "sas"]}, "tune": {"optim.learning_rate": RATES}, "claims": [CLAIM]}
    return plan_of(study, select=1, seeds=3, **keys)


def loss(config: RunConfig) -> Any:
    """The seed that chooses finds sas best at 1e-2 and pre_ln at 5e-3; those that judge would have chosen otherwise."""
    rate, sas = config.optim.learning_rate, preset_of(config.model.block) == "sas"
    if config.seed >= FIRST_SEED:
        return 4.0 + abs(rate - (1e-2 if sas else 5e-3)) * 10
    return 4.0 + 0.1 * sas + config.seed / 100 + (0.001 * config.seed if sas else 0) - rate


def test_rows_are_shown_at_the_chosen_value_by_the_judging_seeds() -> None:
    record = record_of(planned(), loss)
    rows = rows_table(record).set_index("label")
    assert dict(rows.learning_rate) == {"pre_ln": 5e-3, "sas": 1e-2}
    assert set(rows.n_seeds) == {3}
    assert rows.val_loss_mean["pre_ln"] == pytest.approx(4.01 - 5e-3)
    assert len(record.cells) == 2 * 3
    assert set(record.choosing.seed) == {FIRST_SEED}
    assert list(tuned_table(record).n_seeds) == [1] * 2 * len(RATES)
    assert dict(sensitivity(record).set_index("label").best) == {"pre_ln": 5e-3, "sas": 1e-2}
    assert ("tuned values", f"chosen on seed {FIRST_SEED}, which judges nothing") in fixed(record)
    assert states(record) == f"{6 + 2 * len(RATES)} complete"  # all that was trained is counted


def test_curves_along_the_tuned_axis_and_its_edge_are_those_of_the_seed_that_chooses() -> None:
    record = record_of(planned(), loss)
    along = loss_by_axis(record, rows_table(record))
    assert [list(own.x) for _, own in along.groupby("line")] == [RATES, RATES]
    assert set(along.n_seeds) == {1}

    def rising(config: RunConfig) -> float:
        """pre_ln is the better, the higher the rate, on the seed that chooses."""
        gains = preset_of(config.model.block) == "pre_ln" and config.seed >= FIRST_SEED
        return 5.0 - 50 * config.optim.learning_rate if gains else 4.0 + config.seed / 100 + 0.1 * (
            preset_of(config.model.block) == "pre_ln")

    record = record_of(planned(), rising)
    [verdict] = verdicts(record, rows_table(record)).itertuples()
    assert (verdict.verdict, verdict.why.partition(" at the")[0]) == (UNKNOWN, "pre_ln is still gaining")


def test_effects_take_each_row_at_its_own_value() -> None:
    record = record_of(planned(), loss)
    [effect] = [row for row in effects(record, rows_table(record)).itertuples() if row.measure == "loss"]
    assert effect.estimate == pytest.approx(0.1 - 5e-3 + 0.001)
    assert (effect.n_rows, effect.n_seeds) == (2, 3)


def test_a_value_at_which_a_judging_seed_is_lost_gives_way() -> None:
    def unstable(config: RunConfig) -> Any:
        lost = config.optim.learning_rate == 1e-2 and config.seed == 2 and preset_of(config.model.block) == "sas"
        return "diverged" if lost else loss(config) - 0.3 * (preset_of(config.model.block) == "sas")

    record = record_of(planned(), unstable)
    rows = rows_table(record).set_index("label")
    assert rows.learning_rate["sas"] == 5e-3
    assert rows.n_seeds["sas"] == 3
    [verdict] = verdicts(record, rows_table(record)).itertuples()
    assert (verdict.verdict, verdict.n_seeds) == (HOLDS, 3)  # better even at the value that trains


def test_a_value_that_was_judged_before_the_axis_was_extended_is_not_shown() -> None:
    """Of two values with judging seeds the chosen one stands, and not the one that these find better."""
    record = record_of(planned(), loss)
    sas = record.cells[record.cells.label == "sas"]
    other = sas.assign(tuned="0.02", learning_rate=2e-2, val_loss=sas.val_loss - 1)
    more = replace(record, cells=pd.concat([record.cells, other], ignore_index=True))
    assert dict(rows_table(more).set_index("label").learning_rate) == {"pre_ln": 5e-3, "sas": 1e-2}
    not_yet = replace(record, cells=pd.concat([record.cells[record.cells.label != "sas"], other], ignore_index=True))
    assert dict(rows_table(not_yet).set_index("label").learning_rate) == {"pre_ln": 5e-3, "sas": 2e-2}


def test_the_record_tells_them_apart(tmp_path: Path) -> None:
    record = read(stored(tmp_path, planned(), loss))
    assert sorted(record.cells.seed.unique()) == [0, 1, 2]
    assert set(record.choosing.seed) == {FIRST_SEED}
    assert len(record.trials) == len(record.cells) + len(record.choosing) == 6 + 2 * len(RATES)
    assert dict(rows_table(record).set_index("label").learning_rate) == {"pre_ln": 5e-3, "sas": 1e-2}
    day = {"start": "2026-01-01T00:00:00+00:00", "end": "2026-01-02T00:00:00+00:00"}
    workers = {trial["executions"][-1]["worker"]: day for trial in record.trials}
    spent = worker_time(replace(record, attrs={**record.attrs, "workers": workers}))
    assert spent is not None
    assert spent["training"] == 2.0 * len(record.trials)


def test_where_seeds_judge_and_choose_the_study_says_so() -> None:
    record = record_of(plan_of({"compare": {"block": ["sas"]}, "tune": {"optim.learning_rate": RATES}}, seeds=2), loss)
    assert ("tuned values", "chosen on the seeds that judge, which flatters every row") in fixed(record)
