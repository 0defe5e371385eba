"""What a report says that all runs of a study share."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import stored

from ablations.analysis.tables import read
from ablations.design.config import parse_study
from ablations.design.plan import plan_study
from ablations.design.scales import scale
from ablations.report.conditions import fixed
from lit_simplified.config import Task


@pytest.mark.parametrize(
    ("task", "fields", "told"),
    [
        ("clm", {}, "norm_eps 1e-08, mlp_gain_at_18 0.1, activation relu, glu False"),
        ("mlm", {"model.block.glu": False}, "norm_eps 1e-12, mlp_gain_at_18 0.0471405, activation gelu, glu False"),
        ("clm", {"settings": "authors"}, "norm_eps 1e-05, norm_eps_outside True, outer_norm layer, mlp_gain_at_18 0.1, "
         "all_gains True, query_key_bias True, activation relu, glu False"),
    ],
)
def test_fields_of_the_block_are_those_that_were_trained(
    task: Task, fields: dict[str, object], told: str, tmp_path: Path
) -> None:
    study = parse_study({"compare": {"block": ["pre_ln", "sas"]}, "set": fields, "seeds": 1})
    record = read(stored(tmp_path, plan_study(study, scale=scale("smoke", task=task)), lambda config: 3.0))
    shown = dict(fixed(record))["blocks, apart from their switches"]
    assert shown.replace("0.04714045207910317", "0.0471405") == told
