"""Effects of the axes of any study: planted ones are found, nothing is dropped silently, notes say what is missing."""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic import plan_of, record_of

from ablations.analysis.effects import EFFECT_COLUMNS, LEFT_OUT_COLUMNS, FitQuality, effects_of, left_out_of, quality_of
from ablations.analysis.factorial import fit_all
from ablations.analysis.observed import common
from ablations.analysis.row_sets import factors_of, row_sets
from ablations.analysis.tables import StudyRecord, rows_table
from ablations.design.axes import Axis, Level
from ablations.design.design import Row
from ablations.design.legacy import legacy_design
from lit_simplified.config import PRESETS, BlockConfig, RunConfig, block_id

GRID = plan_of("grid")
ONE_SEED = plan_of("grid", seeds=1)
NORM, DEPTH, ATTENTION, RATE = "model.block.norm", "model.depth", "model.block.attention", "optim.learning_rate"
SMALL = plan_of({"compare": {NORM: ["rms", "layer", "none"], DEPTH: [2, 4], ATTENTION: ["softmax", "shaped"]},
                 "seeds": 2})
FIVE = {NORM: ["rms", "none"], DEPTH: [2, 4], ATTENTION: ["softmax", "shaped"], "model.width": [32, 64],
        "model.block.mlp_skip": [True, False]}


@pytest.fixture(autouse=True)
def _cheap_collections() -> Iterator[None]:
    """statsmodels' multipletests collects garbage each time; there is nothing of ours in what is old."""
    gc.freeze()
    yield
    gc.unfreeze()


def table_of(record: StudyRecord) -> pd.DataFrame:
    return effects_of(fit_all(record, rows_table(record)))


def found_in(record: StudyRecord, measure: str = "loss") -> pd.DataFrame:
    """What is tested of a measure, by term; of an axis with several contrasts, by term and change."""
    table = table_of(record)
    table = table[(table.measure == measure) & (table.kind != "simple")]
    return table.set_index("term" if table.term.is_unique else ["term", "change"])


def quality_in(record: StudyRecord, measure: str = "loss") -> list[FitQuality]:
    return [one for one in quality_of(fit_all(record, rows_table(record))) if one.measure == measure]


def left_out(record: StudyRecord, measure: str = "loss") -> dict[str, str]:
    """Reasons by label."""
    table = left_out_of(fit_all(record, rows_table(record)), record)
    assert list(table.columns) == list(LEFT_OUT_COLUMNS)
    return dict(zip(table.label[table.measure == measure], table.reason[table.measure == measure], strict=True))


MAIN = {"attention_skip": 0.3, "mlp_skip": 0.2, "attention": -0.15, "value + projection": 0.05, "norm": 0.08}
CROSS = 0.12
"""Planted: what norm=none adds where the attention skip is gone."""
BOTH = "attention_skip = mlp_skip"


def planted(config: RunConfig) -> float:
    """A loss with these effects; a parallel block has none of the skips', so that they must not be read off it."""
    block = config.model.block
    loss = MAIN["attention"] * (block.attention == "shaped") + MAIN["value + projection"] * (block.value == "identity")
    loss += MAIN["norm"] * (block.norm == "none")
    if block.layout == "sequential":
        loss += MAIN["attention_skip"] * (not block.attention_skip) + MAIN["mlp_skip"] * (not block.mlp_skip)
        loss += CROSS * (block.norm == "none" and not block.attention_skip)
    return 3.0 + loss


SKIPS = MAIN["attention_skip"] + MAIN["mlp_skip"] + CROSS / 2
TRUE = {
    **MAIN,
    # Half of the sequential blocks have the other change; of all blocks, it is a third that are sequential without it.
    "attention_skip": MAIN["attention_skip"] + CROSS / 2, "norm": MAIN["norm"] + CROSS / 3,
    "attention_skip x norm": CROSS,
    # Of the blocks with equal skips, those without lose 0.5 + CROSS/2 in sequence and nothing in parallel.
    "layout": -SKIPS / 2, f"layout x {BOTH}": -SKIPS, "layout x norm": -CROSS / 2,
}


