"""The interactive plots of a report, as Bokeh's JSON: highlighted rows in colour, the others grey.

Backgrounds are transparent and the greys of middle lightness, so that one drawing serves light and dark pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, NumeralTickFormatter
from bokeh.models.annotations import Whisker
from bokeh.plotting import figure
from bokeh.resources import Resources

from ablations.analysis.curves import row_curves
from ablations.analysis.findings import Findings
from ablations.analysis.tables import each
from ablations.report.columns import speeds
from ablations.report.limits import drawn_of, first_of, thinned
from ablations.report.plots import (
    EFFECT_MARKS,
    LOSS,
    collapsed_ends,
    coloured_lines,
    dodged,
    effect_name,
    is_log,
    pareto_front,
    some_lines,
    title_of,
)
from ablations.report.styles import Style, colours_said, styles_of
from ablations.report.tables import along, in_path_order, tested

OTHERS = "others"
"""The series of all rows that have no colour of their own."""
GREY, INK, CROSS = "#999999", "#7c828a", "#d62728"
CROSSES = "Crosses: rows that collapsed."
PLAIN = Style(GREY, "o", "solid")
MOST_POINTS = 100
"""Points of a curve that are drawn; more are not seen, and make the file large."""
MOST_EFFECTS = 40
"""Effects that are drawn, the largest of each measure."""
MARKERS = {"o": "circle", "D": "diamond", "s": "square"}


@dataclass(frozen=True)
class Series:
    """Lines and points that the legend hides together."""

    id: str
    label: str
    colour: str


@dataclass(frozen=True)
class Plot:
    """A plot of the page."""

    id: str
    """Of the element that it is drawn in."""
    title: str
    kind: str
    """As a study file names it."""
    axis: str = ""
    """Of a plot along an axis, its name."""
    note: str = ""
    key: tuple[Series, ...] = ()
    """Its lines, where they are not those of the legend of all plots."""


def javascript() -> list[str]:
    """The scripts that draw the plots: Bokeh's core, without widgets, tables and WebGL."""
    return list(Resources(mode="inline", components=["bokeh"]).js_raw)


def plots(found: Findings) -> tuple[list[Plot], dict[str, Any]]:
    """Every plot that the study has the numbers for, and their JSON by the ids of their elements."""
    drawn = [(plot, figure_) for plot, figure_ in _all(found) if figure_ is not None]
    return [plot for plot, _ in drawn], {plot.id: json_item(figure_, ID(plot.id)) for plot, figure_ in drawn}


def named_first(plots: Sequence[Plot], figures: Sequence[Mapping[str, str]]) -> list[Plot]:
    """The plots that a study's file names, in its order."""
    wanted = [(str(entry["kind"]), str(entry["axis"])) for entry in figures]
    return [plot for key in dict.fromkeys(wanted) for plot in plots if (plot.kind, plot.axis) == key]


def series_of(found: Findings) -> list[Series]:
    """The series that the plots have, with their colours."""
    complete = found.rows[found.rows.state == "complete"]
    own = styles_of(found.record.design)
    labels = {str(row.row): str(row.label) for row in each(complete)}
    coloured = [Series(name, labels[name], style.colour) for name, style in own.items() if name in labels]
    return [*coloured, Series(OTHERS, "other rows", GREY)] if set(labels) - set(own) else coloured


def _all(found: Findings) -> Iterator[tuple[Plot, figure | None]]:
    record, own, colours = found.record, styles_of(found.record.design), colours_said(found.record.design)
    complete = found.rows[found.rows.state == "complete"]
    every = row_curves(record, complete)
    known = complete[complete.row.isin(list(every))]
    drawn = thinned(known, known.row.isin(list(own)))
    curves = {str(row): _thin(every[str(row)]) for row in drawn.row}
    ends = collapsed_ends(found)
    note = _note(drawn_of(len(drawn), len(known)), colours, CROSSES if len(ends) else "")
    yield Plot("plot-steps", "Loss by step", "loss_by_step", note=note), _curves(
        curves, drawn, x="step", styles=own, collapsed=ends)
    yield Plot("plot-seconds", "Loss by training time", "loss_by_time", note=note), _curves(
        curves, drawn, x="seconds", styles=own, collapsed=ends)
    measured, name = speeds(record, complete)
    front = pareto_front(measured)
    drawn = thinned(measured, measured.row.isin([*own, *front.row]))
    yield Plot("plot-speed", "Loss against speed", "loss_by_speed", note=_note(
        "To the lower right is better. Dashed: the Pareto front, the rows that no other beats in both.",
        drawn_of(len(drawn), len(measured)), colours)), _loss_by_speed(drawn, name, front=front, styles=own)
    for index, name in enumerate(found.by_axis.axis.unique()):
        points = along(found.by_axis, name)
        if not points.empty:
            yield _along_axis(points, f"plot-axis-{index}", own)
    for measure in ("loss", "speed"):
        yield _effects(found.effects, measure)


