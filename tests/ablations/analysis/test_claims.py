"""Rows against each other, the verdicts on a study's claims, and what its tuned axis allows to say."""

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
from synthetic import card, plan_of, record_of

from ablations.analysis import quantities
from ablations.analysis.claims import SMOKE, VERDICT_COLUMNS, verdicts
from ablations.analysis.intervals import Interval, holm, mean_interval, ratio_interval, with_noise
from ablations.analysis.margins import MARGIN, worth_of
from ablations.analysis.pairs import PAIR_COLUMNS, pairwise
from ablations.analysis.rates import SENSITIVITY_COLUMNS, edge_warnings, sensitivity
from ablations.analysis.tables import StudyRecord, rows_table
from ablations.design.claims import QUANTITIES, RELATIONS
from lit_simplified.config import PRESETS, RunConfig, preset_of

RATE = "optim.learning_rate"
Losses = Mapping[str, Any]
"""By named block: a loss per seed, or the word that is the state of all its cells; with rates, one of them per rate."""


def study_of(
    losses: Losses, *claims: Mapping[str, Any], rates: tuple[float, ...] = (), n_seeds: int = 3, tuned: str = RATE,
    **more: Any,
) -> StudyRecord:
    """A study of named blocks with some claims about them."""
    def loss(config: RunConfig) -> Any:
        own = losses[preset_of(config.model.block)]
        section, _, name = tuned.rpartition(".")
        own = own[getattr(getattr(config, section), name)] if isinstance(own, dict) else own
        own = own if isinstance(own, str) else own[config.seed]
        return own

    plan = plan_of({"compare": {"block": list(losses)}, "tune": {tuned: list(rates)} if rates else {}, "seeds": n_seeds,
                    "claims": list(claims), "source": "a paper"})
    return record_of(plan, loss, **more)


def verdict(losses: Losses, left: str, right: str, relation: str, *, of: Mapping[str, Any] | None = None,
            **given: Any) -> Any:
    """The row of one claim; `of` has its further keys."""
    record = study_of(losses, {"left": left, "is": relation, "right": right, **(of or {})}, **given)
    [row] = verdicts(record, rows_table(record)).itertuples()
    return row


def around(mean: float, *, spread: float = 0.001) -> tuple[float, float, float]:
    return mean - spread, mean, mean + spread


BASE = (4.0, 4.1, 4.2)
"""Losses of the row on the right: seeds differ by more than rows."""


def shifted(by: float, *, spread: float = 0.002) -> tuple[float, ...]:
    return tuple(loss + by + change for loss, change in zip(BASE, (-spread, 0, spread), strict=True))


@pytest.mark.parametrize(("shift", "spread", "expected"), [
    (0.01, 0.002, "holds"), (-0.01, 0.002, "holds"), (0.2, 0.002, "does not hold"), (-0.2, 0.002, "does not hold"),
    (0.05, 0.002, "does not hold"),  # 2 % of the loss would be 0.08
    (0.01, 0.01, "inconclusive"), (0.03, 0.01, "inconclusive"), (0.0, 0.1, "inconclusive"), (0.0, 0.0, "holds"),
    (0.0145, 0.005, "holds"),  # the 95 % interval crosses the margin, that of 90 % does not
])
def test_level_is_two_one_sided_tests_against_a_margin_in_nats(shift: float, spread: float, expected: str) -> None:
    row = verdict({"pre_ln": BASE, "sas": shifted(shift, spread=spread)}, "sas", "pre_ln", "level")
    error = spread / math.sqrt(3)
    reach, narrow = (stats.t.ppf(level, 2) * error for level in (0.975, 0.95))
    assert (row.estimate, row.low, row.high) == pytest.approx((shift, shift - reach, shift + reach))
    within, outside = abs(shift) + narrow <= MARGIN, abs(shift) - reach > MARGIN
    assert row.verdict == expected == ("holds" if within else "does not hold" if outside else "inconclusive")
    if error and abs(shift) < MARGIN:
        differences = np.array([shift - spread, shift, shift + spread])
        p = max(stats.ttest_1samp(differences, bound, alternative=side).pvalue
                for bound, side in ((-MARGIN, "greater"), (MARGIN, "less")))
        assert row.p == row.p_holm == pytest.approx(p)


