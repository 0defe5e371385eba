"""A study with a screening: what tells of all rows comes from it, what judges comes from the rows that went on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState, create_trial
from synthetic import plan_of, record_of, stored

from ablations.__main__ import _steps
from ablations.analysis.budgets import budgets
from ablations.analysis.findings import find, of_record
from ablations.analysis.tables import read, rows_table
from ablations.design.cells import StudyPlan
from ablations.design.scales import scale
from ablations.design.stages import FIRST_SEED, Screen, Select
from ablations.engine.estimate import from_history
from ablations.engine.run import StudyRun
from ablations.engine.status import status
from ablations.engine.storage import StudyError, stage_of
from ablations.report.conditions import fixed, screening, states
from ablations.report.html.page import render
from ablations.report.summary import compose, summarise
from lit_simplified.config import RunConfig

NORMS, ACTIVATIONS, RATES = ("rms", "layer", "none"), ("relu", "gelu", "leaky_relu"), (5e-3, 1e-2)
COMPARE = {"model.block.norm": list(NORMS), "model.block.activation": list(ACTIVATIONS)}
N_ROWS = 9
SHORT = 25


def planned(**keys: Any) -> StudyPlan:
    return plan_of({"compare": COMPARE, "tune": {"optim.learning_rate": list(RATES)}}, select=1, seeds=2,
                   screen=Screen(SHORT / 250, 1), **keys)


def loss(config: RunConfig) -> Any:
    """While screened, the norm is worth 0.3 a level and the activation 0.1; in the end the other way round. Without
    norms the last activation diverges."""
    block = config.model.block
    norm, activation = NORMS.index(block.norm), ACTIVATIONS.index(block.activation)
    if (norm, activation) == (2, 2):
        return "diverged"
    short = config.optim.steps == SHORT
    costs = (0.3, 0.1) if short else (0.1, 0.3)
    return (5.0 if short else 4.0) + costs[0] * norm + costs[1] * activation + config.optim.learning_rate + \
        config.seed / 1e5


def test_effects_and_training_come_from_the_screening_and_rows_from_what_went_on() -> None:
    found = of_record(record_of(planned(), loss))
    assert len(found.screening) == N_ROWS
    assert set(found.screening[found.screening.kept].row) == set(found.rows.row)
    assert len(found.rows) < N_ROWS
    assert found.rows.val_loss_mean.min() == pytest.approx(4.005, abs=1e-4)
    assert set(found.rows.n_seeds) == {2}
    main = found.effects[(found.effects.kind == "main") & (found.effects.measure == "loss")].set_index("change")
    assert main.estimate["rms -> layer"] == pytest.approx(0.3)
    assert main.estimate["relu -> gelu"] == pytest.approx(0.1)
    without = found.training[(found.training.term == "norm") & (found.training.level == "none")].iloc[0]
    assert (without.n_rows, without.n_train, without.n_diverged) == (3, 2, 1)
    assert dict(found.screening.set_index("row").learning_rate.value_counts()) == {5e-3: N_ROWS}


def test_a_study_without_one_has_none() -> None:
    record = record_of(plan_of({"compare": COMPARE}, seeds=2), loss)
    found = of_record(record)
    assert record.whole is record
    assert found.screening.empty
    assert len(found.rows) == N_ROWS


def test_the_record_keeps_the_stages_apart(tmp_path: Path) -> None:
    plan = planned()
    record = read(stored(tmp_path, plan, loss))
    assert len(record.screening) == N_ROWS * len(RATES)
    assert set(record.screening.seed) == {FIRST_SEED}
    assert {*record.choosing.row} == {*record.cells.row} == set(rows_table(record).row)
    assert len(record.every) == len(record.trials) == len(plan.likely())
    assert states(record) == f"{len(record.every) - 2} complete, 2 diverged"
    facts = dict(fixed(record))
    assert facts["screening"].startswith(f"{N_ROWS} rows, trained for 0.1 of the steps")
    known = replace(record, attrs={**record.attrs, "spec": {**record.attrs["spec"], "optim": {"steps": 250}}})
    assert f"0.1 of the steps ({SHORT}) on" in screening(known)
    assert facts["screening"].endswith(f"on seed {FIRST_SEED} at 0.005, 0.01, each shown at its best")


def test_a_screening_that_chooses_is_counted_once_and_tells_of_every_value() -> None:
    plan = plan_of({"compare": COMPARE, "tune": {"optim.learning_rate": list(RATES)}}, select=Select(1, SHORT / 250),
                   seeds=2, screen=Screen(SHORT / 250, 1, {"optim.learning_rate": ("0.005",)}))
    record = record_of(plan, loss)
    kept = set(record.cells.row)
    assert len(record.screening) == N_ROWS
    assert record.choosing.groupby("row").tuned.nunique().to_dict() == dict.fromkeys(kept, 2)
    assert len(record.every) == N_ROWS + len(kept) + 2 * len(kept) == len(set(record.every.cell))
    assert len(record.runs_of(next(iter(kept)))) == 2 + 2
    at_budget = budgets(record, rows_table(record)).groupby("stage").size()
    assert dict(at_budget) == {"judge": len(kept), "select": len(kept)}


def test_the_time_that_is_left_counts_cells_by_their_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Screened in ten seconds each at a tenth of the steps; those that choose have two fifths."""
    monkeypatch.setattr("ablations.engine.status._seconds", lambda execution: 10.0)
    plan = plan_of({"compare": COMPARE, "tune": {"optim.learning_rate": list(RATES)}}, select=Select(1, 0.4), seeds=2,
                   screen=Screen(SHORT / 250, 1))
    study = stored(tmp_path, plan, loss, stages=1)
    now = status(study)
    assert now.counts["waiting"] > 0
    assert now.done == N_ROWS * len(RATES)
    assert now.seconds_left == pytest.approx(100 * 0.4 * now.counts["waiting"])
    day = {"start": "2026-01-01T00:00:00+00:00", "end": "2026-01-01T00:00:10+00:00"}
    trials = [create_trial(state=TrialState.COMPLETE, value=4.0, user_attrs={
        "cell": f"a-{stage}", "row": "a", "stage": stage, "state": "complete", "executions": [day]})
        for stage in ("screen", "select", "judge")]
    known = from_history(trials, design=plan.design)
    assert known is not None
    assert known.seconds["a"] == pytest.approx((100 + 25 + 10) / 3)


