"""Effects of the switches: planted ones are found, intervals cover, chance is not mistaken for an effect."""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ablations.analysis.effects import EFFECT_COLUMNS, effects, effects_of, fit_quality
from ablations.analysis.factorial import DESIGNS, Observed, codes_of, common, fit, grid_blocks
from ablations.analysis.tables import CELL_COLUMNS, NUMBERS, Record, blocks_table
from ablations.design.space import Cell, block_id, grid
from lit_simplified.config import PRESETS, SWITCHES, BlockConfig, preset_of

Loss = Callable[[BlockConfig, int, float], Any]
RATE = 1e-2


def make_record(
    loss: Loss, *, blocks: Iterable[BlockConfig] | None = None, seeds: Sequence[int] = (0,),
    rates: Sequence[float] = (RATE,), more: Iterable[Cell] = (), speed: dict[str, Any] | None = None, **attrs: Any,
) -> Record:
    """A study as `tables.read` would give it. A loss that is a word is the state of a cell without one."""
    cells = [Cell(block, seed, rate) for block in blocks or grid() for seed in seeds for rate in rates]
    rows = [cell_row(cell, loss(cell.block, cell.seed, cell.learning_rate)) for cell in dict.fromkeys([*cells, *more])]
    table = pd.DataFrame(rows, columns=list(CELL_COLUMNS)).astype(dict.fromkeys(NUMBERS, float))
    return Record("s", {"spec": {"scale": "small"}, "speed": speed or {}, **attrs}, table, {}, [])


def cell_row(cell: Cell, value: Any) -> dict[str, Any]:
    return {
        **{name: getattr(cell.block, name) for name in SWITCHES}, "cell": cell.id, "block": block_id(cell.block),
        "preset": preset_of(cell.block), "seed": cell.seed, "learning_rate": cell.learning_rate, "reason": "",
        "state": value if isinstance(value, str) else "complete",
        "val_loss": None if isinstance(value, str) else value,
        "params": 100.0 - 40 * (cell.block.value == "identity"),
    }


def found_in(record: Record, measure: str = "loss") -> pd.DataFrame:
    """Main effects and interactions by term."""
    table = effects(record, blocks_table(record))
    return table[(table.measure == measure) & (table.kind != "simple")].set_index("term")


def of_loss(record: Record) -> pd.DataFrame:
    """As `found_in`, without a table of blocks, which only the speeds need."""
    table = effects(record, NO_BLOCKS)
    return table[table.kind != "simple"].set_index("term")


@pytest.fixture(autouse=True)
def _cheap_collections() -> Iterator[None]:
    """statsmodels' multipletests collects garbage each time; there is nothing of ours in what is old."""
    gc.freeze()
    yield
    gc.unfreeze()


NO_BLOCKS = pd.DataFrame({"block": [], "speed_ratio": []})
MAIN = {"attention_skip": 0.3, "mlp_skip": 0.2, "attention": -0.15, "value + projection": 0.05, "norm": 0.08}
CROSS = 0.12
"""Planted: what norm=none adds where the attention skip is gone."""


def planted(block: BlockConfig) -> float:
    """A loss with these effects; a parallel block has none of the skips', so that they must not be read off it."""
    loss = MAIN["attention"] * (block.attention == "shaped") + MAIN["value + projection"] * (block.value == "identity")
    loss += MAIN["norm"] * (block.norm == "none")
    if block.layout == "sequential":
        loss += MAIN["attention_skip"] * (not block.attention_skip) + MAIN["mlp_skip"] * (not block.mlp_skip)
        loss += CROSS * (block.norm == "none" and not block.attention_skip)
    return 3.0 + loss


TRUE = {
    **MAIN,
    # Half of the blocks have the other change: an interaction adds half of itself to both its main effects.
    "attention_skip": MAIN["attention_skip"] + CROSS / 2, "norm": MAIN["norm"] + CROSS / 2,
    "attention_skip x norm": CROSS,
    # Of the blocks with equal skips, those without lose 0.5 + CROSS/2 in sequence and nothing in parallel.
    "layout": -(MAIN["attention_skip"] + MAIN["mlp_skip"] + CROSS / 2) / 2,
    "layout x skip": -(MAIN["attention_skip"] + MAIN["mlp_skip"] + CROSS / 2), "layout x norm": -CROSS / 2,
}


def noisy(rng: np.random.Generator, *, between: float = 0.02, within: float = 0.01) -> Loss:
    """The planted loss, what is a block's own, and training noise."""
    own = {block: rng.normal(0, between) for block in grid()}
    return lambda block, seed, rate: planted(block) + own[block] + rng.normal(0, within) + 0.5 * seed


