"""The search space: one definition, enumerated and sampled."""

from __future__ import annotations

from dataclasses import replace

import optuna
import pytest

from ablations.design import space
from ablations.design.scales import SCALES, override, scale
from lit_simplified.config import (
    PRESETS,
    SWITCHES,
    BlockConfig,
    ConfigError,
    block_id,
    in_setting,
    plain,
    preset,
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


def test_ids_are_stable_and_tell_contents_apart() -> None:
    cell = space.Cell(PRESETS["sas"], seed=1, learning_rate=1e-3)
    assert cell.id == "seq-noattnskip-shaped-vI-pI-rms-s1-lr0.001"  # recorded: studies on disk hold it
    other = BlockConfig(**{**{name: getattr(cell.block, name) for name in SWITCHES}, "first_value": False})
    assert block_id(other) != block_id(cell.block)


def test_cells_are_the_product_once_each_seed_by_seed() -> None:
    blocks = space.named(("pre_ln", "sas"))
    cells = space.cells(blocks, seeds=(0, 1), learning_rates=(1e-3, 3e-3), more_seeds={blocks[0]: (1, 2)})
    assert len({cell.id for cell in cells}) == len(cells) == 8 + 2
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    assert {cell.block for cell in cells if cell.seed == 2} == {blocks[0]}


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="sas_p_no_norm"):
        space.named(("sass",))
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
    [("optim.steps=x", "int"), ("optim.step=3", "optim.step"), ("optim.steps", "FIELD=VALUE"), ("seed=3", "--seeds"),
     ("model.block.norm=none", "--presets"), ("model.heads=5", "must divide")],
)
def test_override_refuses_with_a_remedy(assignment: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        override(SCALES["small"].template, assignments=[assignment])


def test_the_paper_scale_is_the_papers_setting() -> None:
    template = SCALES["paper"].template
    assert (template.model.depth, template.model.width, template.model.heads) == (18, 768, 12)
    assert template.data.batch_size * template.model.context * template.optim.steps == pytest.approx(700e6, rel=0.01)
    assert set(SCALES["paper"].blocks()) == set(PRESETS.values())


def test_the_paper_scale_of_the_masked_task_is_the_crammed_setting() -> None:
    template = scale("paper", task="mlm").template
    model, optim = template.model, template.optim
    assert (model.depth, model.width, model.heads, model.context, model.vocab_size) == (16, 768, 12, 128, 32_768)
    assert not model.causal
    assert (optim.beta1, optim.beta2, optim.eps, optim.clip, optim.weight_decay) == (0.9, 0.98, 1e-12, 0.5, 0.1)
    assert (optim.warmup, optim.schedule, optim.batch_ramp, optim.mask_probability) == (0.75, "linear", 0.6, 0.25)
    assert template.data.batch_size * optim.accumulate == 8192
    for block in scale("paper", task="mlm").blocks():
        assert block.resolved_mlp_gain(16) in (None, pytest.approx(0.05))
    assert [preset_of(block) for block in scale("paper", task="mlm").blocks()] == list(PRESETS)


@pytest.mark.parametrize("name", SCALES)
def test_every_scale_serves_both_tasks(name: str) -> None:
    causal, masked = scale(name), scale(name, task="mlm")
    assert (causal.template.task, masked.template.task) == ("clm", "mlm")
    assert len(causal.blocks()) == len(masked.blocks())
    assert all(block.glu for block in masked.blocks())
