"""What a study shows, for a report: effects of the switches, the paper's claims, pairs of named blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from ablations.analysis.effects import FitQuality
from ablations.analysis.tables import each
from ablations.report.tables import between, number
from lit_simplified.config import PRESETS

WIDTH, HEIGHT = 160, 18
"""Of the drawing of an interval, in pixels."""
MEASURES = {"loss": ("{:+.4f}", 0.0), "speed": ("{:.3f}", 1.0)}
"""How an estimate of a measure is written, and its value for no effect."""
VERDICTS = {"holds": "good", "does not hold": "bad", "cannot be told": "open"}


@dataclass(frozen=True)
class Scale:
    """Where the values of one measure lie on the drawings of its intervals."""

    low: float
    high: float
    neutral: float

    def place(self, value: float) -> float:
        """From a value to pixels."""
        value = min(max(value, self.low), self.high)
        return 4 + (WIDTH - 8) * (value - self.low) / (self.high - self.low)


def effect_tables(found: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """The rows of main effects, interactions and simple effects, each with loss and speed side by side."""
    scales = {measure: _scale(found[found.measure == measure], neutral) for measure, (_, neutral) in MEASURES.items()}
    tables: dict[str, list[dict[str, Any]]] = {"main": [], "interaction": [], "simple": []}
    for (term, kind, change, where), rows in found.groupby(["term", "kind", "change", "where"], sort=False):
        shown = {str(row.measure): _estimate(row, scales[str(row.measure)]) for row in each(rows)}
        tables[str(kind)].append({"term": term, "change": str(change).replace("->", "→"), "where": where, **shown})
    for table in tables.values():
        table.sort(key=lambda row: -row["loss"]["size"] if "loss" in row else 1.0)
    return tables


def _scale(rows: pd.DataFrame, neutral: float) -> Scale:
    values = pd.concat([rows.estimate, rows.low, rows.high]).dropna()
    values = values[values.abs() < math.inf]
    reach = max((values - neutral).abs().max() if len(values) else 0.0, 1e-6)
    return Scale(neutral - reach, neutral + reach, neutral)


def _estimate(row: Any, scale: Scale) -> dict[str, Any]:
    form, neutral = MEASURES[str(row.measure)]
    known = not pd.isna(row.estimate)
    return {
        "key": row.estimate if known else None, "size": abs(row.estimate - neutral) if known else -1.0,
        "text": number(row.estimate, form), "interval": interval(row.low, row.high, form),
        "p": p_value(row.p_holm if row.kind != "simple" else row.p), "distinct": bool(row.distinct),
        "drawing": Markup(forest(row.estimate, row.low, row.high, scale)) if known else "",
        "n_blocks": row.n_blocks, "n_left_out": row.n_left_out,
    }


def fits(quality: Sequence[FitQuality]) -> list[dict[str, str]]:
    """What the effects rest on: a row for each measure and design that has been fitted."""
    return [
        {"design": fit.design, "measure": fit.measure, "blocks": str(fit.n_blocks), "left out": str(fit.n_left_out),
         "seeds": ", ".join(map(str, fit.seeds)), "variance explained": number(fit.r_squared, "{:.0%}"),
         "residual sd": number(fit.residual_sd, "{:.4f}"), "degrees of freedom": str(fit.residual_degrees),
         "sd between seeds": number(fit.seed_sd, "{:.4f}")}
        for fit in quality if fit.residual_degrees
    ]


def interval(low: float, high: float, form: str) -> str:
    """[low, high], or nothing."""
    return "" if pd.isna(low) or pd.isna(high) else f"[{form.format(low)}, {form.format(high)}]"


def p_value(p: float) -> str:
    """A p value in three digits."""
    return "" if pd.isna(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def forest(estimate: float, low: float, high: float, scale: Scale) -> str:
    """A dot with its interval, and a line at no effect."""
    middle, x, zero = HEIGHT / 2, scale.place(estimate), scale.place(scale.neutral)
    bar = ""
    if not (pd.isna(low) or pd.isna(high)):
        begin, end = scale.place(low), scale.place(high)
        bar = f'<path d="M{begin:.1f} {middle:g}H{end:.1f}" stroke="currentColor" stroke-width="1.8"/>'
    return (f'<svg class="forest" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" aria-hidden="true">'
            f'<path d="M{zero:.1f} 0V{HEIGHT}" stroke="#999" stroke-dasharray="2 2"/>{bar}'
            f'<circle cx="{x:.1f}" cy="{middle:g}" r="3.6" fill="currentColor"/></svg>')


def claims(verdicts: pd.DataFrame) -> list[dict[str, Any]]:
    """The paper's claims with what this study says to them."""
    rows = []
    for row in each(verdicts):
        form = {"loss": "{:+.4f}", "speed": "{:.3f}"}.get(str(row.measure), "{:,.3f}")
        rows.append({
            "claim": row.claim, "source": row.source, "paper": row.paper, "measure": row.measure,
            "here": between(row.estimate, row.low, row.high, form), "n_seeds": row.n_seeds, "verdict": row.verdict,
            "kind": VERDICTS.get(str(row.verdict), "open"), "why": row.why,
        })
    return rows


def counts(verdicts: pd.DataFrame) -> dict[str, int]:
    """How many claims have each verdict."""
    return {verdict: int((verdicts.verdict == verdict).sum()) for verdict in VERDICTS}


def matrices(pairs: pd.DataFrame) -> tuple[list[str], dict[str, dict[tuple[str, str], dict[str, str]]]]:
    """The named blocks, and for loss and speed what stands in row and column: the row's block against the column's."""
    names = {*pairs.left, *pairs.right}
    order = [name for name in PRESETS if name in names] + sorted(names - set(PRESETS))
    found: dict[str, dict[tuple[str, str], dict[str, str]]] = {"loss": {}, "speed": {}}
    for row in each(pairs):
        loss = (row.loss_difference, row.loss_low, row.loss_high)
        speed = (row.speed_ratio, row.speed_low, row.speed_high)
        found["loss"][row.left, row.right] = _pair(*loss, measure="loss")
        found["loss"][row.right, row.left] = _pair(-loss[0], -loss[2], -loss[1], measure="loss")
        if not pd.isna(row.speed_ratio):
            found["speed"][row.left, row.right] = _pair(*speed, measure="speed")
            found["speed"][row.right, row.left] = _pair(*(1 / speed[index] for index in (0, 2, 1)), measure="speed")
    return order, found


def _pair(value: float, low: float, high: float, *, measure: str) -> dict[str, str]:
    form, neutral = MEASURES[measure]
    form = {"loss": "{:+.3f}", "speed": "{:.2f}"}[measure]
    below, above = high < neutral, low > neutral  # false with NaN
    better = below if measure == "loss" else above
    kind = "good" if better else "bad" if below or above else ""
    return {"text": number(value, form), "interval": interval(low, high, form), "kind": kind}

