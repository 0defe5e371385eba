"""Effects of a study's axes on loss and speed, with intervals: main effects and two-way interactions, or single steps.

A main effect is the mean over rows with a level minus the mean over those with the reference level. An interaction is
the effect of one axis where another is changed, minus its effect where the other is at its reference. Both come from
models of the row means (`factorial`); in a design of single steps each is a paired difference of two rows (`steps`).
Imports neither torch nor lightning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ablations.analysis.factorial import Fit, fit_all
from ablations.analysis.intervals import ALPHA, holm
from ablations.analysis.observed import MEASURES, is_not_yet
from ablations.analysis.row_sets import Contrast, rows_without_level
from ablations.analysis.steps import Steps
from ablations.analysis.tables import StudyRecord, label_of

EFFECT_COLUMNS = (
    "term", "kind", "change", "where", "measure", "estimate", "low", "high", "p", "p_holm", "distinct", "n_rows",
    "n_left_out", "n_seeds", "alias", "basis",
)
NUMBERS = ("estimate", "low", "high", "p", "p_holm")
LEFT_OUT_COLUMNS = ("measure", "row", "label", "reason")
EVERYWHERE = "all"


@dataclass(frozen=True)
class FitQuality:
    """What the effects of one measure rest on, for one set of rows."""

    design: str
    """The rows, in words."""
    measure: str
    n_rows: int
    n_left_out: int
    seeds: tuple[int, ...]
    tuned: tuple[str, ...]
    """Labels of the tuned values that all rows have."""
    r_squared: float
    """Share of the variance between rows that main effects and two-way interactions explain."""
    residual_sd: float
    """Of a row around the model: nats, or the logarithm of speed."""
    residual_degrees: int
    seed_sd: float
    """Of a cell around row + seed: training noise alone. NaN with one seed."""
    note: str
    """What cannot be told, and why. Empty: nothing."""


def effects(record: StudyRecord, rows: pd.DataFrame) -> pd.DataFrame:
    """Every effect on loss (a difference in nats) and on speed (a ratio), the largest of each first.

    Args:
        record: the study.
        rows: its table of rows.

    Returns:
        `EFFECT_COLUMNS`. Kinds main, interaction and step are ranked by size (the steps of a path stay in its order)
        and tested together (Holm); behind them stand the simple effects, each main effect at every level of the axis
        that it interacts with most. basis is where the interval comes from: rows, seeds, rounds of the speed pass, or
        none. NaN where too many rows are left out (`quality_of` says so). No rows for a study that compares nothing.
    """
    return effects_of(fit_all(record, rows))


def effects_of(fits: Sequence[Fit | Steps]) -> pd.DataFrame:
    """As `effects`, of models that are already there."""
    found = [row for measure in MEASURES for row in _of_measure([fit for fit in fits if fit.measure == measure])]
    return pd.DataFrame(found, columns=list(EFFECT_COLUMNS)).astype({**dict.fromkeys(NUMBERS, float), "distinct": bool})


def quality_of(fits: Sequence[Fit | Steps]) -> tuple[FitQuality, ...]:
    """What the effects rest on: one for each measure and set of rows."""
    return tuple(_quality_of_steps(fit) if isinstance(fit, Steps) else _quality(fit) for fit in fits)


def _quality(fit: Fit) -> FitQuality:
    observed = fit.observed
    return FitQuality(
        design=fit.name, measure=fit.measure, n_rows=len(observed.values), n_left_out=len(observed.missing),
        seeds=observed.seeds, tuned=observed.tuned, r_squared=fit.r_squared, residual_sd=fit.residual_sd,
        residual_degrees=fit.degrees, seed_sd=observed.seed_sd, note=fit.note,
    )


def _quality_of_steps(fit: Steps) -> FitQuality:
    return FitQuality(
        design=fit.name, measure=fit.measure, n_rows=fit.n_rows, n_left_out=len(fit.missing), seeds=fit.seeds,
        tuned=fit.tuned, r_squared=math.nan, residual_sd=math.nan, residual_degrees=0, seed_sd=math.nan, note=fit.note,
    )


def left_out_of(fits: Sequence[Fit | Steps], record: StudyRecord) -> pd.DataFrame:
    """The rows that the models of a measure do without, each with the reason: `LEFT_OUT_COLUMNS`.

    Of a measure of which nothing is known yet no row is named.
    """
    found: dict[tuple[str, str], str] = {}
    without = rows_without_level(record.design)
    for measure in dict.fromkeys(fit.measure for fit in fits):
        own = [fit for fit in fits if fit.measure == measure]
        asked = {row for fit in own for row in _rows_of(fit)}
        if all(_missing_of(fit).keys() >= _rows_of(fit) and is_not_yet(_missing_of(fit)) for fit in own):
            continue  # nothing is known of any row: the quality's note says so
        for row in (*record.design.by_id, *record.cells.row.unique()):
            missing = next((_missing_of(fit)[row] for fit in own if row in _missing_of(fit)), "")
            if row not in record.design.by_id:
                found[measure, row] = "it is no row of the design"
            elif row in without or missing:
                found[measure, row] = without.get(row) or missing
            elif row not in asked:
                found[measure, row] = "no other row answers a question together with it"
    rows = [(measure, row, label_of(record.design, row), reason) for (measure, row), reason in found.items()]
    return pd.DataFrame(rows, columns=list(LEFT_OUT_COLUMNS))


def _rows_of(fit: Fit | Steps) -> set[str]:
    if isinstance(fit, Steps):
        return {row for one in fit.found for row in (one.step.left, one.step.right)}
    return set(fit.model.rows.rows)


def _missing_of(fit: Fit | Steps) -> Mapping[str, str]:
    return fit.missing if isinstance(fit, Steps) else fit.observed.missing


def _of_measure(fits: Sequence[Fit | Steps]) -> list[dict[str, Any]]:
    """The rows of one measure: all that is tested by size, then the simple effects."""
    models = [fit for fit in fits if isinstance(fit, Fit) and len(fit.observed.values)]
    tested = [(fit, contrast, _row(fit, {contrast: 1.0}, contrast)) for fit in models for contrast in fit.model.asked]
    steps = [row for fit in fits if isinstance(fit, Steps) and fit.n_rows for row in _step_rows(fit)]
    _adjust([*(row for *_, row in tested), *steps])
    tested.sort(key=lambda entry: -_size(entry[2]))
    simple = [row for fit, contrast, _ in tested if len(contrast) == 1 for row in _simple(contrast, tested)]
    if not any(isinstance(fit, Steps) and fit.ordered for fit in fits):
        steps.sort(key=lambda row: -_size(row))
    found = [*(row for *_, row in tested), *steps, *simple]
    for row in found:
        if row["measure"] == "speed":
            row.update({key: math.exp(row[key]) for key in ("estimate", "low", "high")})
    return found


def _size(row: Mapping[str, Any]) -> float:
    return -1.0 if math.isnan(row["estimate"]) else abs(row["estimate"])


def _row(
    fit: Fit, contrasts: Mapping[Contrast, float], asked: Contrast, *, where: str = EVERYWHERE
) -> dict[str, Any]:
    estimate = fit.contrast(contrasts)
    references = {one.name: one.reference for one in fit.model.rows.factors}
    kind = "simple" if where != EVERYWHERE else ("main", "interaction")[len(asked) - 1]
    return {
        "term": " x ".join(name for name, _ in asked), "kind": kind,
        "change": ", ".join(f"{references[name]} -> {label}" for name, label in asked), "where": where,
        "measure": fit.measure, **estimate.interval._asdict(), "p": estimate.p, "p_holm": math.nan, "distinct": False,
        "n_rows": len(fit.observed.values), "n_left_out": len(fit.observed.missing), "n_seeds": len(fit.observed.seeds),
        "alias": fit.model.alias(asked), "basis": estimate.basis,
    }


def _step_rows(fit: Steps) -> list[dict[str, Any]]:
    return [{
        "term": one.step.term, "kind": "step", "change": one.step.change, "where": one.step.where,
        "measure": fit.measure, **one.interval._asdict(), "p": one.p, "p_holm": math.nan, "distinct": False,
        "n_rows": 2 - one.n_left_out, "n_left_out": one.n_left_out, "n_seeds": one.n_seeds, "alias": "",
        "basis": one.basis,
    } for one in fit.found]


def _adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Holm's correction over all that have a p: with twenty questions, one in twenty would be answered by chance."""
    known = [row for row in rows if not math.isnan(row["p"])]
    if known:
        corrected = holm([row["p"] for row in known])
        for row, p in zip(known, corrected, strict=True):
            row.update(p_holm=float(p), distinct=bool(p < ALPHA))


