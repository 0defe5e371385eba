"""The benchmark's plots: bars with intervals per group, and time and memory against T. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ablations.bench.measure import Measurement
from ablations.bench.results import by_group
from lit_simplified.files import write_atomically

COLOURS = {"train": "tab:blue", "inference": "tab:orange"}


def draw_all(rows: Sequence[Measurement], *, folder: Path) -> list[Path]:
    """Write every plot that there are rows for; return their paths."""
    figures: dict[str, Figure] = {}
    for group, members in by_group(rows).items():
        measured = [row for row in members if not row.error]
        if measured and group == "length":
            figures["length.png"] = against_length(measured)
        elif measured:
            figures[f"{group}.png"] = bars(measured, title=f"{group}: speed relative to the baseline")
    for name, figure in figures.items():
        write_atomically(folder / name, lambda path, figure=figure: figure.savefig(path, dpi=150))  # type: ignore[misc]
        plt.close(figure)
    return [folder / name for name in figures]


def bars(rows: Sequence[Measurement], *, title: str) -> Figure:
    """Horizontal bars of the training and inference ratio with intervals; a diamond where operations alone would be."""
    figure, axes = plt.subplots(figsize=(8, 1.5 + 0.55 * len(rows)), layout="constrained")
    for mode, offset in (("train", -0.2), ("inference", 0.2)):
        shown = [(place, row) for place, row in enumerate(rows) if getattr(row, f"{mode}_ratio") is not None]
        if shown:
            _bars_of(axes, mode, shown, offset)
    flops = [(row.flop_ratio, place) for place, row in enumerate(rows) if row.flop_ratio is not None]
    if flops:
        axes.plot(*zip(*flops, strict=True), "kD", markersize=4, ls="", label="ratio of counted FLOPs", zorder=4)
    axes.axvline(1, color="black", lw=0.8)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set(title=title, xlabel="ratio, above 1 is faster (median, 95 % interval)")
    axes.grid(axis="x", color="0.92", zorder=0)
    axes.legend(fontsize=8)
    return figure


def _bars_of(axes: Axes, mode: str, shown: Sequence[tuple[int, Measurement]], offset: float) -> None:
    ratio, low, high = ([getattr(row, f"{mode}_{part}") for _, row in shown] for part in ("ratio", "low", "high"))
    errors = [[r - x for r, x in zip(ratio, low, strict=True)], [x - r for r, x in zip(ratio, high, strict=True)]]
    axes.barh([place + offset for place, _ in shown], ratio, height=0.36, xerr=errors, color=COLOURS[mode],
              label=mode, capsize=2, zorder=2)


def _label(row: Measurement) -> str:
    compiled = f" ({row.compiled} compiled)" if row.compiled else ""
    return f"{row.name}{compiled}\nagainst {row.baseline}"


def against_length(rows: Sequence[Measurement]) -> Figure:
    """Seconds per step and peak memory against T, both logarithmic, a line per subject."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axes, index, label in zip(panels, (0, 1), ("seconds per training step", "peak memory (MiB)"), strict=True):
        for name, points in _series(rows).items():
            known = [(length, values[index]) for length, values in sorted(points.items()) if values[index] is not None]
            if known:
                axes.plot(*zip(*known, strict=True), marker="o", label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set(xlabel="T, at the same number of tokens per step", ylabel=label)
        axes.grid(color="0.92", which="both")
        axes.legend(fontsize=8)
    return figure


def _series(rows: Sequence[Measurement]) -> dict[str, dict[int, tuple[Any, Any]]]:
    """(seconds, MiB) by subject and T."""
    found: dict[str, dict[int, tuple[Any, Any]]] = {}
    for row in rows:
        suffix = f" ({row.compiled} compiled)" if row.compiled else ""
        tokens = row.batch * row.context
        speed = row.baseline_train_tokens_per_second
        seconds = (row.train_ms or 0) / 1000
        found.setdefault(row.name + suffix, {})[row.context] = (seconds, row.memory_mib)
        found.setdefault(row.baseline + suffix, {})[row.context] = (
            tokens / speed if speed else None, row.baseline_memory_mib
        )
    return found
