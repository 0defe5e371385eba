"""The table of rows: no mean beside another over other seeds without the paired difference; bits per byte."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
from synthetic import card, plan_of, record_of, stored

from ablations.analysis.pairs import pairwise
from ablations.analysis.tables import rows_table
from ablations.report.conditions import fixed
from ablations.report.html.page import content
from ablations.report.tables import pairs_as_text, rows_as_text
from lit_simplified.config import RunConfig, preset_of

LOSSES: dict[str, tuple[Any, ...]] = {
    # seeds differ by more than rows, and seed 0 is an easy one
    "pre_ln": (4.0, 4.5, 4.6), "sas": (4.03, 4.51, 4.62), "parallel": (4.1, "waiting", "waiting"),
    "sas_p": (4.0, 5.98, 4.7), "naive_skipless": (5.98, 5.98, 5.98),
}
PLAN = {"compare": {"block": list(LOSSES)}, "seeds": 3}


def loss_of(config: RunConfig) -> Any:
    return LOSSES[preset_of(config.model.block)][config.seed]


def test_each_row_has_its_paired_difference_to_the_baseline() -> None:
    table = rows_table(record_of(plan_of(PLAN), loss_of, corpus=card())).set_index("preset")
    assert table.val_loss_mean.idxmin() == "parallel"  # by its seed alone
    assert table.difference.to_dict() == pytest.approx({
        "pre_ln": math.nan, "sas": 0.02, "parallel": 0.1, "sas_p": 0.05, "naive_skipless": math.nan}, nan_ok=True)
    expected = scipy.stats.ttest_1samp([0.03, 0.01, 0.02], 0).confidence_interval()
    assert tuple(table.loc["sas", ["difference_low", "difference_high"]]) == pytest.approx(tuple(expected))
    assert math.isnan(table.difference_low["parallel"])
    assert table.n_paired.to_dict() == {"pre_ln": 0, "sas": 3, "parallel": 1, "sas_p": 2, "naive_skipless": 0}
    assert table.same_seeds.to_dict() == {
        "pre_ln": True, "sas": True, "parallel": False, "sas_p": False, "naive_skipless": False}


def test_the_tables_mark_other_seeds() -> None:
    record = record_of(plan_of(PLAN), loss_of, corpus=card())
    shown = rows_as_text(rows_table(record)).set_index("row")
    assert shown.seeds.to_dict() == {"parallel": "1†", "sas_p": "2†", "pre_ln": "3", "sas": "3", "naive_skipless": "0†"}
    assert shown.difference.to_dict() == {
        "pre_ln": "", "naive_skipless": "", "parallel": "+0.100", "sas": "+0.020 [-0.005, +0.045]",
        "sas_p": "+0.050 [-0.585, +0.685]"}
    notes = pairs_as_text(pairwise(record, rows_table(record))).set_index(["left", "right"]).note
    assert notes["pre_ln", "sas_p"] == "1 of 3 seeds of sas_p collapsed"
    assert notes["pre_ln", "sas"] == ""


def test_bits_per_byte_stand_beside_nats() -> None:
    """loss / ln 2 * tokens / bytes, of the validation split; nothing for the masked task."""
    record = record_of(plan_of(PLAN), loss_of, corpus=card())
    rows = rows_table(record)
    factor = 100_000 / 300_000 / math.log(2)
    for column in ("mean", "low", "high"):
        known = rows[f"val_loss_{column}"].notna()
        assert rows[f"bits_per_byte_{column}"][known].to_numpy() == pytest.approx(
            rows[f"val_loss_{column}"][known].to_numpy() * factor)
    assert rows_as_text(rows)["bits/byte"][0] == f"{4.1 * factor:.4f}"
    masked = record_of(plan_of(PLAN, task="mlm"), loss_of, corpus=card())
    assert rows_table(masked).bits_per_byte_mean.isna().all()
    assert "bits/byte" not in rows_as_text(rows_table(masked))


def test_the_share_of_the_validation_split_is_said() -> None:
    record = record_of(plan_of(PLAN), loss_of, corpus=card())
    spec = {"scale": "small", "task": "clm", "model": {"context": 128}, "data": {"val_windows": 128}}
    told = {}
    for limit in (128, None):
        attrs = {**record.attrs, "spec": {**spec, "data": {"val_windows": limit}}}
        told[limit] = dict(fixed(replace(record, attrs=attrs)))
    assert told[128]["validation"].startswith("128 of the 781 windows of the split (16%)")
    assert told[None]["validation"] == "all 781 windows of the split"


def test_the_report_has_both(tmp_path: Path) -> None:
    kept = stored(tmp_path, plan_of({**PLAN, "compare": {"block": ["pre_ln", "sas", "sas_p"]}}), loss_of)
    kept.set_user_attr("corpus", card())
    page = content(kept)
    columns = [column.title for column in page["columns"]]
    by_name = {row.label: dict(zip(columns, row.values, strict=True)) for row in page["rows"]}
    assert by_name["sas"]["difference"].text == "+0.0200"
    assert [by_name[name]["seeds"].text for name in ("pre_ln", "sas_p")] == ["3", "2†"]
    assert by_name["pre_ln"]["bits per byte"].key == pytest.approx(4.3667 * 100_000 / 300_000 / math.log(2), abs=1e-4)
