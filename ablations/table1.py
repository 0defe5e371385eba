"""The paper's Table 1 on this machine: score of fine-tuning, parameters, speed against Pre-LN and memory, by block.

Encoders are trained as a study of their own, with all that a study has (workers, resuming, seeds), fine-tuned from
their checkpoints, and timed against Pre-LN in paired rounds. What is finished is not repeated; speed is always measured
anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import optuna
import pandas as pd
from rich.console import Console

from ablations.analysis.tables import each, read, rows_table
from ablations.engine.checkpoints import run_name
from ablations.engine.resources import threads_for, workers_for
from ablations.engine.storage import latest, ours
from ablations.engine.trials import read_trials
from ablations.report.formats import markdown, records, to_json
from ablations.report.tables import between, number, plus_minus, rich_table
from ablations.timing.machine import describe_machine
from ablations.timing.rounds import Mode, paired_rounds, spread
from lit_simplified.config import ConfigError, RunConfig
from lit_simplified.files import write_text
from lit_simplified.finetuning import FinetuneConfig

if TYPE_CHECKING:
    import argparse

    from ablations.engine.run import StudyRun
    from lit_simplified.finetuning.table import Score

PAPER: Mapping[str, tuple[float | None, str, float]] = MappingProxyType({
    "pre_ln": (78.9, "120M", 1.0), "parallel": (78.5, "120M", 1.05), "v_skipinit": (78.0, "120M", 0.95),
    "sas": (78.4, "101M", 1.09), "sas_p": (78.3, "101M", 1.16), "sas_p_no_norm": (None, "101M", 1.20),
})
"""The paper's own Table 1: GLUE, parameters, training speed relative to Pre-LN. Its blocks are those of ours."""
MODES: tuple[Mode, ...] = ("train", "inference")
COLUMNS = (
    "block", "score", "score_std", "n_scores", "n_scores_diverged", "val_loss", "val_loss_std", "n_seeds", "state",
    "params", "params_ratio", "train_ratio", "train_low", "train_high", "inference_ratio", "inference_low",
    "inference_high", "peak_memory_mb", "paper_score", "paper_params", "paper_speed",
)


@dataclass(frozen=True, kw_only=True)
class Table1:
    """What to make the table of."""

    run: StudyRun
    """The study of the encoders; its only axis is that of the named blocks."""
    finetuning: FinetuneConfig | None
    """None: no scores."""
    finetune_seeds: tuple[int, ...]
    training: bool
    """False: parameters and speed alone."""
    rounds: int

    @property
    def blocks(self) -> dict[str, RunConfig]:
        """A run of each block, by what the study calls the block."""
        return {row.label: self.run.plan.rows[row.id] for row in self.run.plan.design.rows}

    @property
    def threads(self) -> int:
        """CPU threads of a worker of the study, with which speed is measured, too."""
        return threads_for(workers_for(self.run.template.trainer.accelerator, asked=self.run.workers))


def plan_of(given: argparse.Namespace, run: StudyRun) -> Table1:
    """What the flags ask for, with the study of the encoders; raises `ConfigError`."""
    template = run.template
    if template.task != "mlm":
        raise ConfigError("--task", template.task, "Table 1 is about masked language models: give --task mlm")
    finetuning = None
    if given.finetune != "none":
        finetuning = FinetuneConfig(
            task=given.finetune, data_dir=given.data_dir, epochs=given.finetune_epochs,
            learning_rate=given.finetune_lr or (1.5e-4 if template.model.width >= 512 else 1e-3),
            accelerator=template.trainer.accelerator, precision=template.trainer.precision,
            cache_dir=template.data.cache_dir, out_dir=str(run.folder / "finetune"), progress_bar=Console().is_terminal,
        )
    return Table1(
        run=run, finetuning=finetuning, finetune_seeds=tuple(given.finetune_seeds), training=not given.no_training,
        rounds=given.rounds or run.scale.speed_rounds,
    )


