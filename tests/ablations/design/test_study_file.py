"""A study file: what it asks for, row by row, and what it refuses, with field, value and remedy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablations import load_study
from ablations.design.cells import StudyPlan
from ablations.design.config import StudyConfig, parse_study, read_study, write_study
from ablations.design.design import from_plain, merge, to_plain
from ablations.design.library import names
from ablations.design.plan import plan_study
from ablations.design.scales import SCALES, STUDIES, scale
from ablations.design.space import grid, grid_plan
from ablations.study import Options, default_name, plan_run, study_of
from ablations.timing.flops import training_flops
from lit_simplified.config import (
    PRESETS,
    SWITCHES,
    ConfigError,
    Task,
    block_id,
    in_setting,
    plain,
    preset,
    preset_of,
)
from lit_simplified.model import Transformer

NORM, DEPTH = "model.block.norm", "model.depth"
SKIPS = {"together": ["model.block.attention_skip", "model.block.mlp_skip"], "levels": [True, False]}
MATRICES = {"together": ["model.block.value", "model.block.projection"], "levels": ["linear", "identity"]}
FIVE = {"model.block.layout": "grid", "skips": SKIPS, "model.block.attention": "grid", "matrices": MATRICES,
        NORM: "grid"}


def planned(size: str = "smoke", task: Task = "clm", **keys: Any) -> StudyPlan:
    return plan_study(parse_study(keys), scale=scale(size, task=task))


def labels(plan: StudyPlan) -> list[str]:
    return [row.label for row in plan.design.rows]


def test_the_grid_is_every_distinct_block_of_the_table() -> None:
    blocks = grid()
    layouts = len(SWITCHES["layout"].grid)
    shared = len(SWITCHES["attention"].grid) * len(SWITCHES["value"].grid) * len(SWITCHES["norm"].grid)
    assert layouts == 2
    assert len(blocks) == len(set(blocks)) == (2 * 2 + 2) * shared
    parallel = [block for block in blocks if block.layout == "parallel"]
    assert len(parallel) == 2 * shared
    assert all(block.attention_skip == block.mlp_skip for block in parallel)
    assert all(block.value == block.projection for block in blocks)
    [note] = grid_plan().design.notes
    assert note.startswith(f"{2 * shared} of {8 * shared} combinations cannot be built")


def test_the_grid_of_the_masked_task_is_the_same_in_its_setting() -> None:
    assert [in_setting(block, "mlm") for block in grid()] == list(grid("mlm"))
    assert [plain(block) for block in grid("mlm")] == list(grid())
    assert block_id(in_setting(PRESETS["sas"], "mlm")) == "seq-noattnskip-shaped-vI-pI-layer"
    assert all((block.norm_eps, block.activation, block.glu) == (1e-12, "gelu", True) for block in grid("mlm"))


def test_saved_parameters_and_operations_are_spent_whole() -> None:
    """Of `iso`: on the MLP's width to within 0.5 % of the parameters of pre_ln, on steps to 0.5 % of its operations."""
    plan = plan_study(load_study("iso"), scale=scale("small"))
    spent = {plan.design.by_id[row].label: (
        sum(weight.numel() for weight in Transformer(run.model).parameters()),
        run.optim.steps * training_flops(run.model, batch=run.data.batch_size)) for row, run in plan.rows.items()}
    params, operations = spent.pop("pre_ln, kept")
    assert params == 361_280
    assert len(spent) == 6
    for label, (own_params, own_operations) in spent.items():
        assert (abs(own_params / params - 1) < 0.005) == label.endswith("width"), label
        assert (abs(own_operations / operations - 1) < 0.005) == (not label.endswith("kept")), label


def test_ids_of_recorded_cells_stay() -> None:
    plain = replace(load_study("grid"), tune={}, screen=None, extend=None, seeds=None)
    ids = {cell.id for cell in plan_study(plain, scale=scale("small")).cells()}
    assert {"seq-noattnskip-shaped-vI-pI-rms-s1-lr0.01", "seq-skips-softmax-vL-pL-none-s0-lr0.01"} <= ids


def test_named_blocks_have_more_seeds_unless_the_study_says_its_own() -> None:
    plain = replace(load_study("grid"), tune={}, screen=None, extend=None, seeds=None)
    plan = plan_study(plain, scale=scale("small"))
    assert {len(plan.seeds[row.id]) for row in plan.design.rows if row.preset} == {3}
    assert {len(plan.seeds[row.id]) for row in plan.design.rows if not row.preset} == {1}
    assert [cell.seed for cell in plan.cells()] == sorted(cell.seed for cell in plan.cells())
    said = plan_study(replace(plain, seeds=2), scale=scale("small"))
    assert set(said.seeds.values()) == {(0, 1)}