def test_a_claim_may_have_a_margin_of_its_own() -> None:
    losses = {"pre_ln": BASE, "sas": shifted(0.05)}
    assert verdict(losses, "sas", "pre_ln", "level").verdict == "does not hold"
    own = verdict(losses, "sas", "pre_ln", "level", of={"margin": 0.1})
    assert (own.verdict, own.why) == (
        "holds", "the 90 % interval is within 0.100 nats (the claim has its own margin)")


def test_claims_may_be_in_bits_per_byte() -> None:
    """Of the validation text: nats per token, tokens and bytes of the data card."""
    losses = {"pre_ln": BASE, "sas": shifted(0.2)}
    factor = 100_000 / 300_000 / math.log(2)
    row = verdict(losses, "sas", "pre_ln", "worse", of={"in": "bits_per_byte"}, corpus=card())
    assert (row.verdict, row.estimate) == ("holds", pytest.approx(0.2 * factor))
    level = verdict({"pre_ln": BASE, "sas": shifted(0.01)}, "sas", "pre_ln", "level", of={"in": "bits_per_byte"},
                    corpus=card())
    assert (level.verdict, level.why) == ("holds", "the 90 % interval is within 0.011 bits per byte")
    record = study_of(losses, {"left": "sas", "is": "worse", "right": "pre_ln", "in": "bits_per_byte"}, corpus=card())
    masked = replace(record, attrs={**record.attrs, "spec": {"task": "mlm", "scale": "small"}})
    [row] = verdicts(masked, rows_table(masked)).itertuples()
    assert row.verdict == "inconclusive"
    assert "not defined for the masked task" in row.why


def test_verdicts_are_corrected_for_their_number() -> None:
    """Losses together, speeds together."""
    losses = {"pre_ln": BASE, "sas": shifted(0.03, spread=0.012), "sas_p": shifted(0.0, spread=0.05)}
    ordered = [{"left": left, "is": relation, "right": right} for left, right in (
        ("sas", "pre_ln"), ("sas_p", "pre_ln"), ("sas_p", "sas")) for relation in ("worse", "faster")]
    speed = {"pre_ln": (1.0, 0.999, 1.001), "sas": (1.1, 1.02, 1.19), "sas_p": (1.01, 0.95, 1.07)}
    record = study_of(losses, *ordered, speed=speed)
    found = verdicts(record, rows_table(record))
    loss, pace = (found[found.relation == relation] for relation in ("worse", "faster"))
    for family in (loss, pace):
        assert family.p_holm.to_list() == pytest.approx(holm(family.p.to_list()))
    first = loss.iloc[0]
    assert 0.04 < first.p < 0.05 < first.p_holm
    assert first.verdict == "inconclusive"
    assert first.why == ("the interval of the difference is above 0, but p 0.049 is 0.148 among 3 claims (Holm)")
    assert verdict(losses, "sas", "pre_ln", "worse").verdict == "holds"  # alone
    assert pace.verdict.to_list() == ["holds", "inconclusive", "inconclusive"]
    assert pace.p[1] == pytest.approx(2 * stats.norm.sf(1.959964 * math.log(1.1) / math.hypot(
        math.log(1.1 / 1.02), math.log(1 / 0.999))), rel=1e-4)


def test_scale_smoke_gives_no_verdict_on_losses() -> None:
    losses = {"pre_ln": BASE, "sas": shifted(1.0), "naive_skipless": "diverged"}
    record = study_of(losses, *({"left": left, "is": relation, "right": "pre_ln"} for left, relation in (
        ("sas", "worse"), ("naive_skipless", "worse"), ("sas", "fewer"))), params=lambda config: 100.0)
    assert verdicts(record, rows_table(record)).verdict.to_list() == ["holds", "holds", "does not hold"]
    smoke = replace(record, attrs={**record.attrs, "spec": {"task": "clm", "scale": "smoke"}})
    found = verdicts(smoke, rows_table(smoke))
    assert found.verdict.to_list() == ["inconclusive", "inconclusive", "does not hold"]
    assert found.why.to_list()[:2] == [SMOKE, SMOKE]


