"""The search space: one definition, enumerated and sampled."""

from __future__ import annotations

from dataclasses import replace

import optuna
import pytest

from ablations.design import space
from ablations.design.cells import LEARNING_RATE, StudyPlan
from ablations.design.library import load_study
from ablations.design.plan import plan_study
from ablations.design.scales import SCALES, override, scale
from lit_simplified.config import (
    PRESETS,
    SWITCHES,
    BlockConfig,
    ConfigError,
    Task,
    block_id,
    in_setting,
    plain,
    preset_of,
)


def test_the_grid_has_distinct_blocks_and_a_parallel_block_has_one_skip() -> None:
    grid = space.grid()
    assert len(grid) == len(set(grid)) == len({block_id(block) for block in grid})
    parallel = [block for block in grid if block.layout == "parallel"]
    assert 2 * len(parallel) == len(grid) - len(parallel)  # one skip in place of two: half as many combinations
    assert all(block.attention_skip == block.mlp_skip for block in parallel)
    assert all(block.value == block.projection for block in grid)


def test_the_masked_grid_is_the_same_grid_in_the_crammed_setting() -> None:
    causal, masked = space.grid(), space.grid("mlm")
    assert [in_setting(block, "mlm") for block in causal] == list(masked)
    assert [plain(block) for block in masked] == list(causal)
    assert {block.norm for block in masked} == {"layer", "none"}
    assert all((block.norm_eps, block.activation, block.glu) == (1e-12, "gelu", True) for block in masked)
    ids = {block_id(block) for block in masked}
    assert len(ids) == len(causal)
    assert {block_id(in_setting(PRESETS[name], "mlm")) for name in PRESETS} - ids == {
        block_id(in_setting(PRESETS["v_skipinit"], "mlm"))
    }
    assert block_id(in_setting(PRESETS["sas"], "mlm")) == "seq-noattnskip-shaped-vI-pI-layer"
    for block in masked:
        params = space.grid_params(block, task="mlm")
        assert params is not None
        assert space.suggest_block(optuna.trial.FixedTrial(params), task="mlm") == block


def test_a_block_of_no_setting_keeps_its_own_name() -> None:
    for block in (BlockConfig(glu=True), BlockConfig(norm="layer"), replace(PRESETS["sas"], norm_eps=1e-12)):
        assert plain(block) == block
        assert preset_of(block) == ""
        assert block_id(block) != block_id(PRESETS["pre_ln"])


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_sampling_stays_in_the_grid_and_reaches_all_of_it() -> None:
    study = optuna.create_study(sampler=optuna.samplers.BruteForceSampler(seed=0))
    study.optimize(lambda trial: float(len(block_id(space.suggest_block(trial)))), n_trials=60)
    sampled = {space.suggest_block(optuna.trial.FixedTrial(trial.params)) for trial in study.trials}
    assert sampled == set(space.grid())


def test_the_params_of_a_block_lead_back_to_it() -> None:
    for block in space.grid():
        params = space.grid_params(block)
        assert params is not None
        assert space.suggest_block(optuna.trial.FixedTrial(params)) == block
    assert space.grid_params(PRESETS["v_skipinit"]) is None


def test_all_presets_but_skipinit_are_in_the_grid() -> None:
    assert {preset_of(block) for block in space.grid() if preset_of(block)} == set(PRESETS) - {"v_skipinit"}


def planned(*names: str, seeds: tuple[int, ...], rates: tuple[float, ...]) -> StudyPlan:
    study = {"compare": {"block": list(names)}, "tune": {LEARNING_RATE: list(rates)}, "seeds": list(seeds), "select": 0}
    return plan_study(load_study(study), scale=scale("small"))


def test_ids_are_stable_and_tell_contents_apart() -> None:
    [cell] = planned("sas", seeds=(1,), rates=(1e-3,)).cells()
    assert cell.id == "seq-noattnskip-shaped-vI-pI-rms-s1-lr0.001"  # recorded: studies on disk hold it
    block = cell.config.model.block
    other = BlockConfig(**{**{name: getattr(block, name) for name in SWITCHES}, "first_value": False})
    assert block_id(other) != block_id(block)


def test_cells_are_the_product_once_each_seed_by_seed() -> None:
    cells = planned("pre_ln", "sas", seeds=(0, 1), rates=(1e-3, 3e-3)).cells()
    assert len({cell.id for cell in cells}) == len(cells) == 2 * 2 * 2
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="sas_p_no_norm"):
        planned("sass", seeds=(0,), rates=(1e-3,))
    with pytest.raises(ConfigError, match="smoke"):
        scale("huge")


@pytest.mark.parametrize("name", SCALES)
def test_override_of_nothing_changes_nothing(name: str) -> None:
    template = SCALES[name].template
    assert override(template, assignments=[]) == template
    changed = override(template, assignments=["optim.steps=5", "trainer.accelerator=cpu", "data.val_windows=null"])
    assert (changed.optim.steps, changed.trainer.accelerator, changed.data.val_windows) == (5, "cpu", None)
    assert changed.model == template.model


@pytest.mark.parametrize(
    ("assignment", "said"),
    [("optim.steps=x", "a whole number"), ("optim.step=3", "optim.step"), ("optim.steps", "FIELD=VALUE"),
     ("seed=3", "--final-seeds"),
     ("model.block.norm=none", "--presets"), ("model.heads=5", "must divide")],
)
def test_override_refuses_with_a_remedy(assignment: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        override(SCALES["small"].template, assignments=[assignment])


def test_the_paper_scale_is_the_papers_setting() -> None:
    template = SCALES["paper"].template
    assert (template.model.depth, template.model.width, template.model.heads) == (18, 768, 12)
    assert template.data.batch_size * template.model.context * template.optim.steps == pytest.approx(700e6, rel=0.01)
    assert SCALES["paper"].presets == tuple(PRESETS)


def blocks_of(name: str, *, task: Task = "clm") -> list[BlockConfig]:
    """What the default study compares at a scale."""
    plan = plan_study(load_study(space.GRID), scale=scale(name, task=task))
    return [config.model.block for config in plan.rows.values()]


def test_the_paper_scale_of_the_masked_task_is_the_crammed_setting() -> None:
    template = scale("paper", task="mlm").template
    model, optim = template.model, template.optim
    assert (model.depth, model.width, model.heads, model.context, model.vocab_size) == (16, 768, 12, 128, 32_768)
    assert not model.causal
    assert (optim.beta1, optim.beta2, optim.eps, optim.clip, optim.weight_decay) == (0.9, 0.98, 1e-12, 0.5, 0.1)
    assert (optim.warmup, optim.schedule, optim.batch_ramp, optim.mask_probability) == (0.75, "linear", 0.6, 0.25)
    assert template.data.batch_size * optim.accumulate == 8192
    for block in blocks_of("paper", task="mlm"):
        assert block.resolved_mlp_gain(16) in (None, pytest.approx(0.05))
    assert [preset_of(block) for block in blocks_of("paper", task="mlm")] == list(PRESETS)


@pytest.mark.parametrize("name", SCALES)
def test_every_scale_serves_both_tasks(name: str) -> None:
    assert (scale(name).template.task, scale(name, task="mlm").template.task) == ("clm", "mlm")
    masked = blocks_of(name, task="mlm")
    assert len(blocks_of(name)) == len(masked)
    assert all(block.glu for block in masked)
