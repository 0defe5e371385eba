"""The command line: `python -m lit_simplified fit | generate | finetune | data | signal | inspect`."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import Namespace, set_parsing_settings

from lit_simplified.config import ConfigError, DataConfig, RunConfig, Task, allow, bundle, from_dict, preset, to_dict
from lit_simplified.config.checks import checked
from lit_simplified.config.safe_yaml import parse_yaml
from lit_simplified.config.types import hint_of, hints
from lit_simplified.finetuning import FinetuneConfig
from lit_simplified.flags import CommandParser, CommandsParser, with_files_read
from lit_simplified.scales import run_of

# The strings below the dataclasses' fields are the help of their flags.
set_parsing_settings(docstring_parse_attribute_docstrings=True)

PRESET_HELP = ("Named block to start from, in the paper's setting for the --task (mlm: LayerNorm and gated GELU); "
               "--model.block.* flags then change single switches.")
NOT_OF_RUN = ("preset", "scale", "settings", "resume", "redo", "config", "own")
"""Flags of `fit` that are not fields of `RunConfig`."""
NOT_OF_FINETUNING = ("config", "checkpoint", "seeds", "redo", "own")
"""Flags of `finetune` that are not fields of `FinetuneConfig`."""
SCALE_HELP = ("Size to start from: smoke (seconds), small (two cores), medium (longer), base (one GPU), paper (that of "
              "the paper; mlm: crammed BERT). Other flags then change single fields.")
SETTINGS_HELP = ("authors: reproduce the released code of the paper's authors where it differs from the paper's text "
                 "(docs/authors.md). Other flags then change single fields.")
OWN_HELP = ("Python files with parts of your own whose code may run. A checkpoint or the config.yaml of a run does not "
            "run it by itself.")


PROGRAM = "python -m lit_simplified"


def build_parser() -> CommandsParser:
    """The parser of all commands; every field of the dataclasses is a dotted flag and a key of the YAML file."""
    return CommandsParser(
        prog=PROGRAM, description="Train one model, use it and look inside it. `ablations` compares many of them.",
        commands={
            "fit": (_fit_parser(), "train one model"),
            "generate": (_generate_parser(), "continue a text with a trained model"),
            "finetune": (_finetune_parser(), "fine-tune trained models on labelled texts (GLUE), and score them"),
            "data": (_data_parser(), "prepare a corpus and print its data card"),
            "signal": (_signal_parser(), "follow a signal through the blocks, before any training"),
            "inspect": (_inspect_parser(), "plot what was recorded inside a run during training"),
        },
    )


def _command(name: str, description: str, *, usage: str = "", examples: Sequence[str]) -> CommandParser:
    return CommandParser(description=description, usage=f"{PROGRAM} {name} {usage}[--FLAG VALUE ...]",
                         examples=[f"{PROGRAM} {name} {example}" for example in examples])


def _fit_parser() -> CommandParser:
    parser = _command(
        "fit", "Train one model. Config, learning curve, result and checkpoint go to a new folder in --out-dir.",
        usage="[--preset NAME] [--scale NAME] ", examples=(
            "--preset sas_p", "--preset sas_p --model.block.norm layer --optim.steps 1000 --seed 1",
            "--config results/runs/RUN/config.yaml",
        ),
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the fields below")
    parser.add_argument("--preset", type=str | None, default=None, help=PRESET_HELP)
    parser.add_argument("--scale", type=str | None, default=None, help=SCALE_HELP)
    parser.add_argument("--settings", type=str | None, default=None, help=SETTINGS_HELP)
    parser.add_argument("--resume", type=bool, default=True, help="Continue an interrupted run of the same config.")
    parser.add_argument("--redo", type=bool, nargs="?", const=True, default=False, help="Move the run of the same "
                        "config aside, finished or not, to *.old-1 or the next free number, and train it again.")
    _add_own(parser)
    parser.add_class_arguments(RunConfig, fail_untyped=True)
    return parser


def _generate_parser() -> CommandParser:
    parser = _command("generate", "Continue a prompt with a trained causal model.", usage="--checkpoint RUN ",
                      examples=('--checkpoint results/runs/RUN --prompt "def " --top-k 20',))
    parser.add_argument("--checkpoint", type=str, required=True, help="folder of a run, or a checkpoint file")
    parser.add_argument("--prompt", type=str, default="def ", help="text to continue")
    parser.add_argument("--tokens", type=int, default=128, help="number of tokens to add")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 always takes the most likely token")
    parser.add_argument("--top-k", type=int, default=50, help="sample from the k most likely tokens")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the samples")
    _add_own(parser)
    return parser


def _finetune_parser() -> CommandParser:
    parser = _command(
        "finetune", "Fine-tune trained models on labelled texts, and write a table of their scores. Any run of `fit` "
        "will do; encoders come from `fit --task mlm`. GLUE is downloaded from the hub unless --data-dir is given; "
        "--task docstrings needs no network. Finished fine-tunings are not repeated: run the command again with more "
        "checkpoints or seeds, and the table covers them all.",
        usage="--checkpoint RUN ... --task TASK ", examples=(
            "--checkpoint results/runs/RUN --task docstrings --learning-rate 1e-3",
            "--checkpoint results/runs/*-s?-* --task glue/all",
        ),
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the fields below")
    parser.add_argument("--checkpoint", type=str, nargs="+", required=True, help="folders of runs, or checkpoint "
                        "files. Runs that differ only in their seed are averaged; other runs get rows of their own")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the fine-tunings: head, "
                        "order of the examples, dropout")
    parser.add_argument("--redo", type=bool, default=False, help="repeat finished fine-tunings")
    _add_own(parser)
    parser.add_class_arguments(FinetuneConfig, fail_untyped=True)
    return parser


def _add_own(parser: CommandParser) -> None:
    parser.add_argument("--own", type=str, nargs="+", default=[], metavar="FILE.py", help=OWN_HELP)


def _data_parser() -> CommandParser:
    parser = _command("data", "Prepare a corpus (tokenizer, packed windows) and print its data card.",
                      examples=("--recipe stdlib --vocab-size 1024",))
    parser.add_argument("--vocab-size", type=int, default=1024, help="size of the vocabulary")
    parser.add_class_arguments(DataConfig, fail_untyped=True)
    return parser


def _signal_parser() -> CommandParser:
    parser = _command(
        "signal", "Signal propagation: the similarity, size and rank of the representations of real tokens after every "
        "block, and the norm of the gradient that reaches it. All blocks read the same tokens; nothing is trained.",
        examples=("--blocks pre_ln naive_skipless sas,mlp_skip=false --depth 48", "--checkpoint results/runs/RUN"),
    )
    parser.add_argument("--blocks", type=str, nargs="+", help="presets, each with optional changes to fields of "
                        "--model.block: sas,mlp_skip=false pre_ln,norm=none (default: eight blocks of the paper; with "
                        "--config the block of that file)")
    parser.add_argument("--checkpoint", type=str, nargs="+", default=[], help="trained models instead of blocks: "
                        "folders of runs, or checkpoint files. Seeds of one configuration are averaged")
    parser.add_argument("--config", type=str | None, help="YAML file of a run, whose model, data and task are used")
    sizes = {"depth": "number of blocks (48)", "width": "model width (128)", "heads": "attention heads (4)",
             "context": "positions per sequence (128)", "vocab-size": "size of the vocabulary (1024)"}
    for name, text in sizes.items():
        parser.add_argument(f"--{name}", type=int | None, help=f"{text}, unless --config says otherwise")
    parser.add_argument("--sequences", type=int, default=4, help="windows of the validation split to read")
    parser.add_argument("--seeds", type=int, nargs="+", help="initialisations of each block, over which the measures "
                        "are averaged; the tokens stay the same (0 1 2)")
    parser.add_argument("--recipe", type=str | None, help="corpus: a recipe of data/ by name, or a file (stdlib)")
    parser.add_argument("--cache-dir", type=str | None, help="folder for prepared corpora (data/cache)")
    parser.add_argument("--task", type=Task | None, help="the task whose loss is differentiated: clm (causal "
                        "attention) or mlm (bidirectional) (clm)")
    parser.add_argument("--tensorboard", type=bool, default=True, help="write TensorBoard files, with depth as step")
    parser.add_argument("--out", type=str, default="results/signal", help="folder for tables and figures")
    _add_own(parser)
    return parser


def _inspect_parser() -> CommandParser:
    parser = _command("inspect", "Plot gains, ratios, attention, signals and gradients from the snapshots of a run, "
                      "taken every --trainer.inspect_every steps.", usage="RUN ", examples=("results/runs/RUN",))
    parser.add_argument("run", type=str, help="folder of a run")
    parser.add_argument("--out", type=str | None, help="folder for the figures (default: the run's inspection/)")
    return parser


def with_preset(arguments: Sequence[str]) -> list[str]:
    """Put the fields of `--scale`, `--preset` and `--settings` (flags, or keys of a `--config` file) first, so that
    later flags override them. Files are read here, so that the parser sees none that we would refuse.

    Raises:
        ConfigError: a file that is no configuration, or an unknown name.
    """
    arguments = list(arguments)
    if not arguments or arguments[0] not in ("fit", "finetune"):
        return arguments
    arguments = with_files_read(arguments, ["--config"])
    in_file = _in_file(arguments)
    cls, others = (RunConfig, NOT_OF_RUN) if arguments[0] == "fit" else (FinetuneConfig, NOT_OF_FINETUNING)
    _check_keys(in_file, cls, others=[name for name in others if name != "config"])
    if arguments[0] == "finetune":
        return arguments
    scale, name, task_name, settings = (
        _last_value(arguments, f"--{key}") or checked(str | None, in_file.get(key), where=key)
        for key in ("scale", "preset", "task", "settings")
    )
    task: Task = "mlm" if task_name == "mlm" else "clm"
    flags = _flags(to_dict(run_of(scale, task=task))) if scale else []
    flags += _flags(to_dict(preset(name or "pre_ln", task=task)), prefix="model.block.") if scale or name else []
    flags += _flags(bundle(settings)) if settings else []
    return [arguments[0], *flags, *arguments[1:]]


def _flags(values: Mapping[str, Any], *, prefix: str = "") -> list[str]:
    """The fields of a configuration as dotted flags."""
    found = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found += _flags(value, prefix=f"{prefix}{name}.")
        elif not isinstance(value, dict):
            found.append(f"--{prefix}{name}={_as_flag(value)}")
    return found


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


def _in_file(arguments: Sequence[str]) -> Mapping[str, Any]:
    """What the last `--config` holds, whose text is in the arguments."""
    text = _last_value(arguments, "--config")
    if text is None:
        return {}
    content: Mapping[str, Any] = parse_yaml(text, field="config")
    return content


def _check_keys(content: Mapping[Any, Any], cls: type, *, others: Sequence[str], prefix: str = "") -> None:
    """Refuse keys of a file that are no fields, and what stands for a group of fields and is not in the file itself.

    Args:
        content: of the file.
        cls: the dataclass whose fields they are.
        others: flags that are keys, too.
        prefix: what stands before the keys.

    Raises:
        ConfigError: with the fields there are.
    """
    for key, value in content.items():
        path = f"{prefix}{key}"
        hint = Any if path in others else hint_of(cls, path, group=True)
        if not dataclasses.is_dataclass(hint):
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(path, value, f"give a mapping of its fields, {', '.join(hints(hint))}")
        _check_keys(value, cls, others=(), prefix=f"{path}.")


def run_fit(options: Namespace) -> None:
    """Train, with the result in the terminal."""
    values = {k: v for k, v in options.as_dict().items() if k not in NOT_OF_RUN}
    config = from_dict(RunConfig, values)  # before the slow import, so that a mistake shows at once

    from lightning.pytorch.utilities import rank_zero_only

    from lit_simplified.train import fit

    try:
        result = fit(config, resume=options.resume, redo=options.redo)
    except (KeyboardInterrupt, SystemExit):  # the latter is what Lightning makes of Ctrl-C
        sys.exit(f"\nInterrupted. Run the same command again{' without --redo' if options.redo else ''} to continue "
                 "from the last checkpoint.")
    if getattr(rank_zero_only, "rank", 0):
        return
    if result.state == "diverged":
        print(f"diverged: {result.reason}\nTry a lower --optim.learning_rate. Recorded so far: {result.run_dir}")
        return
    print(
        f"validation loss {result.val_loss:.4f} (perplexity {result.val_perplexity:.2f}), "
        f"test loss {result.test['loss']:.4f} (accuracy {result.test['accuracy']:.3f})\n"
        f"{result.parameters:,} parameters, {result.tokens_per_second:,.0f} tokens/s, "
        f"{result.seconds:.1f} s of training, peak memory {result.peak_memory_mb:.0f} MiB\n"
        f"config, curve, result and checkpoint: {result.run_dir}"
    )
    if config.trainer.inspect_every and Path(result.run_dir, "inspection").is_dir():
        print(f"plots of its snapshots: python -m lit_simplified inspect {shlex.quote(result.run_dir)}")


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


def run_finetune(options: Namespace) -> None:
    """Fine-tune checkpoints on a task or a group of them, with the table in the terminal."""
    values = {name: value for name, value in options.as_dict().items() if name not in NOT_OF_FINETUNING}
    config = from_dict(FinetuneConfig, values)  # before the slow import, so that a mistake shows at once

    from lit_simplified.finetuning.suite import run_suite

    checkpoints = [Path(path) for path in options.checkpoint]
    try:
        run_suite(config, checkpoints=checkpoints, seeds=options.seeds, redo=options.redo)
    except (KeyboardInterrupt, SystemExit):  # the latter is what Lightning makes of Ctrl-C
        sys.exit("\nInterrupted: the same command continues, and repeats only the current fine-tuning.")


def run_data(options: Namespace) -> None:
    """Prepare a corpus and print its card."""
    from lit_simplified.datamodules import format_card, prepare

    values = {name: value for name, value in options.as_dict().items() if name != "vocab_size"}
    corpus = prepare(from_dict(DataConfig, values), vocab_size=options.vocab_size)
    print(format_card(corpus.card))


def run_signal(options: Namespace, *, given: Sequence[str]) -> None:
    """Follow a signal through blocks or trained models."""
    names = ("depth", "width", "heads", "context", "vocab_size", "recipe", "cache_dir", "task")
    base = None if options.config is None else _run_of_file(options.config)

    from lit_simplified.inspection.propagation import Request, run

    request = Request(
        blocks=options.blocks, checkpoints=[Path(path) for path in options.checkpoint], base=base,
        changes={name: options[name] for name in names if options[name] is not None},
        sequences=options.sequences, seeds=options.seeds,
    )
    command = shlex.join(["python", "-m", "lit_simplified", *given])
    run(request, out=Path(options.out), tensorboard=options.tensorboard, command=command)


def _run_of_file(path: str) -> RunConfig:
    """The run that `fit --config` would train."""
    options = build_parser().parse_args(with_preset(["fit", "--config", path])).fit.as_dict()
    return from_dict(RunConfig, {k: v for k, v in options.items() if k not in NOT_OF_RUN})


def run_inspect(options: Namespace) -> None:
    """Plot a run's snapshots, and print their last numbers."""
    from lit_simplified.inspection.plots import draw_snapshots
    from lit_simplified.inspection.snapshot import FOLDER, load_snapshots

    run = Path(options.run)
    for path, numbers in draw_snapshots(load_snapshots(run), Path(options.out) if options.out else run / FOLDER):
        print(f"{path}\n  {numbers}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; an invalid configuration ends it with a one-line error."""
    try:
        given = sys.argv[1:] if arguments is None else arguments
        arguments = with_preset(given)
        options = build_parser().parse_args(arguments)
        command = options[options.command]
        for file in command.get("own", []):
            allow(file)
        runs: dict[str, Callable[[Namespace], None]] = {
            "fit": run_fit, "generate": run_generate, "data": run_data, "signal": partial(run_signal, given=given),
            "inspect": run_inspect, "finetune": run_finetune,
        }
        runs[options.command](command)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # while it still loads libraries, or in a command that has nothing to continue
        print("Interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
