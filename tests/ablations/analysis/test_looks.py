"""Looks: boundaries against published ones, errors over all looks, and what is decided when."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ablations.analysis.looks import MARGIN, PLANS, Looks, boundaries, replay, resampled, savings, simulate
from lit_simplified.config import ConfigError

PUBLISHED = {
    # Reboussin, DeMets, Kim & Lan: programs for computing group sequential boundaries, version 2; five looks, 0.05
    "obrien-fleming": (4.8769, 3.3569, 2.6803, 2.2898, 2.0310),
    "pocock": (2.4380, 2.4268, 2.4101, 2.3966, 2.3859),
}
PAGE = Path(__file__).parents[3] / "docs" / "judge.md"


@pytest.mark.parametrize("spending", ["obrien-fleming", pytest.param("pocock", marks=pytest.mark.slow)])
def test_with_many_seeds_the_boundaries_are_the_published_ones_of_normal_statistics(spending: str) -> None:
    seeds = (20, 40, 60, 80, 100)
    found = boundaries(seeds, level=0.025, spending=spending)
    normal = [stats.norm.isf(stats.t.sf(value, count - 1)) for value, count in zip(found, seeds, strict=True)]
    assert normal == pytest.approx(PUBLISHED[spending], rel=5e-3)


@pytest.mark.parametrize("plan", [
    Looks(), Looks(spending="obrien-fleming"), Looks((3, 4, 5)), Looks((2, 12), alpha=0.1),
])
def test_all_looks_together_err_with_alpha(plan: Looks) -> None:
    """Boundaries of normal statistics, translated through their p values, err by 0.056 with Pocock's spending."""
    runs = 50_000
    found = simulate(plan, relation="worse", difference=0.0, runs=runs)
    assert found.settled + found.against == pytest.approx(plan.alpha, abs=3.5 * math.sqrt(plan.alpha / runs))
    assert list(plan.table.spent)[-1] == pytest.approx(plan.alpha)
    assert list(plan.table.p) == pytest.approx(2 * stats.t.sf(plan.table.t, plan.table.seeds - 1))


def test_claims_share_alpha() -> None:
    one, ten = Looks(), Looks(claims=10)
    assert list(ten.table.spent)[-1] == pytest.approx(0.005)
    assert (ten.table.t > one.table.t).all()
    assert (Looks(claims=2000).table.p < one.table.p).all()  # shares that are next to nothing have boundaries, too


@pytest.mark.parametrize(("relation", "statistic", "claims", "outcome"), [
    # of 8 differences: one-sided 5 % at t 1.895, two-sided 5 % at 2.365, and half of each at 2.365 and 2.841
    ("level", 2.1, 1, "settled"), ("level", 1.8, 1, "inconclusive"), ("level", 2.1, 2, "inconclusive"),
    ("level", 2.5, 2, "settled"), ("worse", 2.5, 1, "settled"), ("worse", 2.1, 1, "inconclusive"),
    ("worse", 2.5, 2, "inconclusive"), ("worse", 3.0, 2, "settled"),
])
def test_a_single_look_is_the_usual_test(relation: str, statistic: float, claims: int, outcome: str) -> None:
    noise = np.array([1.0, -1, 2, -2, 3, -3, 0.5, -0.5])
    error = noise.std(ddof=1) / math.sqrt(len(noise))
    shift = statistic * error if relation == "worse" else 0.0
    found = Looks((8,), claims=claims).decide(noise + shift, relation=relation, margin=statistic * error)
    assert found.outcome == outcome


NEAR, CLEAR = (0.001, 0.002, 0.0015, -0.001, 0.0005, 0.001, 0.0, 0.0012), (0.2, 0.21, 0.19, 0.2, 0.2)


@pytest.mark.parametrize(("differences", "relation", "spending", "expected"), [
    ((), "worse", "pocock", ("continue", 0)), (CLEAR[:2], "worse", "pocock", ("continue", 0)),
    (CLEAR[:3], "worse", "pocock", ("settled", 3)), (CLEAR[:3], "better", "pocock", ("against", 3)),
    (CLEAR[:3], "level", "pocock", ("against", 3)), (NEAR[:3], "level", "pocock", ("settled", 3)),
    (CLEAR[:4], "worse", "obrien-fleming", ("continue", 3)), (CLEAR, "worse", "obrien-fleming", ("settled", 5)),
    ((0.01, -0.01) * 4, "worse", "pocock", ("continue", 8)), ((0.01, -0.01) * 6, "better", "pocock",
                                                             ("inconclusive", 12)),
    ((0.02, -0.2) * 6, "level", "pocock", ("inconclusive", 12)),
    ((0.0, 0.0, 0.0), "worse", "pocock", ("continue", 3)), ((0.0, 0.0, 0.0), "level", "pocock", ("settled", 3)),
    ((0.1, 0.1, 0.1), "worse", "obrien-fleming", ("settled", 3)),  # runs that repeat exactly
])
def test_what_is_decided_and_when(differences: Any, relation: str, spending: str, expected: tuple[str, int]) -> None:
    plan = Looks(spending=spending)
    assert plan.decide(differences, relation=relation, margin=0.023) == expected
    more = [*differences, *(9.0 for _ in range(1 if len(differences) in (0, 3) else 0))]  # not yet a whole look
    assert plan.decide(more, relation=relation, margin=0.023) == expected


