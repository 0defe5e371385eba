"""`summary`: tables, effects, plots and a document from the storage alone. Imports neither torch nor lightning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import optuna
import pandas as pd
from rich.console import Console
from rich.table import Table

from ablations.analysis.effects import effects
from ablations.analysis.preamble import fixed, left_out
from ablations.analysis.tables import Record, blocks_table, each, label, learning_rates_table, read
from ablations.files import json_lines, markdown, records, to_json
from ablations.plots import draw_all
from lit_simplified.files import write_text

WIDE = 110
"""Columns of a terminal from which on the whole table of blocks fits; a narrower one shows less, the files show all."""
SHOWN = ("block", "seeds", "val loss", "speed", "tokens/s", "params", "MiB", "state")


def summarise(study: optuna.Study, *, folder: Path, console: Console | None = None) -> list[Path]:
    """Print the tables of a study and write all its files; return their paths.

    summary.csv, summary.json (a row per block), effects.csv, learning_rates.csv and .md, trials.jsonl (a line per
    trial), PNG plots, and summary.md, which holds everything.
    """
    record = read(study)
    blocks = blocks_table(record)
    rates, found = learning_rates_table(record), effects(record, blocks)
    texts = {
        "summary.csv": blocks.to_csv(index=False),
        "summary.json": to_json(records(blocks), indent=1) + "\n",
        "effects.csv": found.to_csv(index=False),
        "learning_rates.csv": rates.to_csv(index=False),
        "learning_rates.md": markdown(rates_matrix(rates)) + "\n",
        "trials.jsonl": json_lines(record.trials),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    plots = draw_all(record, blocks=blocks, effects=found, folder=folder)
    document = compose(record, blocks=blocks, rates=rates, found=found, plots=plots)
    write_text(folder / "summary.md", document)
    _print(console or Console(), record, blocks=blocks, rates=rates, found=found)
    return [*(folder / name for name in texts), *plots, folder / "summary.md"]


def shown_blocks(blocks: pd.DataFrame) -> pd.DataFrame:
    """The table of blocks as people read it."""
    rows = [
        (
            label(row), row.n_seeds, plus_minus(row.val_loss_mean, row.val_loss_std),
            between(row.speed_ratio, row.speed_ratio_low, row.speed_ratio_high),
            number(row.tokens_per_second, "{:,.0f}"), number(row.params, "{:,.0f}"),
            number(row.peak_memory_mb, "{:,.1f}"), row.state,
        )
        for row in each(blocks)
    ]
    return pd.DataFrame(rows, columns=list(SHOWN))


def rates_matrix(rates: pd.DataFrame) -> pd.DataFrame:
    """Loss by block (rows) and learning rate (columns), mean ± standard deviation over the seeds; best block first."""
    if rates.empty:
        return pd.DataFrame(columns=["block"])
    cells = rates.assign(
        block=rates.preset.where(rates.preset != "", rates["block"]),
        text=[plus_minus(row.val_loss_mean, row.val_loss_std) or ("diverged" if row.n_diverged else "failed")
              for row in each(rates)],
    )
    order = cells.groupby("block").val_loss_mean.min().sort_values(na_position="last").index
    matrix = cells.pivot(index="block", columns="learning_rate", values="text").loc[order].fillna("")
    matrix.columns = pd.Index([f"lr {rate:g}" for rate in matrix.columns])
    return matrix.reset_index()


def shown_effects(found: pd.DataFrame) -> pd.DataFrame:
    """The effects as people read them: a row per switch and half that has pairs, loss and speed side by side."""
    rows = []
    for (switch, change, where), pair in found.groupby(["switch", "change", "where"], sort=False):
        loss, speed = (pair[pair.measure == measure].iloc[0] for measure in ("loss", "speed"))
        if not loss.n_pairs + loss.n_left_out + speed.n_pairs:
            continue  # no two of these blocks differ in this switch alone
        rows.append((
            switch, change, where, between(loss["mean"], loss.low, loss.high, "{:+.3f}"),
            number(loss["median"], "{:+.3f}"), loss.n_pairs, loss.n_left_out,
            between(speed["mean"], speed.low, speed.high),
        ))
    names = ["switch", "change", "where", "loss (nats)", "median", "pairs", "left out", "speed (ratio)"]
    return pd.DataFrame(rows, columns=names)


def plus_minus(mean: float, deviation: float) -> str:
    """Mean ± standard deviation."""
    return number(mean, "{:.4f}") + ("" if pd.isna(deviation) else f" ± {deviation:.4f}")


def between(value: float | None, low: float | None, high: float | None, form: str = "{:.3f}") -> str:
    """Value [low, high]."""
    return number(value, form) + ("" if pd.isna(low) else f" [{number(low, form)}, {number(high, form)}]")


def number(value: float | None, form: str) -> str:
    """A number, or nothing where there is none."""
    return "" if value is None or pd.isna(value) else form.format(value)


def compose(
    record: Record, *, blocks: pd.DataFrame, rates: pd.DataFrame, found: pd.DataFrame, plots: Sequence[Path]
) -> str:
    """The document."""
    parts = [
        f"# Study {record.name}", fixed(record),
        "## Blocks", "Best validation loss first, in nats per token. `speed` is the training step's, relative to "
        "`pre_ln`, with its 95 % interval; the interval of `pre_ln`'s own row is the noise of the measurement.",
        markdown(shown_blocks(blocks)),
        "## Main effects", "Mean difference over matched pairs: two cells that differ in this switch alone, with the "
        "same seed and learning rate. Brackets: 95 % bootstrap interval over pairs of blocks, not over training noise "
        "alone; where halves differ, the switches interact and the mean over all describes no single block. "
        + left_out(record),
        markdown(shown_effects(found)),
    ]
    if rates.learning_rate.nunique() > 1:
        parts += ["## Learning rates", "Validation loss, mean ± standard deviation over the seeds. The tables above "
                  "show each block at its best learning rate.", markdown(rates_matrix(rates))]
    parts += ["## Plots", *(f"![{path.stem.replace('_', ' ')}]({path.name})" for path in plots)]
    return "\n\n".join(parts) + "\n"


def _print(
    console: Console, record: Record, *, blocks: pd.DataFrame, rates: pd.DataFrame, found: pd.DataFrame
) -> None:
    shown = shown_blocks(blocks)
    if console.width < WIDE:
        shown = shown.drop(columns=["tokens/s", "params", "MiB"])
    console.print(_rich(shown, title=f"study {record.name}"))
    if rates.learning_rate.nunique() > 1:
        console.print(_rich(rates_matrix(rates), title="validation loss by learning rate"))
    effects_shown = shown_effects(found)
    if not effects_shown.empty:
        console.print(_rich(effects_shown, title="main effects, with 95 % intervals"))
    console.print(left_out(record))


def _rich(table: pd.DataFrame, *, title: str) -> Table:
    shown = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in table.columns:
        first = column in ("block", "switch", "change", "where", "state")
        shown.add_column(str(column), justify="left" if first else "right", no_wrap=column == "block",
                         overflow="fold")
    for row in table.itertuples(index=False):
        shown.add_row(*map(str, row))
    return shown
