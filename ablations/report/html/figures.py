"""The interactive plots of a report, as Bokeh's JSON: named blocks in colour, the others grey.

Backgrounds are transparent and the greys of middle lightness, so that one drawing serves light and dark pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, HoverTool, NumeralTickFormatter
from bokeh.plotting import figure
from bokeh.resources import Resources

from ablations.analysis.tables import Record, each, label, learning_rates_table
from ablations.report.plots import COLOURS, block_curves, pareto_front

OTHERS = "other blocks"
GREY, INK = "#999999", "#7c828a"
MOST_POINTS = 100
"""Points of a curve that are drawn; more are not seen, and make the file large."""
SERIES: Mapping[str, str] = {**{name: mpl.colors.to_hex(colour) for name, colour in COLOURS.items()}, OTHERS: GREY}
"""Colour of each series that the legend can hide."""


def javascript() -> list[str]:
    """The scripts that draw the plots: Bokeh's core, without widgets, tables and WebGL."""
    return list(Resources(mode="inline", components=["bokeh"]).js_raw)


def plots(record: Record, blocks: pd.DataFrame) -> dict[str, Any]:
    """Every plot that the study has the numbers for, by the id of the element that it is drawn in."""
    complete = blocks[blocks.state == "complete"]
    curves = {name: _thin(curve) for name, curve in block_curves(record, complete).items()}
    figures: dict[str, figure | None] = {
        "plot-steps": _curves(curves, complete, x="step"),
        "plot-seconds": _curves(curves, complete, x="seconds"),
        "plot-speed": _loss_by_speed(complete.dropna(subset=["speed_ratio", "val_loss_mean"])),
        "plot-rates": _loss_by_rate(learning_rates_table(record)),
    }
    return {name: json_item(drawn, ID(name)) for name, drawn in figures.items() if drawn is not None}


def series_of(blocks: pd.DataFrame) -> dict[str, str]:
    """The series that the plots of these blocks have, with their colours."""
    present = set(blocks[blocks.state == "complete"].preset.replace("", OTHERS))
    return {name: colour for name, colour in SERIES.items() if name in present}


def _thin(curve: pd.DataFrame) -> pd.DataFrame:
    curve = curve.dropna(subset="val_loss")
    if len(curve) <= MOST_POINTS:
        return curve
    return curve.iloc[np.unique(np.linspace(0, len(curve) - 1, MOST_POINTS).round().astype(int))]


def _figure(*, x: str, y: str = "validation loss (nats per token)", **options: Any) -> figure:
    drawn = figure(height=430, sizing_mode="stretch_width", tools="pan,box_zoom,wheel_zoom,reset,save",
                   active_drag="box_zoom", x_axis_label=x, y_axis_label=y, background_fill_color=None,
                   border_fill_color=None, outline_line_color=None, min_border_right=12, **options)
    drawn.toolbar.logo = None
    drawn.toolbar.autohide = True
    drawn.axis.axis_line_color = drawn.axis.major_tick_line_color = INK
    drawn.axis.minor_tick_line_color = None
    drawn.axis.axis_label_text_color = drawn.axis.major_label_text_color = INK
    drawn.axis.axis_label_text_font_style = "normal"
    drawn.grid.grid_line_color = INK
    drawn.grid.grid_line_alpha = 0.2
    return drawn


