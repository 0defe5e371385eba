"""The flags of the command line: either spelling, values left alone, the nearest flag, help with examples."""

from __future__ import annotations

import pytest

from lit_simplified.__main__ import build_parser, main, with_preset
from lit_simplified.config import ConfigError
from lit_simplified.flags import known_flags

COMMANDS = ("fit", "generate", "finetune", "data", "signal", "inspect")
FLAGS = ("--out-dir", "--seeds", "--data.batch_size", "--trainer.options", "--trainer", "--print-config")


@pytest.mark.parametrize(("typed", "known"), [
    ("--out_dir", "--out-dir"), ("--out-dir", "--out-dir"), ("--out_dir=a_b-c", "--out-dir=a_b-c"),
    ("--data.batch-size", "--data.batch_size"), ("--data.batch_size=3", "--data.batch_size=3"),
    ("--print_config", "--print-config"), ("--seeds+", "--seeds+"), ("--seeds+=3", "--seeds+=3"),
    ("--trainer.options.log_every_n-steps=3", "--trainer.options.log_every_n-steps=3"),
])
def test_a_flag_is_known_in_either_spelling(typed: str, known: str) -> None:
    assert known_flags([typed, "a_value-of-it"], FLAGS, command="fit") == [known, "a_value-of-it"]


def test_values_are_left_alone() -> None:
    given = ["x_y", "-1", "--out_dir=--data_dir", "--", "--no_flag"]
    assert known_flags(given, FLAGS, command="fit") == ["x_y", "-1", "--out-dir=--data_dir", "--", "--no_flag"]


@pytest.mark.parametrize(("typed", "nearest"), [
    ("--optim.stepps", "--optim.steps"), ("--learning-rate", "--optim.learning_rate"), ("--outdir", "--out-dir"),
    ("--trainer.precison", "--trainer.precision"), ("--model.block.nrom", "--model.block.norm"),
])
def test_an_unknown_flag_is_refused_with_the_nearest(typed: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=rf"flag='{typed}': fit has no such flag. Did you mean {nearest}\?"):
        build_parser().parse_args(["fit", typed, "3"])


@pytest.mark.parametrize("dashed", [True, False])
def test_both_spellings_give_the_same_run(dashed: bool) -> None:
    given = ["--out_dir", "a_b", "--data.batch_size", "3", "--model.block.mlp_skip=false", "--preset", "pre_ln"]
    flags = [word.replace("_", "-") if dashed and word.startswith("--") else word for word in given]
    options = build_parser().parse_args(with_preset(["fit", *flags])).fit
    assert (options.out_dir, options.data.batch_size, options.model.block.mlp_skip) == ("a_b", 3, False)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_parses_and_no_underscores(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    typed = [word for line in lines for word in line.split() if word.startswith("--")]
    assert not [word for word in typed if "_" in word and "." not in word]
    examples = [line.split() for line in lines if line.startswith(f"  python -m lit_simplified {command}")]
    assert examples
    for _, _, _, *arguments in examples:
        if "--config" not in arguments and '"def' not in arguments:
            build_parser().parse_args(arguments)
