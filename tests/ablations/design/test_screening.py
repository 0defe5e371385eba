"""Rows that are screened: which cells a study asks for, stage by stage, and what a scale has otherwise."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablations.design.cells import Cell, StudyPlan
from ablations.design.config import parse_study, read_study, write_study
from ablations.design.design import from_plain, merge, to_plain
from ablations.design.plan import plan_study
from ablations.design.scales import scale
from ablations.design.selection import Outcome, survivors
from ablations.design.stages import EXTEND, FIRST_SEED, JUDGE, SCREEN, SELECT, Screen, Select
from ablations.study import Options, plan_run
from lit_simplified.config import PRESETS, ConfigError, preset_of

RATE = "optim.learning_rate"
NORMS = {"compare": {"model.block.norm": ["rms", "layer", "none"],
                     "model.block.activation": ["relu", "gelu", "leaky_relu"]}}
STAGED = {**NORMS, "tune": {RATE: [5e-3, 1e-2, 2e-2]}, "seeds": 3, "select": {"seeds": 2, "share": 0.4},
          "screen": {"share": 0.1, "keep": 2}}


def planned(**keys: Any) -> StudyPlan:
    return plan_study(parse_study(keys), scale=scale("small"))


def loss(cell: Cell) -> Outcome:
    """Best at 0.01; relu before gelu before leaky_relu; without norms nothing trains while it is screened."""
    block = cell.config.model.block
    if block.norm == "none" and cell.stage == SCREEN:
        return Outcome("collapsed", 5.98)
    worse = ("relu", "gelu", "leaky_relu").index(block.activation) / 10
    return Outcome("complete", 4 + abs(math.log(cell.config.optim.learning_rate / 0.01)) + worse)


def train(plan: StudyPlan) -> list[list[Cell]]:
    """All cells, round by round."""
    ended: dict[str, Outcome] = {}
    rounds: list[list[Cell]] = []
    while new := [cell for cell in plan.cells(ended) if cell.id not in ended]:
        ended.update({cell.id: loss(cell) for cell in new})
        rounds.append(new)
    return rounds


def test_all_rows_are_screened_and_the_best_go_on() -> None:
    plan = planned(**STAGED)
    screened, selected, judged = train(plan)
    assert {cell.stage for cell in screened} == {SCREEN}
    assert Counter(cell.row for cell in screened) == dict.fromkeys(plan.rows, 3)
    assert {cell.seed for cell in screened} == {FIRST_SEED}
    kept = {cell.row for cell in selected}
    named = {row.id for row in plan.design.rows if row.preset}
    assert named < kept
    assert len(kept) == len(named) + 2
    others = {plan.rows[row].model.block.norm for row in kept - named}
    assert "none" not in others  # none of these trained
    assert Counter((cell.stage, cell.seed) for cell in selected) == {
        (SELECT, seed): 3 * len(kept) for seed in (FIRST_SEED, FIRST_SEED + 1)}
    assert Counter((cell.stage, cell.seed) for cell in judged) == {(JUDGE, seed): len(kept) for seed in range(3)}
    assert {cell.config.optim.learning_rate for cell in judged} == {1e-2}


def test_each_stage_has_its_share_of_the_steps_on_a_schedule_of_its_own() -> None:
    rounds = train(planned(**STAGED))
    assert [{cell.config.optim.steps for cell in cells} for cells in rounds] == [{25}, {100}, {250}]
    assert [{cell.config.trainer.val_every for cell in cells} for cells in rounds] == [{25}, {100}, {50}]
    ids = [cell.id for cells in rounds for cell in cells]
    assert len(set(ids)) == len(ids)


def test_shares_are_of_the_steps_that_a_row_has() -> None:
    plan = planned(compare={"optim.steps": [100, 1000, 2000]}, screen={"share": 0.1, "keep": 1},
                   tune={RATE: [5e-3, 1e-2]})
    assert Counter(cell.config.optim.steps for cell in plan.cells()) == {10: 2, 100: 2, 200: 2}
    assert plan.design.in_any_case == {plan.design.baseline}  # named, but for its steps


def test_few_tuned_values_can_be_screened() -> None:
    plan = planned(**{**STAGED, "screen": {"share": 0.1, "keep": 2, "tune": {RATE: [5e-3, 2e-2]}}})
    screened, selected, _ = train(plan)
    assert {cell.config.optim.learning_rate for cell in screened} == {5e-3, 2e-2}
    assert {cell.config.optim.learning_rate for cell in selected} == {5e-3, 1e-2, 2e-2}
    with pytest.raises(ConfigError, match=r"optim.learning_rate='0\.3': the axis has no such level"):
        planned(**{**STAGED, "screen": {"share": 0.1, "keep": 2, "tune": {RATE: [0.3]}}})
    with pytest.raises(ConfigError, match=r"screen: tune.*the study tunes optim.learning_rate"):
        planned(**{**STAGED, "screen": {"share": 0.1, "keep": 2, "tune": {"optim.warmup": [0.3]}}})


def test_nothing_is_screened_where_every_row_goes_on() -> None:
    plan = planned(**{**STAGED, "screen": {"share": 0.1, "keep": 9}})
    assert not plan.screened
    assert {cell.stage for cell in plan.cells()} == {SELECT}
    named = planned(compare={"block": list(PRESETS)}, screen={"share": 0.1, "keep": 0}, seeds=2)
    assert {cell.stage for cell in named.cells()} == {JUDGE}


def test_rows_are_screened_where_nothing_is_tuned() -> None:
    screened, judged = train(planned(**NORMS, screen={"share": 0.1, "keep": 2}, seeds=2))
    assert {cell.stage for cell in screened} == {SCREEN}
    assert {cell.seed for cell in judged} == {0, 1}


def test_rows_of_claims_go_on_whatever_their_loss() -> None:
    worst = {"model.block.norm": "none", "model.block.activation": "leaky_relu"}
    claim = {"left": worst, "is": "worse", "right": {"model.block.norm": "rms", "model.block.activation": "relu"}}
    plan = planned(**{**STAGED, "claims": [claim]})
    judged = {(plan.rows[cell.row].model.block.norm, plan.rows[cell.row].model.block.activation)
              for cell in train(plan)[-1]}
    assert ("none", "leaky_relu") in judged


def test_survivors_are_those_that_trained() -> None:
    losses = {"a": 4.0, "b": math.inf, "c": 3.0, "d": 3.5, "e": math.inf}
    assert survivors(losses, always={"b"}, keep=2) == ["b", "c", "d"]
    assert survivors(losses, always=(), keep=9) == ["a", "c", "d"]
    assert survivors(losses, always=("e",), keep=0) == ["e"]


def test_as_many_cells_are_expected_as_are_trained() -> None:
    plan = planned(**STAGED)
    assert len(plan.likely()) == sum(map(len, train(plan)))


@pytest.mark.parametrize(("key", "value", "problem"), [
    ("screen", {"share": 0.1}, "give the share of the steps"),
    ("screen", {"share": 0, "keep": 2}, "screen: share.*above 0, up to 1"),
    ("screen", {"share": 1.5, "keep": 2}, "screen: share.*above 0, up to 1"),
    ("screen", {"share": True, "keep": 2}, "screen: share.*above 0, up to 1"),
    ("screen", {"share": 0.1, "keep": -1}, "screen: keep.*from 0 on"),
    ("screen", {"share": 0.1, "kep": 1}, "did you mean keep"),
    ("screen", 0.1, "give a mapping"),
    ("select", {"seeds": 0, "share": 0.1}, "select: seeds.*from 1 on"),
    ("select", {"sahre": 0.1}, "did you mean share"),
    ("extend", {"times": 1}, "extend: times.*above 1"),
    ("extend", {"seeds": 0}, "extend: seeds.*from 1 on"),
    ("extend", {"tims": 2}, "did you mean times"),
    ("at", {"smal": {}}, "did you mean small"),
    ("at", {"small": {"claims": []}}, "no such key. The keys are set, tune, screen, select, seeds, extend"),
    ("at", {"small": {"set": {"optim.stepz": 3}}}, "at: small: set"),
])
def test_mistakes_name_key_value_and_remedy(key: str, value: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_study({**NORMS, key: value})


def test_seeds_that_screen_cannot_judge() -> None:
    with pytest.raises(ConfigError, match=r"seeds.*1000.*these screen rows"):
        planned(**NORMS, screen={"share": 0.1, "keep": 2}, seeds=[0, FIRST_SEED])


def test_stages_are_kept_with_the_design_and_may_not_change() -> None:
    design = planned(**{**STAGED, "screen": {"share": 0.1, "keep": 2, "tune": {RATE: [5e-3]}}}).design
    assert from_plain(to_plain(design)) == design
    old = {key: value for key, value in to_plain(design).items() if key not in ("screen", "select_share")}
    assert (from_plain(old).screen, from_plain(old).select_share) == (None, 1.0)
    for keys, problem in (({"screen": {"share": 0.2, "keep": 2}}, "screened its rows at a share of 0.1"),
                          ({"select": {"seeds": 2, "share": 0.5}}, "chosen its tuned values at a share of 0.4"),
                          ({"select": {"seeds": 1, "share": 0.4}}, "chosen its tuned values on 2 seeds")):
        with pytest.raises(ConfigError, match=problem):
            merge(design, planned(**{**STAGED, **keys}).design)
    assert merge(design, planned(**{**STAGED, "screen": None}).design).screen == design.screen


def test_stages_are_kept_in_the_file(tmp_path: Path) -> None:
    study = parse_study({**STAGED, "at": {"smoke": {"screen": None, "select": 3, "set": {"optim.steps": 2}}}})
    path = tmp_path / "study.yaml"
    path.write_text(write_study(study))
    assert read_study(path) == replace(study, name="study")


def test_a_scale_has_its_own_stages() -> None:
    study = parse_study({**STAGED, "set": {"optim.steps": 500, "optim.warmup": 0.3}, "at": {
        "smoke": {"screen": None, "tune": {}, "set": {"optim.steps": 2}}, "base": {"select": 3}}})
    smoke, small, base = (study.at_scale(name) for name in ("smoke", "small", "base"))
    assert (smoke.screen, smoke.tune, smoke.set) == (None, {}, {"optim.steps": 2, "optim.warmup": 0.3})
    assert (small.screen, small.select) == (Screen(0.1, 2), Select(2, 0.4))
    assert (base.screen, base.select) == (Screen(0.1, 2), Select(3))
    assert not plan_study(study, scale=scale("smoke")).screened


def test_flags_have_the_last_word(tmp_path: Path) -> None:
    keys = {**STAGED, "at": {"smoke": {"set": {"optim.steps": 40}, "tune": {RATE: [5e-3, 1e-2]},
                                       "screen": {"share": 0.5, "keep": 0, "tune": {RATE: [5e-3]}}}}}
    plan = plan_run(Options(study=keys, name="s", out=tmp_path, scale="smoke", learning_rates=[1e-3, 2e-3, 4e-3],
                            assignments=["optim.steps=60"], select=3)).plan
    assert {cell.config.optim.learning_rate for cell in plan.cells()} == {1e-3, 2e-3, 4e-3}
    assert {cell.config.optim.steps for cell in plan.cells()} == {30}
    assert len(plan.design.selects) == 3


def test_named_blocks_in_place_of_a_study_are_not_screened(tmp_path: Path) -> None:
    plan = plan_run(Options(study={**STAGED}, name="s", out=tmp_path, scale="smoke", presets=["pre_ln", "sas"])).plan
    assert not plan.screened
    assert {preset_of(config.model.block) for config in plan.rows.values()} == {"pre_ln", "sas"}


def test_a_run_that_screened_a_row_is_not_repeated_to_choose() -> None:
    """If it is as long; the other tuned values and seeds are trained."""
    plan = planned(**{**STAGED, "select": {"seeds": 2, "share": 0.1},
                      "screen": {"share": 0.1, "keep": 2, "tune": {RATE: [5e-3, 1e-2]}}})
    screened, selected, judged = train(plan)
    kept = {cell.row for cell in judged}
    assert {(cell.seed, cell.config.optim.learning_rate) for cell in screened} == {(1000, 5e-3), (1000, 1e-2)}
    assert Counter((cell.seed, cell.config.optim.learning_rate) for cell in selected) == dict.fromkeys(
        [(1000, 2e-2), (1001, 5e-3), (1001, 1e-2), (1001, 2e-2)], len(kept))
    assert {cell.config.optim.learning_rate for cell in judged} == {1e-2}


def test_where_the_seeds_that_judge_choose_rows_are_extended_at_what_these_find_best() -> None:
    claim = {"left": {"model.block.activation": "gelu"}, "is": "worse", "right": {"model.block.activation": "relu"}}
    plan = planned(**{**STAGED, "claims": [claim], "select": 0, "screen": None, "extend": {"times": 2}})
    judged, extended = train(plan)
    assert Counter(cell.config.optim.learning_rate for cell in judged) == dict.fromkeys([5e-3, 1e-2, 2e-2], 9 * 3)
    assert [(cell.stage, cell.config.optim.learning_rate) for cell in extended] == [(EXTEND, 1e-2)] * 2


def test_rows_are_extended_when_the_last_look_is_over() -> None:
    claim = {"left": {"model.block.activation": "gelu"}, "is": "worse", "right": {"model.block.activation": "relu"}}
    plan = planned(**{**STAGED, "claims": [claim], "seeds": {"looks": [2, 4]}, "extend": {"times": 2}})
    rounds = train(plan)
    assert [{cell.stage for cell in cells} for cells in rounds] == [{SCREEN}, {SELECT}, {JUDGE}, {EXTEND}]  # settled
    assert {cell.config.optim.steps for cell in rounds[-1]} == {500}
    assert len({cell.row for cell in rounds[-1]}) == 2

    def noisy(cell: Cell) -> Outcome:
        found = loss(cell)
        gelu = cell.config.model.block.activation == "gelu"
        return replace(found, loss=found.loss + (cell.seed % 2 if gelu else 0.0)) if cell.stage == JUDGE else found

    ended: dict[str, Outcome] = {}
    stages = []
    while new := [cell for cell in plan.cells(ended) if cell.id not in ended]:
        ended.update({cell.id: noisy(cell) for cell in new})
        stages.append({cell.stage for cell in new})
    assert stages == [{SCREEN}, {SELECT}, {JUDGE}, {JUDGE}, {EXTEND}]
