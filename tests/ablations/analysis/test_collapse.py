"""Runs on the plateau of token frequencies: which they are, and what they must not decide."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from synthetic import card, plan_of, record_of, stored

from ablations.analysis.claims import verdicts
from ablations.analysis.curves import loss_by_axis
from ablations.analysis.findings import of_record
from ablations.analysis.observed import losses
from ablations.analysis.pairs import paired_differences
from ablations.analysis.rates import sensitivity
from ablations.analysis.tables import StudyRecord, read, rows_table, tuned_table
from ablations.design.collapse import DISTANCE
from ablations.report.conditions import collapse
from ablations.report.html.plots import plots
from ablations.report.plots import _figures, collapsed_ends
from ablations.report.summary import compose
from ablations.report.tables import rows_as_text, training_as_text, tuned_matrix
from lit_simplified.config import RunConfig, preset_of

PLATEAU = 5.97
RATES = (5e-3, 1e-2)
BY_RATE = {
    # the larger rate is the better one where it trains, and one seed of three does not
    "pre_ln": {5e-3: (4.41, 4.45, 4.43), 1e-2: (4.40, 4.44, 4.42)},
    "sas": {5e-3: (4.42, 4.46, 4.44), 1e-2: (4.30, 4.34, 5.98)},
    "naive_skipless": {5e-3: (5.98, 5.99, 5.95), 1e-2: (6.4, "diverged", 5.98)},
    "v_skipinit": {5e-3: (5.90, 5.98, 5.97), 1e-2: (4.8, 5.1, 5.93)},
}
CLAIMS = [{"left": left, "is": relation, "right": right} for left, relation, right in (
    ("sas", "better", "pre_ln"), ("naive_skipless", "worse", "pre_ln"), ("pre_ln", "level", "naive_skipless"))]


def study(corpus: dict[str, Any] | None = None, **by_name: Any) -> StudyRecord:
    found = by_name or BY_RATE
    plan = plan_of({"compare": {"block": list(found)}, "tune": {"optim.learning_rate": list(RATES)}, "seeds": 3,
                    "claims": [claim for claim in CLAIMS if {claim["left"], claim["right"]} <= set(found)]})

    def loss(config: RunConfig) -> Any:
        return found[preset_of(config.model.block)][config.optim.learning_rate][config.seed]

    return record_of(plan, loss, corpus=card(PLATEAU) if corpus is None else corpus)


def test_a_run_on_the_plateau_or_above_it_has_collapsed() -> None:
    cells = study().cells
    complete, collapsed = (cells[cells.state == state].val_loss for state in ("complete", "collapsed"))
    assert len(collapsed) == 1 + 5 + 3
    assert complete.max() == 5.90  # it learned a little
    assert collapsed.min() == 5.93
    assert (collapsed > PLATEAU - DISTANCE).all()
    assert set(cells[cells.state == "collapsed"].reason) == {"ended on the loss of token frequencies (5.970 nats)"}


def test_a_tuned_value_that_lost_a_seed_is_no_best_one_while_another_lost_none() -> None:
    table = rows_table(study()).set_index("preset")
    assert table.tuned.to_dict() == {
        "pre_ln": "0.01", "sas": "0.005",  # not 0.01, where two seeds of three gave 4.32
        "naive_skipless": "0.005", "v_skipinit": "0.01"}  # every value lost one: the fewest
    assert table.val_loss_mean["sas"] == pytest.approx(4.44)
    assert table.state.to_dict() == {"pre_ln": "complete", "sas": "complete", "naive_skipless": "collapsed",
                                     "v_skipinit": "complete"}
    assert table.n_collapsed.to_dict() == {"pre_ln": 0, "sas": 0, "naive_skipless": 3, "v_skipinit": 1}
    assert table.n_seeds["naive_skipless"] == 0
    assert pd.isna(table.val_loss_mean["naive_skipless"])
    assert table.collapsed_loss_mean["naive_skipless"] == pytest.approx((5.98 + 5.99 + 5.95) / 3)


def test_means_hold_no_collapsed_seed() -> None:
    record = study()
    tuned = tuned_table(record).set_index(["preset", "tuned"])
    assert tuned.loc[("sas", "0.01"), "val_loss_mean"] == pytest.approx(4.32)
    assert tuned.loc[("sas", "0.01"), ["n_seeds", "n_collapsed"]].to_list() == [2, 1]
    assert sensitivity(record).set_index("preset").n_spoilt.to_dict() == {
        "pre_ln": 0, "sas": 1, "naive_skipless": 2, "v_skipinit": 2}
    rows = rows_table(record)
    ids = dict(zip(rows.preset, rows.row, strict=True))
    assert len(paired_differences(record, rows, left=ids["v_skipinit"], right=ids["pre_ln"])) == 2
    found = losses(record, list(ids.values()))
    assert found.missing == {ids["naive_skipless"]: "collapsed (seed 0, 1, 2)",
                             ids["v_skipinit"]: "collapsed (seed 2)"}
    points = loss_by_axis(record, rows).set_index(["line", "x"])
    assert points.collapsed_loss_mean[("sas", 1e-2)] == 5.98
    assert points.state[("naive_skipless", 5e-3)] == "collapsed"


def test_to_collapse_is_worse_than_any_loss_and_lost_seeds_forbid_a_verdict() -> None:
    record = study()
    sas, naive, level = verdicts(record, rows_table(record)).itertuples()
    assert sas.verdict != "holds"  # at 0.01 its two surviving seeds would be 0.1 better
    assert (naive.verdict, level.verdict) == ("holds", "does not hold")
    assert naive.why == ("naive_skipless collapsed in some cells and diverged in the others, which is worse than any "
                         "loss")
    torn = dict.fromkeys(RATES, (4.30, 4.34, 5.98))
    record = study(sas=torn, pre_ln=BY_RATE["pre_ln"])
    [sas] = verdicts(record, rows_table(record)).itertuples()
    assert (sas.verdict, sas.why) == ("inconclusive", "1 of 3 seeds of sas collapsed, and the others flatter it")


def test_a_value_that_trains_by_luck_decides_no_claim() -> None:
    """Both rows are 0.1 better at the larger rate; of one a seed of three collapses there, the other one's survive."""
    lucky, unlucky = ({5e-3: own, 1e-2: (own[0] - 0.1, own[1] - 0.1, last)} for own, last in (
        (BY_RATE["pre_ln"][5e-3], 4.33), (BY_RATE["sas"][5e-3], 5.98)))
    record = study(pre_ln=unlucky, sas=lucky)
    rows = rows_table(record)
    assert rows.set_index("preset").tuned.to_dict() == {"sas": "0.01", "pre_ln": "0.005"}
    [better] = verdicts(record, rows).itertuples()
    assert (better.verdict, better.p_holm < 0.05) == ("inconclusive", True)
    assert better.why == ("sas is shown at 0.01, where pre_ln did better still but lost 1 of 3 seeds: whether that "
                          "value trains is for more seeds to tell")