def test_without_noise_the_planted_effects_are_found_exactly() -> None:
    found = found_in(make_record(lambda block, seed, rate: planted(block)))
    assert len(found) == 5 + 10 + 1 + 4
    assert found.estimate.to_dict() == pytest.approx({term: TRUE.get(term, 0.0) for term in found.index}, abs=1e-9)
    assert found.index[0] == "layout x skip"  # the largest first
    assert found.estimate.abs().is_monotonic_decreasing


def test_the_blocks_of_the_masked_task_have_the_same_effects() -> None:
    causal = found_in(make_record(lambda block, seed, rate: planted(block)))
    masked = found_in(make_record(lambda block, seed, rate: planted(block), blocks=grid("mlm")))
    assert masked.estimate.to_dict() == pytest.approx(causal.estimate.to_dict())
    assert (causal.loc["norm", "change"], masked.loc["norm", "change"]) == ("rms -> none", "layer -> none")


def test_an_interaction_by_hand() -> None:
    """(mean over norm=none of no skip - skip) - (the same over norm=rms), from 32 numbers without any model."""
    rng = np.random.default_rng(0)
    losses = {block: float(rng.normal()) for block in grid()}
    record = make_record(lambda block, seed, rate: losses[block])

    def mean(**switches: Any) -> float:
        chosen = [loss for block, loss in losses.items()
                  if all(getattr(block, name) == value for name, value in switches.items())]
        return float(np.mean(chosen))

    seq = {"layout": "sequential"}
    at_none = mean(attention_skip=False, norm="none", **seq) - mean(attention_skip=True, norm="none", **seq)
    at_rms = mean(attention_skip=False, norm="rms", **seq) - mean(attention_skip=True, norm="rms", **seq)
    found = found_in(record)
    assert found.loc["attention_skip x norm", "estimate"] == pytest.approx(at_none - at_rms)
    assert found.loc["attention_skip", "estimate"] == pytest.approx((at_none + at_rms) / 2)
    assert found.loc["attention_skip", "change"] == "True -> False"


def test_simple_effects_are_at_both_positions_of_the_switch_that_matters_most() -> None:
    table = effects(make_record(lambda block, seed, rate: planted(block)), NO_BLOCKS)
    simple = table[(table.kind == "simple") & (table.term == "norm")].set_index("where").estimate
    assert simple.to_dict() == pytest.approx({"attention_skip=True": MAIN["norm"],
                                              "attention_skip=False": MAIN["norm"] + CROSS})
    assert set(table[table.kind == "simple"].term) == {*MAIN, "layout"}
    assert table[table.kind == "simple"].p_holm.isna().all()
    assert not table[table.kind == "simple"].distinct.any()


def test_planted_effects_are_inside_their_intervals_and_the_large_ones_stand_out() -> None:
    found = found_in(make_record(noisy(np.random.default_rng(1)), seeds=(0, 1)))
    outside = [term for term, row in found.iterrows() if not row.low <= TRUE.get(str(term), 0.0) <= row.high]
    assert len(outside) <= 2  # of twenty; which ones is the seed's
    for term in ("attention_skip", "mlp_skip", "attention", "layout", "layout x skip", "attention_skip x norm"):
        assert found.loc[term, "distinct"], term
    assert (found.p_holm.dropna() >= found.p).all()
    assert set(found.n_seeds) == {2}


@pytest.mark.slow
def test_coverage_of_the_intervals_and_false_alarms() -> None:
    """200 studies without any effect but what is each block's own: 95 % of the intervals hold 0, few flag anything."""
    covered, terms, alarms, rng = 0, 0, 0, np.random.default_rng(0)
    blocks = grid_blocks(make_record(lambda block, seed, rate: 0.0).cells)
    codes = {design: codes_of(design, blocks) for design in DESIGNS}
    for _ in range(200):
        losses = pd.Series(rng.normal(size=48), index=blocks.index)
        found = effects_of([fit(design, codes=own, observed=Observed(losses[own.index]), measure="loss")
                            for design, own in codes.items()])
        found = found[found.kind != "simple"]
        covered += int(((found.low <= 0) & (found.high >= 0)).sum())
        terms += len(found)
        alarms += bool(found.distinct.any())
    assert terms == 200 * 20
    assert 0.92 <= covered / terms <= 0.98
    assert alarms / 200 <= 0.08


GRID = grid()