def test_without_noise_the_planted_effects_are_found_exactly() -> None:
    found = found_in(record_of(ONE_SEED, planted))
    assert len(found) == 6 + 10 + 4
    assert found.estimate.to_dict() == pytest.approx({term: TRUE.get(str(term), 0.0) for term in found.index}, abs=1e-9)
    assert found.index[0] == f"layout x {BOTH}"  # the largest first
    assert found.estimate.abs().is_monotonic_decreasing
    assert (set(found.basis), set(found.alias)) == ({"rows"}, {""})


def test_the_rows_of_a_question_follow_from_the_combinations_that_exist() -> None:
    sets = {contrast: own for own in row_sets(factors_of(GRID.design)) for contrast in own.asked}
    sizes = {"attention_skip": 32, "mlp_skip": 32, "layout": 32, "attention": 48, "value + projection": 48, "norm": 48}
    assert {contrast[0][0]: len(own.rows) for contrast, own in sets.items() if len(contrast) == 1} == sizes
    assert {own.name for own in sets.values()} == {"all rows", "rows with layout=sequential", f"rows with {BOTH}"}
    levels = {row.id: row.levels for row in GRID.design.rows}
    for contrast, own in sets.items():
        if contrast[0][0] == "layout":
            assert all(levels[row]["model.block.attention_skip"] == levels[row]["model.block.mlp_skip"]
                       for row in own.rows)
        if contrast[0][0].endswith("_skip"):
            assert {levels[row]["model.block.layout"] for row in own.rows} == {"sequential"}


def test_the_blocks_of_the_masked_task_have_the_same_effects() -> None:
    causal = found_in(record_of(ONE_SEED, planted))
    masked = found_in(record_of(plan_of("grid", seeds=1, task="mlm"), planted))
    assert masked.estimate.to_dict() == pytest.approx(causal.estimate.to_dict())
    assert (causal.loc["norm", "change"], masked.loc["norm", "change"]) == ("rms -> none", "layer -> none")


def test_an_interaction_by_hand() -> None:
    """(mean over norm=none of no skip - skip) - (the same over norm=rms), from 32 numbers without any model."""
    rng = np.random.default_rng(0)
    losses = {config.model.block: float(rng.normal()) for config in ONE_SEED.rows.values()}

    def mean(**switches: Any) -> float:
        return fmean(loss for block, loss in losses.items()
                     if all(getattr(block, name) == value for name, value in switches.items()))

    seq = {"layout": "sequential"}
    at_none = mean(attention_skip=False, norm="none", **seq) - mean(attention_skip=True, norm="none", **seq)
    at_rms = mean(attention_skip=False, norm="rms", **seq) - mean(attention_skip=True, norm="rms", **seq)
    found = found_in(record_of(ONE_SEED, lambda config: losses[config.model.block]))
    assert found.loc["attention_skip x norm", "estimate"] == pytest.approx(at_none - at_rms)
    assert found.loc["attention_skip", "estimate"] == pytest.approx((at_none + at_rms) / 2)
    assert found.loc["attention_skip", "change"] == "true -> false"
    assert found.loc["norm", "estimate"] == pytest.approx(mean(norm="none") - mean(norm="rms"))


def three_levels(config: RunConfig) -> float:
    by_norm = {"rms": 0.0, "layer": 0.1, "none": 0.4}
    loss = by_norm[config.model.block.norm] - 0.2 * (config.model.depth == 4)
    loss += 0.06 * (config.model.block.norm == "none") * (config.model.depth == 4)
    return 4.0 + loss + 0.5 * config.seed