def make(
    wanted: Table1, *, console: Console, progress: Callable[[Iterable[str]], Iterable[str]] = iter
) -> pd.DataFrame:
    """Train, fine-tune, measure; print the table and write table1.md, .csv and .json to the study's folder."""
    from ablations.engine.run import train_study

    folder = wanted.run.folder
    losses, scores = None, {}
    if wanted.training:
        study = train_study(wanted.run, console=console)
        record = read(study)
        losses = rows_table(record)
        for cell in each(record.cells[record.cells.state == "failed"]):
            console.print(f"{cell.cell} failed: {cell.reason}", highlight=False, markup=False, soft_wrap=True)
        scores = _scores(wanted, checkpoints(study, losses=losses, folder=folder))
    console.print(f"speed, {wanted.rounds} rounds for each block; run nothing else meanwhile", highlight=False)
    sizes = measure(wanted, progress=progress)
    table = assemble(wanted.blocks, losses=losses, scores=scores, sizes=sizes)
    caption, text = _caption(wanted), table_as_text(table)
    write_text(folder / "table1.csv", table.to_csv(index=False))
    write_text(folder / "table1.json", to_json({"caption": caption, "rows": records(table)}, indent=1))
    write_text(folder / "table1.md", f"{markdown(text)}\n\n{caption}\n")
    console.print(rich_table(text, title="Table 1"))
    console.print(caption, highlight=False, markup=False, soft_wrap=True)
    console.print(f"written: {folder}/table1.md, .csv, .json", highlight=False, markup=False, soft_wrap=True)
    return table


def checkpoints(study: optuna.Study, *, losses: pd.DataFrame, folder: Path) -> list[Path]:
    """The folders of the blocks' complete runs, at the best tuned values of each, that this machine has."""
    best = set(zip(losses.row, losses.tuned, strict=True))
    trials = latest(ours(read_trials(study)))
    runs = [folder / "runs" / run_name(trials[cell.cell]) for cell in each(read(study).cells)
            if cell.state == "complete" and (cell.row, cell.tuned) in best]
    return [run for run in runs if (run / "checkpoints" / "last.ckpt").exists()]


def _scores(wanted: Table1, runs: Sequence[Path]) -> dict[str, Score]:
    """The score of each block that has one, by name; of all of GLUE, the average that the paper's is compared with."""
    if wanted.finetuning is None or not runs:
        return {}
    from lit_simplified.finetuning.suite import run_suite

    table = run_suite(wanted.finetuning, checkpoints=runs, seeds=wanted.finetune_seeds)
    return {row.label: row.scores[table.titles[-1]] for row in table.rows}


def measure(
    wanted: Table1, *, progress: Callable[[Iterable[str]], Iterable[str]] = iter
) -> dict[str, dict[str, Any]]:
    """Parameters, peak memory and speed of the blocks against Pre-LN's, training and inference, by name."""
    from ablations.engine.speed import peak_memory_mb
    from ablations.timing.step import TrainingStep, torch_threads
    from lit_simplified.hardware import keep_freed_memory

    bursts: dict[Mode, int] = dict.fromkeys(MODES, wanted.run.scale.speed_burst)
    keep_freed_memory()  # as `fit` does
    rows: dict[str, dict[str, Any]] = {}
    with torch_threads(wanted.threads):
        baseline = TrainingStep(wanted.run.template)  # with Pre-LN blocks
        for name in progress(list(wanted.blocks)):
            config = wanted.blocks[name]
            other = TrainingStep(config)
            row = {"params": other.parameters, "params_ratio": other.parameters / baseline.parameters,
                   "peak_memory_mb": peak_memory_mb(config)}
            for step in (baseline, other):
                step.warm_up()
                step.time(1, "inference")
            found = paired_rounds(baseline, other, rounds=wanted.rounds, bursts=bursts)
            for mode in MODES:
                ratio, low, high = spread(found.ratios(mode))
                row |= {f"{mode}_ratio": ratio, f"{mode}_low": low, f"{mode}_high": high}
            rows[name] = row
    return rows


