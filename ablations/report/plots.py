"""The plots of a study. Named blocks in colour, the others grey. Imports neither torch nor lightning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ablations.analysis.tables import Record, each, learning_rates_table
from lit_simplified.config import PRESETS
from lit_simplified.files import write_atomically

GREY = "0.78"
_COLOURS = [colour for colour in mpl.color_sequences["tab10"] if colour != mpl.color_sequences["tab10"][7]]  # no grey
COLOURS: Mapping[str, Any] = dict(zip(PRESETS, _COLOURS, strict=False))
MARKERS: Mapping[str, str] = dict(zip(PRESETS, "osD^vPX*", strict=False))
EFFECT_PANELS = {
    "loss": ("Effect on validation loss", "nats per token (left is better)", 0),
    "speed": ("Effect on training speed", "ratio (right is better)", 1),
}
"""Title, unit and the value that means no effect, by measure."""


def draw_all(record: Record, *, blocks: pd.DataFrame, effects: pd.DataFrame, folder: Path) -> list[Path]:
    """Write every plot that the study has the numbers for; return their paths."""
    complete = blocks[blocks.state == "complete"]
    figures: dict[str, Figure] = {}
    if not complete.empty:
        curves = block_curves(record, complete)
        figures["loss_by_step.png"] = loss_by(curves, complete, x="step", title="Validation loss by step")
        figures["loss_by_time.png"] = loss_by(curves, complete, x="seconds", title="Validation loss by training time")
    measured = complete.dropna(subset="speed_ratio")
    if not measured.empty:
        figures["loss_by_speed.png"] = loss_by_speed(measured)
    if effects.estimate.notna().any():
        figures["effects.png"] = ranked_effects(effects)
    rates = learning_rates_table(record)
    rates = rates[rates.preset != ""]
    if rates.learning_rate.nunique() > 1 and rates.val_loss_mean.notna().any():
        figures["learning_rates.png"] = loss_by_rate(rates)
    for name, figure in figures.items():
        write_atomically(folder / name, lambda path, figure=figure: figure.savefig(path, dpi=150))  # type: ignore[misc]
        plt.close(figure)
    return [folder / name for name in figures]


def block_curves(record: Record, blocks: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Learning curve by block, at its best learning rate, averaged over the seeds, with `seconds` of training.

    The seconds are tokens over the tokens per second of the table: the speed pass's, where there is one. Times of the
    training itself depend on what else the machine did.
    """
    found: dict[str, pd.DataFrame] = {}
    for row in each(blocks):
        cells = record.cells[(record.cells["block"] == row.block) & (record.cells.learning_rate == row.learning_rate)]
        seeds = [record.curves[cell] for cell in cells[cells.state == "complete"].cell if cell in record.curves]
        if seeds:
            mean = pd.concat(seeds).groupby("step", as_index=False).mean(numeric_only=True)
            found[str(row.block)] = mean.assign(seconds=mean.tokens / float(row.tokens_per_second))
    return found