def test_each_level_of_an_axis_is_a_contrast_against_its_reference() -> None:
    found = found_in(record_of(SMALL, three_levels))
    assert found.estimate.to_dict() == pytest.approx({
        ("norm", "rms -> none"): 0.43, ("norm", "rms -> layer"): 0.1, ("depth", "2 -> 4"): -0.18,
        ("norm x depth", "rms -> none, 2 -> 4"): 0.06,
        **{key: 0.0 for key in found.index if "layer, 2" in key[1] or "attention" in key[0]},
    }, abs=1e-9)
    assert (found.n_left_out == 0).all()
    assert set(found.n_rows) == {12}
    assert set(found.n_seeds) == {2}
    by_hand = rows_table(record_of(SMALL, three_levels)).groupby("norm").val_loss_mean.mean()
    assert found.loc[("norm", "rms -> none"), "estimate"] == pytest.approx(by_hand["none"] - by_hand["rms"])


def test_effects_are_against_the_level_of_the_baseline() -> None:
    plan = plan_of({"compare": {NORM: ["rms", "layer", "none"], DEPTH: [2, 4]}, "seeds": 1,
                    "baseline": {NORM: "none", DEPTH: 4}})
    changes = set(found_in(record_of(plan, three_levels)).reset_index().change)
    assert {"none -> rms", "none -> layer", "4 -> 2"} <= changes


def test_a_third_position_of_a_switch_drops_no_row_from_any_model() -> None:
    compare = {**dict.fromkeys(GRID.design.titles(), "grid"), NORM: ["rms", "layer", "none"],
               ATTENTION: ["softmax", "skipinit", "shaped"],
               "value + projection": {"together": ["model.block.value", "model.block.projection"], "levels": "grid"}}
    plan = plan_of({"compare": compare, "seeds": 1})
    record = record_of(plan, planted)
    found = found_in(record)
    assert len(plan.rows) == 48 * 9 // 4
    assert (found.n_left_out == 0).all()
    assert not left_out(record)
    assert set(found.loc["norm"].n_rows) == {len(plan.rows)}
    assert found.loc[("attention_skip", "true -> false"), "n_rows"] == 32 * 9 // 4
    assert found.loc[("attention", "softmax -> shaped"), "estimate"] == pytest.approx(MAIN["attention"])
    assert found.loc[("attention", "softmax -> skipinit"), "estimate"] == pytest.approx(0.0, abs=1e-9)


def test_a_level_that_exists_beside_some_others_alone_has_rows_of_its_own() -> None:
    rows = [{NORM: norm, DEPTH: depth} for norm in ("rms", "none") for depth in (2, 4, 8)] + [{NORM: "layer", DEPTH: 2}]
    plan = plan_of({"compare": {NORM: ["rms", "layer", "none"], DEPTH: [2, 4, 8]}, "design": {"rows": rows},
                    "seeds": 2, "baseline": {NORM: "rms", DEPTH: 2}})
    found = found_in(record_of(plan, three_levels))
    assert found.loc[("norm", "rms -> none"), ["n_rows", "n_left_out"]].to_list() == [6, 0]
    assert found.loc[("norm", "rms -> layer"), "n_rows"] == 2
    assert found.loc[("norm", "rms -> layer"), "estimate"] == pytest.approx(0.1)
    assert not [key for key in found.index if "layer" in key[1] and "x" in key[0]]  # layer at depth 4 does not exist


def test_axes_that_move_together_are_one_term() -> None:
    rows = [{NORM: norm, DEPTH: depth, ATTENTION: attention} for norm, depth in (("rms", 2), ("none", 4))
            for attention in ("softmax", "shaped")]
    plan = plan_of({"compare": {NORM: ["rms", "none"], DEPTH: [2, 4], ATTENTION: ["softmax", "shaped"]},
                    "design": {"rows": rows}, "seeds": 1, "baseline": {NORM: "rms", DEPTH: 2}})
    found = found_in(record_of(plan, lambda config: 3.0 + 0.2 * (config.model.depth == 4)))
    assert set(found.index) == {"norm = depth", "attention", "norm = depth x attention"}
    assert found.loc["norm = depth", ["change", "estimate"]].to_list() == ["rms/2 -> none/4", pytest.approx(0.2)]


