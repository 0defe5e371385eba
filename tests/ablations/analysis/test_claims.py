"""Named blocks against each other, the verdicts on the paper's claims, and what the learning rates allow to say."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_effects import make_record

from ablations.analysis.claims import CLAIMS, MARGIN, VERDICT_COLUMNS, Claim, not_covered, verdicts
from ablations.analysis.intervals import Interval, mean_interval, ratio_interval
from ablations.analysis.pairs import PAIR_COLUMNS, pairwise
from ablations.analysis.rates import edge_warnings, sensitivity
from ablations.analysis.tables import Record, blocks_table
from ablations.design.space import block_id, named
from lit_simplified.config import PRESETS, preset_of

RATE = 1e-2
Losses = Mapping[str, Any]
"""By preset: a loss per seed, or the word that is the state of all its cells; with rates, one of these per rate."""


def record_of(
    losses: Losses, *, rates: tuple[float, ...] = (RATE,), speed: Mapping[str, Any] | None = None, n_seeds: int = 3
) -> Record:
    """A study of named blocks."""
    def loss(block: Any, seed: int, rate: float) -> Any:
        own = losses[preset_of(block)]
        own = own[rate] if isinstance(own, dict) else own
        return own if isinstance(own, str) else own[seed]

    rows = {block_id(PRESETS[name]): dict(zip(("ratio", "low", "high"), row, strict=True))
            for name, row in (speed or {}).items()}
    return make_record(loss, blocks=named(losses), seeds=range(n_seeds), rates=rates, speed=rows)


def verdict(losses: Losses, left: str, right: str, relation: str, **given: Any) -> Any:
    """The row of one claim, which must be among the paper's."""
    record = record_of(losses, **given)
    found = verdicts(record, blocks_table(record))
    [row] = found[(found.left == left) & (found.right == right) & (found.relation == relation)].itertuples()
    return row


def around(mean: float, *, spread: float = 0.001) -> tuple[float, float, float]:
    return mean - spread, mean, mean + spread


BASE = (4.0, 4.1, 4.2)
"""Losses of the block on the right: seeds differ by more than blocks."""


def shifted(by: float, *, spread: float = 0.002) -> tuple[float, ...]:
    return tuple(loss + by + change for loss, change in zip(BASE, (-spread, 0, spread), strict=True))


@pytest.mark.parametrize(("shift", "spread", "expected"), [
    (0.01, 0.002, "holds"), (-0.01, 0.002, "holds"), (0.2, 0.002, "does not hold"), (-0.2, 0.002, "does not hold"),
    (0.08, 0.01, "cannot be told"), (0.0, 0.1, "cannot be told"), (0.0, 0.0, "holds"),
])
def test_level_means_the_whole_interval_within_the_margin(shift: float, spread: float, expected: str) -> None:
    row = verdict({"pre_ln": BASE, "sas": shifted(shift, spread=spread)}, "sas", "pre_ln", "level")
    margin = MARGIN * np.mean(BASE)
    reach = stats.t.ppf(0.975, 2) * spread / math.sqrt(3)
    assert (row.estimate, row.low, row.high) == pytest.approx((shift, shift - reach, shift + reach))
    within, outside = abs(shift) + reach <= margin, abs(shift) - reach > margin
    assert row.verdict == expected == ("holds" if within else "does not hold" if outside else "cannot be told")


@pytest.mark.parametrize(("left", "right", "relation", "shift", "spread", "expected"), [
    ("v_skipinit", "pre_ln", "worse", 0.3, 0.01, "holds"),
    ("v_skipinit", "pre_ln", "worse", -0.3, 0.01, "does not hold"),
    ("v_skipinit", "pre_ln", "worse", 0.01, 0.1, "cannot be told"),
    ("shaped_orthogonal", "v_skipinit", "better", -0.3, 0.01, "holds"),
    ("shaped_orthogonal", "v_skipinit", "better", 0.3, 0.01, "does not hold"),
    ("shaped_orthogonal", "v_skipinit", "better", 0.0, 0.1, "cannot be told"),
])
def test_worse_and_better_need_an_interval_on_their_side_of_zero(
    left: str, right: str, relation: str, shift: float, spread: float, expected: str
) -> None:
    row = verdict({right: BASE, left: shifted(shift, spread=spread)}, left, right, relation)
    assert (row.verdict, row.n_seeds) == (expected, 3)