def test_what_the_margin_is_worth() -> None:
    """A loss that falls by 0.5 nats with every doubling, over the last half of the tokens."""
    tokens = np.arange(1, 11) * 1000
    curve = pd.DataFrame({"tokens": tokens, "val_loss": np.where(tokens < 5000, 9.0, 5 - 0.5 * np.log2(tokens))})
    worth = worth_of(curve, bits_per_nat=0.5)
    assert worth.bits_per_byte == pytest.approx(0.0115)
    assert worth.per_percent == pytest.approx(0.5 * math.log2(1.01))
    assert worth.percent == pytest.approx(100 * (2 ** (MARGIN / 0.5) - 1))
    assert math.isnan(worth_of(curve[:2], bits_per_nat=math.nan).percent)


@pytest.mark.parametrize(("relation", "shift", "spread", "expected"), [
    ("worse", 0.3, 0.01, "holds"), ("worse", -0.3, 0.01, "does not hold"), ("worse", 0.01, 0.1, "inconclusive"),
    ("better", -0.3, 0.01, "holds"), ("better", 0.3, 0.01, "does not hold"), ("better", 0.0, 0.1, "inconclusive"),
])
@pytest.mark.parametrize("quantity", ["val_loss", "test_loss"])
def test_worse_and_better_need_an_interval_on_their_side_of_zero(
    quantity: str, relation: str, shift: float, spread: float, expected: str
) -> None:
    losses = {"pre_ln": BASE, "v_skipinit": shifted(shift, spread=spread)}
    test_loss = None if quantity == "val_loss" else lambda config: losses[preset_of(config.model.block)][config.seed]
    given = losses if quantity == "val_loss" else dict.fromkeys(losses, BASE)
    row = verdict(given, "v_skipinit", "pre_ln", relation, of={"in": quantity}, test_loss=test_loss)
    assert (row.verdict, row.n_seeds, row.quantity) == (expected, 3, quantity)
    assert row.estimate == pytest.approx(shift)


@pytest.mark.parametrize(("ratio", "expected"), [
    ((1.1, 1.05, 1.15), "holds"), ((0.9, 0.85, 0.95), "does not hold"), ((1.1, 0.99, 1.2), "inconclusive"),
    (None, "inconclusive"),
])
def test_faster_needs_an_interval_above_one(ratio: Any, expected: str) -> None:
    speed = {"pre_ln": (1.0, 0.99, 1.01), **({"sas": ratio} if ratio else {})}
    losses = {"pre_ln": BASE, "sas": BASE}
    row = verdict(losses, "sas", "pre_ln", "faster", speed=speed)
    assert (row.verdict, row.n_seeds, row.quantity) == (expected, 0, "speed")
    slower = {"holds": "does not hold", "does not hold": "holds"}.get(expected, expected)
    assert verdict(losses, "sas", "pre_ln", "slower", speed=speed).verdict == slower


def test_level_in_speed_means_within_two_percent() -> None:
    losses = {"pre_ln": BASE, "sas": BASE}
    for ratio, expected in (((1.0, 0.99, 1.01), "holds"), ((1.2, 1.1, 1.3), "does not hold"),
                            ((1.0, 0.9, 1.1), "inconclusive")):
        row = verdict(losses, "sas", "pre_ln", "level", of={"in": "speed"}, speed={"pre_ln": 1.0, "sas": ratio})
        assert row.verdict == expected