def _series(blocks: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each series; the grey ones first, so that the coloured lie above them."""
    keyed = blocks.assign(series=blocks.preset.where(blocks.preset != "", OTHERS))
    return [(name, keyed[keyed.series == name]) for name in (OTHERS, *COLOURS) if (keyed.series == name).any()]


def _lines(drawn: figure, lines: Mapping[str, list[Any]], *, series: str) -> Any:
    """One renderer for all lines of a series, which the legend finds by its name."""
    named = series != OTHERS
    style: dict[str, Any] = {"line_width": 2.2, "line_alpha": 0.95} if named else {"line_width": 1, "line_alpha": 0.55}
    hovered: dict[str, Any] = {
        "hover_line_alpha": 1, "hover_line_width": 3, "hover_line_color": SERIES[series] if named else INK,
    }
    source = ColumnDataSource(dict(lines))
    return drawn.multi_line("x", "y", source=source, name=series, color=SERIES[series], **style, **hovered)


def _add_hover(drawn: figure, renderers: list[Any], tooltips: list[tuple[str, str]], **options: Any) -> None:
    if renderers:
        drawn.add_tools(HoverTool(renderers=renderers, tooltips=tooltips, **options))


def _curves(curves: Mapping[str, pd.DataFrame], blocks: pd.DataFrame, *, x: str) -> figure | None:
    """Loss against steps or seconds."""
    if not curves:
        return None
    drawn = _figure(x={"step": "optimiser steps", "seconds": "seconds of training"}[x])
    drawn.xaxis.formatter = NumeralTickFormatter(format="0,0.[00]")
    renderers = []
    for series, rows in _series(blocks):
        rows = rows[[str(name) in curves and curves[str(name)][x].notna().all() for name in rows["block"]]]
        found = [curves[str(name)] for name in rows["block"]]
        lines: dict[str, list[Any]] = {
            "x": [curve[x].to_numpy(np.float32) for curve in found],
            "y": [curve.val_loss.to_numpy(np.float32) for curve in found],
            "block": [label(row) for row in each(rows)], "seeds": rows.n_seeds.to_list(),
        }
        renderers.append(_lines(drawn, lines, series=series))
    at = ("step", "$snap_x{0,0}") if x == "step" else ("seconds", "$snap_x{0,0.0}")
    _add_hover(drawn, renderers, [("block", "@block"), ("seeds", "@seeds"), at, ("loss", "$snap_y{0.0000}")],
               line_policy="nearest")
    return drawn


def _loss_by_speed(blocks: pd.DataFrame) -> figure | None:
    """Final loss against relative speed, with intervals, and the front of the blocks that no other beats in both."""
    if blocks.empty:
        return None
    drawn = _figure(x="training speed relative to pre_ln")
    drawn.vspan(x=[1], line_color=INK, line_alpha=0.5)
    front = pareto_front(blocks)
    drawn.line(front.speed_ratio.to_list(), front.val_loss_mean.to_list(), color=INK, line_dash="dashed",
               line_width=1.5, name="Pareto front")
    points = []
    for series, rows in _series(blocks):
        source = ColumnDataSource({
            "x": rows.speed_ratio.to_list(), "y": rows.val_loss_mean.to_list(),
            "x_low": rows.speed_ratio_low.to_list(), "x_high": rows.speed_ratio_high.to_list(),
            "y_low": rows.val_loss_low.to_list(), "y_high": rows.val_loss_high.to_list(),
            "block": [label(row) for row in each(rows)], "seeds": rows.n_seeds.to_list(),
        })
        style: dict[str, Any] = {"source": source, "name": series, "color": SERIES[series], "line_alpha": 0.6}
        drawn.segment("x_low", "y", "x_high", "y", **style)
        drawn.segment("x", "y_low", "x", "y_high", **style)
        points.append(drawn.scatter("x", "y", source=source, name=series, color=SERIES[series],
                                    size=10 if series != OTHERS else 6, line_color=None, fill_alpha=0.9))
    _add_hover(drawn, points, [
        ("block", "@block"), ("seeds", "@seeds"), ("loss", "@y{0.0000} [@y_low{0.0000}, @y_high{0.0000}]"),
        ("speed", "@x{0.000} [@x_low{0.000}, @x_high{0.000}]"),
    ])
    return drawn


def _loss_by_rate(rates: pd.DataFrame) -> figure | None:
    """Loss by learning rate, where there are several."""
    rates = rates.dropna(subset="val_loss_mean").sort_values("learning_rate")
    if rates.learning_rate.nunique() < 2:
        return None
    drawn = _figure(x="peak learning rate", x_axis_type="log")
    shown = sorted(rates.learning_rate.unique())
    drawn.xaxis.ticker = shown
    drawn.xaxis.major_label_overrides = {float(rate): f"{rate:g}" for rate in shown}
    lines, points = [], []
    for series, rows in _series(rates):
        each_block = [of_block for _, of_block in rows.groupby("block", sort=False)]
        lines.append(_lines(drawn, {
            "x": [block.learning_rate.to_list() for block in each_block],
            "y": [block.val_loss_mean.to_list() for block in each_block],
        }, series=series))
        source = ColumnDataSource({
            "x": rows.learning_rate.to_list(), "y": rows.val_loss_mean.to_list(),
            "rate": [f"{rate:g}" for rate in rows.learning_rate], "seeds": rows.n_seeds.to_list(),
            "diverged": rows.n_diverged.to_list(), "block": [label(row) for row in each(rows)],
        })
        points.append(drawn.scatter("x", "y", source=source, name=series, color=SERIES[series], size=7))
    _add_hover(drawn, points, [("block", "@block"), ("learning rate", "@rate"), ("loss", "@y{0.0000}"),
                               ("seeds", "@seeds"), ("diverged", "@diverged")])
    return drawn
