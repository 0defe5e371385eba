"""Effects of the switches on loss and speed: main effects and two-way interactions of the whole grid, with intervals.

A main effect is the mean over blocks with the change minus the mean over those without. An interaction is the effect of
one switch where the other is changed, minus its effect where the other is not. Both come from one model of the block
means (see `factorial`), whose residual gives the t intervals: it holds what three and more switches do together, and
training noise. Imports neither torch nor lightning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from ablations.analysis.factorial import MEASURES, Fit, Term, fit_all
from ablations.analysis.intervals import LEVEL
from ablations.analysis.tables import Record

ALPHA = 1 - LEVEL
ROUNDING = 1e-12
"""Smaller effects are none: where nothing varies, rounding against rounding would have a p by chance."""
EFFECT_COLUMNS = (
    "term", "kind", "change", "where", "measure", "estimate", "low", "high", "p", "p_holm", "distinct", "n_blocks",
    "n_left_out", "n_seeds",
)
NUMBERS = ("estimate", "low", "high", "p", "p_holm")


@dataclass(frozen=True)
class FitQuality:
    """What the effects of one measure and design rest on."""

    design: str
    measure: str
    n_blocks: int
    n_left_out: int
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    r_squared: float
    """Share of the variance between blocks that main effects and two-way interactions explain."""
    residual_sd: float
    """Of a block around the model: nats, or the logarithm of speed."""
    residual_degrees: int
    seed_sd: float
    """Of a cell around block + seed: training noise alone. NaN with one seed."""
    note: str
    """What cannot be told, and why. Empty: nothing."""


def effects(record: Record, blocks: pd.DataFrame) -> pd.DataFrame:
    """Every effect on loss (a difference in nats) and on speed (a ratio), the largest of each first.

    Args:
        record: the study.
        blocks: its table of blocks, for the speeds.

    Returns:
        `EFFECT_COLUMNS`. Kinds main and interaction are ranked by size and tested together (Holm); behind them stand
        the simple effects, each main effect at both positions of the switch that it interacts with most. No rows for
        a study without the grid; NaN where too many blocks are left out (`fit_quality` says so).
    """
    return effects_of(fit_all(record, blocks))


def effects_of(fits: Sequence[Fit]) -> pd.DataFrame:
    """As `effects`, of models that are already there."""
    tables = [_of_measure([fit for fit in fits if fit.measure == measure]) for measure in MEASURES]
    rows = [row for table in tables for row in table]
    return pd.DataFrame(rows, columns=list(EFFECT_COLUMNS)).astype({**dict.fromkeys(NUMBERS, float), "distinct": bool})


def fit_quality(record: Record, blocks: pd.DataFrame) -> tuple[FitQuality, ...]:
    """What the effects rest on: one for each measure and design."""
    return tuple(_quality(fit) for fit in fit_all(record, blocks))


def _quality(fit: Fit) -> FitQuality:
    result, observed = fit.result, fit.observed
    degrees = int(result.df_resid) if result is not None else 0
    return FitQuality(
        design=fit.design.name, measure=fit.measure, n_blocks=len(observed.values), n_left_out=fit.n_left_out,
        seeds=observed.seeds, learning_rates=observed.learning_rates,
        r_squared=_r_squared(fit) if degrees else math.nan,
        residual_sd=float(np.sqrt(result.scale)) if result is not None and degrees else math.nan,
        residual_degrees=degrees, seed_sd=observed.seed_sd, note=fit.note,
    )


def _r_squared(fit: Fit) -> float:
    assert fit.result is not None
    total = ((fit.observed.values - fit.observed.values.mean()) ** 2).sum()
    return float(1 - fit.result.ssr / total) if total > 0 else math.nan


def _of_measure(fits: Sequence[Fit]) -> list[dict[str, Any]]:
    """The rows of one measure: main effects and interactions of both designs by size, then the simple effects."""
    tested = [_row(fit, {term: 1.0}, term=term) for fit in fits if fit.result is not None for term in fit.reported]
    _adjust(tested)
    tested.sort(key=lambda row: -_size(row))
    simple = [row for main in tested if main["kind"] == "main" for fit in fits for row in _simple(fit, main, tested)]
    for row in (*tested, *simple):
        row["term"] = name_of(row["term"])
        if row["measure"] == "speed":
            row.update({key: math.exp(row[key]) for key in ("estimate", "low", "high")})
    return [*tested, *simple]


def name_of(term: Term) -> str:
    """What an effect is called."""
    return " x ".join(term)


def _size(row: Mapping[str, Any]) -> float:
    return -1.0 if math.isnan(row["estimate"]) else abs(row["estimate"])


def _row(fit: Fit, weights: Mapping[Term, float], *, term: Term, where: str = "all") -> dict[str, Any]:
    kind = "simple" if where != "all" else ("main", "interaction")[len(term) - 1]
    return {
        "term": term, "kind": kind, "change": ", ".join(fit.design.factor(name).change for name in term),
        "where": where, "measure": fit.measure, **contrast(fit, weights), "p_holm": math.nan, "distinct": False,
        "n_blocks": len(fit.observed.values), "n_left_out": fit.n_left_out, "n_seeds": len(fit.observed.seeds),
    }


def contrast(fit: Fit, weights: Mapping[Term, float]) -> dict[str, float]:
    """A weighted sum of coefficients with its t interval and p; NaN for what the blocks that are left do not tell."""
    nothing = dict.fromkeys(("estimate", "low", "high", "p"), math.nan)
    result, row = fit.result, fit.row(weights)
    if result is None or not estimable(result.model.exog, row):
        return nothing
    if result.df_resid < 1:
        return {**nothing, "estimate": float(row @ result.params)}
    test = result.t_test(row)
    low, high = test.conf_int(alpha=ALPHA)[0]
    estimate = test.effect.item()
    p = test.pvalue.item() if abs(estimate) > ROUNDING else 1.0
    return {"estimate": estimate, "low": float(low), "high": float(high), "p": p}


def estimable(matrix: np.ndarray, row: np.ndarray) -> bool:
    """Whether observations with this model matrix determine the contrast: it must be a sum of their rows."""
    solution = np.linalg.lstsq(matrix.T, row, rcond=None)[0]
    return bool(np.allclose(matrix.T @ solution, row, atol=1e-8))


def _adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Holm's correction over all that have a p: with twenty questions, one in twenty would be answered by chance."""
    known = [row for row in rows if not math.isnan(row["p"])]
    if known:
        corrected = multipletests([row["p"] for row in known], alpha=ALPHA, method="holm")[1]
        for row, p in zip(known, corrected, strict=True):
            row.update(p_holm=float(p), distinct=bool(p < ALPHA))


def _simple(fit: Fit, main: Mapping[str, Any], tested: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A main effect at both positions of the switch with which it interacts most, where this fit reports it."""
    term: Term = main["term"]
    partners = [row for row in tested if row["kind"] == "interaction" and term[0] in row["term"]
                and row["term"] in fit.reported and not math.isnan(row["estimate"])]
    if term not in fit.reported or not partners:
        return []
    pair: Term = max(partners, key=_size)["term"]
    other = fit.design.factor(next(name for name in pair if name != term[0]))
    return [_row(fit, {term: 1.0, pair: code}, term=term, where=f"{other.name}={other.position(code)}")
            for code in (-0.5, 0.5)]