def test_whether_a_row_trains_is_apart_from_how_well() -> None:
    """Two deep rows without a norm collapse: the model holds none of their loss."""
    plan = plan_of({"compare": {"model.block.norm": ["rms", "none"], "model.block.attention": ["softmax", "shaped"],
                                "model.depth": [2, 4, 8]}, "seeds": 2})

    def loss(config: RunConfig) -> float:
        block, seed = config.model.block, 0.03 * config.seed
        if (block.norm, block.attention) == ("none", "softmax") and config.model.depth > 2:
            return 5.98 + 0.01 * config.seed
        return 4.4 + seed + 0.05 * (block.norm == "none") + 0.02 * (block.attention == "shaped")

    record = record_of(plan, loss, corpus=card(PLATEAU))
    found = of_record(record)
    training = found.training.set_index(["term", "level"])
    assert training[["n_train", "n_rows"]].loc["norm"].to_numpy().tolist() == [[6, 6], [4, 6]]
    assert training.loc[("attention", "softmax"), ["n_seeds", "n_collapsed", "share"]].to_list() == [8, 4, 8 / 12]
    main = found.effects[(found.effects.kind == "main") & (found.effects.measure == "loss")].set_index("term")
    assert main.estimate[["norm", "attention"]].to_dict() == pytest.approx({"norm": 0.05, "attention": 0.02})
    [quality] = [own for own in found.quality if own.measure == "loss"]
    assert (quality.n_rows, quality.n_left_out) == (10, 2)
    assert quality.seed_sd < 1e-6
    assert set(found.left_out[found.left_out.measure == "loss"].reason) == {"collapsed (seed 0, 1)"}
    shown = training_as_text(found.training).to_numpy().tolist()
    assert ["norm", "none", "4 of 6", "67%", "4 collapsed"] in shown
    text = compose(found, plots=[])
    assert "## Which rows train" in text
    assert text.count("speak of the rows that train") == 1