@pytest.mark.parametrize(("ratio", "expected"), [
    ((1.1, 1.05, 1.15), "holds"), ((0.9, 0.85, 0.95), "does not hold"), ((1.1, 0.99, 1.2), "cannot be told"),
    (None, "cannot be told"),
])
def test_faster_needs_an_interval_above_one(ratio: Any, expected: str) -> None:
    speed = {"pre_ln": (1.0, 0.99, 1.01), **({"sas": ratio} if ratio else {})}
    losses = {"pre_ln": BASE, "sas": BASE, "v_skipinit": BASE}
    row = verdict(losses, "sas", "pre_ln", "faster", speed=speed)
    assert (row.verdict, row.n_seeds) == (expected, 0)
    slower = {"holds": "does not hold", "does not hold": "holds"}.get(expected, expected)
    speed = {"pre_ln": (1.0, 0.99, 1.01), **({"v_skipinit": ratio} if ratio else {})}
    assert verdict(losses, "v_skipinit", "pre_ln", "slower", speed=speed).verdict == slower


def test_parameters_are_counted() -> None:
    record = record_of({"pre_ln": BASE, "sas": BASE})
    [row] = [r for r in verdicts(record, blocks_table(record)).itertuples() if r.relation == "fewer"]
    assert (row.verdict, row.estimate) == ("holds", pytest.approx(0.6))
    record.cells.loc[:, "params"] = 100.0
    [row] = [r for r in verdicts(record, blocks_table(record)).itertuples() if r.relation == "fewer"]
    assert (row.verdict, row.estimate) == ("does not hold", 1.0)


@pytest.mark.parametrize(("left", "right", "worse", "level"), [
    ("diverged", BASE, "holds", "does not hold"), (BASE, "diverged", "does not hold", "does not hold"),
    ("diverged", "diverged", "cannot be told", "cannot be told"),
    ("failed", BASE, "cannot be told", "cannot be told"), (BASE, "failed", "cannot be told", "cannot be told"),
    ("diverged", "failed", "cannot be told", "cannot be told"),
    (("diverged", "failed", "diverged"), BASE, "cannot be told", "cannot be told"),
])
def test_divergence_is_a_result_and_failure_is_none(left: Any, right: Any, worse: str, level: str) -> None:
    found = verdict({"sas_p_no_norm": left, "sas_p": right}, "sas_p_no_norm", "sas_p", "worse")
    assert found.verdict == worse
    assert math.isnan(found.estimate)
    assert verdict({"sas": left, "pre_ln": right}, "sas", "pre_ln", "level").verdict == level
    if "cannot" not in worse:
        assert "diverged in every cell" in found.why


def test_a_seed_that_diverged_forbids_what_the_others_flatter() -> None:
    def losses(shift: float, *, left: bool) -> Losses:
        whole, torn = (*BASE, 4.3), (*shifted(shift), "diverged")
        return {"v_skipinit": torn if left else whole, "pre_ln": whole if left else torn}

    def judge(given: Losses) -> tuple[str, str]:
        record = record_of(given, n_seeds=4)
        [row] = [row for row in verdicts(record, blocks_table(record)).itertuples() if row.relation == "worse"]
        return row.verdict, row.why

    assert judge(losses(0.3, left=True))[0] == "holds"  # and with its diverged seed all the more
    told, why = judge(losses(-0.3, left=True))
    assert told == "cannot be told"
    assert "1 of the seeds of v_skipinit diverged" in why
    assert judge(losses(0.3, left=False))[0] == "does not hold"
    assert judge(losses(-0.3, left=False))[0] == "cannot be told"


