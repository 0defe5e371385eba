"""The command line: `python -m lit_simplified fit | generate | data`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from lit_simplified.config import ConfigError, DataConfig, RunConfig, from_dict, preset

# The strings below the dataclasses' fields are the help of their flags.
set_parsing_settings(docstring_parse_attribute_docstrings=True)

PRESET_HELP = "Named block to start from; --model.block.* flags then change single switches."


def build_parser() -> ArgumentParser:
    """The parser of all commands; every field of the dataclasses is a dotted flag and a key of the YAML file."""
    parser = ArgumentParser(prog="python -m lit_simplified", description="Train and look at one model.")
    commands = parser.add_subcommands(required=True, dest="command")
    commands.add_subcommand("fit", _fit_parser(), help="train one model")
    commands.add_subcommand("generate", _generate_parser(), help="continue a text with a trained model")
    commands.add_subcommand("data", _data_parser(), help="prepare a corpus and print its data card")
    return parser


def _fit_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Train one model; config, curve, result and checkpoint go to --out_dir.")
    parser.add_argument("--config", action="config", help="YAML file with any of the fields below")
    parser.add_argument("--preset", type=str | None, default=None, help=PRESET_HELP)
    parser.add_argument("--resume", type=bool, default=True, help="Continue an interrupted run of the same config.")
    parser.add_class_arguments(RunConfig, fail_untyped=True)
    return parser


def _generate_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Print a continuation of a prompt.")
    parser.add_argument("--checkpoint", type=str, required=True, help="checkpoint file or folder of a run")
    parser.add_argument("--prompt", type=str, default="def ", help="text to continue")
    parser.add_argument("--tokens", type=int, default=128, help="how many tokens to add")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 always takes the likeliest token")
    parser.add_argument("--top_k", type=int, default=50, help="draw from this many likeliest tokens")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    return parser


def _data_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Prepare a corpus (tokenizer, packed windows) and print its data card.")
    parser.add_argument("--vocab_size", type=int, default=1024, help="number of tokens of the vocabulary")
    parser.add_class_arguments(DataConfig, fail_untyped=True)
    return parser


def with_preset(arguments: Sequence[str]) -> list[str]:
    """Put the block of `--preset` (flag, or key of a `--config` file) in front, so that later flags change it."""
    arguments = list(arguments)
    name = _last_value(arguments, "--preset") or _preset_in_files(arguments)
    if name is None or not arguments or arguments[0] != "fit":
        return arguments
    block = preset(name)
    flags = [f"--model.block.{f.name}={_as_flag(getattr(block, f.name))}" for f in fields(block)]
    return [arguments[0], *flags, *arguments[1:]]


def _as_flag(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _last_value(arguments: Sequence[str], flag: str) -> str | None:
    value = None
    for position, argument in enumerate(arguments):
        if argument == flag and position + 1 < len(arguments):
            value = arguments[position + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.split("=", 1)[1]
    return value


def _preset_in_files(arguments: Sequence[str]) -> str | None:
    path = _last_value(arguments, "--config")
    if path is None or not Path(path).is_file():
        return None
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return content.get("preset") if isinstance(content, dict) else None


def run_fit(options: Namespace) -> None:
    """Train, with the result in the terminal."""
    values = {k: v for k, v in options.as_dict().items() if k not in ("preset", "resume", "config")}
    config = from_dict(RunConfig, values)  # before the slow import, so that a mistake shows at once

    from lightning.pytorch.utilities import rank_zero_only

    from lit_simplified.train import fit

    try:
        result = fit(config, resume=options.resume)
    except (KeyboardInterrupt, SystemExit):  # the latter is what Lightning makes of Ctrl-C
        sys.exit("\nInterrupted. The same command continues from the last checkpoint.")
    if getattr(rank_zero_only, "rank", 0):
        return
    if result.state == "diverged":
        print(f"diverged: {result.reason}\nTry a lower --optim.learning_rate. What was recorded: {result.run_dir}")
        return
    print(
        f"validation loss {result.val_loss:.4f} (perplexity {result.val_perplexity:.2f}), "
        f"test loss {result.test['loss']:.4f} (accuracy {result.test['accuracy']:.3f})\n"
        f"{result.parameters:,} parameters, {result.tokens_per_second:,.0f} tokens/s, "
        f"{result.seconds:.1f} s of training, peak memory {result.peak_memory_mb:.0f} MiB\n"
        f"config, curve, result and checkpoint: {result.run_dir}"
    )


def run_generate(options: Namespace) -> None:
    """Print prompt and continuation, as it is drawn."""
    from lit_simplified.generate import stream

    pieces = stream(
        Path(options.checkpoint), prompt=options.prompt, tokens=options.tokens, temperature=options.temperature,
        top_k=options.top_k, seed=options.seed,
    )
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def run_data(options: Namespace) -> None:
    """Prepare a corpus and print its card."""
    from lit_simplified.datamodules import format_card, prepare

    values = {name: value for name, value in options.as_dict().items() if name != "vocab_size"}
    corpus = prepare(from_dict(DataConfig, values), vocab_size=options.vocab_size)
    print(format_card(corpus.card))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a configuration that cannot be built ends it with one line."""
    try:
        given = sys.argv[1:] if arguments is None else arguments
        options = build_parser().parse_args(with_preset(given))
        command = options[options.command]
        {"fit": run_fit, "generate": run_generate, "data": run_data}[options.command](command)
    except ConfigError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
