"""Loss against tokens, and verdicts that more of them would turn."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from synthetic import card, plan_of, record_of

from ablations.analysis.budgets import Gap, budgets, earlier, extended, stands, turned
from ablations.analysis.claims import HOLDS, UNKNOWN, verdicts
from ablations.analysis.findings import of_record
from ablations.analysis.judge import judge
from ablations.analysis.tables import rows_table
from ablations.design.stages import Extend, Screen, Select
from ablations.report.html.page import highlights
from ablations.report.summary import compose
from ablations.report.tables import budgets_as_text
from lit_simplified.config import RunConfig, preset_of

STEPS = 250
BLOCKS = ["pre_ln", "sas", "sas_p"]


def record(gaps: dict[int, float], *claims: dict[str, Any], noise: float = 1e-5, **keys: Any) -> Any:
    """A study in which sas is so far above pre_ln at each number of steps; sas_p always 0.2."""
    def loss(config: RunConfig) -> float:
        name, steps = preset_of(config.model.block), config.optim.steps
        gap = {"pre_ln": 0.0, "sas": gaps[steps], "sas_p": 0.2}.get(name, 1.0)
        return 4.0 + 10 / math.sqrt(steps) + gap + config.optim.learning_rate + noise * math.sin(
            config.seed * (1 + len(name)))

    study = {"compare": {"block": BLOCKS}, "tune": {"optim.learning_rate": [5e-3, 1e-2]}, "claims": list(claims)}
    plan = plan_of(study, seeds=4, select=Select(1, 0.4), **keys)
    spec = {"scale": "small", "task": "clm", "optim": {"steps": STEPS}}
    return record_of(plan, loss, corpus=card(), spec=spec)


def judged(gaps: dict[int, float], relation: str, **keys: Any) -> Any:
    found = record(gaps, {"left": "sas", "is": relation, "right": "pre_ln"}, **keys)
    return next(verdicts(found, rows_table(found)).itertuples())


def test_a_difference_goes_on_by_as_much_with_every_doubling() -> None:
    assert Gap(0.25, 0.1, 1).later(0.2) == pytest.approx(0.3)  # 4 times the tokens once more
    assert Gap(0.25, 0.1, 1).later(0.2, times=2) == pytest.approx(0.25)
    assert Gap(0.1, 0.3, 1).later(0.3) == pytest.approx(0.3)
    assert Gap(0.25, 0.09, 1).turns(0.04)  # -0.01 later on
    assert not Gap(0.25, 0.07, 1).turns(0.04)
    assert Gap(0.25, 0.04, 1).turns(-0.01, margin=(-0.023, 0.023))  # level, and -0.06 later on
    assert not Gap(0.25, 0.01, 1).turns(0.0, margin=(-0.023, 0.023))


@pytest.mark.parametrize(("gaps", "relation", "stands"), [
    ({100: 0.05, STEPS: 0.05}, "worse", True),
    ({100: 0.05, STEPS: 0.08}, "worse", True),  # it grows the way that is claimed
    ({100: 0.09, STEPS: 0.04}, "worse", False),  # four times the tokens, and it is better
    ({100: -0.09, STEPS: -0.04}, "better", False),
    ({100: -0.01, STEPS: -0.04}, "better", True),
    ({100: 0.001, STEPS: 0.002}, "level", True),
    ({100: -0.02, STEPS: 0.01}, "level", False),  # level on its way from better to worse
    ({100: 0.09, STEPS: 0.05}, "level", False),  # beyond the margin, on its way within
])
def test_a_verdict_stands_if_the_difference_does_not_go_where_it_turns(
    gaps: dict[int, float], relation: str, stands: bool
) -> None:
    verdict = judged(gaps, relation)
    assert (verdict.verdict != UNKNOWN) == stands
    if not stands:
        assert verdict.why == (f"the difference was {gaps[100]:+.3f} nats at 0.4 of the steps and is "
                               f"{verdict.estimate:+.3f}: at this pace 4 times the tokens turn the verdict")


def test_bits_per_byte_and_test_losses_go_the_same_way() -> None:
    gaps = {100: 0.09, STEPS: 0.04}
    for quantity in ("bits_per_byte", "test_loss"):
        found = record(gaps, {"left": "sas", "is": "worse", "right": "pre_ln", "in": quantity})
        verdict = next(verdicts(found, rows_table(found)).itertuples())
        assert verdict.verdict == UNKNOWN
        unit = found.bits_per_nat if quantity == "bits_per_byte" else 1
        assert f"the difference was {0.09 * unit:+.3f}" in verdict.why


def test_where_all_stages_train_alike_no_pace_is_known() -> None:
    plan = plan_of({"compare": {"block": BLOCKS}, "tune": {"optim.learning_rate": [5e-3, 1e-2]}}, seeds=3, select=1)
    found = record_of(plan, lambda config: 4.0 + config.seed / 100)
    assert earlier(found, *list(plan.rows)[:2]) is None
    assert budgets(found, rows_table(found)).empty
    assert turned(budgets(found, rows_table(found))) == []


def test_each_row_has_its_loss_and_place_at_every_budget() -> None:
    found = record({100: -0.05, STEPS: 0.05})
    table = budgets(found, rows_table(found))
    assert list(table.stage) == ["select"] * 3 + ["judge"] * 3
    assert set(table.steps) == {100, STEPS}
    places = {(row.label, row.steps): row.place for row in table.itertuples()}
    assert [places[name, 100] for name in BLOCKS] == [2, 1, 3]
    assert [places[name, STEPS] for name in BLOCKS] == [1, 2, 3]
    [line] = turned(table)
    assert line in ("sas - pre_ln: -0.050 at 0.4, +0.050 at 1 times the steps",
                    "pre_ln - sas: +0.050 at 0.4, -0.050 at 1 times the steps")
    shown = budgets_as_text(table)
    assert list(shown.row) == BLOCKS
    assert [column.split(",")[0] for column in shown.columns[1:]] == ["100 steps", "250 steps"]


def test_a_screening_is_a_budget_too() -> None:
    def loss(config: RunConfig) -> float:
        return 4.0 + config.optim.steps / 1000 + config.seed / 1e5

    compare = {"model.block.norm": ["rms", "layer", "none"], "model.block.activation": ["relu", "gelu"]}
    plan = plan_of({"compare": compare}, seeds=2, screen=Screen(0.2, 1))
    found = record_of(plan, loss, spec={"scale": "small", "task": "clm", "optim": {"steps": STEPS}})
    table = budgets(found, rows_table(found))
    assert dict(table.groupby("steps").size()) == {50: len(set(found.cells.row)), STEPS: len(set(found.cells.row))}
    left, right = list(dict.fromkeys(found.cells.row))[:2]
    before = earlier(found, left, right)
    assert before is not None
    assert before.share == 0.2
    assert earlier(found, left, next(row for row in plan.rows if row not in set(found.cells.row))) is not None


LONG = 4 * STEPS


@pytest.mark.parametrize(("gap", "longer", "relation", "stands"), [
    (0.05, 0.05, "worse", True),
    (0.05, 0.01, "worse", True),
    (0.05, -0.01, "worse", False),
    (0.002, 0.01, "level", True),
    (0.002, 0.05, "level", False),
    (0.05, 0.05, "level", True),  # beyond the margin in both
    (0.05, 0.01, "level", False),
    (-0.05, 0.05, "level", False),  # beyond it in both, on either side
])
def test_a_verdict_stands_if_more_tokens_say_the_same(gap: float, longer: float, relation: str, stands: bool) -> None:
    verdict = judged({100: gap, STEPS: gap, LONG: longer}, relation, extend=Extend(4))
    assert (verdict.verdict != UNKNOWN) == stands
    if not stands:
        assert verdict.why == (f"not confirmed with 4 times the tokens: {longer:+.3f} nats there, "
                               f"{verdict.estimate:+.3f} here")


def test_what_more_tokens_tell_has_the_error_of_its_seeds() -> None:
    for now, there, error, level, expected in (
        (0.0, 0.02, 0.002, True, True), (0.0, 0.02, 0.004, True, False), (0.0, -0.02, 0.004, True, False),
        (0.1, 0.03, 0.006, True, True), (0.1, 0.03, 0.008, True, False), (-0.1, -0.03, 0.006, True, True),
        (0.1, 0.01, 0.009, False, True), (0.1, 0.01, 0.011, False, False), (0.1, math.nan, 0.0, False, False),
        (0.1, math.inf, 0.0, False, True), (0.1, -math.inf, 0.0, False, False),
    ):
        assert stands(now, there, error=error, margin=(-0.023, 0.023) if level else None) == expected


@pytest.mark.parametrize(("there", "stands"), [(0.015, True), (0.021, False)])
def test_a_confirmation_clears_its_bound_by_the_error_of_a_seed(there: float, stands: bool) -> None:
    """The differences of the four seeds have a standard deviation of 0.0032 nats, and the margin is 0.023."""
    noise = 4e-3
    of_seed = noise * (math.sin(1000 * 4) - math.sin(1000 * 7))  # sas less pre_ln on the seed that extends
    verdict = judged({100: 0.0, STEPS: 0.0, LONG: there - of_seed}, "level", extend=Extend(4), noise=noise)
    assert (verdict.verdict == HOLDS) == stands, verdict.why
    assert stands or f"{there:+.3f} nats there" in verdict.why


def test_only_rows_of_claims_that_trained_are_extended() -> None:
    found = record({100: 0.1, STEPS: 0.1, LONG: 0.1}, {"left": "sas", "is": "worse", "right": "pre_ln"},
                   extend=Extend(4, 2))
    assert sorted(found.extended.label) == ["pre_ln", "pre_ln", "sas", "sas"]
    assert set(found.extended.seed) == {1000, 1001}
    assert list(budgets(found, rows_table(found)).groupby("share").size()) == [3, 3, 2]
    sides = {label: row for row, label in zip(found.cells.row, found.cells.label, strict=True)}
    further = extended(found, sides["sas"], sides["pre_ln"])
    assert further is not None
    assert (further.share, further.n_seeds) == (4, 2)
    assert further.difference == pytest.approx(0.1, abs=1e-3)
    assert extended(found, sides["sas_p"], sides["pre_ln"]) is None


def test_a_row_that_is_lost_with_more_tokens_turns_what_it_was_good_for() -> None:
    claim = {"left": "sas", "is": "level", "right": "pre_ln"}
    found = record({100: 0.0, STEPS: 0.0, LONG: 0.0}, claim, extend=Extend(4))
    lost = replace_states(found, "sas", "diverged")
    level = next(verdicts(lost, rows_table(lost)).itertuples())
    assert level.verdict == UNKNOWN
    assert level.why == "not confirmed with 4 times the tokens: one of the two did not train there"
    claim = {"left": "sas", "is": "worse", "right": "pre_ln"}
    found = record({100: 0.05, STEPS: 0.05, LONG: 0.05}, claim, extend=Extend(4))
    for label, expected in (("sas", True), ("pre_ln", False)):  # the worse row, or the better one
        lost = replace_states(found, label, "diverged")
        assert (next(verdicts(lost, rows_table(lost)).itertuples()).verdict == HOLDS) == expected


@pytest.mark.parametrize("state", ["gone", "waiting", "running", "failed"])
def test_no_verdict_is_given_before_the_runs_that_must_confirm_it(state: str) -> None:
    """In a study that extends its runs, the shorter ones do not stand in for them."""
    found = record({100: 0.05, STEPS: 0.05, LONG: 0.05}, {"left": "sas", "is": "worse", "right": "pre_ln"},
                   extend=Extend(4))
    assert next(verdicts(found, rows_table(found)).itertuples()).verdict == HOLDS
    early = replace(found, extended=found.extended[:0]) if state == "gone" else replace_states(found, "sas", state)
    verdict = next(verdicts(early, rows_table(early)).itertuples())
    assert (verdict.verdict, verdict.why) == (
        UNKNOWN, "the runs with 4 times the tokens, which must confirm it, are not there yet")


def test_a_row_that_never_trains_is_worse_without_a_confirmation() -> None:
    """It is not extended, and what it did in shorter runs is no difference either."""
    claim = {"left": "sas", "is": "worse", "right": "pre_ln"}
    for keys in ({"extend": Extend(4)}, {}):
        found = record({100: 0.05, STEPS: 0.05, LONG: 0.05}, claim, **keys)
        cells = found.cells.copy()
        cells.loc[cells.label == "sas", ["state", "val_loss"]] = ["diverged", math.nan]
        extended = found.extended[found.extended.label != "sas"] if keys else found.extended
        lost = replace(found, cells=cells, extended=extended)
        assert next(verdicts(lost, rows_table(lost)).itertuples()).verdict == HOLDS


def replace_states(found: Any, label: str, state: str) -> Any:
    cells = found.extended.copy()
    cells.loc[cells.label == label, ["state", "val_loss"]] = [state, math.nan]
    return replace(found, extended=cells)


def test_what_stands_is_said_first_and_what_turns_beside_what_it_is_now() -> None:
    """The first thing on the page is no loss that another budget contradicts."""
    found = of_record(record({100: -0.1, STEPS: 0.05}, {"left": "sas", "is": "worse", "right": "sas_p"}))
    verdict, lowest, *_ = highlights(found)
    assert verdict[0] == "claims"
    assert lowest[0] == "lowest validation loss"
    assert lowest[2].startswith("pre_ln; at 0.4 times the steps sas, ")
    text = compose(found, plots=[])
    assert 0 < text.index("## Claims") < text.index("## Rows") < text.index("## Loss against tokens")


def test_the_judge_plans_no_seeds_for_what_tokens_decide() -> None:
    claim = {"left": "sas", "is": "level", "right": "pre_ln"}
    noisy = {"noise": 0.03, "extend": Extend(4)}
    turns = judge(record({100: 0.0, STEPS: 0.0, LONG: 0.2}, claim, **noisy)).claims[0]
    assert (turns.outcome, turns.remedy, turns.seeds_needed) == ("inconclusive", "other", None)
    assert "more seeds; not confirmed with 4 times the tokens" in turns.why
    stays = judge(record({100: 0.0, STEPS: 0.0, LONG: 0.0}, claim, noise=0.03)).claims[0]
    assert stays.remedy == "seeds"


def test_a_verdict_that_stands_still_holds() -> None:
    assert judged({100: 0.05, STEPS: 0.06}, "worse").verdict == HOLDS
