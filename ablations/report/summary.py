"""`summary`: tables, effects, claims, plots and a document from the storage alone. Imports neither torch nor lightning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
import pandas as pd
from rich.console import Console

from ablations.analysis.claims import not_covered, verdicts
from ablations.analysis.effects import FitQuality, effects, fit_quality
from ablations.analysis.pairs import pairwise
from ablations.analysis.rates import edge_warnings, sensitivity
from ablations.analysis.tables import Record, blocks_table, learning_rates_table, read
from ablations.analysis.usage import words as usage_words
from ablations.report import preamble
from ablations.report.formats import json_lines, markdown, records, to_json
from ablations.report.plots import draw_all
from ablations.report.tables import (
    rates_matrix,
    rich_table,
    shown_blocks,
    shown_claims,
    shown_effects,
    shown_pairs,
    shown_sensitivity,
    shown_simple,
)
from lit_simplified.files import write_text

WIDTHS = ((100, ("tokens/s", "params", "MiB", "sd")), (118, ("tokens/s", "MiB", "sd")), (132, ("sd",)))
"""Terminals narrower than this leave out these columns of the blocks; the files hold all."""


@dataclass(frozen=True)
class Findings:
    """Everything that is computed from a study, once."""

    record: Record
    blocks: pd.DataFrame
    rates: pd.DataFrame
    """Loss by block and learning rate."""
    sensitivity: pd.DataFrame
    effects: pd.DataFrame
    quality: tuple[FitQuality, ...]
    """What the effects rest on."""
    pairs: pd.DataFrame
    """Named blocks against each other."""
    claims: pd.DataFrame

    @property
    def several_rates(self) -> bool:
        """Whether the learning rate is an axis of the study."""
        return bool(self.rates.learning_rate.nunique() > 1)


def find(study: optuna.Study) -> Findings:
    """Read a study and compute everything."""
    record = read(study)
    blocks = blocks_table(record)
    return Findings(
        record=record, blocks=blocks, rates=learning_rates_table(record), sensitivity=sensitivity(record),
        effects=effects(record, blocks), quality=fit_quality(record, blocks), pairs=pairwise(record, blocks),
        claims=verdicts(record, blocks),
    )


def summarise(study: optuna.Study, *, folder: Path, console: Console | None = None) -> list[Path]:
    """Print the tables of a study and write all its files; return their paths.

    summary.csv, summary.json (a row per block), effects.csv, pairwise.csv, claims.csv, learning_rates.csv and .md,
    trials.jsonl (a line per trial), PNG plots, and summary.md, which holds everything.
    """
    found = find(study)
    texts = {
        "summary.csv": found.blocks.to_csv(index=False),
        "summary.json": to_json(records(found.blocks), indent=1) + "\n",
        "effects.csv": found.effects.to_csv(index=False),
        "pairwise.csv": found.pairs.to_csv(index=False),
        "claims.csv": found.claims.to_csv(index=False),
        "learning_rates.csv": found.rates.merge(
            found.sensitivity.drop(columns="preset"), on="block", how="left").to_csv(index=False),
        "learning_rates.md": markdown(rates_matrix(found.rates)) + "\n",
        "trials.jsonl": json_lines(found.record.trials),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    plots = draw_all(found.record, blocks=found.blocks, effects=found.effects, folder=folder)
    write_text(folder / "summary.md", compose(found, plots=plots))
    _print(console or Console(), found)
    return [*(folder / name for name in texts), *plots, folder / "summary.md"]


def compose(found: Findings, *, plots: Sequence[Path]) -> str:
    """The document."""
    parts = [
        f"# Study {found.record.name}", preamble.fixed(found.record),
        "## Blocks", preamble.BLOCKS, markdown(shown_blocks(found.blocks)),
        *_learning_rates(found), *_effects(found), *_claims(found),
        "## Plots", *(f"![{path.stem.replace('_', ' ')}]({path.name})" for path in plots),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _learning_rates(found: Findings) -> list[str]:
    if not found.several_rates:
        return []
    return [
        "## Learning rates", "Validation loss, mean ± standard deviation over the seeds. Everything else here shows "
        "each block at its best learning rate.", markdown(rates_matrix(found.rates)),
        *(f"**Warning:** {warning}" for warning in edge_warnings(found.sensitivity)),
        "Sensitivity: what the worst learning rate costs in nats, and by what factor the learning rate may be off at a "
        "cost of 2 % at most (1: the best alone is that good).", markdown(shown_sensitivity(found.sensitivity)),
    ]


def _effects(found: Findings) -> list[str]:
    parts = ["## Effects"]
    if not found.effects.empty:
        parts += [preamble.EFFECTS, preamble.left_out(found.record), markdown(shown_effects(found.effects)),
                  "Simple effects: each main effect at both positions of the switch with which it interacts most. No "
                  "correction.", markdown(shown_simple(found.effects)), "What they rest on:"]
    return [*parts, "\n".join(f"- {line}" for line in preamble.basis(found.quality))]


def _claims(found: Findings) -> list[str]:
    if found.pairs.empty:
        return []
    missing = not_covered(found.record, found.blocks)
    return [
        "## The paper's claims" if len(found.claims) else "", preamble.CLAIMS if len(found.claims) else "",
        markdown(shown_claims(found.claims)) if len(found.claims) else "",
        f"No claim about {', '.join(missing)} is judged: this study has no finished cell of them." if missing else "",
        "## Named blocks against each other", "Difference of validation loss in nats, paired by seed, and ratio of "
        "training speed, each with its 95 % interval.", markdown(shown_pairs(found.pairs)),
    ]


def _print(console: Console, found: Findings) -> None:
    """What fits a terminal of 110 columns; the rest is in the files."""
    blocks = shown_blocks(found.blocks)
    narrow = next((columns for width, columns in WIDTHS if console.width < width), ())
    console.print(rich_table(blocks.drop(columns=list(narrow)), title=f"study {found.record.name}"))
    if found.several_rates:
        console.print(rich_table(rates_matrix(found.rates), title="validation loss by learning rate"))
        for warning in edge_warnings(found.sensitivity):
            console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)
    if not found.effects.empty:
        title = "effects, largest first, with 95 % intervals; p corrected (Holm), * below 0.05"
        console.print(rich_table(shown_effects(found.effects).drop(columns="change"), title=title))
        simple = found.effects[found.effects.measure == "loss"]
        console.print(rich_table(shown_simple(simple).drop(columns="on"), title="simple effects on loss, in nats"))
    for line in preamble.basis(found.quality):
        console.print(line, highlight=False, markup=False)
    if not found.claims.empty:
        shown = shown_claims(found.claims)[["claim", "found", "seeds", "verdict"]]
        console.print(rich_table(shown, title="the paper's claims, at this size (reasons: summary.md)"))
    for line in (preamble.left_out(found.record), usage_words(found.record)):
        if line:
            console.print(line, highlight=False, markup=False)