def test_speeds_of_different_sizes_have_a_ratio_and_no_verdict() -> None:
    plan = plan_of({"compare": {"block": ["pre_ln", "sas"], "model.depth": [2, 4]}, "seeds": 2, "claims": [
        {"left": {"block": "sas", "model.depth": 4}, "is": "slower", "right": {"block": "sas", "model.depth": 2}},
        {"left": {"block": "sas", "model.depth": 4}, "is": "faster", "right": {"block": "pre_ln", "model.depth": 4}},
    ]})
    speed = {row.label: {"ratio": 1.2 if row.preset == "sas" else 1.0, "low": 1.1 if row.preset == "sas" else 0.99,
                         "high": 1.3 if row.preset == "sas" else 1.01,
                         "tokens_per_second": 1000 / int(row.levels["model.depth"])} for row in plan.design.rows}
    record = record_of(plan, lambda config: 4.0 + config.seed, speed=speed)
    deeper, beside = verdicts(record, rows_table(record)).itertuples()
    assert (deeper.verdict, deeper.estimate) == ("inconclusive", pytest.approx(0.5))
    assert "different size" in deeper.why
    assert math.isnan(deeper.low)
    assert (beside.verdict, beside.estimate) == ("holds", pytest.approx(1.2))
    assert beside.low == with_noise(Interval(1.2, 1.1, 1.3), Interval(1.0, 0.99, 1.01)).low < 1.1
    pairs = pairwise(record, rows_table(record)).set_index(["left", "right"])
    assert math.isnan(pairs.loc[("pre_ln, depth 2", "sas, depth 4"), "speed_ratio"])
    assert pairs.loc[("pre_ln, depth 4", "sas, depth 4"), "speed_ratio"] == pytest.approx(1 / 1.2)


@pytest.mark.parametrize(("relation", "quantity"), [("fewer", "params"), ("smaller", "memory")])
def test_parameters_and_bytes_are_counted(relation: str, quantity: str) -> None:
    losses = {"pre_ln": BASE, "sas": BASE}
    opposite = {"fewer": "more", "smaller": "larger"}[relation]

    def judged(left: float, said: str) -> Any:
        values = {"pre_ln": 100.0, "sas": left}
        speed = {name: {"ratio": 1.0, "peak_memory_mb": value} for name, value in values.items()}
        return verdict(losses, "sas", "pre_ln", said, speed=speed,
                       params=lambda config: values[preset_of(config.model.block)])

    found = judged(60.0, relation)
    assert (found.verdict, found.estimate, found.quantity) == ("holds", pytest.approx(0.6), quantity)
    assert "60" in found.why
    assert "against 100" in found.why
    assert judged(60.0, opposite).verdict == "does not hold"
    assert judged(140.0, opposite).verdict == "holds"
    assert {judged(100.0, said).verdict for said in (relation, opposite)} == {"does not hold"}


def test_what_was_not_measured_is_inconclusive_and_said() -> None:
    losses = {"pre_ln": BASE, "sas": BASE}
    record = study_of(losses, *({"left": "sas", "is": "better", "right": "pre_ln", "in": name} for name in QUANTITIES))
    record.cells[["params", "test_loss"]] = math.nan
    found = verdicts(record, rows_table(record)).set_index("quantity")
    assert set(found.verdict) == {"inconclusive"}
    assert found.why.to_dict() == {
        "val_loss": "the interval of the difference contains 0: more seeds",
        "test_loss": "0 seeds in common: an interval needs two or more",
        "bits_per_byte": "the study's data card does not hold the bytes of its text",
        "speed": "the speed pass has not measured both",
        "params": "the parameters of one of them were not recorded",
        "memory": "the peak memory of one of them was not measured",
    }


@pytest.mark.parametrize(("left", "right", "worse", "level"), [
    ("diverged", BASE, "holds", "does not hold"), (BASE, "diverged", "does not hold", "does not hold"),
    ("diverged", "diverged", "inconclusive", "inconclusive"),
    ("failed", BASE, "inconclusive", "inconclusive"), (BASE, "failed", "inconclusive", "inconclusive"),
    ("diverged", "failed", "inconclusive", "inconclusive"),
    (("diverged", "failed", "diverged"), BASE, "inconclusive", "inconclusive"),
])
def test_divergence_is_a_result_and_failure_is_none(left: Any, right: Any, worse: str, level: str) -> None:
    losses = {"sas_p_no_norm": left, "sas_p": right}
    found = verdict(losses, "sas_p_no_norm", "sas_p", "worse")
    assert found.verdict == worse
    assert math.isnan(found.estimate)
    assert verdict(losses, "sas_p_no_norm", "sas_p", "level").verdict == level
    opposite = {"holds": "does not hold", "does not hold": "holds"}.get(worse, worse)
    assert verdict(losses, "sas_p_no_norm", "sas_p", "better").verdict == opposite
    if worse != "inconclusive":
        assert "diverged in every cell" in found.why