def test_simple_effects_are_at_every_level_of_the_axis_that_matters_most() -> None:
    table = table_of(record_of(ONE_SEED, planted))
    simple = table[(table.kind == "simple") & (table.term == "norm")].set_index("where").estimate
    assert simple.to_dict() == pytest.approx({"attention_skip=true": MAIN["norm"],
                                              "attention_skip=false": MAIN["norm"] + CROSS})
    layout = table[(table.kind == "simple") & (table.term == "layout")].set_index("where").estimate
    assert layout.to_dict() == pytest.approx({"attention_skip=mlp_skip=true": 0.0,
                                              "attention_skip=mlp_skip=false": -SKIPS}, abs=1e-9)
    assert set(table[table.kind == "simple"].term) == {*MAIN, "layout"}
    assert table[table.kind == "simple"].p_holm.isna().all()
    assert not table[table.kind == "simple"].distinct.any()
    table = table_of(record_of(SMALL, three_levels))
    depth = table[(table.kind == "simple") & (table.term == "depth")].set_index("where").estimate
    assert depth.to_dict() == pytest.approx({"norm=rms": -0.2, "norm=layer": -0.2, "norm=none": -0.14})


def test_a_fraction_of_resolution_five_tells_every_pair() -> None:
    plan = plan_of({"compare": FIVE, "design": {"fraction": {"rows": 16}}, "seeds": 3})
    record = record_of(plan, lambda c: 4.0 + c.seed + 0.3 * (c.model.block.norm == "none") * (c.model.depth == 4))
    found = found_in(record)
    assert len(found) == 5 + 10
    assert found.loc[["norm", "depth", "norm x depth"], "estimate"].to_list() == pytest.approx([0.15, 0.15, 0.3])
    assert found.estimate.abs().sum() == pytest.approx(0.6)
    assert (set(found.alias), set(found.basis), set(found.n_seeds)) == ({""}, {"seeds"}, {3})
    assert "intervals of effects on loss come from the seeds" in quality_in(record)[0].note


def test_what_a_fraction_mixes_up_is_one_term_with_both_names() -> None:
    plan = plan_of({"compare": FIVE, "design": {"fraction": {"rows": 8}}, "seeds": 2})
    record = record_of(plan, lambda config: 4.0 + 0.3 * (config.model.block.norm == "none"))
    found = found_in(record)
    assert len(found) == 8 - 1
    assert found.loc["norm", "estimate"] == pytest.approx(0.3)
    assert {"norm", "depth", "attention", "width", "mlp_skip"} < set(found.index)
    names = [name.strip("- ") for alias in found.alias for name in alias.split(" = ")]
    assert len(names) == len(set(names)) == 5 + 10  # every pair is somewhere, once
    assert set(table_of(record).kind) == {"main", "interaction"}  # no simple effect at a level of one axis or another
    assert all(alias.startswith(term) and " = " in alias for term, alias in found.alias.items())


def test_the_sign_of_an_alias_is_that_of_its_product() -> None:
    plan = plan_of({"compare": dict(list(FIVE.items())[:4]), "design": {"fraction": {"rows": 8}}, "seeds": 2})
    record = record_of(plan, lambda config: 4.0)
    codes = {row.id: {axis.title: (axis.labels.index(row.levels[axis.name]) - 0.5) for axis in plan.design.axes}
             for row in plan.design.rows}
    for alias in found_in(record).alias[lambda column: column != ""]:
        first, second = alias.split(" = ")
        product = [math.prod(code[name] for name in first.split(" x ")) for code in codes.values()]
        other = [math.prod(code[name] for name in second.strip("-").split(" x ")) for code in codes.values()]
        assert np.corrcoef(product, other)[0, 1] == pytest.approx(-1.0 if second.startswith("-") else 1.0)


