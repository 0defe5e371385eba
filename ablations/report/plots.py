"""The plots of a study. Highlighted rows in colour, the others grey. Imports neither torch nor lightning."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ablations.analysis.curves import row_curves
from ablations.analysis.findings import Findings
from ablations.analysis.tables import LEARNING_RATE, each
from ablations.design.collapse import COLLAPSED
from ablations.report.columns import speeds
from ablations.report.limits import drawn_of, thinned
from ablations.report.styles import GREY, Style, style_each, styles_of
from ablations.report.tables import along, in_path_order, tested
from lit_simplified.files import write_atomically

LOSS = "validation loss (nats per token)"
EFFECT_PANELS = {
    "loss": ("Effect on validation loss", "nats per token (left is better)", 0),
    "speed": ("Effect on training speed", "ratio (right is better)", 1),
}
"""Title, unit and the value that means no effect, by measure."""
EFFECT_MARKS = {"main": ("o", "tab:blue"), "interaction": ("D", "tab:orange"), "step": ("s", "tab:green")}
"""Marker and colour of an effect by its kind."""
DODGE, DODGES = 0.01, 0.06
"""How far apart two lines are drawn, and all of them, in lengths of the axis."""
LOG_SPAN = 8
"""The largest over the smallest level from which on an axis of numbers is logarithmic."""
MOST_IN_LEGEND = 12
"""Names that a legend inside a plot has at most; more stand beside it."""
NAMES_IN_COLUMN = 26
CROSS = "tab:red"
"""Colour of the crosses of collapsed runs."""
MOST_EFFECTS = 60
"""Effects that are drawn, the largest."""


def draw_all(found: Findings, *, folder: Path) -> list[Path]:
    """Write every plot that the study has the numbers for, first those that its file names; return their paths."""
    figures = dict(_figures(found))
    for name, figure in figures.items():
        write_atomically(folder / name, lambda path, figure=figure: figure.savefig(path, dpi=150))  # type: ignore[misc]
        plt.close(figure)
    first = [name for name in named_files(found) if name in figures]
    return [folder / name for name in dict.fromkeys((*first, *figures))]


def named_files(found: Findings) -> list[str]:
    """The files of the plots that the study's file names, in its order."""
    by_axis = axis_files(found.by_axis)
    return [by_axis.get(str(figure["axis"]), "") if figure["kind"] == "loss_by_axis" else f"{figure['kind']}.png"
            for figure in found.record.design.figures]


def axis_files(by_axis: pd.DataFrame) -> dict[str, str]:
    """The file of the plot along each axis of numbers, by the axis's name."""
    found: dict[str, str] = {}
    for row in each(by_axis.drop_duplicates("axis")):
        stem = f"loss_by_{re.sub(r'[^A-Za-z0-9_-]+', '_', title_of(row.title))}"
        stem = "learning_rates" if row.axis == LEARNING_RATE else stem
        found[row.axis] = f"{stem}.png" if f"{stem}.png" not in found.values() else f"{stem}_{len(found) + 1}.png"
    return found


def title_of(title: object) -> str:
    """What an axis is called in a text: `learning rate`."""
    return str(title).replace("_", " ")


def _figures(found: Findings) -> Iterator[tuple[str, Figure]]:
    """Every plot that there are numbers for, by the name of its file."""
    record, own = found.record, styles_of(found.record.design)
    complete = found.rows[found.rows.state == "complete"]
    curves = row_curves(record, complete)
    ends = collapsed_ends(found)
    for file, x in (("loss_by_step.png", "step"), ("loss_by_time.png", "seconds")):
        if any(curve[x].notna().any() for curve in curves.values()):
            yield file, loss_by(curves, complete, x=x, styles=own, collapsed=ends)
    measured, name = speeds(record, complete)
    if not measured.empty:
        yield "loss_by_speed.png", loss_by_speed(measured, styles=own, name=name)
    for name, file in axis_files(found.by_axis).items():
        points = along(found.by_axis, name)
        if len(points):
            yield file, loss_by_axis(points, highlighted=tuple(own))
    if len(tested(found.effects, *EFFECT_MARKS)):
        yield "effects.png", ranked_effects(found.effects)


