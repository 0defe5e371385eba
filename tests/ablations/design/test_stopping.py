"""A study that looks at its claims: which seeds each row gets, and how often any of its decisions is wrong."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import card, record_of, stored

from ablations import __main__ as command
from ablations.analysis.claims import verdicts
from ablations.analysis.judge import judge
from ablations.analysis.looks import CELL_SD
from ablations.analysis.tables import read, rows_table
from ablations.design.boundaries import SPENT
from ablations.design.cells import Cell, StudyPlan
from ablations.design.claims import MARGIN
from ablations.design.config import parse_study, read_study, write_study
from ablations.design.design import from_plain, merge, to_plain
from ablations.design.plan import plan_study
from ablations.design.scales import scale
from ablations.design.selection import Outcome
from ablations.design.stopping import AGAINST, CONTINUE, SETTLED, SPENDING, Looks, decide
from ablations.engine.run import outcomes
from ablations.study import Options, study_of
from lit_simplified.config import ConfigError, RunConfig, preset_of

RATE = "optim.learning_rate"
LOOKS = {"looks": [3, 5, 8, 12]}
BLOCKS = ("pre_ln", "sas", "sas_p", "parallel")
WORSE = {"left": "sas", "is": "worse", "right": "pre_ln"}
LEVEL = {"left": "parallel", "is": "level", "right": "pre_ln"}
FASTER = {"left": "sas_p", "is": "faster", "right": "pre_ln"}
PAGE = Path(__file__).parents[3] / "docs" / "judge.md"
CLEAR, OPEN = 0.2, 0.0
"""Differences to the baseline: seen at the first look of three seeds, and at none."""
World = Callable[[RunConfig], Outcome]


def planned(*claims: Mapping[str, Any], **keys: Any) -> StudyPlan:
    return plan_study(parse_study({"compare": {"block": list(BLOCKS)}, "seeds": LOOKS, "claims": list(claims), **keys}),
                      scale=scale("small"))


def world(by_block: Mapping[str, Any], *, sd: float = 0.01) -> World:
    """Losses of a mean by block, with noise that takes turns and that the baseline has none of. A word is the state of
    all cells; a mapping says either by seed, and otherwise under None."""
    def outcome(config: RunConfig) -> Outcome:
        block = preset_of(config.model.block)
        own = by_block.get(block, 0.0)
        own = own.get(config.seed, own.get(None, 0.0)) if isinstance(own, Mapping) else own
        if isinstance(own, str):
            return Outcome(own)
        noise = 0.0 if block == "pre_ln" else sd * (-1) ** config.seed
        return Outcome("complete", 4 + own + noise, 3 + own + noise)

    return outcome


def train(plan: StudyPlan, how: World, ended: dict[str, Outcome]) -> list[Cell]:
    found = list[Cell]()
    while new := [cell for cell in plan.cells(ended) if cell.id not in ended]:
        ended |= {cell.id: how(cell.config) for cell in new}
        found += new
    return found


def seeds_of(cells: Any) -> dict[str, int]:
    """How many seeds judge each block."""
    return dict(Counter(preset_of(cell.config.model.block) for cell in cells if cell.stage == "judge"))


@pytest.mark.parametrize(("claims", "shifts", "expected"), [
    # decided at once: nobody goes on
    ((WORSE, LEVEL), {"sas": CLEAR, "parallel": CLEAR}, {}),
    # against is a decision, too
    (({**WORSE, "is": "better"},), {"sas": CLEAR}, {}),
    # one claim is open: its rows go on, the row of the other and the row without a claim about losses do not
    ((WORSE, LEVEL, FASTER), {"sas": CLEAR, "parallel": MARGIN}, {"pre_ln": 12, "parallel": 12}),
    (({**WORSE, "in": "test_loss"},), {"sas": 0.022}, {"pre_ln": 5, "sas": 5}),
    # bits per byte are a multiple of the validation loss
    (({**WORSE, "in": "bits_per_byte"},), {"sas": 0.022}, {"pre_ln": 5, "sas": 5}),
    # rows without a model: the verdict needs no difference
    ((WORSE,), {"sas": "diverged"}, {}), ((WORSE,), {"sas": "failed"}, {}), ((WORSE,), {"pre_ln": "collapsed"}, {}),
    # seeds that are lost: two differences are no look of three, and eleven none of twelve
    ((WORSE,), {"sas": {1: "diverged", None: CLEAR}}, {"pre_ln": 5, "sas": 5}),
    ((WORSE,), {"sas": {11: "failed", None: OPEN}}, {"pre_ln": 12, "sas": 12}),
])
def test_rows_get_the_seeds_of_the_next_look_while_a_claim_of_theirs_is_open(
    claims: Any, shifts: Mapping[str, Any], expected: Mapping[str, int]
) -> None:
    plan = planned(*claims)
    assert seeds_of(plan.cells()) == dict.fromkeys(BLOCKS, 3)
    assert seeds_of(train(plan, world(shifts), {})) == {**dict.fromkeys(BLOCKS, 3), **expected}


def test_the_same_results_ask_for_the_same_cells_in_any_order_and_after_any_interruption() -> None:
    plan, how = planned(WORSE, LEVEL), world({"sas": 0.015, "parallel": MARGIN})
    whole: dict[str, Outcome] = {}
    train(plan, how, whole)
    order = random.Random(0)
    ended: dict[str, Outcome] = {}
    while new := [cell for cell in plan.cells(ended) if cell.id not in ended]:
        cell = order.choice(new)
        ended[cell.id] = how(cell.config)
        first = sorted(seeds_of(plan.cells(ended)).values())[-1]
        assert first in (3, 5, 8, 12)
        assert {cell.id for cell in plan.cells(ended)} <= whole.keys()  # nothing is asked for too early
    assert ended == whole
    assert plan.cells(dict(reversed(whole.items()))) == plan.cells(whole)


def test_a_value_that_a_late_seed_spoils_gives_way_and_is_looked_at_anew() -> None:
    """What was decided at the old value is asked again at the new one, whose rows get the seeds for it."""
    plan = planned(WORSE, LEVEL, tune={RATE: [5e-3, 1e-2]}, select=1)

    def how(config: RunConfig) -> Outcome:
        first = config.optim.learning_rate == 5e-3
        base = {6: "diverged"} if first else {None: CLEAR}
        return world({"pre_ln": base, "sas": CLEAR, "parallel": MARGIN})(config)

    judged = [cell for cell in train(plan, how, {}) if cell.stage == "judge"]
    assert Counter((preset_of(cell.config.model.block), cell.config.optim.learning_rate) for cell in judged) == {
        ("pre_ln", 5e-3): 12, ("pre_ln", 1e-2): 12, ("sas", 5e-3): 12, ("parallel", 5e-3): 8, ("sas_p", 5e-3): 3}


def test_how_much_may_be_trained_counts_the_last_look_of_what_is_open() -> None:
    plan, ended = planned(WORSE, LEVEL), dict[str, Outcome]()
    assert seeds_of(plan.likely()) == {"pre_ln": 12, "sas": 12, "sas_p": 3, "parallel": 12}
    how = world({"sas": CLEAR, "parallel": MARGIN})
    ended |= {cell.id: how(cell.config) for cell in plan.cells()}
    assert seeds_of(plan.likely(ended)) == {"pre_ln": 12, "sas": 3, "sas_p": 3, "parallel": 12}
    train(plan, how, ended)
    assert plan.likely(ended) == plan.cells(ended)
    with pytest.raises(ConfigError, match="39 cells"):
        plan.check_size(38)


def test_looks_are_kept_in_the_file_and_in_the_design(tmp_path: Path) -> None:
    assert tuple(SPENT) == SPENDING[::-1]
    for seeds, looks in ((LOOKS, Looks()), ({"looks": [2, 9], "spending": "obrien-fleming"},
                                            Looks((2, 9), spending="obrien-fleming"))):
        study = parse_study({"compare": {"block": list(BLOCKS)}, "claims": [WORSE], "seeds": seeds})
        path = tmp_path / "study.yaml"
        path.write_text(write_study(study))
        assert read_study(path).seeds == study.seeds == looks
    design = planned(WORSE, LEVEL, FASTER).design
    assert design.looks == Looks()
    assert design.shared_looks == Looks(claims=2)
    assert from_plain(to_plain(design)) == design
    plain = to_plain(design)
    del plain["looks"]
    assert from_plain(plain).looks is None  # of an older version
    fixed = planned(WORSE, LEVEL, seeds=3).design
    assert merge(design, fixed).looks == merge(fixed, design).looks == design.looks
    with pytest.raises(ConfigError, match=r"looks at 3, 5, 8 and 12 seeds \(pocock\)"):
        merge(design, planned(WORSE, seeds={"looks": [3, 6]}).design)


@pytest.mark.parametrize(("keys", "message"), [
    ({"seeds": {"looks": [5, 3]}}, "seeds: seeds.*growing"), ({"seeds": {"looks": [1, 3]}}, "looks=1.*from 2"),
    ({"seeds": {"looks": []}}, "seeds: seeds.*growing"), ({"seeds": {"looks": 3}}, "give a list"),
    ({"seeds": {"look": [3]}}, "did you mean looks"), ({"seeds": {**LOOKS, "spending": "linear"}}, "one of pocock"),
    ({"seeds": {**LOOKS, "spending": []}}, "one of pocock"), ({"seeds": {"looks": [3, 2000]}}, "from 2 to 1000"),
    ({"claims": []}, "no claim of the study is about a loss"), ({"claims": [FASTER]}, "no claim of the study"),
    ({"select": 0, "tune": {RATE: [1e-3, 1e-2]}}, "select=0.*look by look"),
    ({"claims": [{**LEVEL, "in": "bits_per_byte", "margin": 0.01}]}, "margin.*leave the margin"),
])
def test_looks_that_cannot_decide_are_refused(keys: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(WORSE, **keys) if "claims" not in keys else planned(*keys["claims"])


def test_the_flags_replace_each_other() -> None:
    study = {"compare": {"block": list(BLOCKS)}, "claims": [WORSE], "seeds": {**LOOKS, "spending": "obrien-fleming"}}

    def seeds(**flags: Any) -> Any:
        return study_of(Options(study=study, scale="small", **flags)).seeds

    assert seeds(looks=[3, 6]) == Looks((3, 6), spending="obrien-fleming")
    assert seeds(seeds=[0, 1]) == (0, 1)
    for flags, message in (({"looks": [3], "seeds": [0]}, "--looks.*not both"), ({"looks": [6, 3]}, "growing")):
        with pytest.raises(ConfigError, match=message):
            seeds(**flags)


VERDICTS = {"worse": ("holds", "settled at the look of 3 seeds"), "better": ("does not hold",
            "against at the look of 3 seeds"), "level": ("inconclusive", "no look settled it: 12 seeds")}


def test_the_verdicts_are_those_of_the_looks_and_the_judge_agrees() -> None:
    plan = planned(WORSE, {**WORSE, "is": "better"}, LEVEL)
    how = world({"sas": CLEAR, "parallel": MARGIN})
    record = record_of(plan, lambda config: how(config).loss)
    found = verdicts(record, rows_table(record))
    assert dict(zip(found.relation, zip(found.verdict, found.why, strict=True), strict=True)) == VERDICTS
    assert found.p.isna().all()
    assert list(found.n_seeds) == [3, 3, 12]
    assert found.low.notna().all()
    judged = {claim.relation: (claim.outcome, claim.why, claim.remedy) for claim in judge(record).claims}
    assert judged == {"worse": ("settled", VERDICTS["worse"][1], "nothing"),
                      "better": ("against", VERDICTS["better"][1], "nothing"),
                      "level": ("inconclusive", VERDICTS["level"][1], "other")}


@pytest.mark.parametrize(("claim", "shifts", "seeds", "verdict", "why"), [
    (WORSE, {"sas": 0.022}, 4, "inconclusive", "look of 5 seeds not finished"),
    (WORSE, {"sas": CLEAR}, 2, "inconclusive", "look of 3 seeds not finished"),
    (WORSE, {"sas": 0.022}, 12, "holds", "settled at the look of 5 seeds"),
    (WORSE, {"sas": "diverged"}, 12, "holds", "sas diverged in every cell, which is worse than any loss"),
    ({**WORSE, "in": "bits_per_byte"}, {"sas": 0.022}, 12, "holds", "settled at the look of 5 seeds"),
    ({**WORSE, "in": "test_loss"}, {"sas": 0.022}, 12, "inconclusive", "no look settled it: 12 seeds"),
    # the seeds that are left flatter the row on the left
    ({**WORSE, "is": "better"}, {"sas": {1: "diverged", None: -CLEAR}}, 12, "inconclusive", "1 of 5 seeds"),
])
def test_verdicts_of_studies_that_were_cut_short_or_lost_seeds(
    claim: Any, shifts: Mapping[str, Any], seeds: int, verdict: str, why: str
) -> None:
    """Those that were cut short lack the seeds from `seeds` on."""
    def value(config: RunConfig) -> Any:
        found = world(shifts)(config)
        return found.loss if found.state == "complete" else found.state

    def test_loss(config: RunConfig) -> float:
        return 0.1 * (-1) ** config.seed * (preset_of(config.model.block) == "sas")

    plan = planned(claim)
    plan = replace(plan, rows={row: config for row, config in plan.rows.items() if preset_of(config.model.block) in
                               ("pre_ln", "sas")})
    record = record_of(plan, value, test_loss=test_loss, corpus=card())
    record = replace(record, cells=record.cells[record.cells.seed < seeds])
    [row] = verdicts(record, rows_table(record)).itertuples()
    assert row.verdict == verdict
    assert why in row.why


def test_a_recorded_study_is_asked_for_no_more_than_its_test_losses_need(tmp_path: Path) -> None:
    plan = planned({**WORSE, "in": "test_loss"})
    study = stored(tmp_path, plan, lambda config: world({"sas": CLEAR})(config).loss)
    ended = outcomes(study)
    assert {round(outcome.test_loss - outcome.loss, 9) for outcome in ended.values()} == {0.0}
    assert len(ended) == len(plan.cells(ended)) == 12
    [claim] = judge(read(study)).claims
    assert (claim.outcome, claim.why) == (SETTLED, "settled at the look of 3 seeds")


def test_a_dry_run_tells_how_many_cells_the_looks_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_measured", lambda *given, **named: None)
    file = tmp_path / "mine.yaml"
    file.write_text(write_study(parse_study({"compare": {"block": list(BLOCKS)}, "claims": [WORSE], "seeds": 3})))
    flags = ["run", str(file), "--scale", "small", "--out", str(tmp_path), "--dry-run"]
    assert command.main([*flags, "--looks", "3", "5"]) == 0
    said = capsys.readouterr().out
    assert "... and then up to 4 cells" in said
    assert "16 cells of 4 rows" in said
    assert command.main([*flags, "--looks", "3", "5", "--seeds", "0"]) == 2
    assert "give --seeds or --looks, not both" in capsys.readouterr().err


CLAIMS = (WORSE, {**WORSE, "left": "parallel"}, {"left": "sas_p", "is": "worse", "right": "parallel"},
          {"left": "sas_p", "is": "level", "right": "pre_ln"})
SHIFTS = {"sas_p": MARGIN}
"""Where none of `CLAIMS` but the third holds: two rows are alike, and the last are as far apart as is not level."""


@pytest.mark.slow
@pytest.mark.parametrize(("spending", "heavy", "said"), [
    ("pocock", False, "4.2 %"), ("pocock", True, "2.9 %"), ("obrien-fleming", False, "4.4 %"),
])
def test_at_most_5_percent_of_studies_decide_any_claim_wrongly(spending: str, heavy: bool, said: str) -> None:
    """Studies are played through their plan, which trains no more than it asks for."""
    studies, rng = 1000, np.random.default_rng(0)
    plan = planned(*CLAIMS, seeds={**LOOKS, "spending": spending})
    looks = plan.design.shared_looks
    assert looks is not None
    shifts = {row: SHIFTS.get(preset_of(config.model.block), 0.0) for row, config in plan.rows.items()}
    wrong, used = 0, 0
    for _ in range(studies):
        ended, rows = dict[str, Outcome](), {row: dict[int, Outcome]() for row in plan.rows}
        while new := [cell for cell in plan.cells(ended) if cell.id not in ended]:
            for cell in new:
                noise = rng.standard_t(5) / math.sqrt(5 / 3) if heavy else rng.standard_normal()
                ended[cell.id] = rows[cell.row][cell.seed] = Outcome("complete", shifts[cell.row] + CELL_SD * noise)
        outcomes = [decide(claim, looks=looks, left=rows[claim.left], right=rows[claim.right]).outcome
                    for claim in plan.design.claims]
        assert CONTINUE not in outcomes
        first, second, third, level = outcomes
        wrong += bool({first, second, level} & {SETTLED, AGAINST}) or third == AGAINST
        used += len(ended)
    error = math.sqrt(0.05 * 0.95 / studies)
    assert wrong / studies < 0.05 + 2 * error
    assert wrong / studies == pytest.approx(float(said.split()[0]) / 100, abs=3 * error)
    assert said in PAGE.read_text()
    assert used < 48 * studies