def test_one_change_at_a_time_is_judged_row_by_row_against_the_baseline() -> None:
    plan = plan_of({"compare": {NORM: ["rms", "layer", "none"], DEPTH: [2, 4]}, "design": "one_at_a_time", "seeds": 3,
                    "baseline": {DEPTH: 2}})
    rng = np.random.default_rng(0)
    noise = {(label, seed): rng.normal(0, 0.01) for label in ("rms2", "layer2", "none2", "rms4") for seed in range(3)}

    def loss(config: RunConfig) -> float:
        return three_levels(config) + noise[f"{config.model.block.norm}{config.model.depth}", config.seed]

    record = record_of(plan, loss, speed={"pre_ln, depth 2": 1.0, "norm none": (1.2, 1.1, 1.3)})
    found = found_in(record)
    assert set(found.kind) == {"step"}
    assert set(found.index) == {("norm", "rms -> layer"), ("norm", "rms -> none"), ("depth", "2 -> 4")}
    assert set(found["where"]) == {"against pre_ln, depth 2"}
    differences = [0.4 + noise["none2", seed] - noise["rms2", seed] for seed in range(3)]
    expected = stats.ttest_1samp(differences, 0)
    row = found.loc[("norm", "rms -> none")]
    assert (row.estimate, row.p) == pytest.approx((np.mean(differences), expected.pvalue))
    assert (row.low, row.high) == pytest.approx((expected.confidence_interval().low,
                                                 expected.confidence_interval().high))
    assert (row.basis, row.n_seeds, row.n_rows) == ("seeds", 3, 2)
    speed = found_in(record, "speed").loc[("norm", "rms -> none")]
    assert [speed.estimate, speed.low, speed.high] == pytest.approx([1.2, 1.1, 1.3])
    assert speed.basis == "rounds"
    assert left_out(record, "speed") == dict.fromkeys(("norm layer", "depth 4"), "its speed was not measured")


def test_a_path_is_judged_step_by_step_and_as_a_whole() -> None:
    plan = plan_of({"compare": {"block": ["pre_ln", "sas_p"]}, "design": "path", "seeds": 2})
    order = {row.id: number for number, row in enumerate(plan.design.rows)}
    by_block = {config.model.block: order[row] for row, config in plan.rows.items()}
    found = found_in(record_of(plan, lambda config: 4.0 + config.seed + 0.1 * by_block[config.model.block] ** 2))
    steps = found[found["where"] != "first to last"]
    assert list(steps["where"]) == [f"step {number}" for number in range(1, len(order))]  # in the path's order
    assert steps.estimate.to_list() == pytest.approx([0.1 * (2 * number - 1) for number in range(1, len(order))])
    whole = found.loc["whole path"]
    assert whole.estimate == pytest.approx(0.1 * (len(order) - 1) ** 2)
    assert whole.change.startswith("pre_ln -> ")


def test_a_step_with_a_row_that_diverged_has_no_estimate_and_the_others_stay() -> None:
    plan = plan_of({"compare": {NORM: ["rms", "none"], DEPTH: [2, 4]}, "design": "one_at_a_time", "seeds": 2,
                    "baseline": {DEPTH: 2}})
    record = record_of(plan, lambda c: "diverged" if c.model.block.norm == "none" else three_levels(c))
    found = found_in(record)
    assert math.isnan(found.loc["norm", "estimate"])
    assert found.loc["norm", ["n_rows", "n_left_out", "basis"]].to_list() == [1, 1, "none"]
    assert found.loc["depth", "estimate"] == pytest.approx(-0.2)
    assert left_out(record) == {"norm none": "diverged"}


def test_where_the_model_has_a_coefficient_per_row_the_seeds_give_the_interval() -> None:
    plan = plan_of("he2024/fig06-depth", tune={}, seeds=3)
    rng = np.random.default_rng(2)

    def loss(config: RunConfig) -> float:
        return 4 + config.seed + float(rng.normal(0, 0.02))

    record = record_of(plan, loss)
    found = found_in(record)
    by_seed = record.cells.pivot(index="seed", columns="label", values="val_loss")
    sas = (by_seed["sas, depth 6"] + by_seed["sas, depth 24"]) / 2
    base = (by_seed["pre_ln, depth 6"] + by_seed["pre_ln, depth 24"]) / 2
    expected = stats.ttest_1samp(sas - base, 0)
    row = found.loc[("block", "pre_ln -> sas")]
    assert (row.estimate, row.p, row.low) == pytest.approx(
        ((sas - base).mean(), expected.pvalue, expected.confidence_interval().low))
    assert row.basis == "seeds"
    single = found_in(record_of(plan_of("he2024/fig06-depth", tune={}, seeds=1), loss))
    assert set(single.basis) == {"none"}
    assert single[["low", "high", "p"]].isna().all(axis=None)