def loss_by(curves: Mapping[str, pd.DataFrame], blocks: pd.DataFrame, *, x: str, title: str) -> Figure:
    """One line per block."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for row in each(blocks.sort_values("preset")):
        curve = curves.get(str(row.block))
        if curve is not None:
            style = _style(str(row.preset))
            axes.plot(curve[x], curve.val_loss, lw=1.8 if row.preset else 0.8, markersize=4, **style)
    axes.set(title=title, xlabel={"step": "optimiser steps", "seconds": "seconds of training"}[x],
             ylabel="validation loss (nats per token)")
    _finish(axes)
    return figure


def _style(preset: str) -> dict[str, Any]:
    if not preset:
        return {"color": GREY, "marker": "", "zorder": 1, "label": "_"}
    return {"color": COLOURS[preset], "marker": MARKERS[preset], "zorder": 3, "label": preset}


def loss_by_speed(blocks: pd.DataFrame) -> Figure:
    """Final loss against speed, with intervals, and the front of the blocks that no other beats in both."""
    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    for row in each(blocks.sort_values("preset")):
        low, high = row.speed_ratio - row.speed_ratio_low, row.speed_ratio_high - row.speed_ratio
        style = {**_style(str(row.preset)), "marker": MARKERS.get(str(row.preset), ".")}
        spread = None if pd.isna(row.val_loss_std) else row.val_loss_std
        axes.errorbar(row.speed_ratio, row.val_loss_mean, xerr=[[max(low, 0)], [max(high, 0)]], yerr=spread,
                      lw=0.7, ls="", markersize=7, **style)
    front = pareto_front(blocks)
    axes.plot(front.speed_ratio, front.val_loss_mean, color="black", lw=1, ls="--", zorder=2, label="Pareto front")
    for row in each(front[front.preset == ""]):
        axes.annotate(row.block, (row.speed_ratio, row.val_loss_mean), fontsize=7, xytext=(4, 4),
                      textcoords="offset points")
    axes.axvline(1, color=GREY, lw=0.8, zorder=0)
    axes.set(title="Loss against speed (to the lower right is better)",
             xlabel="training speed, relative to pre_ln (95 % interval)", ylabel="validation loss (nats per token)")
    _finish(axes)
    return figure


def pareto_front(blocks: pd.DataFrame) -> pd.DataFrame:
    """The blocks that no other block beats in both speed and loss, fastest first."""
    fastest_first = blocks.sort_values(["speed_ratio", "val_loss_mean"], ascending=[False, True])
    best_before = fastest_first.val_loss_mean.cummin().shift(fill_value=np.inf)
    return fastest_first[fastest_first.val_loss_mean < best_before]


def ranked_effects(effects: pd.DataFrame) -> Figure:
    """Two panels, loss and speed: main effects and interactions, the largest first, with their intervals."""
    tested = effects[(effects.kind != "simple") & effects.estimate.notna()]
    measures = [measure for measure in EFFECT_PANELS if (tested.measure == measure).any()]
    height = 1.6 + 0.26 * max(int((tested.measure == measure).sum()) for measure in measures)
    figure, panels = plt.subplots(
        1, len(measures), figsize=(7 * len(measures), height), layout="constrained", squeeze=False
    )
    for axes, measure in zip(panels[0], measures, strict=True):
        _effect_panel(axes, tested[tested.measure == measure], measure=measure)
    figure.suptitle("Main effects (circles) and interactions (diamonds) with 95 % intervals; filled: beyond chance "
                    "among all of its panel (Holm)", size=10)
    return figure


def _effect_panel(axes: Axes, rows: pd.DataFrame, *, measure: str) -> None:
    title, unit, neutral = EFFECT_PANELS[measure]
    for position, row in enumerate(each(rows)):
        colour = "tab:blue" if row.kind == "main" else "tab:orange"
        error = None if pd.isna(row.low) else [[row.estimate - row.low], [row.high - row.estimate]]
        axes.errorbar(row.estimate, position, xerr=error, marker="o" if row.kind == "main" else "D", color=colour,
                      markerfacecolor=colour if row.distinct else "white", lw=1.4, capsize=3, markersize=5, zorder=2)
    axes.axvline(neutral, color="black", lw=0.8)
    names = [f"{row.term} ({row.change})" if row.kind == "main" else row.term for row in each(rows)]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set(title=title, xlabel=unit)
    axes.grid(axis="x", color="0.9", zorder=0)


def loss_by_rate(rates: pd.DataFrame) -> Figure:
    """Final loss of the named blocks by learning rate; bars are standard deviations over the seeds."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for preset in [name for name in PRESETS if name in set(rates.preset)]:
        own = rates[rates.preset == preset].dropna(subset="val_loss_mean").sort_values("learning_rate")
        axes.errorbar(own.learning_rate, own.val_loss_mean, yerr=own.val_loss_std.fillna(0), lw=1.4, capsize=3,
                      markersize=5, **_style(preset))
    axes.set(title="Validation loss by learning rate (mean and standard deviation over the seeds)", xscale="log",
             xlabel="peak learning rate", ylabel="validation loss (nats per token)")
    ticks = sorted(rates.learning_rate.unique())
    axes.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
    axes.minorticks_off()
    _finish(axes)
    return figure


def _finish(axes: Axes) -> None:
    axes.grid(color="0.92", zorder=0)
    handles, labels = axes.get_legend_handles_labels()
    if any(labels):
        axes.legend(handles, labels, fontsize=8, loc="best")