def test_an_edge_of_the_axis_forbids_what_a_longer_one_could_undo() -> None:
    inside = {1e-3: shifted(1.0), 1e-2: BASE, 1e-1: shifted(1.0)}

    def falling(by: float) -> dict[float, tuple[float, ...]]:
        return {1e-3: shifted(by + 2), 1e-2: shifted(by + 1), 1e-1: shifted(by)}

    def judge(left: Any, right: Any, relation: str = "worse") -> Any:
        names = {"worse": ("v_skipinit", "pre_ln"), "level": ("sas", "pre_ln")}[relation]
        return verdict({names[0]: left, names[1]: right}, *names, relation, rates=(1e-3, 1e-2, 1e-1))

    assert "v_skipinit is still gaining at the edge" in judge(falling(0.3), inside).why
    assert judge(falling(0.3), inside).verdict == "cannot be told"
    assert judge(falling(-0.3), inside).verdict == "does not hold"  # it is better, and would be more so
    assert judge(inside, falling(-0.3)).verdict == "holds"
    assert judge(inside, falling(0.3)).verdict == "cannot be told"
    assert judge(falling(0.0), inside, "level").verdict == "cannot be told"
    assert judge(inside, inside, "level").verdict == "holds"


def test_one_seed_in_common_is_too_few() -> None:
    row = verdict({"pre_ln": BASE, "sas": BASE}, "sas", "pre_ln", "level", n_seeds=1)
    assert (row.verdict, row.n_seeds) == ("cannot be told", 1)
    assert "needs two or more" in row.why


def test_claims_are_about_named_blocks_and_only_those_in_the_study_are_judged() -> None:
    assert {name for claim in CLAIMS for name in (claim.left, claim.right)} == set(PRESETS)
    assert len({(c.left, c.right, c.relation) for c in CLAIMS}) == len(CLAIMS)
    assert all(claim.source and claim.paper for claim in CLAIMS)
    record = record_of({"pre_ln": BASE, "sas": BASE})
    table = verdicts(record, blocks_table(record))
    assert list(table.columns) == list(VERDICT_COLUMNS)
    assert list(table.relation) == ["level", "faster", "fewer"]
    assert not_covered(record, blocks_table(record)) == [
        "parallel", "sas_p", "sas_p_no_norm", "v_skipinit", "shaped_orthogonal", "naive_skipless"]
    assert Claim("sas", "level", "pre_ln", "s", "p").text == "sas is level with pre_ln per step"


def test_of_masked_models_the_paper_says_speed_and_parameters_alone() -> None:
    record = record_of({"pre_ln": BASE, "sas_p": BASE})
    masked = replace(record, attrs={**record.attrs, "spec": {"task": "mlm"}})
    assert set(verdicts(record, blocks_table(record)).relation) == {"level", "faster", "fewer"}
    table = verdicts(masked, blocks_table(masked))
    assert set(table.relation) == {"faster", "fewer"}
    assert set(table.source) == {"Table 1"}
    assert "naive_skipless" not in not_covered(masked, blocks_table(masked))


def test_pairs_are_paired_by_seed_at_each_ones_best_learning_rate() -> None:
    losses = {"pre_ln": {1e-3: shifted(1), 1e-2: BASE}, "sas": {1e-3: shifted(0.05, spread=0.01), 1e-2: shifted(9)}}
    record = record_of(losses, rates=(1e-3, 1e-2),
                       speed={"pre_ln": (1.01, 0.99, 1.03), "sas": (1.2, 1.1, 1.25)})
    [row] = pairwise(record, blocks_table(record)).itertuples()
    expected = stats.ttest_1samp([-0.04, -0.05, -0.06], 0).confidence_interval()
    assert (row.left, row.right, row.n_seeds) == ("pre_ln", "sas", 3)
    assert (row.loss_difference, row.loss_low, row.loss_high) == pytest.approx((-0.05, expected.low, expected.high))
    # Against the baseline the speed is what was measured, not a quotient with the baseline's own noise.
    assert (row.speed_ratio, row.speed_low, row.speed_high) == pytest.approx((1 / 1.2, 1 / 1.25, 1 / 1.1))


