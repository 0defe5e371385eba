"""All the fine-tunings of one command: tasks, checkpoints, seeds, with and without pretraining; and their table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lit_simplified.config import ConfigError
from lit_simplified.finetuning.checkpoint import Checkpoint, read_checkpoint
from lit_simplified.finetuning.config import FinetuneConfig
from lit_simplified.finetuning.run import FinetuneResult, check_head, finetune
from lit_simplified.finetuning.table import ScoreTable, build_table, text_rows, write_table
from lit_simplified.finetuning.tasks import TASKS


def run_suite(
    config: FinetuneConfig, *, checkpoints: Sequence[Path], seeds: Sequence[int], redo: bool = False
) -> ScoreTable:
    """Fine-tune every checkpoint on every task of the config at every seed, and print and write the table.

    Finished runs are not repeated, so the command can be run again with more checkpoints or seeds.

    Raises:
        ConfigError: as `finetune`; for checkpoints before anything is trained.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError("seeds", list(seeds), "give different numbers, at least one")
    if not checkpoints:
        raise ConfigError("checkpoint", [], "give the folder of at least one run that `fit` has finished")
    read = [read_checkpoint(path) for path in checkpoints]
    for checkpoint in read:
        check_head(config, checkpoint)
    console, results = Console(), list[FinetuneResult]()
    tasks, folder = [TASKS[name] for name in config.tasks], Path(config.out_dir) / config.task.removesuffix("/all")
    for single, checkpoint, seed in plan(config, read, seeds):
        result = finetune(single, run=checkpoint, seed=seed, redo=redo)
        console.print(describe_result(result), highlight=False, soft_wrap=True)
        results.append(result)
        table = build_table(results, tasks)
        write_table(table, results, folder)  # after each run, in case the next is interrupted
    print_table(table, console, title=f"{config.task}, scores times 100, ± the standard deviation over runs")
    console.print(f"table: {folder}/table.md, .csv, .json; settings and curve of each run: in the folders beside it",
                  highlight=False, soft_wrap=True)
    return table


def plan(
    config: FinetuneConfig, checkpoints: Sequence[Checkpoint], seeds: Sequence[int]
) -> Iterator[tuple[FinetuneConfig, Checkpoint, int]]:
    """The runs, task by task, so that its examples are read and encoded once."""
    weights = (False, True) if config.from_scratch == "both" else (bool(config.from_scratch),)
    for name in config.tasks:
        data_dir = config.data_dir
        if data_dir is not None and name != config.task:  # of a group: each task has its own folder
            data_dir = str(Path(data_dir) / name.split("/")[-1])
        for checkpoint in checkpoints:
            for fresh in weights:
                for seed in seeds:
                    yield replace(config, task=name, data_dir=data_dir, from_scratch=fresh), checkpoint, seed


def describe_result(result: FinetuneResult) -> str:
    """A run in one line."""
    weights = "from scratch" if result.from_scratch else f"pretrained, seed {result.pretraining_seed}"
    run = f"{result.task}: {result.block} ({weights}), seed {result.seed}"
    if result.state == "diverged":
        return f"{run}: diverged ({result.reason})"
    scored = []
    for split, metrics in result.metrics.items():
        where = split.removeprefix("validation").lstrip("_")
        scored += [f"{name} {value:.4f} {where}".rstrip() for name, value in metrics.items()]
    guess = ", ".join(f"{value:.4f}" for value in next(iter(result.guess.values())).values())
    return f"{run}: {', '.join(scored)} (guessing: {guess}), {result.seconds:.0f} s"


def print_table(table: ScoreTable, console: Console, *, title: str) -> None:
    """Print a table."""
    head, *body = text_rows(table)
    printed = Table(title=title, title_justify="left")
    for place, name in enumerate(head):
        printed.add_column(name, justify="left" if place < 2 else "right")
    for line in body:
        printed.add_row(*line)
    console.print(printed)
