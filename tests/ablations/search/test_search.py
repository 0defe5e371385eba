"""`search`: equal budgets, sensible pruning, exact numbers of trials, and a comparison on fresh seeds."""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState
from rich.console import Console
from scipy.stats import t
from search_fits import (
    EVERY,
    OPTIMUM,
    STEPS,
    bowl,
    fit_bowl,
    fit_cliff,
    fit_failing,
    fit_killed,
    fit_late,
    fit_sinking,
    fit_stalling,
    template,
)
from test_cli import parsed
from test_run import prepare, wait_for

from ablations.__main__ import main
from ablations.analysis.intervals import Interval
from ablations.design.library import load_study
from ablations.design.plan import plan_study
from ablations.design.scales import SCALES
from ablations.design.space import grid, suggest_block
from ablations.engine import supervisor
from ablations.engine.queue import Queue
from ablations.engine.status import status
from ablations.engine.storage import StudyError, open_study, ours, state_of
from ablations.engine.worker import Job, train_cell
from ablations.search.document import show, write_all
from ablations.search.parameters import configure, gains, parameters
from ablations.search.policy import Tuning, rungs
from ablations.search.results import edges, read
from ablations.search.studies import SearchPlan, default_of, search_all
from ablations.search.verdicts import comparison, describe_difference, paired, remarks
from lit_simplified.config import PRESETS, ConfigError, RunConfig, from_dict

SHARED = ("learning_rate", "weight_decay", "warmup", "beta2", "clip")


def make_plan(folder: Path, *, config: RunConfig | None = None, **changes: Any) -> SearchPlan:
    given: dict[str, Any] = {"presets": ("pre_ln", "sas_p"), "trials": 8, "workers": 1, **changes}
    scale = replace(SCALES["smoke"], template=config or template())
    return SearchPlan(
        name="s", storage=str(folder / "journal.log"), folder=folder, scale=scale, **given
    )


def train_here(queue: Queue, jobs: Sequence[Job], *, fit: Any, console: Console) -> None:
    """Stands in for `supervisor.train`: a worker's loop in this process."""
    job = jobs[0]
    policy = job.search.policy(0) if job.search else {}
    own = Queue(open_study(job.storage, name=job.study, **policy), storage=job.storage, folder=job.folder,
                budget=queue.budget)
    while own.unfinished():
        claim = own.claim()
        assert claim is not None
        train_cell(own, claim, job=job, fit=fit)


def stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials in this process; without what makes them safe and slow."""
    monkeypatch.setattr(supervisor, "train", train_here)
    monkeypatch.setattr("ablations.engine.worker._free_memory", lambda: None)
    monkeypatch.setattr("os.fsync", lambda file: None)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    stay_here(monkeypatch)


def execute(plan: SearchPlan, fit: Any = fit_bowl) -> Any:
    with open(os.devnull, "w") as nowhere:
        search_all(plan, console=Console(file=nowhere), fit=fit, prepare=prepare)
    return read(plan.storage, name="s")


def drawn(found: Any, label: str = "pre_ln") -> list[dict[str, float]]:
    search = next(search for search in found.searches if search.label == label)
    return search.trials.drop(columns=["search", "cell", "seconds"]).to_dict("records")


# What is searched


@pytest.mark.parametrize("name", PRESETS)
def test_defaults_lie_in_the_ranges_and_give_the_named_block(name: str) -> None:
    base, block = template(), PRESETS[name]
    found = parameters(base, block)
    for parameter in found:
        assert parameter.default in parameter.values or parameter.low <= parameter.default <= parameter.high
    values = {parameter.name: parameter.default for parameter in found}
    assert configure(base, block, values) == replace(base, model=replace(base.model, block=block))


def test_only_parameters_that_a_block_has_are_asked_for() -> None:
    own = {"pre_ln": set(), "parallel": set(), "naive_skipless": set(), "v_skipinit": {"mlp_gain", "beta"},
           "sas": {"mlp_gain", "beta"}, "sas_p": {"mlp_gain", "beta"}, "sas_p_no_norm": {"mlp_gain", "beta"}}
    for name, more in own.items():
        assert set(gains(template(), PRESETS[name])) == more
        assert {parameter.name for parameter in parameters(template(), PRESETS[name])} == set(SHARED) | more
    bare = template(weight_decay=0.0, clip=None)  # what is switched off stays off
    assert {parameter.name for parameter in parameters(bare, PRESETS["pre_ln"])} == {"learning_rate", "warmup", "beta2"}


def test_values_reach_the_run_and_shaped_attention_starts_as_the_identity() -> None:
    values = {"learning_rate": 1e-3, "weight_decay": 0.5, "warmup": 0.3, "beta2": 0.95, "clip": 2.0, "mlp_gain": 0.3,
              "beta": 0.5}
    config = configure(template(), PRESETS["sas_p"], values)
    for name in SHARED:
        assert getattr(config.optim, name) == values[name]
    block = config.model.block
    assert (block.resolved_mlp_gain(2), block.resolved_beta, block.gamma) == (0.3, 0.5, 0.5)
    assert configure(template(), PRESETS["v_skipinit"], {"beta": 0.5}).model.block.gamma == 1.0


def test_rungs_of_the_pruners() -> None:
    assert rungs("hyperband", first=50, steps=250) == ((50, 150), (150,))
    assert rungs("halving", first=50, steps=250) == ((50, 150),)
    assert rungs("halving", first=10, steps=30) == ((10,),)  # the last step is none
    assert rungs("none", first=50, steps=250) == ()


def test_a_parameter_that_no_block_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--tune='mlp_gain'.*choose from learning_rate"):
        make_plan(tmp_path, presets=("pre_ln",), tune=("mlp_gain",))
    assert make_plan(tmp_path, presets=("pre_ln", "sas_p"), tune=("mlp_gain",)).tune == ("mlp_gain",)


# How it is searched


@pytest.mark.usefixtures("here")
def test_the_optimum_is_found_with_equal_budgets_and_the_defaults_come_first(tmp_path: Path) -> None:
    found = execute(make_plan(tmp_path, trials=40, final_seeds=0))
    assert [search.label for search in found.searches] == ["pre_ln", "sas_p"]
    for search in found.searches:
        assert len(search.trials) == 40
        first = search.trials.iloc[0]
        assert (first.cell, first.state) == (f"default-{search.label}", "complete")
        assert search.best_loss < 2.1 < search.default_loss
        assert abs(math.log10(search.best_values["learning_rate"] / OPTIMUM["learning_rate"])) < 0.2
    assert any("40 trials each" in line for line in remarks(found))
    assert any("sas_p has 2 more parameters to tune (mlp_gain, beta)" in line for line in remarks(found))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("pruner", ["hyperband", "halving"])
def test_runs_that_promise_little_are_given_up_early(tmp_path: Path, pruner: str) -> None:
    found = execute(make_plan(tmp_path, presets=("pre_ln",), trials=20, pruner=pruner, final_seeds=0))
    trials = found.searches[0].trials
    pruned, complete = trials[trials.state == "pruned"], trials[trials.state == "complete"]
    assert len(pruned) >= 5
    assert set(complete.steps) == {STEPS}
    assert set(pruned.steps) == {EVERY}
    assert found.searches[0].steps < 20 * STEPS * 0.85
    states = {state_of(trial): trial.state for trial in ours(found.searches[0].study.get_trials())}
    assert states == {"pruned": TrialState.PRUNED, "complete": TrialState.COMPLETE}


@pytest.mark.usefixtures("here")
def test_without_a_pruner_every_run_is_complete(tmp_path: Path) -> None:
    found = execute(make_plan(tmp_path, presets=("pre_ln",), pruner="none", final_seeds=0))
    assert found.searches[0].steps == 8 * STEPS


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("pruner", ["hyperband", "halving"])
def test_the_defaults_are_never_given_up_and_so_never_lost(tmp_path: Path, pruner: str) -> None:
    others = execute(make_plan(tmp_path, presets=("pre_ln",), trials=12, pruner=pruner, final_seeds=0), fit_late)
    search = others.searches[0]
    assert search.trials[search.trials.default].state.tolist() == ["complete"]
    assert (search.best_loss, search.default_loss) == (1.0, 1.0)


@pytest.mark.parametrize("pruner", ["hyperband", "halving"])
def test_the_defaults_are_spared_whenever_they_come(tmp_path: Path, pruner: str) -> None:
    tuning = make_plan(tmp_path, pruner=pruner).tuning("pre_ln")
    study = optuna.create_study(study_name="s", pruner=tuning.policy(0)["pruner"])
    given_up = {}  # by this name and numbers, all are in the first bracket of Hyperband
    for cell in ("trial-0000", "trial-0001", "default-pre_ln", "trial-0003"):
        trial = study.ask()
        trial.set_user_attr("cell", cell)
        trial.report(float(trial.number), EVERY)  # each is worse than those before
        given_up[cell] = trial.should_prune()
        study.tell(trial, state=TrialState.PRUNED)
    assert given_up == {"trial-0000": False, "trial-0001": True, "default-pre_ln": False, "trial-0003": True}


@pytest.mark.usefixtures("here")
def test_nothing_is_given_up_after_its_last_step(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, presets=("pre_ln",), trials=10, pruner="halving", final_seeds=0)
    trials = execute(plan, fit_sinking).searches[0].trials
    assert set(trials.state) == {"complete"}


@pytest.mark.usefixtures("here")
def test_a_search_that_was_cut_short_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    whole = drawn(execute(make_plan(tmp_path / "whole", trials=16, final_seeds=0)))
    for trials in (3, 9):
        execute(make_plan(tmp_path / "parts", trials=trials, final_seeds=0))
    assert drawn(execute(make_plan(tmp_path / "parts", trials=16, final_seeds=0))) == whole
    assert len({row["learning_rate"] for row in whole}) == 16
    other = drawn(execute(make_plan(tmp_path / "other", trials=16, final_seeds=0, sampler_seed=1)))
    assert other != whole
    assert other[0] == whole[0]  # the defaults


@pytest.mark.usefixtures("here")
def test_searches_with_one_seed_begin_with_the_same_values_of_what_they_share(tmp_path: Path) -> None:
    found = execute(make_plan(tmp_path, trials=3, final_seeds=0))
    left, right = (search.trials[list(SHARED)] for search in found.searches)
    pd.testing.assert_frame_equal(left, right)


@pytest.mark.usefixtures("here")
def test_a_diverged_run_counts_as_a_bad_one(tmp_path: Path) -> None:
    found = execute(make_plan(tmp_path, presets=("pre_ln",), trials=40, pruner="none", final_seeds=0), fit_cliff)
    search = found.searches[0]
    states = {state_of(trial): trial.state for trial in ours(search.study.get_trials())}
    assert states == {"diverged": TrialState.PRUNED, "complete": TrialState.COMPLETE}
    late = search.trials.iloc[20:]
    # 0.31 of the range of the learning rate is below the cliff: what a blind search would complete. A search that is
    # not told of diverged runs is drawn beyond the cliff, and completes less.
    assert (late.state == "complete").mean() > 0.4
    assert (search.trials[search.trials.state == "diverged"].steps == EVERY).all()


@pytest.mark.usefixtures("here")
def test_what_failed_is_tried_again_as_it_was(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, presets=("pre_ln",), trials=3, final_seeds=0)
    failed = execute(plan, fit_failing)
    assert failed.searches[0].best is None
    assert "no complete trial yet" in Path(write_all(failed, folder=tmp_path)[-1]).read_text()
    again = execute(plan, fit_bowl)
    names = ["cell", "learning_rate", "clip"]
    pd.testing.assert_frame_equal(failed.searches[0].trials[names], again.searches[0].trials[names])
    assert set(again.searches[0].trials.state) <= {"complete", "pruned"}


@pytest.mark.usefixtures("here")
def test_another_space_pruner_or_length_is_refused(tmp_path: Path) -> None:
    one = {"presets": ("pre_ln",), "trials": 2, "final_seeds": 0}
    execute(make_plan(tmp_path, **one))
    for changes in (
        {"pruner": "halving"}, {"tune": ("learning_rate",)}, {"config": template(steps=40)},
        {"config": template(learning_rate=1e-2)},
    ):
        with pytest.raises(StudyError, match="--study"):
            execute(make_plan(tmp_path, **{**one, **changes}))
    assert len(execute(make_plan(tmp_path, **{**one, "trials": 3, "sampler_seed": 5})).searches[0].trials) == 3


@pytest.mark.usefixtures("here")
def test_switches_are_searched_too_from_given_blocks_on(tmp_path: Path) -> None:
    found = execute(make_plan(tmp_path, presets=("pre_ln", "sas_p", "v_skipinit"), blocks=True, trials=25))
    [search] = found.searches
    assert search.trials.cell[:3].tolist()[:2] == ["default-pre_ln", "default-sas_p"]
    assert search.trials.default.sum() == 2  # v_skipinit is not in the grid
    assert search.trials.layout.nunique() == 2
    blocks = [from_dict(RunConfig, trial.user_attrs["config"]).model.block for trial in ours(search.study.get_trials())]
    for row, block in zip(search.trials.itertuples(), blocks, strict=True):
        assert (block.layout, block.attention) == (row.layout, row.attention)
        assert pd.isna(row.mlp_gain) == (block.resolved_mlp_gain(2) is None)
        assert pd.isna(row.beta) == (block.attention == "softmax")
    finals = found.finals
    assert set(finals.label) == {"blocks"}
    write_all(found, folder=tmp_path)
    assert parsed("--config", str(tmp_path / "best-blocks.yaml")).model.block == search.best.model.block


def test_the_search_over_blocks_knows_every_parameter_of_the_grid() -> None:
    tuning = Tuning(template=template(), block=None, budget=1)
    study = optuna.create_study()
    seen = set()
    for _ in range(60):
        trial = study.ask()
        config = tuning.sample(trial)
        assert suggest_block(trial) in grid()
        seen |= set(trial.params)
        assert config.optim.learning_rate == trial.params["learning_rate"]
    assert {"mlp_gain", "beta", "mlp_skip", "attention_skip", "norm"} <= seen


# Processes


@pytest.mark.slow
def test_three_workers_make_exactly_so_many_trials_though_one_is_killed(tmp_path: Path) -> None:
    found = execute(make_plan(tmp_path, presets=("pre_ln",), trials=14, workers=3, final_seeds=0), fit_killed)
    search = found.searches[0]
    assert len(search.trials) == search.trials.cell.nunique() == 14
    assert set(search.trials.state) <= {"complete", "pruned"}
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 15
    trials = ours(search.study.get_trials())
    [killed] = [trial for trial in trials if state_of(trial) == "killed"]
    [retried] = [trial for trial in trials if trial.user_attrs["cell"] == killed.user_attrs["cell"]
                 and trial.number != killed.number]
    assert retried.params == killed.params
    assert retried.user_attrs["executions"][0]["outcome"] == "killed"
    assert len({tuple(sorted(trial.params.items())) for trial in trials}) == 14


def search_apart(folder: str) -> None:
    """What the test below runs in a process of its own."""
    execute(make_plan(Path(folder), presets=("pre_ln",), trials=6, final_seeds=0), fit_stalling)


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    process = multiprocessing.get_context("spawn").Process(target=search_apart, args=(str(tmp_path),))
    process.start()
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) == 3, seconds=60)
    now = status(open_study(str(tmp_path / "journal.log"), name="s-pre_ln"))
    assert len(now.running) == 1
    process.kill()
    process.join()
    wait_for(lambda: not Path(f"/proc/{log.read_text().split()[-1]}/exe").exists())
    found = execute(make_plan(tmp_path, presets=("pre_ln",), trials=6, final_seeds=0), fit_stalling)
    assert len(found.searches[0].trials) == 6
    third = ours(found.searches[0].study.get_trials())[2]
    assert state_of(third) == "killed"
    assert len(log.read_text().splitlines()) == 7


# What comes out


@pytest.fixture
def searched(tmp_path: Path, here: None) -> Any:
    return execute(make_plan(tmp_path, trials=12, final_seeds=3))


def test_the_best_file_is_a_run_for_fit_with_the_trials_parameters(searched: Any, tmp_path: Path) -> None:
    write_all(searched, folder=tmp_path)
    for search in searched.searches:
        config = parsed("--config", str(tmp_path / f"best-{search.label}.yaml"))
        values = search.best_values
        for name in SHARED:
            assert getattr(config.optim, name) == values[name]
        assert bowl(config) + 1 / STEPS == search.best_loss
        assert (config.trainer.progress_bar, config.trainer.keep_checkpoint) == (True, True)
    block = parsed("--config", str(tmp_path / "best-sas_p.yaml")).model.block
    best = searched.searches[1].best_values
    assert block.resolved_mlp_gain(2) == best["mlp_gain"]
    assert block.resolved_beta == block.gamma == best["beta"]


def test_files_hold_every_trial_and_the_comparison(searched: Any, tmp_path: Path) -> None:
    written = write_all(searched, folder=tmp_path)
    assert all(path.exists() and path.stat().st_size for path in written)
    assert {path.name for path in written} == {
        "best-pre_ln.yaml", "best-sas_p.yaml", "trials.csv", "search.json", "search.md", "history.png",
        "importances.png", "learning_rate.png",
    }
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    assert [row["search"] for row in rows] == ["pre_ln"] * 12 + ["sas_p"] * 12
    values = json.loads((tmp_path / "search.json").read_text())
    assert [row["search"] for row in values["comparison"]] == ["pre_ln", "sas_p"]
    assert len(values["finals"]) == 12
    text = (tmp_path / "search.md").read_text()
    with open(tmp_path / "printed.txt", "w") as file:
        show(searched, console=Console(file=file, width=160))
    for line in remarks(searched):
        assert line in text
    assert "final runs, on fresh seeds" in (tmp_path / "printed.txt").read_text()


def test_final_runs_are_full_on_fresh_seeds_and_paired(searched: Any) -> None:
    finals = searched.finals
    assert set(finals.seed) == {1, 2, 3}
    assert set(finals.state) == {"complete"}
    study = open_study(searched.searches[0].study._storage._backend.path.as_posix(), name="s-final")
    for trial in ours(study.get_trials()):
        assert trial.user_attrs["result"]["steps"] == STEPS
    row = comparison(searched).set_index("search").loc["sas_p"]
    expected = searched.searches[1].best_loss - searched.searches[0].best_loss
    assert row.tuned_difference == pytest.approx(expected)  # the fake loss adds the same to both for a seed
    assert row.tuned_std == pytest.approx(0.1)
    assert row.tuned_difference_high - row.tuned_difference_low == pytest.approx(0, abs=1e-9)
    assert row.gain < 0
    told = [line for line in remarks(searched) if line.startswith("Tuned, sas_p is ")]
    assert len(told) == 1


def test_an_interval_around_nothing_is_not_called_level() -> None:
    assert "not distinguishable" in describe_difference(Interval(-0.05, -0.2, 0.1))
    assert describe_difference(Interval(-0.05, -0.06, -0.04)).startswith("better")
    assert describe_difference(Interval(0.05, 0.04, 0.06)).startswith("worse")


def test_pairs_are_made_by_seed_with_a_t_interval() -> None:
    left, right = pd.Series({1: 2.0, 2: 2.5, 3: 2.1, 4: 9.0}), pd.Series({3: 2.0, 1: 1.7, 2: 2.0, 5: 1.0})
    interval = paired(left, right)
    differences = [0.3, 0.5, 0.1]
    reach = t.ppf(0.975, 2) * pd.Series(differences).std() / math.sqrt(3)
    assert interval.estimate == pytest.approx(0.3)
    assert (interval.low, interval.high) == (pytest.approx(0.3 - reach), pytest.approx(0.3 + reach))


@pytest.mark.usefixtures("here")
def test_a_longer_search_trains_its_new_best_and_nothing_twice(tmp_path: Path) -> None:
    execute(make_plan(tmp_path, presets=("pre_ln",), trials=1, final_seeds=2))
    finals = read(str(tmp_path / "journal.log"), name="s").finals
    assert len(finals) == 4
    assert finals.cell.nunique() == 2  # the best are the defaults
    found = execute(make_plan(tmp_path, presets=("pre_ln",), trials=12, final_seeds=2))
    assert found.finals.cell.nunique() == 4
    assert comparison(found).iloc[0].gain < 0
    assert len(ours(open_study(str(tmp_path / "journal.log"), name="s-final").get_trials())) == 4


@pytest.mark.usefixtures("here")
def test_unequal_numbers_of_trials_are_told(tmp_path: Path) -> None:
    execute(make_plan(tmp_path, presets=("pre_ln",), trials=3, final_seeds=0))
    found = execute(make_plan(tmp_path, presets=("sas_p",), trials=5, final_seeds=1))
    told = remarks(found)
    assert any(line.startswith("NOT equal: the number of trials (pre_ln 3, sas_p 5)") for line in told)
    assert any("one seed: no interval" in line for line in told)


@pytest.mark.usefixtures("here")
def test_a_best_value_at_the_end_of_its_range_is_told(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, config=template(learning_rate=2e-3), presets=("pre_ln",), trials=25, final_seeds=0,
                     tune=("learning_rate",))  # up to 1e-2; the optimum is just below
    found = execute(plan)
    assert edges(found.searches[0]) == ("learning_rate",)
    assert any("in the best trial of pre_ln: learning_rate." in line for line in remarks(found))


def test_a_name_without_searches_says_what_there_is(searched: Any, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="Studies there: s-pre_ln, s-sas_p, s-final"):
        read(str(tmp_path / "journal.log"), name="t")


def test_a_dry_run_prints_space_and_budget_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["search", "--scale", "smoke", "--study", "s", "--storage", str(out / "journal.log"), "--out", str(out),
                 "--dry-run", "--trials", "6"]) == 0
    printed = capsys.readouterr().out
    assert "study s-sas_p: 6 trials of up to 20 steps, pruned at 10 (hyperband); 7 parameters" in printed
    assert "at most 240 steps in 12 trials" in printed
    assert "then 12 final runs" in printed
    assert not out.exists()


@pytest.mark.slow
def test_a_real_search_from_the_command_line(tmp_path: Path) -> None:
    where = ["--scale", "smoke", "--study", "s", "--storage", str(tmp_path / "journal.log"), "--out", str(tmp_path)]
    command = ["search", *where, "--trials", "3", "--workers", "1", "--final-seeds", "1", "--set",
               "trainer.accelerator=cpu", "data.val_windows=8", "data.test_windows=8"]
    assert main(command) == 0
    found = read(str(tmp_path / "journal.log"), name="s")
    assert [len(search.trials) for search in found.searches] == [3, 3]
    assert all(search.default_loss >= search.best_loss for search in found.searches)
    assert set(found.finals.state) == {"complete"}
    file = tmp_path / "best-sas_p.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "lit_simplified", "fit", "--config", str(file), "--out_dir", str(tmp_path / "again"),
         "--trainer.progress_bar", "false"], capture_output=True, text=True, cwd=Path(__file__).parents[3], check=True,
    )
    best = found.searches[1].best_loss
    assert f"validation loss {best:.4f}" in done.stdout


# Any study


def test_the_rows_of_a_study_are_tuned_each_around_its_own_defaults(tmp_path: Path, here: None) -> None:
    keys = {"compare": {"model.block.norm": ["rms", "none"], "model.depth": [1, 2]}, "baseline": {"block": "sas_p"}}
    smoke = replace(SCALES["smoke"], template=template())
    plan = make_plan(tmp_path, presets=(), question=plan_study(load_study(keys), scale=smoke), trials=3, final_seeds=1)
    assert plan.labels == ("sas_p_depth_1", "sas_p_depth_2", "sas_p_no_norm_depth_1", "sas_p_no_norm_depth_2")
    found = execute(plan)
    assert [search.label for search in found.searches] == list(plan.labels)
    assert [(search.best.model.depth, search.best.model.block.norm) for search in found.searches] == [
        (1, "rms"), (2, "rms"), (1, "none"), (2, "none"),
    ]
    finals = found.finals[found.finals.settings == "default"]
    assert set(finals.label) == set(plan.labels)
    for search in found.searches:
        default = default_of(search)
        assert default.model == plan.subjects[search.label].model