@pytest.mark.slow
def test_coverage_with_effects_seeds_and_lost_blocks() -> None:
    """Two seeds and four diverged blocks: what is left out costs precision, not truth."""
    covered, terms, rng = 0, 0, np.random.default_rng(1000)
    record = make_record(lambda block, seed, rate: planted(block) + 0.5 * seed, seeds=(0, 1))
    for _ in range(40):
        cells = record.cells.copy()
        own = dict(zip(cells["block"].unique(), rng.normal(0, 0.02, 48), strict=True))
        cells.val_loss += cells["block"].map(own) + rng.normal(0, 0.01, len(cells))
        lost = cells["block"].isin(rng.choice(list(own), size=4, replace=False))
        cells.loc[lost, ["state", "val_loss"]] = ["diverged", math.nan]
        found = of_loss(replace(record, cells=cells))
        # What is planted about the layout is of three switches: the model takes it for noise.
        for term in found.index[~found.index.str.startswith("layout")]:
            covered += bool(found.loc[term, "low"] <= TRUE.get(term, 0.0) <= found.loc[term, "high"])
            terms += 1
    assert 0.92 <= covered / terms <= 0.98


def test_extra_seeds_and_learning_rates_of_some_blocks_change_nothing() -> None:
    """They would compare a block's easy seeds with another's hard ones."""
    loss = {cell: float(value) for cell, value in zip(
        [(block, seed, rate) for block in GRID for seed in (0, 1, 2) for rate in (RATE, 1e-3)],
        np.random.default_rng(3).normal(4, 1, 48 * 6), strict=True)}
    more = [Cell(block, seed, rate) for block in PRESETS.values() if block in GRID
            for seed in (0, 1, 2) for rate in (RATE, 1e-3)]
    plain, extended = (make_record(lambda b, s, r: loss[b, s, r], more=cells) for cells in ((), more))
    pd.testing.assert_frame_equal(effects(plain, NO_BLOCKS), effects(extended, NO_BLOCKS))
    assert common(extended.cells) == ((0,), (RATE,))


def test_skips_are_judged_in_sequential_blocks_alone() -> None:
    def loss(block: BlockConfig, seed: int, rate: float) -> float:
        return planted(block) + 7 * (block.layout == "parallel" and not block.mlp_skip)

    before, after = (of_loss(make_record(function)) for function in (lambda b, s, r: planted(b), loss))
    own = [term for term in before.index if "layout" not in term]
    assert before.loc[own, "estimate"].to_dict() == pytest.approx(after.loc[own, "estimate"].to_dict())
    assert after.loc["layout", "estimate"] == pytest.approx(before.loc["layout", "estimate"] + 3.5)


def test_a_block_outside_the_grid_is_left_out() -> None:
    strange = [BlockConfig(mlp_ratio=8.0), PRESETS["v_skipinit"], BlockConfig(value="identity")]
    record = make_record(lambda b, s, r: 99.0 if b in strange else planted(b), more=[Cell(b, 0, RATE) for b in strange])
    pd.testing.assert_frame_equal(of_loss(record), of_loss(make_record(lambda b, s, r: planted(b))))


def test_diverged_and_failed_blocks_are_left_out_and_counted() -> None:
    lost = {PRESETS["naive_skipless"]: "diverged", PRESETS["parallel"]: "failed"}
    found = of_loss(make_record(lambda b, s, r: lost.get(b, planted(b)), seeds=(0, 1)))
    assert found.loc["norm", ["n_blocks", "n_left_out"]].to_list() == [31, 1]
    assert found.loc["layout", ["n_blocks", "n_left_out"]].to_list() == [31, 1]
    for term in MAIN:
        assert found.loc[term, "estimate"] == pytest.approx(TRUE[term]), term
    one_seed = make_record(lambda b, s, r: "diverged" if b == PRESETS["sas"] and s == 1 else planted(b), seeds=(0, 1))
    assert of_loss(one_seed).loc["norm", "n_left_out"] == 1  # a mean over other seeds than the rest's is none


def test_each_block_is_taken_at_its_best_common_learning_rate() -> None:
    def loss(block: BlockConfig, seed: int, rate: float) -> float:
        best = 1e-3 if block.norm == "none" else 1e-2
        return planted(block) + 5 * (rate != best)

    found = of_loss(make_record(loss, rates=(1e-3, 1e-2)))
    assert found.loc["norm", "estimate"] == pytest.approx(TRUE["norm"])


def test_speed_effects_are_ratios() -> None:
    speed = {}
    for block in GRID:
        ratio = 1.1 ** (block.norm == "none") * 1.2 ** (block.value == "identity") * 0.9 ** (block.layout == "parallel")
        speed[block_id(block)] = {"ratio": ratio, "low": ratio, "high": ratio}
    record = make_record(lambda b, s, r: "diverged" if b == PRESETS["sas"] else planted(b), speed=speed)
    found = found_in(record, "speed")
    expected = {"norm": 1.1, "value + projection": 1.2, "layout": 0.9}
    for term, row in found.iterrows():
        assert row.estimate == pytest.approx(expected.get(str(term), 1.0)), term
    assert list(found.index[:3]) == ["value + projection", "layout", "norm"]  # by the size of the logarithm
    assert set(found.n_left_out) == {0}  # a diverged block has a speed


