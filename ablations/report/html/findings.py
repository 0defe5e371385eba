"""What a study shows, for a report: effects of its axes, claims with their verdicts, rows in pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pandas as pd
from markupsafe import Markup

from ablations.analysis.effects import FitQuality
from ablations.analysis.tables import each
from ablations.design.claims import QUANTITIES
from ablations.report.formats import is_missing, moment
from ablations.report.limits import MOST_LINES, first_of
from ablations.report.tables import OTHER_SEEDS, alias_of, claim_found, in_path_order, number, p_value

WIDTH, HEIGHT = 160, 18
"""Of the drawing of an interval, in pixels."""
MEASURES = {"loss": ("{:+.4f}", 0.0), "speed": ("{:.3f}", 1.0)}
"""How an estimate of a measure is written, and its value for no effect."""
MOST_PAIRED = 36
"""Rows that are set against each other on a page."""
NOUNS = {"step": "steps", "main": "main effects", "interaction": "interactions", "simple": "simple effects"}
VERDICTS = {"holds": "good", "does not hold": "bad", "inconclusive": "open"}


@dataclass(frozen=True)
class PlotRange:
    """Where the values of one measure lie on the drawings of its intervals."""

    low: float
    high: float
    neutral: float

    def place(self, value: float) -> float:
        """From a value to pixels."""
        value = min(max(value, self.low), self.high)
        return 4 + (WIDTH - 8) * (value - self.low) / (self.high - self.low)


def texts(shown: pd.DataFrame) -> list[dict[str, str]]:
    """The lines of a table of texts, by its heads."""
    return [dict(zip(shown.columns, map(str, row), strict=True)) for row in shown.itertuples(index=False)]


def effect_tables(found: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """The rows of steps, main effects, interactions and simple effects, each with loss and speed side by side."""
    ranges = {measure: _range(found[found.measure == measure], neutral) for measure, (_, neutral) in MEASURES.items()}
    tables: dict[str, list[dict[str, Any]]] = {kind: [] for kind in NOUNS}
    keys = ["term", "kind", "change", "where"]
    for (term, kind, change, where), rows in in_path_order(found).groupby(keys, sort=False):
        shown = {str(row.measure): _estimate(row, ranges[str(row.measure)]) for row in each(rows)}
        tables[str(kind)].append({
            "term": term, "change": str(change).replace("->", "→"), "where": where,
            "alias": alias_of(str(term), _text(rows, "alias")), "basis": _basis(rows), **shown,
        })
    for kind in ("main", "interaction", "simple"):  # steps stay as they are: in the order of a path, or by size
        tables[kind].sort(key=lambda row: -row["loss"]["size"] if "loss" in row else 1.0)
    return tables


def first_effects(tables: Mapping[str, Sequence[dict[str, Any]]]) -> tuple[dict[str, Sequence[dict[str, Any]]], str]:
    """The first effects of each kind, and a sentence where these are not all."""
    more = {kind: first_of(MOST_LINES, len(rows), noun=NOUNS[kind], file="effects.csv")
            for kind, rows in tables.items()}
    return {kind: rows[:MOST_LINES] for kind, rows in tables.items()}, " ".join(filter(None, more.values()))


def _basis(rows: pd.DataFrame) -> str:
    """Where the intervals of an effect come from: `rows; rounds` of loss and of speed."""
    return "; ".join(f"{row.measure}: {row.basis}" for row in each(rows) if row.basis and not pd.isna(row.estimate))


def _text(rows: pd.DataFrame, column: str) -> str:
    """What stands in a column of texts, each once."""
    return "; ".join(dict.fromkeys(str(text) for text in rows[column] if not is_missing(text) and str(text)))


def _range(rows: pd.DataFrame, neutral: float) -> PlotRange:
    values = pd.concat([rows.estimate, rows.low, rows.high]).dropna()
    values = values[values.abs() < math.inf]
    reach = max((values - neutral).abs().max() if len(values) else 0.0, 1e-6)
    return PlotRange(neutral - reach, neutral + reach, neutral)


def _estimate(row: Any, within: PlotRange) -> dict[str, Any]:
    form, neutral = MEASURES[str(row.measure)]
    known = not pd.isna(row.estimate)
    return {
        "key": row.estimate if known else None, "size": abs(row.estimate - neutral) if known else -1.0,
        "text": number(row.estimate, form), "interval": interval(row.low, row.high, form),
        "p": p_value(row.p_holm if row.kind != "simple" else row.p), "distinct": bool(row.distinct),
        "drawing": Markup(forest(row.estimate, row.low, row.high, within)) if known else "",
    }


def fits(quality: Sequence[FitQuality]) -> list[dict[str, str]]:
    """What the effects rest on: a row for each measure and design that has been fitted."""
    return [
        {"design": fit.design, "measure": fit.measure, "rows": str(fit.n_rows), "left out": str(fit.n_left_out),
         "seeds": ", ".join(map(str, fit.seeds)), "variance explained": number(fit.r_squared, "{:.0%}"),
         "residual sd": number(fit.residual_sd, "{:.4f}"), "degrees of freedom": str(fit.residual_degrees),
         "sd between seeds": number(fit.seed_sd, "{:.4f}")}
        for fit in quality if fit.residual_degrees
    ]


def interval(low: float, high: float, form: str) -> str:
    """[low, high], or nothing."""
    return "" if pd.isna(low) or pd.isna(high) else f"[{form.format(low)}, {form.format(high)}]"


def forest(estimate: float, low: float, high: float, within: PlotRange) -> str:
    """A dot with its interval, and a line at no effect."""
    middle, x, zero = HEIGHT / 2, within.place(estimate), within.place(within.neutral)
    bar = ""
    if not (pd.isna(low) or pd.isna(high)):
        begin, end = within.place(low), within.place(high)
        bar = f'<path d="M{begin:.1f} {middle:g}H{end:.1f}" stroke="currentColor" stroke-width="1.8"/>'
    return (f'<svg class="forest" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" aria-hidden="true">'
            f'<path d="M{zero:.1f} 0V{HEIGHT}" stroke="#999" stroke-dasharray="2 2"/>{bar}'
            f'<circle cx="{x:.1f}" cy="{middle:g}" r="3.6" fill="currentColor"/></svg>')


def claims(verdicts: pd.DataFrame) -> list[dict[str, Any]]:
    """The claims with what this study says to them, those of one place of the source together."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in each(verdicts):
        groups.setdefault(str(row.name or ""), []).append({
            "claim": row.claim, "paper": row.paper, "quantity": QUANTITIES.get(str(row.quantity), str(row.quantity)),
            "here": claim_found(row), "n_seeds": row.n_seeds, "p": p_value(row.p_holm), "verdict": row.verdict,
            "why": row.why,
            "kind": VERDICTS.get(str(row.verdict), "open"), "registered": moment(row.registered),
        })
    return [{"name": name, "claims": rows} for name, rows in groups.items()]