def _note(*sentences: str) -> str:
    return " ".join(filter(None, sentences))


def _along_axis(points: pd.DataFrame, element: str, own: Mapping[str, Style]) -> tuple[Plot, figure]:
    """The plot along an axis of numbers, of the points of `along`."""
    title, lines = title_of(points.title.iloc[0]), coloured_lines(points, tuple(own))
    drawn = some_lines(points, lines)
    note = drawn_of(drawn.line.nunique(), points.line.nunique(), noun="lines")
    key = tuple(Series("", line, style.colour) for line, style in lines.items())
    plot = Plot(element, f"Loss by {title}", "loss_by_axis", axis=str(points.axis.iloc[0]), note=note, key=key)
    return plot, _loss_by_axis(drawn, title=title, styles=lines)


def _thin(curve: pd.DataFrame) -> pd.DataFrame:
    curve = curve.dropna(subset="val_loss")
    if len(curve) <= MOST_POINTS:
        return curve
    return curve.iloc[np.unique(np.linspace(0, len(curve) - 1, MOST_POINTS).round().astype(int))]


def _figure(*, x: str, y: str | None = LOSS, **options: Any) -> figure:
    options = {"height": 430, "sizing_mode": "stretch_width", **options}
    drawn = figure(tools="pan,box_zoom,wheel_zoom,reset,save", active_drag="box_zoom", x_axis_label=x, y_axis_label=y,
                   background_fill_color=None, border_fill_color=None, outline_line_color=None, min_border_right=12,
                   **options)
    drawn.toolbar.logo = None
    drawn.toolbar.autohide = True
    drawn.axis.axis_line_color = drawn.axis.major_tick_line_color = INK
    drawn.axis.minor_tick_line_color = None
    drawn.axis.axis_label_text_color = drawn.axis.major_label_text_color = INK
    drawn.axis.axis_label_text_font_style = "normal"
    drawn.grid.grid_line_color = INK
    drawn.grid.grid_line_alpha = 0.2
    return drawn


def _series(rows: pd.DataFrame, styles: Mapping[str, Style]) -> list[tuple[str, Style, pd.DataFrame]]:
    """The rows of each series; the grey ones first, so that the coloured lie above them."""
    grey = [(OTHERS, PLAIN, rows[~rows.row.isin(list(styles))])]
    found = [*grey, *((name, style, rows[rows.row == name]) for name, style in styles.items())]
    return [(name, style, own) for name, style, own in found if len(own)]


def _lines(drawn: figure, lines: Mapping[str, list[Any]], *, series: str, style: Style) -> Any:
    """One renderer for all lines of a series, which the legend finds by its name."""
    coloured = style is not PLAIN
    look: dict[str, Any] = {"line_width": 2.2 if coloured else 1, "line_alpha": 0.95 if coloured else 0.55}
    hovered: dict[str, Any] = {
        "hover_line_alpha": 1, "hover_line_width": 3, "hover_line_color": style.colour if coloured else INK,
    }
    source = ColumnDataSource(dict(lines))
    return drawn.multi_line("x", "y", source=source, name=series, color=style.colour, line_dash=style.dash, **look,
                            **hovered)


def _add_hover(drawn: figure, renderers: list[Any], tooltips: list[tuple[str, str]], **options: Any) -> None:
    if renderers:
        drawn.add_tools(HoverTool(renderers=renderers, tooltips=tooltips, **options))