def test_a_seed_that_diverged_forbids_what_the_others_flatter() -> None:
    def judge(shift: float, *, left: bool) -> tuple[str, str]:
        whole, torn = (*BASE, 4.3), (*shifted(shift), "diverged")
        losses = {"v_skipinit": torn if left else whole, "pre_ln": whole if left else torn}
        row = verdict(losses, "v_skipinit", "pre_ln", "worse", n_seeds=4)
        return row.verdict, row.why

    assert judge(0.3, left=True)[0] == "holds"  # and with its diverged seed all the more
    told, why = judge(-0.3, left=True)
    assert told == "inconclusive"
    assert "1 of 4 seeds of v_skipinit diverged" in why
    assert judge(0.3, left=False)[0] == "does not hold"
    assert judge(-0.3, left=False)[0] == "inconclusive"


@pytest.mark.parametrize(("tuned", "rates", "remedy"), [
    (RATE, (1e-3, 1e-2, 1e-1), "learning_rate (0.1): extend the axis (--lr)"),
    ("optim.weight_decay", (0.01, 0.1, 0.5), "weight_decay (0.5): extend the axis (optim.weight_decay)"),
])
def test_an_edge_of_the_axis_forbids_what_a_longer_one_could_undo(
    tuned: str, rates: tuple[float, ...], remedy: str
) -> None:
    inside = dict(zip(rates, (shifted(1.0), BASE, shifted(1.0)), strict=True))

    def falling(by: float) -> dict[float, tuple[float, ...]]:
        return dict(zip(rates, (shifted(by + 2), shifted(by + 1), shifted(by)), strict=True))

    def judge(left: Any, right: Any, relation: str = "worse") -> Any:
        return verdict({"sas": left, "pre_ln": right}, "sas", "pre_ln", relation, rates=rates, tuned=tuned)

    assert judge(falling(0.3), inside).why == f"sas is still gaining at the edge of {remedy}"
    assert judge(falling(0.3), inside).verdict == "inconclusive"
    assert judge(falling(-0.3), inside).verdict == "does not hold"  # it is better, and would be more so
    assert judge(inside, falling(-0.3)).verdict == "holds"
    assert judge(inside, falling(0.3)).verdict == "inconclusive"
    assert judge(falling(0.0), inside, "level").verdict == "inconclusive"
    assert judge(inside, inside, "level").verdict == "holds"


def test_one_seed_in_common_is_too_few() -> None:
    row = verdict({"pre_ln": BASE, "sas": BASE}, "sas", "pre_ln", "level", n_seeds=1)
    assert (row.verdict, row.n_seeds) == ("inconclusive", 1)
    assert "needs two or more" in row.why


def test_a_claim_about_rows_without_a_finished_cell_stays_and_says_so() -> None:
    row = verdict({"pre_ln": BASE, "sas": "waiting"}, "sas", "pre_ln", "level")
    assert (row.verdict, row.why) == ("inconclusive", "no finished cell of sas yet")
    both = verdict({"pre_ln": "running", "sas": "waiting"}, "sas", "pre_ln", "fewer")
    assert (both.verdict, both.why) == ("inconclusive", "no finished cell of sas or pre_ln yet")


def test_every_claim_of_a_study_is_in_the_table_in_its_words() -> None:
    record = study_of({"pre_ln": BASE, "sas": BASE}, *({"left": "sas", "is": relation, "right": "pre_ln"}
                                                       for relation in RELATIONS))
    table = verdicts(record, rows_table(record))
    assert list(table.columns) == list(VERDICT_COLUMNS)
    assert list(table.relation) == list(RELATIONS)
    assert table.claim[0] == "sas is level with pre_ln"
    assert set(table.source) == {"a paper"}
    assert list(table.quantity) == [relation.quantity for relation in RELATIONS.values()]


def test_claims_are_about_any_rows() -> None:
    plan = plan_of("he2024/fig06-depth", tune={})
    record = record_of(plan, lambda c: 4.0 - 0.1 * (c.model.depth == 24) * (
        1 if c.model.block != PRESETS["v_skipinit"] else -1) + 0.1 * c.seed)
    table = verdicts(record, rows_table(record))
    assert set(table.verdict) == {"holds"}
    assert table.left[0] == "pre_ln, depth 24"