def collapsed_ends(found: Findings) -> pd.DataFrame:
    """The last point of the curve of each row that collapsed with every seed: row, label, step, seconds, val_loss."""
    rows = found.rows[found.rows.state == COLLAPSED]
    curves = row_curves(found.record, rows, state=COLLAPSED)
    labels = dict(zip(rows.row, rows.label, strict=True))
    ends = [curve.iloc[[-1]].assign(row=row, label=labels[row]) for row, curve in curves.items()]
    names = ["row", "label", "step", "seconds", "val_loss"]
    return pd.concat(ends)[names] if ends else pd.DataFrame(columns=names)


def loss_by(
    curves: Mapping[str, pd.DataFrame], rows: pd.DataFrame, *, x: str, styles: Mapping[str, Style],
    collapsed: pd.DataFrame | None = None,
) -> Figure:
    """One line per row; a cross where one of `collapsed_ends` lies."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    known = rows[rows.row.isin(list(curves))]
    rows = thinned(known, known.row.isin(list(styles)))
    grey = [curves[str(row)][[x, "val_loss"]] for row in rows.row if row not in styles]
    if grey:
        points = apart(grey)
        axes.plot(points[x], points.val_loss, lw=0.8, markersize=4, **_style(None, ""))
    for row in in_order(rows[rows.row.isin(list(styles))], styles):
        curve = curves[str(row.row)]
        axes.plot(curve[x], curve.val_loss, lw=1.8, markersize=4, **_style(styles[str(row.row)], row.label))
    if collapsed is not None:
        _crosses(axes, collapsed[x], collapsed.val_loss)
    title, name = {"step": ("Validation loss by step", "optimiser steps"),
                   "seconds": ("Validation loss by training time", "seconds of training")}[x]
    axes.set(title=_titled(title, drawn_of(len(rows), len(known))), xlabel=name, ylabel=LOSS)
    _finish(axes)
    return figure


def _crosses(axes: Axes, x: pd.Series, losses: pd.Series) -> None:
    """Runs that learned nothing but how frequent each token is."""
    if losses.notna().any():
        axes.scatter(x, losses, marker="x", color=CROSS, s=36, zorder=4, label=COLLAPSED)


def apart(lines: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Several lines as one, with a gap behind each: an artist for each of thousands would take Matplotlib minutes."""
    return pd.DataFrame({name: np.concatenate([np.append(line[name].to_numpy(dtype=float), np.nan) for line in lines])
                         for name in lines[0]})


def _titled(title: str, note: str) -> str:
    return f"{title}\n{note}" if note else title


def in_order(rows: pd.DataFrame, styles: Mapping[str, Style]) -> list[Any]:
    """The rows of a table, the grey ones first, then the coloured in the order of their styles."""
    places = {name: index for index, name in enumerate(styles)}
    return sorted(each(rows), key=lambda row: places.get(str(row.row), -1))


def _style(style: Style | None, label: str) -> dict[str, Any]:
    if style is None:
        return {"color": GREY, "marker": "", "zorder": 1, "label": "_"}
    return {"color": style.colour, "marker": style.marker, "ls": style.dash, "zorder": 3, "label": plain(label)}


