"""The command line: presets, overriding flags, YAML files, help, errors."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lit_simplified import PRESETS, ConfigError, RunConfig
from lit_simplified.__main__ import NOT_OF_RUN, build_parser, main, with_preset
from lit_simplified.config import bundle, from_dict, in_setting, parse_assignments, set_fields
from lit_simplified.scales import RUNS

AUTHORS = bundle("authors")


def parsed(*arguments: str) -> RunConfig:
    options = build_parser().parse_args(with_preset(["fit", *arguments])).fit.as_dict()
    return from_dict(RunConfig, {k: v for k, v in options.items() if k not in NOT_OF_RUN})


def test_defaults_are_those_of_the_dataclasses() -> None:
    assert parsed() == RunConfig()


@pytest.mark.parametrize("name", PRESETS)
def test_preset_and_later_flags(name: str) -> None:
    assert parsed("--preset", name).model.block == PRESETS[name]
    changed = parsed("--model.block.norm", "layer", f"--preset={name}", "--optim.steps", "7", "--model.depth=2")
    assert changed.model.block.norm == "layer"
    assert changed.model.block.attention == PRESETS[name].attention
    assert (changed.optim.steps, changed.model.depth) == (7, 2)


def test_medium_is_the_small_model_trained_longer_and_judged_on_the_whole_split() -> None:
    for runs in RUNS.values():
        small, medium = runs["small"], runs["medium"]
        assert medium.model == small.model
        assert medium.optim == replace(small.optim, steps=4000)
        assert (medium.data.val_windows, medium.data.test_windows) == (None, None)


@pytest.mark.parametrize(("scale", "task"), [(scale, task) for task in RUNS for scale in RUNS[task]])
def test_a_scale_is_the_run_of_its_task_with_a_named_block(scale: str, task: str) -> None:
    run = RUNS[task][scale]  # type: ignore[index]
    found = parsed("--scale", scale, "--task", task, "--preset", "sas_p", "--optim.steps", "7")
    block = in_setting(PRESETS["sas_p"], task)  # type: ignore[arg-type]
    assert found == replace(run, model=replace(run.model, block=block), optim=replace(run.optim, steps=7))
    assert parsed("--scale", scale, "--task", task).model.block == in_setting(PRESETS["pre_ln"], task)  # type: ignore[arg-type]


def test_a_preset_is_in_the_setting_of_the_task(tmp_path: Path) -> None:
    assert parsed("--preset", "sas", "--task", "mlm").model.block == in_setting(PRESETS["sas"], "mlm")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"preset": "sas", "task": "mlm", "scale": "smoke"}))
    found = parsed("--config", str(file))
    assert (found.model.block, found.model.depth) == (in_setting(PRESETS["sas"], "mlm"), 2)


def test_the_authors_settings_are_a_flag_and_a_key(tmp_path: Path) -> None:
    """`--settings authors` over scale, task and preset, and under single flags; so in a file and in `--set`."""
    found = parsed("--settings", "authors", "--preset", "sas_p", "--scale", "paper", "--model.block.norm_eps=1e-6")
    run = RUNS["clm"]["paper"]
    run = replace(run, model=replace(run.model, block=PRESETS["sas_p"]))
    assert found == set_fields(run, {**AUTHORS, "model.block.norm_eps": 1e-6})
    assert replace(found.model.block, norm_eps=1e-5) == in_setting(PRESETS["sas_p"], "authors")
    assert parsed("--settings=authors") == set_fields(RunConfig(), AUTHORS)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"settings": "authors", "data": {"windows": "packed"}}))
    assert parsed("--config", str(file)) == set_fields(RunConfig(), {**AUTHORS, "data.windows": "packed"})
    texts = ["model.positions=sinusoidal", "settings=authors", "optim.steps=5"]
    assert parse_assignments(RunConfig, texts, where="--set") == {
        **AUTHORS, "model.positions": "sinusoidal", "optim.steps": 5
    }
    for texts, told in ((["settings=author"], r"--set: settings='author': choose authors"),
                        (["settings.x=1"], r"no such field")):
        with pytest.raises(ConfigError, match=told):
            parse_assignments(RunConfig, texts, where="--set")
    with pytest.raises(ConfigError, match=r"settings='paper': choose authors"):
        parsed("--settings", "paper")
    with pytest.raises(ConfigError, match=r"model.context=1: a window of one token predicts none"):
        parsed("--settings", "authors", "--model.context", "1")


def test_printed_config_gives_the_same_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--preset", "sas_p", "--model.block.norm", "none", "--seed", "3", "--print_config"])
    file = tmp_path / "config.yaml"
    file.write_text(capsys.readouterr().out)
    assert parsed("--config", str(file)) == parsed("--preset", "sas_p_no_norm", "--seed", "3")


def test_preset_in_a_yaml_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"preset": "sas_p", "model": {"depth": 3, "block": {"norm": "none"}}}))
    config = parsed("--config", str(file), "--seed", "5")
    assert config.model.block == PRESETS["sas_p_no_norm"]
    assert (config.model.depth, config.seed) == (3, 5)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--preset", "sas-p"], "preset='sas-p': choose one of pre_ln"),
        (["--model.block.layout", "parallel", "--model.block.mlp_skip", "false"], "block.mlp_skip=False"),
        (["--model.heads", "3"], "model.heads=3"),
        (["--optim.stepps", "3"], "stepps"),
        (["--model.block.attention", "flash"], "flash"),
    ],
)
def test_errors_are_short_and_name_the_remedy(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:  # any other exception would be shown with its traceback
        main(["fit", *arguments])
    assert told in f"{ended.value.code}{capsys.readouterr().err}"
    assert ended.value.code


def test_an_error_ends_the_process_without_a_traceback() -> None:
    command = [sys.executable, "-m", "lit_simplified", "fit", "--preset", "sas-p"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = "preset='sas-p': choose one of pre_ln"
    assert done.returncode != 0
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_help_teaches_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = capsys.readouterr().out
    for told in ("--model.block.attention", "Trainable weight b_FF", "--trainer.precision", "Peak learning rate"):
        assert told in text


def test_the_flags_of_a_search_make_its_plan(tmp_path: Path) -> None:
    from ablations.__main__ import build_parser as study_parser
    from ablations.search import plan_of

    given = study_parser().parse_args([
        "search", "--study", "s", "--storage", "j", "--out", str(tmp_path), "--scale", "smoke",
        "--presets", "sas", "sas", "pre_ln", "--no-final", "--set", "optim.steps=7",
    ])
    plan = plan_of(given)
    assert (plan.presets, plan.final_seeds, plan.template.optim.steps, plan.trials) == (("sas", "pre_ln"), 0, 7, 30)