def test_each_quantity_is_measured() -> None:
    assert set(quantities.QUANTITIES) == set(QUANTITIES)
    assert {relation.quantity for relation in RELATIONS.values()} <= set(QUANTITIES)


def test_pairs_are_paired_by_seed_at_each_ones_best_tuned_value() -> None:
    losses = {"pre_ln": {1e-3: shifted(1), 1e-2: BASE}, "sas": {1e-3: shifted(0.05, spread=0.01), 1e-2: shifted(9)}}
    record = study_of(losses, rates=(1e-3, 1e-2), speed={"pre_ln": (1.01, 0.99, 1.03), "sas": (1.2, 1.1, 1.25)})
    [row] = pairwise(record, rows_table(record)).itertuples()
    expected = stats.ttest_1samp([-0.04, -0.05, -0.06], 0).confidence_interval()
    assert (row.left, row.right, row.n_seeds) == ("pre_ln", "sas", 3)
    assert (row.left_row, row.right_row) == tuple(one.id for one in record.design.rows)
    assert (row.loss_difference, row.loss_low, row.loss_high) == pytest.approx((-0.05, expected.low, expected.high))
    # Against the baseline the speed is what was measured, not a quotient with the baseline's own estimate.
    expected = with_noise(Interval(1.2, 1.1, 1.25), Interval(1.01, 0.99, 1.03))
    assert (row.speed_ratio, row.speed_low, row.speed_high) == pytest.approx(
        (1 / 1.2, 1 / expected.high, 1 / expected.low))


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


def test_a_study_of_one_row_gives_empty_tables() -> None:
    for losses in ({"pre_ln": BASE}, {"pre_ln": "waiting"}):
        record = study_of(losses)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pairs = pairwise(record, rows_table(record))
            table = verdicts(record, rows_table(record))
        assert (list(pairs.columns), len(pairs)) == (list(PAIR_COLUMNS), 0)
        assert table.empty


def rates_of(losses: Losses, *, rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2), **given: Any) -> pd.DataFrame:
    return sensitivity(study_of(losses, rates=rates, **given)).set_index("preset")


def test_the_sensitivity_to_the_learning_rate() -> None:
    found = rates_of({
        "pre_ln": {1e-3: around(4.02), 3e-3: around(4.0), 1e-2: around(4.5)},
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
    assert found.factor.to_list()[:3] == pytest.approx([3, 1, 3])  # 4.02 is within 0.023 of 4.0, 4.2 is not
    assert found.n_spoilt.to_list() == [0, 0, 1, 3, 2]
    assert set(found.axis) == {"learning_rate"}


def test_rows_at_an_edge_are_warned_about() -> None:
    losses = {"pre_ln": {1e-3: around(5.0), 1e-2: around(4.0)}, "sas": {1e-3: around(4.0), 1e-2: around(4.01)}}
    low, high = edge_warnings(rates_of(losses, rates=(1e-3, 1e-2)).reset_index())
    assert "best at the lowest learning_rate, 0.001: sas." in low
    assert "best at the highest learning_rate, 0.01 (1 of them still gain there): pre_ln. Extend" in high
    assert "Extend the axis upwards (--lr)" in high
    decay = {name: {rate * 10: loss for rate, loss in own.items()} for name, own in losses.items()}
    table = rates_of(decay, rates=(1e-2, 1e-1), tuned="optim.weight_decay").reset_index()
    [low, _] = edge_warnings(table)
    assert "best at the lowest weight_decay, 0.01: sas. Extend the axis downwards (optim.weight_decay)" in low


def test_no_sensitivity_without_exactly_one_tuned_axis_of_numbers() -> None:
    untuned = sensitivity(study_of({"pre_ln": BASE}))
    assert (list(untuned.columns), len(untuned)) == (list(SENSITIVITY_COLUMNS), 0)
    assert not edge_warnings(untuned)
    for tune in ({RATE: [1e-3, 1e-2], "optim.weight_decay": [0.0, 0.1]}, {"optim.schedule": ["linear", "cosine"]}):
        plan = plan_of({"compare": {"block": ["pre_ln", "sas"]}, "seeds": 1, "tune": tune})
        assert sensitivity(record_of(plan, lambda config: 4.0)).empty