def test_the_authors_settings_are_a_bundle_of_fields_and_a_level() -> None:
    """Under every named block and single field; and beside the paper's settings in one study."""
    plan = planned(compare={"block": ["pre_ln", "sas"]}, set={"settings": "authors", "model.block.dropout": 0.1})
    blocks = [replace(in_setting(PRESETS[name], "authors"), dropout=0.1) for name in ("pre_ln", "sas")]
    assert [config.model.block for config in plan.rows.values()] == blocks
    assert {(config.data.windows, config.model.positions) for config in plan.rows.values()} == {("document", "learned")}
    both = planned(compare={"block": ["pre_ln", "sas"], "code": {"paper": {}, "authors": {"settings": "authors"}}},
                   claims=[{"left": {"block": "sas", "code": "authors"}, "is": "level", "right": "sas"}])
    assert labels(both) == ["pre_ln, paper", "pre_ln, authors", "sas, paper", "sas, authors"]
    assert [preset_of(config.model.block) for config in both.rows.values()] == ["pre_ln", "pre_ln", "sas", "sas"]
    [claim] = both.design.claims
    assert [both.rows[side].model.init_std for side in (claim.left, claim.right)] == [0.02, None]
    with pytest.raises(ConfigError, match=r"study: set: settings='theirs': choose authors"):
        planned(compare={"block": ["sas"]}, set={"settings": "theirs"})


def test_axes_of_fields_bundles_and_named_blocks_make_rows() -> None:
    size = {"small": {"model.width": 32, "model.heads": 2}, "large": {"model.width": 64, "model.heads": 4}}
    plan = planned(compare={"size": size, "block": ["pre_ln", "sas"]})
    assert labels(plan) == ["pre_ln, small", "sas, small", "pre_ln, large", "sas, large"]
    config = plan.rows[plan.design.rows[3].id]
    assert (config.model.width, config.model.heads, config.model.block) == (64, 4, PRESETS["sas"])


def test_a_study_around_a_block_varies_fields_of_that_block() -> None:
    plan = planned(compare={NORM: ["rms", "layer", "none"], DEPTH: [2, "4"]}, baseline={"block": "sas_p"})
    assert labels(plan) == [
        "sas_p, depth 2", "sas_p, depth 4", "norm layer, depth 2", "norm layer, depth 4", "sas_p_no_norm, depth 2",
        "sas_p_no_norm, depth 4",
    ]
    assert plan.design.by_id[plan.design.baseline].label == "sas_p, depth 2"
    assert {config.model.depth for config in plan.rows.values()} == {2, 4}
    assert len({cell.id for cell in plan.cells()}) == 6


def test_one_at_a_time_has_the_block_itself_and_each_change() -> None:
    compare = {NORM: ["layer", "none"], "model.block.attention": ["softmax"], DEPTH: [4]}
    plan = planned(compare=compare, baseline={"block": "sas_p"}, design="one_at_a_time")
    assert labels(plan) == ["sas_p, depth 2", "norm layer", "norm none", "attention softmax", "depth 4"]
    assert plan.design.by_id[plan.design.baseline].preset == "sas_p"


def test_a_path_goes_from_one_block_to_the_other_in_steps_that_can_be_built() -> None:
    plan = planned(compare={"block": ["pre_ln", "sas_p"]}, design="path")
    blocks = [config.model.block for config in plan.rows.values()]
    assert (blocks[0], blocks[-1]) == (PRESETS["pre_ln"], PRESETS["sas_p"])
    assert labels(plan)[1:] == [
        "1. layout parallel", "2. attention_skip false, mlp_skip false", "3. attention shaped",
        "4. value + projection identity",
    ]
    assert any("taken together with the next" in note for note in plan.design.notes)