def counts(verdicts: pd.DataFrame) -> dict[str, int]:
    """How many claims have each verdict."""
    return {verdict: int((verdicts.verdict == verdict).sum()) for verdict in VERDICTS}


def matrices(pairs: pd.DataFrame) -> tuple[dict[str, str], dict[str, dict[tuple[str, str], dict[str, str]]]]:
    """The labels of rows that are paired, by id, and for loss and speed what stands where two meet: left against top.

    Of more than `MOST_PAIRED` rows the first.
    """
    names = dict(islice(_paired(pairs).items(), MOST_PAIRED))
    pairs = pairs[pairs.left_row.isin(list(names)) & pairs.right_row.isin(list(names))]
    found: dict[str, dict[tuple[str, str], dict[str, str]]] = {"loss": {}, "speed": {}}
    for row in each(pairs):
        here, there = (row.left_row, row.right_row), (row.right_row, row.left_row)
        loss = (row.loss_difference, row.loss_low, row.loss_high)
        speed = (row.speed_ratio, row.speed_low, row.speed_high)
        found["loss"][here] = _pair(*loss, measure="loss", note=row.note)
        found["loss"][there] = _pair(-loss[0], -loss[2], -loss[1], measure="loss", note=row.note)
        if not pd.isna(row.speed_ratio):
            found["speed"][here] = _pair(*speed, measure="speed")
            found["speed"][there] = _pair(*(1 / speed[index] for index in (0, 2, 1)), measure="speed")
    return names, found


def pairs_left_out(pairs: pd.DataFrame) -> str:
    """How many of the paired rows the matrices have, in a sentence; empty where they have all."""
    return first_of(MOST_PAIRED, len(_paired(pairs)), noun="named rows", file="pairwise.csv")


def _paired(pairs: pd.DataFrame) -> dict[str, str]:
    """The labels of all rows that are paired, by id."""
    return dict(zip([*pairs.left_row, *pairs.right_row], [*pairs.left, *pairs.right], strict=True))


def _pair(value: float, low: float, high: float, *, measure: str, note: str = "") -> dict[str, str]:
    form, neutral = {"loss": ("{:+.3f}", 0.0), "speed": ("{:.2f}", 1.0)}[measure]
    below, above = high < neutral, low > neutral  # false with NaN
    better = below if measure == "loss" else above
    kind = "good" if better else "bad" if below or above else ""
    return {"text": number(value, form) + OTHER_SEEDS * bool(note), "note": note,
            "interval": interval(low, high, form), "kind": kind}