def plain(text: str) -> str:
    """A text that Matplotlib neither reads as a formula nor hides from a legend."""
    text = str(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def loss_by_speed(rows: pd.DataFrame, *, styles: Mapping[str, Style], name: str) -> Figure:
    """Final loss against speed, with intervals, and the front of the rows that no other beats in both.

    Args:
        rows: of `speeds`.
        styles: of the highlighted rows.
        name: of the axis of speed.
    """
    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    front, every = pareto_front(rows), len(rows)
    rows = thinned(rows, rows.row.isin([*styles, *front.row]))
    coloured = rows.row.isin(list(styles))
    for row in (rows[~coloured], *(rows[rows.row == name] for name in styles)):
        if len(row):
            own = styles.get(str(row.row.iloc[0]))
            reach = [_lengths(row.pace - row.pace_low), _lengths(row.pace_high - row.pace)]
            look = {**_style(own, row.label.iloc[0]), "marker": own.marker if own else ".", "ls": ""}
            axes.errorbar(row.pace, row.val_loss_mean, xerr=reach, yerr=row.val_loss_std, lw=0.7, markersize=7, **look)
    axes.plot(front.pace, front.val_loss_mean, color="black", lw=1, ls="--", zorder=2, label="Pareto front")
    for row in each(front[~front.row.isin(list(styles))]):
        axes.annotate(plain(row.label), (row.pace, row.val_loss_mean), fontsize=7, xytext=(4, 4),
                      textcoords="offset points")
    title = _titled("Loss against speed (to the lower right is better)", drawn_of(len(rows), every))
    axes.set(title=title, ylabel=LOSS, xlabel=plain(name))
    _finish(axes)
    return figure


def _lengths(reach: pd.Series) -> pd.Series:
    """Of whiskers: rounding must not make them negative."""
    return reach.fillna(0.0).clip(lower=0.0)


def pareto_front(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that no other row beats in both speed and loss, fastest first."""
    fastest_first = rows.sort_values(["pace", "val_loss_mean"], ascending=[False, True])
    best_before = fastest_first.val_loss_mean.cummin().shift(fill_value=np.inf)
    return fastest_first[fastest_first.val_loss_mean < best_before]


def loss_by_axis(by_axis: pd.DataFrame, *, highlighted: Sequence[str]) -> Figure:
    """Final loss along an axis of numbers, a line for each combination of the other axes, with 95 % intervals.

    Args:
        by_axis: of `along`.
        highlighted: the ids of the rows whose lines are coloured.
    """
    title = plain(title_of(by_axis.title.iloc[0]))
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    own = coloured_lines(by_axis, highlighted)
    shown = some_lines(by_axis, own)
    lines = dict(list(dodged(shown).groupby("line", sort=False)))
    grey = [points[["at", "val_loss_mean", "low", "high"]] for line, points in lines.items() if line not in own]
    for line, points in [*([("_", apart(grey))] if grey else []), *((line, lines[line]) for line in own)]:
        whiskers = [_lengths(points.val_loss_mean - points.low), _lengths(points.high - points.val_loss_mean)]
        style = own.get(line)
        axes.errorbar(points["at"], points.val_loss_mean, yerr=whiskers, lw=1.6 if style else 0.8, capsize=3,
                      markersize=5, **_style(style, line))
    _crosses(axes, by_axis.x, by_axis.collapsed_loss_mean)
    set_scale(axes, by_axis.x.unique())
    note = drawn_of(len(lines), by_axis.line.nunique(), noun="lines")
    axes.set(title=_titled(f"Validation loss by {title} (95 % intervals over the seeds)", note), xlabel=title,
             ylabel=LOSS)
    _finish(axes)
    return figure


def coloured_lines(by_axis: pd.DataFrame, highlighted: Sequence[str]) -> dict[str, Style]:
    """The styles of the lines on which a highlighted row lies."""
    return style_each(map(str, by_axis[by_axis.row.isin(highlighted)].line))


def some_lines(by_axis: pd.DataFrame, own: Mapping[str, Style]) -> pd.DataFrame:
    """The points of the coloured lines and of the others that are drawn."""
    lines = by_axis.drop_duplicates("line")
    return by_axis[by_axis.line.isin(thinned(lines, lines.line.isin(list(own))).line)]


def dodged(points: pd.DataFrame) -> pd.DataFrame:
    """The points that have a loss, with `at`: x, moved a little so that the whiskers of two lines do not overlap."""
    points = points.dropna(subset="val_loss_mean").sort_values("x", kind="stable")
    lines = points.line.map({line: index for index, line in enumerate(sorted(points.line.unique()))})
    n_lines = int(lines.max()) + 1
    shift = (lines - (n_lines - 1) / 2) * min(DODGE, DODGES / n_lines)
    low, high = float(points.x.min()), float(points.x.max())
    at = points.x * (high / low) ** shift if is_log(points.x) else points.x + (high - low) * shift
    return points.assign(at=at)


def is_log(levels: Iterable[float]) -> bool:
    """Whether numbers span so much that they stand on a logarithmic axis."""
    known = [float(level) for level in levels]
    return min(known) > 0 and max(known) / min(known) > LOG_SPAN


def set_scale(axes: Axes, levels: Iterable[float]) -> None:
    """Ticks at the levels; logarithmic where they span much."""
    ticks = sorted(map(float, levels))
    axes.set_xscale("log" if is_log(ticks) else "linear")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def ranked_effects(effects: pd.DataFrame) -> Figure:
    """Two panels, loss and speed: main effects and interactions, the largest first, and steps in their order."""
    own = in_path_order(tested(effects, *EFFECT_MARKS))
    measures = [measure for measure in EFFECT_PANELS if (own.measure == measure).any()]
    height = 1.6 + 0.26 * min(max(int((own.measure == measure).sum()) for measure in measures), MOST_EFFECTS)
    figure, panels = plt.subplots(
        1, len(measures), figsize=(7 * len(measures), height), layout="constrained", squeeze=False
    )
    for axes, measure in zip(panels[0], measures, strict=True):
        _effect_panel(axes, own[own.measure == measure].head(MOST_EFFECTS), measure=measure)
    most = max(int((own.measure == measure).sum()) for measure in measures)
    figure.suptitle("Main effects (circles), interactions (diamonds), steps (squares) with 95 % intervals;\nfilled: "
                    "beyond chance among all of its panel (Holm)"
                    f"{f'; the first {MOST_EFFECTS} of {most}' if most > MOST_EFFECTS else ''}", size=10)
    return figure


def _effect_panel(axes: Axes, rows: pd.DataFrame, *, measure: str) -> None:
    title, unit, neutral = EFFECT_PANELS[measure]
    for position, row in enumerate(each(rows)):
        marker, colour = EFFECT_MARKS[str(row.kind)]
        error = None if pd.isna(row.low) else [[max(row.estimate - row.low, 0.0)], [max(row.high - row.estimate, 0.0)]]
        axes.errorbar(row.estimate, position, xerr=error, marker=marker, color=colour,
                      markerfacecolor=colour if row.distinct else "white", lw=1.4, capsize=3, markersize=5, zorder=2)
    axes.axvline(neutral, color="black", lw=0.8)
    axes.set_yticks(range(len(rows)), [plain(effect_name(row)) for row in each(rows)], fontsize=8)
    axes.invert_yaxis()
    axes.set(title=title, xlabel=unit)
    axes.grid(axis="x", color="0.9", zorder=0)


def effect_name(row: Any) -> str:
    """An effect with what changes: `depth (2 -> 4)`."""
    return f"{row.term} ({row.change})" if row.change and row.change != row.term else str(row.term)


def _finish(axes: Axes) -> None:
    axes.grid(color="0.92", zorder=0)
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > MOST_IN_LEGEND:
        columns = 1 + len(labels) // NAMES_IN_COLUMN
        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.set_figwidth(figure.get_figwidth() + columns * (0.5 + 0.06 * max(map(len, labels))))
        axes.legend(handles, labels, fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1), ncols=columns)
    elif labels:
        axes.legend(handles, labels, fontsize=8, loc="best")
