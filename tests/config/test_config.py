"""Configurations: presets, conversion, names, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lit_simplified import PRESETS, BlockConfig, ConfigError, ModelConfig, RunConfig
from lit_simplified.config import (
    DataConfig,
    OptimConfig,
    TrainerConfig,
    describe,
    from_dict,
    in_setting,
    preset,
    preset_of,
    run_id,
    to_dict,
)


def test_presets_are_the_papers() -> None:
    """The defining fields, stated independently of how the presets are derived from one another."""
    assert set(PRESETS) == {
        "pre_ln", "parallel", "v_skipinit", "shaped_orthogonal", "naive_skipless", "sas", "sas_p", "sas_p_no_norm",
    }
    assert PRESETS["pre_ln"] == BlockConfig()
    table = {
        name: (b.layout, b.attention_skip, b.mlp_skip, b.attention, b.value, b.projection, b.norm)
        for name, b in PRESETS.items()
    }
    assert table["parallel"] == ("parallel", True, True, "softmax", "linear", "linear", "rms")
    assert table["v_skipinit"] == ("sequential", False, True, "skipinit", "linear", "linear", "rms")
    assert table["sas"] == ("sequential", False, True, "shaped", "identity", "identity", "rms")
    assert table["sas_p"] == ("parallel", False, False, "shaped", "identity", "identity", "rms")
    assert table["sas_p_no_norm"] == ("parallel", False, False, "shaped", "identity", "identity", "none")
    assert len(set(table.values())) == len(table)
    assert all(preset_of(block) == name for name, block in PRESETS.items())


def test_dict_round_trip_and_unknown_fields() -> None:
    config = RunConfig(model=ModelConfig(block=PRESETS["sas_p"], depth=3), task="mlm", seed=4)
    assert from_dict(RunConfig, to_dict(config)) == config
    with pytest.raises(ConfigError, match=r"ModelConfig\.dept=3"):
        from_dict(RunConfig, {"model": {"dept": 3}})


def test_run_ids_tell_runs_apart_and_ignore_what_does_not_matter() -> None:
    config = RunConfig()
    others = [
        replace(config, seed=1), replace(config, task="mlm"), replace(config, optim=OptimConfig(steps=7)),
        replace(config, model=ModelConfig(block=PRESETS["sas"])),
    ]
    assert len({run_id(c) for c in [config, *others]}) == 5
    quiet = TrainerConfig(progress_bar=False, tensorboard=False, inspect_every=7, inspect_heads=1)
    assert run_id(config) == run_id(replace(config, out_dir="elsewhere", trainer=quiet))
    assert run_id(others[3]).startswith("sas-s0-")
    assert run_id(replace(config, model=ModelConfig(block=BlockConfig(norm="none")))).startswith(
        describe(BlockConfig(norm="none"))
    )


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: ModelConfig(width=10, heads=4), r"model.heads=4: must divide width=10: one of \[1, 2, 5, 10\]"),
        (lambda: ModelConfig(depth=0), "model.depth=0"),
        (lambda: ModelConfig(positions="rotary"), "learned, sinusoidal"),
        (lambda: OptimConfig(learning_rate=-1.0), "optim.learning_rate=-1.0"),
        (lambda: OptimConfig(warmup=1.0), "optim.warmup=1.0"),
        (lambda: OptimConfig(schedule="step"), "linear, cosine, constant"),
        (lambda: OptimConfig(mask_probability=0.0), "optim.mask_probability=0.0"),
        (lambda: DataConfig(batch_size=0), "data.batch_size=0"),
        (lambda: TrainerConfig(val_every=0), "trainer.val_every=0"),
        (lambda: RunConfig(task="translation"), "clm, mlm"),
        (lambda: preset("sas-p"), "pre_ln, parallel, v_skipinit"),
    ],
)
def test_errors_name_field_value_and_remedy(build: object, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build()  # type: ignore[operator]


def test_the_setting_of_a_task_changes_what_is_at_its_default_and_nothing_else() -> None:
    own = BlockConfig(activation="leaky_relu", norm_eps=1e-3, mlp_gain_at_18=0.3)
    masked = in_setting(own, "mlm")
    assert (masked.activation, masked.norm_eps, masked.mlp_gain_at_18) == ("leaky_relu", 1e-3, 0.3)
    assert (masked.norm, masked.glu) == ("layer", True)
    assert in_setting(own, "clm") == own
    assert in_setting(BlockConfig(norm="none"), "mlm").norm == "none"