def test_named_blocks_have_effects_of_their_own_axis() -> None:
    plan = plan_of("he2024/blocks")
    found = found_in(record_of(plan, planted))
    assert set(found.reset_index().term) == {"block"}
    assert set(found.reset_index().change) == {f"pre_ln -> {name}" for name in PRESETS if name != "pre_ln"}


def test_extra_seeds_and_tuned_values_of_some_rows_change_nothing() -> None:
    """They would compare a row's easy seeds with another's hard ones."""
    rng = np.random.default_rng(3)
    loss = {(row, seed): float(rng.normal(4, 1)) for row in GRID.rows for seed in range(3)}
    ids = {config.model.block: row for row, config in GRID.rows.items()}
    plain, extended = (record_of(plan, lambda config: loss[ids[config.model.block], config.seed])
                       for plan in (ONE_SEED, GRID))
    assert len(extended.cells) > len(plain.cells)
    pd.testing.assert_frame_equal(table_of(plain), table_of(extended))
    assert common(extended.cells)[0] == (0,)


def test_each_row_is_taken_at_its_best_common_tuned_value() -> None:
    def loss(config: RunConfig) -> float:
        best = 1e-3 if config.model.block.norm == "none" else 1e-2
        return planted(config) + 5 * (config.optim.learning_rate != best)

    record = record_of(plan_of("grid", seeds=1, tune={RATE: [1e-3, 1e-2]}), loss)
    assert found_in(record).loc["norm", "estimate"] == pytest.approx(TRUE["norm"])
    assert quality_in(record)[0].tuned == ("0.001", "0.01")


def test_a_learning_rate_may_be_compared_like_any_axis() -> None:
    plan = plan_of({"compare": {NORM: ["rms", "none"], RATE: [1e-3, 1e-2]}, "seeds": 2})
    found = found_in(record_of(plan, lambda c: 4.0 + 0.3 * (c.optim.learning_rate == 1e-2) + 0.1 * c.seed))
    assert found.loc["learning_rate", ["change", "estimate", "n_left_out"]].to_list() == [
        "0.01 -> 0.001", pytest.approx(-0.3), 0]  # 0.01 is what the rows have by default


def test_speed_effects_are_ratios() -> None:
    def ratio(block: BlockConfig) -> float:
        return 1.1 ** (block.norm == "none") * 1.2 ** (block.value == "identity") * 0.9 ** (block.layout == "parallel")

    speed = {row: ratio(config.model.block) for row, config in GRID.rows.items()}
    record = record_of(ONE_SEED, lambda c: "diverged" if c.model.block == PRESETS["sas"] else planted(c), speed=speed)
    found = found_in(record, "speed")
    expected = {"norm": 1.1, "value + projection": 1.2, "layout": 0.9}
    for term, row in found.iterrows():
        assert row.estimate == pytest.approx(expected.get(str(term), 1.0)), term
    assert list(found.index[:3]) == ["value + projection", "layout", "norm"]  # by the size of the logarithm
    assert set(found.n_left_out) == {0}  # a diverged row has a speed
    assert not left_out(record, "speed")


def test_across_sizes_speed_effects_come_from_tokens_per_second() -> None:
    plan = plan_of({"compare": {NORM: ["rms", "none"], DEPTH: [2, 4]}, "seeds": 2})
    speed = {row.id: {"ratio": 1.1 if row.levels[NORM] == "none" else 1.0,
                      "tokens_per_second": 1000.0 / int(row.levels[DEPTH])} for row in plan.design.rows}
    found = found_in(record_of(plan, three_levels, speed=speed), "speed")
    assert found.loc[["depth", "norm"], "estimate"].to_list() == pytest.approx([0.5, 1.0])