def assemble(
    names: Iterable[str], *, losses: pd.DataFrame | None, scores: Mapping[str, Score],
    sizes: Mapping[str, Mapping[str, Any]],
) -> pd.DataFrame:
    """A row per block with `COLUMNS`; what was not measured is empty. Scores are times 100."""
    rows = []
    for name in names:
        score, paper = scores.get(name), PAPER.get(name, (None, None, None))
        loss = None if losses is None else next((row for row in each(losses) if row.label == name), None)
        rows.append({
            "block": name, **sizes.get(name, {}),
            "score": getattr(score, "mean", None), "score_std": getattr(score, "std", None),
            "n_scores": getattr(score, "seeds", None), "n_scores_diverged": getattr(score, "diverged", None),
            "val_loss": getattr(loss, "val_loss_mean", None), "val_loss_std": getattr(loss, "val_loss_std", None),
            "n_seeds": getattr(loss, "n_seeds", None), "state": getattr(loss, "state", ""),
            "paper_score": paper[0], "paper_params": paper[1], "paper_speed": paper[2],
        })
    return pd.DataFrame(rows, columns=list(COLUMNS))


def table_as_text(table: pd.DataFrame) -> pd.DataFrame:
    """The table as people read it; columns that nothing is known of are left out."""
    rows = [
        {
            "block": row.block, "score": _score(row), "val loss": _loss(row),
            "parameters": f"{number(row.params, '{:,.0f}')} ({number(row.params_ratio, '{:.2f}')})",
            "training": between(row.train_ratio, row.train_low, row.train_high),
            "inference": between(row.inference_ratio, row.inference_low, row.inference_high),
            "MiB": number(row.peak_memory_mb, "{:,.1f}"),
            "paper: score": number(row.paper_score, "{:.1f}") or "-", "paper: params": row.paper_params or "-",
            "paper: speed": number(row.paper_speed, "{:.2f}") or "-",
        }
        for row in each(table)
    ]
    text = pd.DataFrame(rows)
    return text.loc[:, [column for column in text if (text[column] != "").any()]]


def _score(row: Any) -> str:
    if pd.isna(row.score):
        return "diverged" if row.n_scores_diverged else ""
    spread = "" if pd.isna(row.score_std) else f" ± {row.score_std:.1f}"
    lost = f", {row.n_scores_diverged:.0f} diverged" if row.n_scores_diverged else ""
    return f"{row.score:.1f}{spread} ({row.n_scores:.0f}{lost})"


def _loss(row: Any) -> str:
    return plus_minus(row.val_loss, row.val_loss_std) or str(row.state or "")


def _caption(wanted: Table1) -> str:
    """What the numbers are, and how they were obtained."""
    run, task = wanted.run.template, wanted.finetuning
    model, data = run.model, run.data
    size = (f"{model.depth} blocks of width {model.width}, {model.heads} heads, T {model.context}, batch "
            f"{data.batch_size}, vocabulary {model.vocab_size}, {run.trainer.precision}")
    crammed, machine = (model.depth, model.width) == (16, 768), describe_machine()
    parts = [f"{size}{'' if crammed else ' (not the size of the paper: 16 blocks of width 768)'}; "
             f"{machine['gpu'] or machine['cpu']}, {wanted.threads} CPU threads."]
    if wanted.training:
        parts.append(f"Validation loss: masked language modelling on {data.recipe}, {run.optim.steps} steps, mean ± "
                     "standard deviation over seeds.")
        if task is not None:
            metrics = " by the metrics of crammed BERT" if len(task.tasks) > 1 else ""
            parts.append(f"Score: {task.task}{metrics} after {task.epochs} epochs of fine-tuning at "
                         f"{task.learning_rate:g}, times 100, mean ± standard deviation over runs (their number).")
    parts.append(f"Training and inference: speed relative to Pre-LN, median of {wanted.rounds} rounds P X X P with its "
                 "95 % interval; inference is the encoder without the head. Parameters in brackets: relative to "
                 "Pre-LN. MiB: most memory in a training step.")
    return " ".join(parts)