def _simple(asked: Contrast, tested: Sequence[tuple[Fit, Contrast, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A main effect at every level of the axis with which it interacts most, from the rows of that interaction.

    None where the interaction is mixed up with another term: the effect would be at a level of either.
    """
    partners = [(fit, contrast, row) for fit, contrast, row in tested if len(contrast) == 2 and asked[0] in contrast
                and not math.isnan(row["estimate"]) and not row["alias"]]
    if not partners:
        return []
    fit, pair, _ = max(partners, key=lambda entry: _size(entry[2]))
    other = next(one for one in fit.model.rows.factors for name, _ in pair if one.name == name != asked[0][0])
    return [_row(fit, _at(fit, asked, other.name, label), asked, where=f"{other.name.replace(' = ', '=')}={label}")
            for label in other.labels]


def _at(fit: Fit, asked: Contrast, other: str, label: str) -> dict[Contrast, float]:
    """The weights of a main effect at one level of another factor: with its interactions at that level's code."""
    factor = next(one for one in fit.model.rows.factors if one.name == other)
    found: dict[Contrast, float] = {asked: 1.0}
    for contrast in fit.model.contrasts:
        if len(contrast) == 2 and asked[0] in contrast:
            name, level = next(part for part in contrast if part != asked[0])
            if name == other:
                found[contrast] = (level == label) - factor.shares[level]
    return found