def test_a_decision_stands_whatever_later_seeds_say() -> None:
    assert Looks(spending="pocock").decide([*CLEAR[:3], *(-9.0,) * 9], relation="worse") == ("settled", 3)


@pytest.mark.parametrize(("field", "make"), [
    ("seeds", lambda: Looks(())), ("seeds", lambda: Looks((1, 3))), ("seeds", lambda: Looks((3, 3))),
    ("alpha", lambda: Looks(alpha=0.0)), ("alpha", lambda: Looks(alpha=math.nan)),
    ("spending", lambda: Looks(spending="linear")), ("claims", lambda: Looks(claims=0)),
    ("relation", lambda: Looks().decide([0.1] * 3, relation="faster")),
    ("margin", lambda: Looks().decide([0.1] * 3, relation="level")),
    ("margin", lambda: Looks().decide([0.1] * 3, relation="level", margin=-1.0)),
    ("differences", lambda: Looks().decide([0.1, math.nan, 0.1], relation="worse")),
])
def test_impossible_plans_and_questions_are_refused(field: str, make: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        make()


def test_the_page_states_what_looks_would_have_saved_in_the_recorded_study() -> None:
    folder = PAGE.parent / "small-clm"
    for seeds in ((3, 5, 8, 12), (3, 5, 8)):
        claims, rows = replay(folder, Looks(seeds), runs=1000)
        [line] = re.findall(rf"^\| {', '.join(map(str, seeds))} \| (.*) \|", PAGE.read_text(), flags=re.M)
        runs, fixed, saved = (float(cell) for cell in line.split(" | ")[:3])
        assert rows.sum() == pytest.approx(runs, abs=0.5)
        assert (fixed, saved) == (8 * len(rows), pytest.approx(fixed - runs))
    assert dict(zip(claims.claim, claims.recorded, strict=True))["sas_p is level with sas per step"] == "settled"
    assert (claims.recorded == "settled").sum() == 3


def test_a_replay_has_the_means_and_the_spread_of_the_record() -> None:
    pairs = pd.read_csv(PAGE.parent / "small-clm" / "pairwise.csv")
    drawn = resampled(pairs, {*pairs.left, *pairs.right}, seeds=8, runs=2000)
    for pair in pairs.itertuples():
        differences = drawn[pair.left] - drawn[pair.right]
        sd = (pair.loss_high - pair.loss_low) / 2 / stats.t.isf(0.025, 4) * math.sqrt(5)
        assert differences.mean() == pytest.approx(pair.loss_difference, abs=0.05 * sd)
        assert differences.std() == pytest.approx(sd, rel=0.05)


@pytest.mark.slow
def test_errors_stay_within_5_percent_and_the_page_states_what_is_saved() -> None:
    """At no difference, at the margin, with normal and with heavy-tailed noise of the measured size."""
    runs = 200_000
    found = savings(runs)
    most = 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    none = found[(found.claim == "worse") & (found.true == 0)]
    level = found[found.claim == "level"]
    assert len(none) == 2
    for plan in PLANS:
        assert (none[f"{plan}: settled"] + none[f"{plan}: against"] < most).all()
        assert (level[level.true == MARGIN][f"{plan}: settled"] < most).all()
        assert (level[level.true <= MARGIN][f"{plan}: against"] < most).all()
    lines = re.findall(r"^\| (?:worse|level) .*", PAGE.read_text(), flags=re.M)
    assert len(lines) == len(found)
    for line, row in zip(lines, found.itertuples(index=False), strict=True):
        written = [cell.strip() for cell in line.strip("|").split("|")]
        assert written[:2] == [row.claim, row.noise]
        assert [float(cell) for cell in written[2:]] == pytest.approx(list(row)[2:], abs=0.02)
