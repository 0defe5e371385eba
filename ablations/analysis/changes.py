"""Two studies, before and after a change: which rows are worse or better, beyond noise or not. Imports neither torch
nor lightning.

A change to the code, the data or the settings is judged by the cells that both studies have: same row, seed and tuned
values. Pairing takes out what a seed gives both, the order of the data above all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ablations.analysis.claims import FAILS, HOLDS, verdicts
from ablations.analysis.intervals import LEVEL, NOTHING, Interval, critical, holm, mean_interval, mean_p, p_value
from ablations.analysis.speeds import measured_speed
from ablations.analysis.tables import FINISHED, StudyRecord, best_tuned, each, rows_table
from ablations.engine.storage import flatten

WORSE, BETTER, NOISE, UNKNOWN = "worse", "better", "within noise", "inconclusive"
KEYS = ["row", "seed", "tuned"]
"""What a cell of both studies has in common."""
COMPARISON_COLUMNS = (
    "row", "label", "preset", "tuned", "n_seeds", "before", "after", "difference", "low", "high", "p", "p_holm",
    "verdict", "why", "speed_before", "speed_after", "speed_verdict", "states",
)
NUMBERS = ("before", "after", "difference", "low", "high", "p", "p_holm", "speed_before", "speed_after")
VERDICT_COLUMNS = ("claim", "before", "after", "change", "estimate_before", "estimate_after", "why")
TURNED, SETTLED, UNSETTLED, SAME = "turned", "settled", "unsettled", "same"
INCOMPARABLE = ("corpus", "task", "model.vocab_size", "data.recipe", "data.val_windows")
"""Settings that change what a loss means."""


def compare(before: StudyRecord, after: StudyRecord) -> pd.DataFrame:
    """A row per row of either study, the surest change first: `COMPARISON_COLUMNS`.

    difference is the mean over seeds of after - before, in nats, at the tuned values that are the row's best in
    `before` of those that both have. Its interval is a t interval over seeds; with one seed, it is made with the
    spread over seeds of the other rows' differences, pooled. Verdicts are corrected over rows (Holm). Speeds differ if
    their intervals do not overlap.
    """
    pairs = _pairs(before.cells, after.cells)
    names = list(dict.fromkeys([*before.cells.row, *after.cells.row]))
    found = {str(name): own for name, own in pairs.groupby("row", sort=False)}
    by_row = {str(name): found.get(str(name), pairs[:0]) for name in names}
    spread, degrees = _pooled([own.difference.to_numpy() for own in by_row.values()])
    rows = [_row(name, own, spread=spread, degrees=degrees) for name, own in by_row.items()]
    _judge(rows)
    states = _changed_states(before.cells, after.cells)
    speeds = [{str(row.row): measured_speed(row) for row in each(rows_table(record))} for record in (before, after)]
    for row in rows:
        row.update(_identity(row["row"], before, after), states=states.get(row["row"], ""))
        row.update(_speeds(*(known.get(row["row"], NOTHING) for known in speeds)))
    table = pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS)).astype(dict.fromkeys(NUMBERS, float))
    return table.sort_values("p", na_position="last", kind="stable", ignore_index=True)


def _pairs(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """The complete cells that both have, of each row at one tuned value, with the difference of their losses."""
    complete = [cells[cells.state == "complete"][[*KEYS, "val_loss"]] for cells in (before, after)]
    both = complete[0].merge(complete[1], on=KEYS, suffixes=("_before", "_after"))
    both = both.rename(columns={"val_loss_before": "before", "val_loss_after": "after"})
    if both.tuned.nunique() > 1:  # each row at its best tuned values before, of those that both have
        known, there = (pd.MultiIndex.from_frame(table[["row", "tuned"]]) for table in (before, both))
        both = both[both.tuned == both.row.map(best_tuned(before[before.state.isin(FINISHED) & known.isin(there)]))]
    return both.assign(difference=both.after - both.before)


def _pooled(samples: Sequence[np.ndarray]) -> tuple[float, int]:
    """Standard deviation of a difference over seeds, pooled over the rows with several; its degrees of freedom."""
    several = [sample for sample in samples if len(sample) > 1]
    degrees = sum(len(sample) - 1 for sample in several)
    squares = sum(float(((sample - sample.mean()) ** 2).sum()) for sample in several)
    return (math.sqrt(squares / degrees), degrees) if degrees else (math.nan, 0)


def _row(name: str, pairs: pd.DataFrame, *, spread: float, degrees: int) -> dict[str, Any]:
    differences = pairs.difference.to_numpy(dtype=float)
    found, p, why = mean_interval(differences), math.nan, ""
    if not len(differences):
        why = "no cell that both trained to the end"
    elif len(differences) > 1:
        p = mean_p(differences)
    elif degrees:
        reach = critical(degrees) * spread
        found = Interval(found.estimate, found.estimate - reach, found.estimate + reach)
        p = p_value(found.estimate, error=spread, degrees=degrees)
        why = f"one seed; noise of the rows with several (sd {spread:.4f})"
    else:
        why = "one seed, and no row with several"
    return {
        "row": name, "tuned": pairs.tuned.iloc[0] if len(pairs) else "", "n_seeds": len(pairs),
        "before": pairs.before.mean(), "after": pairs.after.mean(),
        "difference": found.estimate, "low": found.low, "high": found.high, "p": p, "p_holm": math.nan,
        "verdict": UNKNOWN, "why": why,
    }


def _judge(rows: Sequence[dict[str, Any]]) -> None:
    """Holm over all rows that have a p, in place."""
    known = [row for row in rows if not math.isnan(row["p"])]
    if not known:
        return
    corrected = holm([row["p"] for row in known])
    for row, p in zip(known, corrected, strict=True):
        verdict = WORSE if row["difference"] > 0 else BETTER
        row.update(p_holm=float(p), verdict=verdict if p < 1 - LEVEL else NOISE)


def _identity(row: str, before: StudyRecord, after: StudyRecord) -> dict[str, Any]:
    """Names of a row, and whether one study alone has it."""
    there = [record for record in (before, after) if row in record.places]
    first = there[0].of_row(row).iloc[0]
    found = {"label": first.label, "preset": first.preset}
    missing = [when for when, record in (("after", before), ("before", after)) if row not in record.places]
    return {**found, "why": f"only in {missing[0]}"} if missing else found


def _changed_states(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, str]:
    """By row, the cells that ended differently."""
    both = before[[*KEYS, "state"]].merge(after[[*KEYS, "state"]], on=KEYS, suffixes=("_before", "_after"))
    found: dict[str, list[str]] = {}
    for row in each(both[both.state_before != both.state_after]):
        words = f"seed {row.seed}, tuned {row.tuned}: {row.state_before} -> {row.state_after}"
        found.setdefault(str(row.row), []).append(words)
    return {row: "; ".join(words) for row, words in found.items()}


def _speeds(before: Interval, after: Interval) -> dict[str, Any]:
    """Both are relative to the baseline of their own study: what makes every row faster alike does not show here."""
    if math.isnan(before.low) or math.isnan(after.low):
        verdict = UNKNOWN
    else:
        verdict = BETTER if after.low > before.high else WORSE if after.high < before.low else NOISE
    return {"speed_before": before.estimate, "speed_after": after.estimate, "speed_verdict": verdict}


def verdict_changes(before: StudyRecord, after: StudyRecord) -> pd.DataFrame:
    """What each study says to the claims that both have: `VERDICT_COLUMNS`, in the order of the first.

    change: turned (it held in one and does not hold in the other), settled or unsettled (one is inconclusive), same.
    """
    known = [{str(row.claim): row for row in each(verdicts(record, rows_table(record)))} for record in (before, after)]
    pairs = [(old, known[1][claim]) for claim, old in known[0].items() if claim in known[1]]
    rows = [(old.claim, old.verdict, new.verdict, _change(old.verdict, new.verdict), old.estimate, new.estimate,
             new.why) for old, new in pairs]
    return pd.DataFrame(rows, columns=list(VERDICT_COLUMNS))


def _change(before: str, after: str) -> str:
    if before == after:
        return SAME
    if {before, after} == {HOLDS, FAILS}:
        return TURNED
    return SETTLED if after in (HOLDS, FAILS) else UNSETTLED


def differences(before: StudyRecord, after: StudyRecord) -> list[tuple[str, Any, Any]]:
    """Settings and versions in which the two studies differ: dotted name, before, after."""
    old, new = (flatten(_conditions(record)) for record in (before, after))
    return [(key, old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)]


def _conditions(record: StudyRecord) -> Mapping[str, Any]:
    machines = record.attrs.get("machines") or [{}]
    kept = ("cpu", "gpu", "cores", "workers", "versions")
    return {**record.attrs.get("spec", {}), "machine": {name: machines[-1].get(name) for name in kept}}