def test_the_ratio_of_two_measured_ratios_is_wider_than_either() -> None:
    left, right = Interval(1.2, 1.1, 1.3), Interval(1.1, 1.0, 1.2)
    found = ratio_interval(left, right)
    assert found.estimate == pytest.approx(1.2 / 1.1)
    assert math.log(found.high / found.low) > max(math.log(1.3 / 1.1), math.log(1.2 / 1.0))
    exact = ratio_interval(left, Interval(1.1, 1.1, 1.1))
    assert (exact.low, exact.high) == pytest.approx((1.1 / 1.1, 1.3 / 1.1))


def test_the_interval_of_a_mean_is_students() -> None:
    values = np.array([4.1, 4.4, 4.2])
    low, high = stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values))
    assert mean_interval(values) == pytest.approx((values.mean(), low, high))
    assert math.isnan(mean_interval([4.0]).low)
    assert mean_interval([4.0]).estimate == 4.0
    assert math.isnan(mean_interval([]).estimate)


def test_a_study_without_named_blocks_gives_empty_tables() -> None:
    record = record_of({"pre_ln": BASE})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairs = pairwise(record, blocks_table(record))
        table = verdicts(record, blocks_table(record))
    assert (list(pairs.columns), len(pairs)) == (list(PAIR_COLUMNS), 0)
    assert table.empty


def rates_of(losses: Losses, *, rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)) -> pd.DataFrame:
    return sensitivity(record_of(losses, rates=rates)).set_index("preset")


def test_the_sensitivity_to_the_learning_rate() -> None:
    found = rates_of({
        "pre_ln": {1e-3: around(4.07), 3e-3: around(4.0), 1e-2: around(4.5)},
        "sas": {1e-3: around(5.0), 3e-3: around(4.2), 1e-2: around(4.0)},
        "sas_p": {1e-3: around(4.0), 3e-3: around(4.01), 1e-2: "diverged"},
        "naive_skipless": "diverged",
        "sas_p_no_norm": {1e-3: around(4.0), 3e-3: (4.0, 4.0, "diverged"), 1e-2: "diverged"},
    })
    assert found.best.to_dict() == {
        "pre_ln": 3e-3, "sas": 1e-2, "sas_p": 1e-3, "naive_skipless": 1e-3, "sas_p_no_norm": 1e-3}
    assert found.edge.to_dict() == {
        "pre_ln": "", "sas": "highest", "sas_p": "lowest", "naive_skipless": "", "sas_p_no_norm": "lowest"}
    assert found.still_falling.to_dict() == {
        "pre_ln": False, "sas": True, "sas_p": False, "naive_skipless": False, "sas_p_no_norm": True}
    assert found.spread.to_list()[:3] == pytest.approx([0.5, 1.0, 0.01])
    assert found.factor.to_list()[:3] == pytest.approx([3, 1, 3])  # 4.07 is within 2 % of 4.0, 4.2 is not
    assert found.n_spoilt.to_list() == [0, 0, 1, 3, 2]


def test_blocks_at_an_edge_are_warned_about() -> None:
    table = rates_of({"pre_ln": {1e-3: around(5.0), 1e-2: around(4.0)}, "sas": {1e-3: around(4.0), 1e-2: around(4.01)}},
                     rates=(1e-3, 1e-2)).reset_index()
    low, high = edge_warnings(table)
    assert "best at the lowest learning rate, 0.001: sas." in low
    assert "best at the highest learning rate, 0.01 (1 of them still gain there): pre_ln." in high
    assert not edge_warnings(rates_of({"pre_ln": BASE}, rates=(RATE,)).reset_index())


def test_each_relation_has_a_judge() -> None:
    assert {(claim.relation, claim.measure) for claim in CLAIMS} == {
        ("level", "loss"), ("worse", "loss"), ("better", "loss"), ("faster", "speed"), ("slower", "speed"),
        ("fewer", "parameters"),
    }