def test_a_fraction_of_five_switches_in_sixteen_rows_has_resolution_five() -> None:
    plan = planned(compare=FIVE, design={"fraction": {"rows": 16}})
    assert len(plan.rows) == 16
    assert plan.design.by_id[plan.design.baseline].preset == "pre_ln"
    [note] = plan.design.notes
    assert "resolution V" in note
    assert "norm = -layout x skips x attention x matrices" in note
    for axis in plan.design.axes:  # balanced, alone and in pairs
        for other in plan.design.axes:
            found = [(row.levels[axis.name], row.levels[other.name]) for row in plan.design.rows]
            assert {found.count(pair) for pair in found} == {16 // len(set(found))}


def test_a_fraction_is_the_smallest_of_the_resolution() -> None:
    assert len(planned(compare=FIVE, design={"fraction": {"resolution": "III"}}).rows) == 8
    assert len(planned(compare=FIVE, design="fraction").rows) == 16
    with pytest.raises(ConfigError, match="power of two"):
        planned(compare=FIVE, design={"fraction": {"rows": 12}})
    with pytest.raises(ConfigError, match="two levels"):
        planned(compare={**FIVE, DEPTH: [2, 4, 6]}, design="fraction")
    apart = {f"model.block.{name}": "grid" for name in ("layout", "attention_skip", "mlp_skip", "attention")}
    with pytest.raises(ConfigError, match=r"needs this row.*one axis"):
        planned(compare=apart, design={"fraction": {"rows": 8}})


def test_rows_may_be_written_out() -> None:
    plan = planned(design={"rows": [{"block": "sas", DEPTH: 2}, {"block": "pre_ln", DEPTH: 4}]})
    assert labels(plan) == ["sas, depth 2", "pre_ln, depth 4"]
    left_out = planned(compare={"block": ["pre_ln", "sas"], DEPTH: [2, 4]}, design={"rows": [{DEPTH: 4}]})
    assert labels(left_out) == ["pre_ln, depth 4"]


def test_combinations_that_build_the_same_run_are_one_and_said_to_be() -> None:
    plan = planned(compare={"block": ["sas_p", "sas_p_no_norm"], NORM: ["none", "default"]})
    assert len(plan.rows) < 4
    assert any("build a run that is there already" in note for note in plan.design.notes)


def test_fields_for_every_run_hold_for_named_blocks_too() -> None:
    plan = planned(compare={"block": ["pre_ln", "sas"]}, set={"model.block.dropout": 0.1, "optim.steps": "7"})
    assert {config.model.block.dropout for config in plan.rows.values()} == {0.1}
    assert {config.optim.steps for config in plan.rows.values()} == {7}
    assert labels(plan) == ["pre_ln", "sas"]


def test_an_explicit_level_stays_itself_in_every_task() -> None:
    """The masked setting turns the default norm into a layer norm, and nothing that was asked for by name."""
    plan = planned(task="mlm", compare={NORM: ["rms", "layer", "none"]})
    assert [config.model.block.norm for config in plan.rows.values()] == ["rms", "layer", "none"]
    usual = planned(task="mlm", compare={NORM: ["default", "none"]})
    assert [config.model.block.norm for config in usual.rows.values()] == ["layer", "none"]
    assert labels(usual)[0] == "pre_ln"


def test_a_tuned_axis_multiplies_cells_and_not_rows() -> None:
    plan = planned(compare={"block": ["pre_ln"]}, tune={"optim.learning_rate": ["1e-3", 3e-3], "optim.warmup": [0.1]},
                   seeds=[0, 5], select=0)
    assert len(plan.rows) == 1
    assert [cell.id.removeprefix("seq-skips-softmax-vL-pL-rms-") for cell in plan.cells()] == [
        "s0-lr0.001-warmup0.1", "s0-lr0.003-warmup0.1", "s5-lr0.001-warmup0.1", "s5-lr0.003-warmup0.1",
    ]
    assert {cell.config.optim.warmup for cell in plan.cells()} == {0.1}


def test_claims_name_rows_by_block_or_by_levels() -> None:
    claims = [
        {"left": {"block": "sas", DEPTH: 4}, "is": "better", "right": {"block": "sas", DEPTH: 2}, "paper": "improves"},
        {"left": "sas", "is": "faster", "right": "pre_ln"},
        {"left": "sas", "is": "smaller", "right": "pre_ln", "margin": 0.1, "name": "Fig. 1"},
    ]
    design = planned(compare={"block": ["pre_ln", "sas"], DEPTH: [2, 4]}, claims=claims).design
    assert [claim.sentence for claim in design.claims] == [
        "sas, depth 4 is better than sas, depth 2", "sas, depth 2 trains faster than pre_ln, depth 2",
        "sas, depth 2 needs less memory than pre_ln, depth 2",
    ]
    assert [claim.quantity for claim in design.claims] == ["val_loss", "speed", "memory"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"compar": {}}, "did you mean compare"),
    "unknown field": ({"compare": {"model.dept": [1]}}, "the fields of model are"),
    "wrong type": ({"compare": {DEPTH: ["deep"]}}, "give a whole number"),
    "unknown position": ({"compare": {NORM: ["dyt"]}}, "one of rms, layer, none"),
    "empty axis": ({"compare": {NORM: []}}, "no level"),
    "level twice": ({"compare": {NORM: ["rms", "rms"]}}, "twice"),
    "number twice": ({"compare": {"optim.learning_rate": ["1e-2", 0.01]}}, "twice"),
    "no axis": ({}, "name at least one axis"),
    "no list": ({"compare": {"block": "sas"}}, "as a list"),
    "unknown block": ({"compare": {"block": ["sass"]}}, "sas_p_no_norm"),
    "seed as axis": ({"compare": {"seed": [1, 2]}}, "set by seeds"),
    "field of two axes": ({"compare": {"a": {"x": {DEPTH: 2}}, DEPTH: [2, 4]}}, "make them one axis"),
    "tuned and compared": ({"compare": {DEPTH: [2]}, "tune": {DEPTH: [4]}}, "make them one axis"),
    "nothing to build": ({"compare": {"model.width": [3]}}, "must divide width"),
    "claim about nothing": ({"compare": {"block": ["pre_ln"]}, "claims": [{"left": "sas", "is": "better",
                            "right": "pre_ln"}]}, "no such level|no such row"),
    "claim about a missing row": ({"compare": {NORM: ["rms"]}, "claims": [{"left": "sas", "is": "better",
                                  "right": "pre_ln"}]}, "no such row"),
    "claim without a side": ({"compare": {NORM: ["rms"]}, "claims": [{"left": "sas", "is": "better"}]}, "right"),
    "unknown relation": ({"claims": [{"left": "a", "is": "beter", "right": "b"}]}, "choose one of level, better"),
    "unknown quantity": ({"claims": [{"left": "a", "is": "better", "right": "b", "in": "luck"}]}, "val_loss"),
    "negative margin": ({"claims": [{"left": "a", "is": "level", "right": "b", "margin": -1}]}, "above 0"),
    "seeds": ({"compare": {NORM: ["rms"]}, "seeds": -1}, "at least 1"),
    "seeds twice": ({"compare": {NORM: ["rms"]}, "seeds": [1, 1]}, "different seeds"),
    "seeds as truth": ({"compare": {NORM: ["rms"]}, "seeds": True}, "at least 1"),
    "baseline": ({"compare": {NORM: ["rms"]}, "baseline": {"nrm": "rms"}}, "neither an axis"),
    "baseline level": ({"compare": {NORM: ["rms"]}, "baseline": {NORM: "none"}}, "no such level"),
    "design": ({"compare": {NORM: ["rms"]}, "design": "ful"}, "one_at_a_time"),
    "figure": ({"compare": {NORM: ["rms"]}, "figures": ["pie"]}, "loss_by_step"),
    "set": ({"compare": {NORM: ["rms"]}, "set": {"optim.step": 3}}, "the fields of optim"),
    "path of three": ({"compare": {"block": ["pre_ln", "sas", "sas_p"]}, "design": "path"}, "two blocks"),
    "rows": ({"design": "rows"}, "give the rows"),
    "row of another axis": ({"compare": {DEPTH: [2]}, "design": {"rows": [{"width": 3}]}}, "the axes are"),
    "grid of a number": ({"compare": {DEPTH: "grid"}}, "only switches"),
    "no mapping": ({"compare": [1]}, "mapping"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_refused_before_anything_trains(case: str) -> None:
    keys, said = REFUSED[case]
    with pytest.raises(ConfigError, match=said):
        planned(**keys)


@pytest.mark.parametrize(
    ("text", "said"),
    [("compare: {a: 1, a: 2}", "twice"), ("[1", "no YAML"), ("- 1", "mapping"), ("\x00", "no YAML"),
     ("compare: &a {b: *a}", "stands in what it names"),
     ("{compare: {model.block.norm: [rms]}, task: cml}", "clm, mlm")],
)
def test_a_file_that_is_no_study_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        plan_study(read_study(path), scale=scale("smoke"))


def test_a_study_is_found_by_name_or_path_and_a_typo_is_told() -> None:
    assert {"grid", "he2024/blocks", "he2024/fig06-depth"} <= set(names())
    with pytest.raises(ConfigError, match="did you mean grid"):
        load_study("gird")


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("task", ["clm", "mlm"])
def test_every_study_of_the_suite_plans_and_survives_its_own_file(name: str, task: Task, tmp_path: Path) -> None:
    config = load_study(name)
    plan = plan_study(config, scale=scale("smoke", task=task))
    assert plan.rows
    assert plan.design.question
    path = tmp_path / "study.yaml"
    path.write_text(write_study(config))
    again = plan_study(read_study(path, name=config.name), scale=scale("smoke", task=task))
    assert again.design == plan.design
    kept = json.loads(json.dumps(to_plain(plan.design)))
    assert to_plain(from_plain(kept)) == to_plain(plan.design)


def test_a_study_that_goes_on_keeps_its_rows_and_takes_in_new_ones() -> None:
    first = planned(compare={NORM: ["rms", "none"]}).design
    more = planned(compare={NORM: ["rms", "layer"]}, tune={"optim.learning_rate": [1e-3]}).design
    whole = merge(first, more)
    assert [level.label for level in whole.axes[0].levels] == ["rms", "none", "layer"]
    assert len(whole.rows) == 3
    other = planned(compare={NORM: ["rms", "none"]}, set={"model.width": 64}).design
    with pytest.raises(ConfigError, match="--study"):
        merge(first, other)


def test_a_study_that_is_too_large_says_how_many_and_what_to_cut() -> None:
    plan = planned(compare={DEPTH: [1, 2, 3], "model.width": [32, 64]}, seeds=4)
    plan.check_size(24)
    with pytest.raises(ConfigError, match=r"24 cells: 6 rows from the axes depth \(3\), width \(2\).*4 seeds"):
        plan.check_size(23)


def test_flags_make_a_study_or_change_one() -> None:
    made = study_of(Options(axes=["model.block.norm=rms,none", "model.depth=2,4"], around="sas_p"))
    assert made.compare == {NORM: ["rms", "none"], DEPTH: ["2", "4"]}
    assert default_name(made, scale="smoke", task="clm") == "sas_p-norm-depth-smoke-clm"
    assert default_name(load_study("grid"), scale="small", task="mlm") == "small-mlm"
    run = plan_run(Options(study="grid", scale="smoke", presets=["v_skipinit", "sas"], learning_rates=[1e-3, 3e-3],
                           seeds=[4], assignments=["optim.steps=5", "model.block.dropout=0.1"]))
    assert [row.label for row in run.plan.design.rows] == ["v_skipinit", "sas"]
    assert set(run.plan.seeds.values()) == {(4,)}
    assert {cell.config.optim.learning_rate for cell in run.cells} == {1e-3, 3e-3}
    assert {(row.optim.steps, row.model.block.dropout) for row in run.plan.rows.values()} == {(5, 0.1)}
    assert any("claims are about rows that are not trained here" in note for note in run.plan.design.notes)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"axes": ["norm"]}, "FIELD=LEVEL"), ({"axes": ["a=1", "a=2"]}, "twice"), ({"around": "sas"}, "needs an axis"),
     ({"seeds": [-1]}, "from 0 on"), ({"seeds": [1, 1]}, "different"), ({"assignments": ["seed=3"]}, "--seeds"),
     ({"study": {"compare": {"optim.learning_rate": [1e-3]}}, "learning_rates": [1e-2]}, "its axis"),
     ({"study": {"compare": {"block": ["pre_ln", "sas"]}, "design": "path"}, "presets": ["sas"]}, "own"),
     ({"scale": "huge"}, "smoke"), ({"assignments": ["optim.steps"]}, "FIELD=VALUE")],
)
def test_flags_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan_run(Options(**{"scale": "smoke", **options}))