def test_rows_without_a_number_are_counted_and_named() -> None:
    lost = {PRESETS["naive_skipless"]: "diverged", PRESETS["parallel"]: "failed"}
    plan = plan_of("grid", seeds=2)
    record = record_of(plan, lambda c: lost.get(c.model.block, planted(c)) if c.seed else planted(c),
                       speed={**dict.fromkeys(plan.rows, 1.0), plan.design.baseline: {"error": "no memory"}})
    record = replace(record, cells=record.cells[record.cells.label != "sas_p"])
    assert left_out(record) == {"naive_skipless": "diverged (seed 1)", "parallel": "failed (seed 1)",
                                "sas_p": "no cell of it yet"}
    assert left_out(record, "speed") == {"pre_ln": "its speed pass failed: no memory"}
    found = found_in(record)
    assert found.loc["norm", ["n_rows", "n_left_out"]].to_list() == [45, 3]
    assert found.loc["attention_skip", "n_left_out"] == 1
    for term in ("attention_skip", "mlp_skip"):
        assert found.loc[term, "estimate"] == pytest.approx(TRUE[term]), term


def test_rows_added_by_name_are_left_out_and_named() -> None:
    strange = BlockConfig(mlp_ratio=8.0)
    row = Row(block_id(strange), "mine", {}, "digest")
    config = replace(ONE_SEED.template, model=replace(ONE_SEED.template.model, block=strange))
    design = replace(ONE_SEED.design, rows=(*ONE_SEED.design.rows, row))
    plan = replace(ONE_SEED, design=design, rows={**ONE_SEED.rows, row.id: config},
                   seeds={**ONE_SEED.seeds, row.id: (0,)})
    record = record_of(plan, lambda c: 99.0 if c.model.block == strange else planted(c))
    pd.testing.assert_frame_equal(found_in(record), found_in(record_of(ONE_SEED, planted)))
    names = ", ".join(ONE_SEED.design.titles().values())
    assert left_out(record) == {"mine": f"it has no level on {names}"}


def test_a_row_that_shares_no_question_is_named() -> None:
    rows = [{NORM: "rms", DEPTH: 2}, {NORM: "none", DEPTH: 2}, {NORM: "layer", DEPTH: 4}, {NORM: "rms", DEPTH: 8}]
    plan = plan_of({"compare": {NORM: ["rms", "layer", "none"], DEPTH: [2, 4, 8]}, "design": {"rows": rows},
                    "seeds": 2, "baseline": {NORM: "rms", DEPTH: 2}})
    assert left_out(record_of(plan, three_levels)) == {
        "norm layer, depth 4": "no other row answers a question together with it"}


def test_a_level_that_its_axis_does_not_have_is_an_error() -> None:
    axes = tuple(Axis(axis.name, (*axis.levels[:1], Level("other", {axis.name: "x"}))) for axis in SMALL.design.axes)
    record = record_of(SMALL, three_levels)
    with pytest.raises(ValueError, match="which the axis does not have: rms, other"):
        fit_all(replace(record, design=replace(record.design, axes=axes)), rows_table(record))


def test_what_cannot_be_estimated_is_nan_and_said() -> None:
    def loss(config: RunConfig) -> Any:
        block = config.model.block
        return "diverged" if block.layout == "sequential" and block.norm == "none" and not block.mlp_skip else planted(
            config)

    record = record_of(ONE_SEED, loss)
    found = found_in(record)
    assert math.isnan(found.loc["mlp_skip x norm", "estimate"])  # no row has both changes
    assert math.isnan(found.loc["mlp_skip", "estimate"])  # nor can its average over both be told
    assert found.loc["mlp_skip", "basis"] == "none"
    [sequential] = [one for one in quality_in(record) if one.design == "rows with layout=sequential"]
    assert "too many are left out" in sequential.note
    assert sequential.residual_degrees == 24 - 15
    assert found.loc["attention_skip x attention", "estimate"] == pytest.approx(0.0, abs=1e-9)


