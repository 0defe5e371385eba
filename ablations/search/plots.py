"""The plots of a search. Imports neither torch nor lightning."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ablations.report.styles import style_each
from ablations.search.results import OVER_BLOCKS, Found, Importance, Searched
from lit_simplified.config import PRESETS
from lit_simplified.files import write_atomically

LOSS = "validation loss (nats per token)"
MARGIN = 0.08
"""Of the height of a plot, above the complete trials."""


def draw_all(found: Found, *, folder: Path) -> list[Path]:
    """Write every plot that the searches have the numbers for; return their paths."""
    searches = [search for search in found.searches if search.count("complete")]
    figures: dict[str, Figure] = {}
    if searches:
        figures["history.png"] = history(searches)
        tuned = [search for search in searches if "learning_rate" in search.trials]
        if tuned:
            figures["learning_rate.png"] = by_learning_rate(tuned)
    explained = {label: importance for label, importance in found.importances.items() if importance.shares}
    if explained:
        figures["importances.png"] = importances(explained)
    for name, figure in figures.items():
        write_atomically(folder / name, lambda path, figure=figure: figure.savefig(path, dpi=150))  # type: ignore[misc]
        plt.close(figure)
    return [folder / name for name in figures]


def history(searches: Sequence[Searched]) -> Figure:
    """Every trial by its number, and the best so far."""
    axes = plt.subplots(figsize=(8, 5), layout="constrained")[1]
    top, colours = _top(searches), colours_of(search.label for search in searches)
    for search in searches:
        best = search.trials.loss.where(search.trials.state == "complete").cummin().ffill()
        axes.step(search.trials.trial, best, where="post", lw=1.6, color=colours[search.label],
                  label=f"{search.label}: best so far")
        _scatter(axes, search, x="trial", top=top, colour=colours[search.label])
    axes.set(title="Search: loss by trial", xlabel="trial (0: the defaults)", ylabel=LOSS)
    return _finish(axes, top=top, states=_states(searches))


def by_learning_rate(searches: Sequence[Searched]) -> Figure:
    """Loss by the learning rate that was drawn; the default's is dashed, the best trial a star."""
    axes = plt.subplots(figsize=(8, 5), layout="constrained")[1]
    top, colours = _top(searches), colours_of(search.label for search in searches)
    for search in searches:
        colour = colours[search.label]
        _scatter(axes, search, x="learning_rate", top=top, colour=colour, label=search.label)
        axes.plot(search.best_row.learning_rate, search.best_loss, marker="*", markersize=15, ls="",
                  color=colour, markeredgecolor="black", zorder=5)
    axes.axvline(searches[0].spec["optim"]["learning_rate"], color="0.6", lw=1, ls="--", label="default")
    axes.set(title="Search: loss by learning rate", xlabel="peak learning rate", xscale="log", ylabel=LOSS)
    return _finish(axes, top=top, states=_states(searches))


def importances(shares: dict[str, Importance]) -> Figure:
    """Share of the variance that each parameter explains, side by side."""
    names = list(dict.fromkeys(name for importance in shares.values() for name in importance.shares))
    axes = plt.subplots(figsize=(8, 1.2 + 0.32 * len(names) * len(shares)), layout="constrained")[1]
    height, colours = 0.8 / len(shares), colours_of(shares)
    for index, (label, importance) in enumerate(shares.items()):
        at = np.arange(len(names)) + (index - (len(shares) - 1) / 2) * height
        axes.barh(at, [importance.shares.get(name, 0.0) for name in names], height=0.9 * height,
                  color=colours[label], label=f"{label} ({importance.trials} complete trials)", zorder=2)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(title="Share of the loss's variance explained (fANOVA)", xlabel="importance")
    return _finish(axes)


def _top(searches: Sequence[Searched]) -> float:
    """The upper end of the losses shown: pruned runs have losses far above it, and are drawn at it."""
    losses = pd.concat([search.trials.loss[search.trials.state == "complete"] for search in searches])
    return float(losses.max() + MARGIN * max(losses.max() - losses.min(), 1e-3 * losses.max()))


def _scatter(axes: Axes, search: Searched, *, x: str, top: float, colour: str, label: str = "_") -> None:
    styles: dict[str, dict[str, Any]] = {
        "complete": {"marker": "o", "s": 26, "label": label}, "pruned": {"marker": "x", "s": 26, "alpha": 0.7},
        "diverged": {"marker": "^", "s": 30, "facecolors": "none"},
    }
    for state, style in styles.items():
        rows = search.trials[search.trials.state == state]
        losses = rows.loss.fillna(top).clip(upper=top)
        own = {"edgecolors": colour} if "facecolors" in style else {"color": colour}
        axes.scatter(rows[x], losses, zorder=3, clip_on=False, **{**style, **own})


def colours_of(labels: Iterable[str]) -> dict[str, str]:
    """A colour for each search: the named blocks have the same in every search, and that over all blocks is black."""
    return {**{name: style.colour for name, style in style_each((*PRESETS, *labels)).items()}, OVER_BLOCKS: "black"}


def _states(searches: Sequence[Searched]) -> set[str]:
    return {state for search in searches for state in search.trials.state}


def _finish(axes: Axes, *, top: float | None = None, states: Collection[str] = ()) -> Figure:
    axes.grid(color="0.92", zorder=0)
    if top is not None:
        axes.set_ylim(top=top)
    if "pruned" in states:
        axes.scatter([], [], marker="x", color="0.4", label="pruned (at the upper edge: there or above)")
    if "diverged" in states:
        axes.scatter([], [], marker="^", edgecolors="0.4", facecolors="none", label="diverged")
    axes.legend(fontsize=8, loc="best")
    figure = axes.figure
    assert isinstance(figure, Figure)
    return figure