def test_what_cannot_be_estimated_is_nan_and_said() -> None:
    sequential = [block for block in GRID if block.layout == "sequential"]
    lost = {block for block in sequential if block.norm == "none" and not block.mlp_skip}
    record = make_record(lambda b, s, r: "diverged" if b in lost else planted(b))
    found, [quality, *_] = of_loss(record), fit_quality(record, NO_BLOCKS)
    assert math.isnan(found.loc["mlp_skip x norm", "estimate"])  # no block has both changes
    assert math.isnan(found.loc["norm", "estimate"])  # nor can its average over both be told
    assert found.loc["attention", "estimate"] == pytest.approx(MAIN["attention"])
    assert "too many are left out" in quality.note
    assert quality.residual_degrees == 24 - 15


def test_no_degrees_of_freedom_no_intervals() -> None:
    sequential = [block for block in GRID if block.layout == "sequential"]
    changes = [sum((not b.attention_skip, not b.mlp_skip, b.attention == "shaped", b.value == "identity",
                    b.norm == "none")) for b in sequential]
    kept = {block for block, count in zip(sequential, changes, strict=True) if count <= 2}  # 1 + 5 + 10 of them
    record = make_record(lambda b, s, r: planted(b) if b in kept else "failed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = of_loss(record)
        [quality, *_] = fit_quality(record, NO_BLOCKS)
    assert found.loc["attention_skip", "estimate"] == pytest.approx(TRUE["attention_skip"])
    assert found.loc["attention_skip", ["low", "high", "p"]].isna().all()
    assert not found.distinct.any()
    assert "as many as the model's coefficients" in quality.note


@pytest.mark.parametrize("blocks", [tuple(PRESETS.values()), (PRESETS["pre_ln"],),
                                    (PRESETS["sas_p"], PRESETS["sas_p_no_norm"])])
def test_a_study_of_named_blocks_has_no_effects_and_says_why(blocks: tuple[BlockConfig, ...]) -> None:
    record = make_record(lambda b, s, r: planted(b) + s, blocks=blocks, seeds=(0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = effects(record, blocks_table(record))
        notes = {quality.note for quality in fit_quality(record, blocks_table(record))}
    assert table.empty
    assert list(table.columns) == list(EFFECT_COLUMNS)
    assert len(notes) == 1
    assert "need the whole grid" in notes.pop()


def test_an_unfinished_grid_uses_the_seed_that_is_furthest() -> None:
    def loss(block: BlockConfig, seed: int, rate: float) -> Any:
        return planted(block) if seed == 0 and block != PRESETS["sas"] else "waiting"

    record = make_record(loss, seeds=(0, 1))
    assert common(record.cells) == ((0,), (RATE,))
    found = of_loss(record)
    assert found.loc["norm", ["n_blocks", "n_left_out", "n_seeds"]].to_list() == [31, 1, 1]
    nothing = make_record(lambda b, s, r: "waiting")
    assert of_loss(nothing).empty
    assert {quality.note for quality in fit_quality(nothing, NO_BLOCKS)} == {
        "No loss is known yet.", "The speed pass has not been run."}


def test_where_nothing_varies_there_is_no_effect() -> None:
    flat = of_loss(make_record(lambda b, s, r: 4.1))
    assert flat.estimate.abs().max() < 1e-12
    assert (flat.p == 1).all()  # not rounding over rounding


def test_the_seed_noise_is_told_apart_from_what_is_a_blocks_own() -> None:
    record = make_record(noisy(np.random.default_rng(5), between=0.2, within=0.01), seeds=(0, 1, 2))
    quality = fit_quality(record, NO_BLOCKS)[0]
    assert quality.seed_sd == pytest.approx(0.01, rel=0.25)
    assert quality.residual_sd == pytest.approx(0.2, rel=0.5)
    assert 0 < quality.r_squared < 1
    assert math.isnan(fit_quality(make_record(noisy(np.random.default_rng(5))), NO_BLOCKS)[0].seed_sd)


def test_each_switch_is_asked_about_once() -> None:
    asked = [factor.name for factor in DESIGNS[0].factors] + [DESIGNS[1].about]
    assert asked == ["attention_skip", "mlp_skip", "attention", "value + projection", "norm", "layout"]
    assert {name for design in DESIGNS for factor in design.factors for name in factor.base} == set(SWITCHES)
    found = of_loss(make_record(lambda b, s, r: planted(b)))
    assert found.index.is_unique