def test_a_row_that_a_saturated_model_lacks_leaves_no_estimate_and_is_named() -> None:
    plan = plan_of({"compare": FIVE, "design": {"fraction": {"rows": 16}}, "seeds": 2})
    first = plan.design.rows[3]
    record = record_of(plan, lambda c: "diverged" if c == replace(plan.rows[first.id], seed=c.seed) else 4.0)
    assert found_in(record).estimate.isna().all()
    assert list(left_out(record)) == [first.label]
    assert "too many are left out" in quality_in(record)[0].note


def test_an_unfinished_study_uses_the_seed_that_is_furthest() -> None:
    plan = plan_of("grid", seeds=2)
    record = record_of(plan, lambda c: planted(c) if c.seed == 0 and c.model.block != PRESETS["sas"] else "waiting")
    assert common(record.cells.assign(tuned=""))[0] == (0,)
    found = found_in(record)
    assert found.loc["norm", ["n_rows", "n_left_out", "n_seeds"]].to_list() == [47, 1, 1]
    assert left_out(record) == {"sas": "not finished"}
    nothing = record_of(plan, lambda c: "waiting")
    assert table_of(nothing).empty
    notes = {one.note for measure in ("loss", "speed") for one in quality_in(nothing, measure)}
    assert notes == {"No loss is known yet.", "The speed pass has not been run."}
    assert not left_out(nothing)


def test_rows_that_share_no_seed_are_named() -> None:
    plan = replace(SMALL, seeds={row: (number,) for number, row in enumerate(SMALL.rows)})
    record = record_of(plan, three_levels)
    assert set(left_out(record).values()) == {"no seed at which all rows have a cell"}
    assert len(left_out(record)) == 12
    assert "no seed at which all rows have a cell" in quality_in(record)[0].note


def test_a_study_that_compares_nothing_has_no_effects() -> None:
    record = record_of(plan_of({"compare": {"block": ["sas"]}, "seeds": 2}), planted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = table_of(record)
    assert (list(table.columns), len(table)) == (list(EFFECT_COLUMNS), 0)
    assert quality_in(record) == []
    assert not left_out(record)


def test_where_nothing_varies_there_is_no_effect() -> None:
    flat = found_in(record_of(ONE_SEED, lambda config: 4.1))
    assert flat.estimate.abs().max() < 1e-12
    assert (flat.p == 1).all()  # not rounding over rounding


def test_the_seed_noise_is_told_apart_from_what_is_a_rows_own() -> None:
    rng = np.random.default_rng(5)
    own = {row: rng.normal(0, 0.2) for row in GRID.rows}
    blocks = {config.model.block: row for row, config in GRID.rows.items()}

    def loss(config: RunConfig) -> float:
        return planted(config) + own[blocks[config.model.block]] + rng.normal(0, 0.01) + 0.5 * config.seed

    for quality in quality_in(record_of(plan_of("grid", seeds=3), loss)):
        assert quality.seed_sd == pytest.approx(0.01, rel=0.25)
        assert quality.residual_sd == pytest.approx(0.2, rel=0.5)
        assert 0 < quality.r_squared < 1
    assert math.isnan(quality_in(record_of(ONE_SEED, loss))[0].seed_sd)


def test_a_study_recorded_before_studies_were_files_has_effects() -> None:
    record = record_of(ONE_SEED, planted)
    blocks = {row: config.model.block for row, config in ONE_SEED.rows.items()}
    old = replace(record, design=legacy_design(blocks, task="clm", learning_rates=[1e-2]))
    pd.testing.assert_frame_equal(table_of(old), table_of(record))
    some = {row: block for row, block in blocks.items() if block in PRESETS.values()} | {"mine": BlockConfig(
        mlp_ratio=8.0)}
    part = replace(record, design=legacy_design(some, task="clm", learning_rates=[1e-2]),
                   cells=record.cells[record.cells.row.isin(some)])
    assert "it has no level" in left_out(part)["mine"]
    assert not table_of(part).empty


def test_a_cell_of_no_known_row_is_named() -> None:
    record = record_of(ONE_SEED, planted)
    cells = pd.concat([record.cells, record.cells.tail(1).assign(row="elsewhere", label="elsewhere")])
    assert left_out(replace(record, cells=cells)) == {"elsewhere": "it is no row of the design"}