def test_a_dry_run_says_the_steps_of_every_stage(tmp_path: Path) -> None:
    run = StudyRun(study="s", storage="", folder=tmp_path, scale=scale("small"), plan=planned())
    assert _steps(run, run.plan.likely()) == f"steps: {SHORT} to screen, 250 to select, 250 to judge"
    plain = replace(run, plan=plan_of({"compare": COMPARE}))
    assert _steps(plain, plain.plan.likely()) == "250 steps each"


def test_a_stage_of_another_version_is_not_dropped() -> None:
    trial = create_trial(state=TrialState.WAITING, user_attrs={"cell": "a-s0", "stage": "polish"})
    with pytest.raises(StudyError, match="cell a-s0: stage='polish', where this version knows screen, select"):
        stage_of(trial)


def test_the_reports_show_every_row_and_which_went_on(tmp_path: Path) -> None:
    study = stored(tmp_path, planned(), loss)
    found, paths = summarise(study, folder=tmp_path)
    assert tmp_path / "screening.csv" in paths
    text = compose(find(study), plots=[])
    table = text.partition("## Screening")[2].partition("##")[0]
    assert len([line for line in table.splitlines() if line.startswith("|")]) == N_ROWS + 2
    assert table.count("| yes") == len(found.rows)
    page = render(study)
    section = page.partition('id="screening"')[2].partition("</section>")[0]
    assert section.count("<tr>") == N_ROWS + 1
    assert page.count('data-label="state" class="state-screened"') == N_ROWS - len(found.rows)