def _curves(
    curves: Mapping[str, pd.DataFrame], rows: pd.DataFrame, *, x: str, styles: Mapping[str, Style],
    collapsed: pd.DataFrame,
) -> figure | None:
    """Loss against steps or seconds; a cross where one of `collapsed_ends` lies."""
    rows = rows[[str(name) in curves and bool(curves[str(name)][x].notna().all()) for name in rows.row]]
    if rows.empty:
        return None
    drawn = _figure(x={"step": "optimiser steps", "seconds": "seconds of training"}[x])
    drawn.xaxis.formatter = NumeralTickFormatter(format="0,0.[00]")
    renderers = []
    for series, style, own in _series(rows, styles):
        found = [curves[str(name)] for name in own.row]
        lines: dict[str, list[Any]] = {
            "x": [curve[x].to_numpy(np.float32) for curve in found],
            "y": [curve.val_loss.to_numpy(np.float32) for curve in found],
            "label": own.label.to_list(), "seeds": own.n_seeds.to_list(),
        }
        renderers.append(_lines(drawn, lines, series=series, style=style))
    _crosses(drawn, collapsed[x], collapsed.val_loss, collapsed.label)
    at = ("step", "$snap_x{0,0}") if x == "step" else ("seconds", "$snap_x{0,0.0}")
    _add_hover(drawn, renderers, [("row", "@label"), ("seeds", "@seeds"), at, ("loss", "$snap_y{0.0000}")],
               line_policy="nearest")
    return drawn


def _crosses(drawn: figure, x: pd.Series, losses: pd.Series, labels: pd.Series) -> None:
    """Runs that learned nothing but how frequent each token is."""
    known = losses.notna()
    if known.any():
        source = ColumnDataSource({"x": x[known].to_list(), "y": losses[known].to_list(),
                                   "label": labels[known].to_list()})
        points = drawn.scatter("x", "y", source=source, marker="x", size=9, line_width=2, color=CROSS)
        _add_hover(drawn, [points], [("collapsed", "@label"), ("loss", "@y{0.0000}")])


def _loss_by_speed(
    rows: pd.DataFrame, name: str, *, front: pd.DataFrame, styles: Mapping[str, Style]
) -> figure | None:
    """Final loss against speed, with intervals, and the front of the rows that no other beats in both."""
    if rows.empty:
        return None
    drawn = _figure(x=name)
    drawn.line(front.pace.to_list(), front.val_loss_mean.to_list(), color=INK, line_dash="dashed",
               line_width=1.5, name="Pareto front")
    points = []
    for series, style, own in _series(rows, styles):
        source = ColumnDataSource({
            "x": own.pace.to_list(), "y": own.val_loss_mean.to_list(),
            "x_low": own.pace_low.to_list(), "x_high": own.pace_high.to_list(),
            "y_low": own.val_loss_low.to_list(), "y_high": own.val_loss_high.to_list(),
            "label": own.label.to_list(), "seeds": own.n_seeds.to_list(),
        })
        look: dict[str, Any] = {"source": source, "name": series, "color": style.colour, "line_alpha": 0.6}
        drawn.segment("x_low", "y", "x_high", "y", **look)
        drawn.segment("x", "y_low", "x", "y_high", **look)
        points.append(drawn.scatter("x", "y", source=source, name=series, color=style.colour, line_color=None,
                                    size=6 if style is PLAIN else 10, fill_alpha=0.9))
    _add_hover(drawn, points, [
        ("row", "@label"), ("seeds", "@seeds"), ("loss", "@y{0.0000} [@y_low{0.0000}, @y_high{0.0000}]"),
        ("speed", "@x{0,0.000} [@x_low{0,0.000}, @x_high{0,0.000}]"),
    ])
    return drawn


def _set_ticks(drawn: figure, levels: Iterable[float]) -> None:
    """Ticks at the levels of an axis and nowhere else."""
    ticks = sorted(map(float, levels))
    drawn.xaxis.ticker = FixedTicker(ticks=ticks)
    drawn.xaxis.major_label_overrides = {tick: f"{tick:g}" for tick in ticks}