@pytest.mark.parametrize("name", SCALES)
def test_every_scale_serves_the_grid_in_both_tasks(name: str) -> None:
    rows = [plan_study(load_study("grid"), scale=STUDIES[task][name]).design.rows for task in ("clm", "mlm")]
    assert len(rows[0]) == len(rows[1])
    if name == "paper":  # too dear for all combinations
        assert [row.label for row in rows[0]] == list(PRESETS)


def test_a_preset_that_differs_in_a_field_of_the_setting_is_a_block_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A layer norm put into the presets trained an RMS norm."""
    more = {**PRESETS, "pre_layer": replace(PRESETS["pre_ln"], norm="layer")}
    monkeypatch.setattr("lit_simplified.config.presets.PRESETS", more)
    assert preset("pre_layer").norm == "layer"
    assert preset_of(preset("pre_layer")) == "pre_layer"
    plan = planned(compare={"block": ["pre_ln", "pre_layer"]})
    assert [config.model.block.norm for config in plan.rows.values()] == ["rms", "layer"]


def test_a_config_is_a_study_too() -> None:
    config = StudyConfig(compare={NORM: ["rms", "none"]})
    assert load_study(config) is config
    assert len(plan_study(load_study({"compare": {NORM: ["rms", "none"]}}), scale=scale("smoke")).rows) == 2