def test_a_step_to_a_row_that_lost_a_seed_has_no_effect() -> None:
    plan = plan_of({"compare": {"model.block.norm": ["rms", "layer", "none"]}, "seeds": 3, "design": "one_at_a_time"})
    losses = {"rms": (4.4, 4.5, 4.6), "layer": (4.42, 4.52, 4.62), "none": (4.3, 4.4, 5.98)}
    record = record_of(plan, lambda config: losses[config.model.block.norm][config.seed], corpus=card(PLATEAU))
    found = of_record(record)
    steps = found.effects[found.effects.measure == "loss"].set_index("change").estimate
    assert steps.to_dict() == pytest.approx({"rms -> layer": 0.02, "rms -> none": math.nan}, nan_ok=True)
    assert list(found.left_out[found.left_out.measure == "loss"].reason) == ["1 of 3 seeds collapsed"]


def test_the_tables_say_it() -> None:
    record = study()
    shown = rows_as_text(rows_table(record)).set_index("row")
    assert shown.loc["naive_skipless", ["val loss", "state"]].to_list() == ["(5.9733)", "collapsed"]
    assert shown.state["v_skipinit"] == "complete, 1 collapsed"
    matrix = tuned_matrix(tuned_table(record), title="lr").set_index("row")
    assert matrix.loc["sas", "lr 0.01"] == "4.3200 ± 0.0283, 1 collapsed"
    assert matrix.loc["naive_skipless"].to_list() == ["collapsed", "2 collapsed, 1 diverged"]
    assert "0.05 nats below" in collapse(record)


@pytest.mark.parametrize(("corpus", "scale", "words"), [
    ({"python": "3.11"}, "small", "no unigram loss"), (card(4.3), "small", "No run got below"),
    (card(), "smoke", "Scale smoke"),
])
def test_without_a_plateau_none_is_called_collapsed(corpus: dict[str, Any], scale: str, words: str) -> None:
    record = study(corpus, pre_ln=BY_RATE["pre_ln"])
    record = replace(record, attrs={**record.attrs, "spec": {"scale": scale, "task": "clm"}})
    assert words in collapse(record)
    assert set(record.cells.state) == {"complete"}


def test_rows_of_several_vocabularies_have_no_plateau_in_common() -> None:
    plan = plan_of({"compare": {"model.vocab_size": [512, 1024]}, "seeds": 1})
    record = record_of(plan, lambda config: 4.0 if config.model.vocab_size == 512 else 5.98, corpus=card(PLATEAU))
    assert "the rows differ in corpus or vocabulary" in collapse(record)
    assert set(record.cells.state) == {"complete"}


def test_the_record_stays(tmp_path: Path) -> None:
    plan = plan_of({"compare": {"block": ["pre_ln", "sas"]}, "seeds": 2})
    kept = stored(tmp_path, plan, lambda config: 4.4 if preset_of(config.model.block) == "pre_ln" else 5.98)
    kept.set_user_attr("corpus", card(PLATEAU))
    record = read(kept)
    assert record.cells.state.to_list().count("collapsed") == 2
    assert {trial["state"] for trial in record.trials} == {"complete"}
    found = of_record(record)
    assert collapsed_ends(found)[["label", "step", "val_loss"]].to_numpy().tolist() == [["sas", 20, 5.98 + 1 / 20]]
    figures = dict(_figures(found))
    assert "collapsed" in figures["loss_by_step.png"].axes[0].get_legend_handles_labels()[1]
    assert "'collapsed'" in str(plots(found)[1]["plot-steps"])