def _loss_by_axis(points: pd.DataFrame, *, title: str, styles: Mapping[str, Style]) -> figure:
    """Final loss along an axis of numbers, a line with whiskers for each combination of the other axes."""
    collapsed, points = points, dodged(points)
    drawn = _figure(x=title, x_axis_type="log" if is_log(points.x) else "linear")
    _set_ticks(drawn, points.x.unique())
    looks = {line: styles.get(line, PLAIN) for line in points.line.unique()}
    lines = dict(list(points.groupby("line", sort=False)))
    order = [line for line in looks if line not in styles] + [line for line in looks if line in styles]
    source = ColumnDataSource({
        "x": [lines[line]["at"].to_list() for line in order],
        "y": [lines[line].val_loss_mean.to_list() for line in order],
        "colour": [looks[line].colour for line in order], "dash": [looks[line].dash for line in order],
    })
    drawn.multi_line("x", "y", source=source, color="colour", line_dash="dash", line_width=2)
    every = pd.concat([lines[line] for line in order])
    known = every.dropna(subset=["low", "high"])
    whiskers: dict[str, Any] = {"colour": [looks[line].colour for line in known.line],
                **{name: known[name].to_list() for name in ("at", "low", "high")}}
    drawn.add_layout(Whisker(base="at", lower="low", upper="high", source=ColumnDataSource(dict(whiskers)),
                             line_color="colour"))
    scatter = drawn.scatter("x", "y", size=8, color="colour", source=ColumnDataSource({
        "x": every["at"].to_list(), "y": every.val_loss_mean.to_list(), "low": every.low.to_list(),
        "high": every.high.to_list(), "label": every.line.to_list(), "at": [f"{x:g}" for x in every.x],
        "seeds": every.n_seeds.to_list(), "colour": [looks[line].colour for line in every.line],
    }))
    _crosses(drawn, collapsed.x, collapsed.collapsed_loss_mean, collapsed.line)
    _add_hover(drawn, [scatter], [("line", "@label"), ("at", "@at"), ("seeds", "@seeds"),
                                  ("loss", "@y{0.0000} [@low{0.0000}, @high{0.0000}]")])
    return drawn


def _effects(effects: pd.DataFrame, measure: str) -> tuple[Plot, figure | None]:
    """Effects on a measure with their intervals: the largest first, steps in their order; distinct ones are filled."""
    every = in_path_order(tested(effects, *EFFECT_MARKS))
    every = every[every.measure == measure]
    own = every.head(MOST_EFFECTS)
    note = first_of(len(own), len(every), noun="effects", file="effects.csv")
    plot = Plot(f"plot-effects-{measure}", f"Effects on {measure}", "effects", note=note)
    return plot, _forest(own, measure) if len(own) else None


def _forest(own: pd.DataFrame, measure: str) -> figure:
    """A line for each effect."""
    names = [effect_name(row) for row in each(own)]
    names = [name if names.count(name) == 1 else f"{name} ({index + 1})" for index, name in enumerate(names)]
    drawn = _figure(x={"loss": "nats per token (left is better)", "speed": "ratio (right is better)"}[measure], y=None,
                    y_range=names[::-1], height=90 + 22 * len(names))
    drawn.vspan(x=[{"loss": 0.0, "speed": 1.0}[measure]], line_color=INK, line_alpha=0.8)
    colours = {"main": "#1f77b4", "interaction": "#ff7f0e", "step": "#2ca02c"}
    source = ColumnDataSource({
        "x": own.estimate.to_list(), "y": names, "low": own.low.to_list(), "high": own.high.to_list(),
        "colour": [colours[kind] for kind in own.kind], "alpha": [float(distinct) for distinct in own.distinct],
        "marker": [MARKERS[EFFECT_MARKS[kind][0]] for kind in own.kind],
    })
    drawn.segment("low", "y", "high", "y", source=source, line_color="colour", line_width=1.6)
    points = drawn.scatter("x", "y", source=source, marker="marker", size=9, line_color="colour", fill_color="colour",
                           fill_alpha="alpha")
    _add_hover(drawn, [points], [("effect", "@y"), ("estimate", "@x{0.0000} [@low{0.0000}, @high{0.0000}]")])
    return drawn
