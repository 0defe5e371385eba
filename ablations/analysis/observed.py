"""One number per row of a study for a model of its axes, and why some rows have none. Imports neither torch nor
lightning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ablations.analysis.speeds import TOO_NOISY, noises, of_one_size, withheld
from ablations.analysis.tables import FINISHED, StudyRecord, best_tuned, shown_at

MEASURES = ("loss", "speed")
NO_CELL, NOT_FINISHED, NO_SPEED = "no cell of it yet", "not finished", "its speed was not measured"


@dataclass(frozen=True, eq=False)
class Observed:
    """One number per row, and where it comes from."""

    values: pd.Series
    """By row id; rows without one are in `missing`."""
    missing: Mapping[str, str]
    """Why a row has none, by its id."""
    by_seed: pd.DataFrame = field(default_factory=pd.DataFrame)
    """The same rows by seed (columns), where there are seeds."""
    seeds: tuple[int, ...] = ()
    tuned: tuple[str, ...] = ()

    @property
    def seed_sd(self) -> float:
        """Standard deviation of a cell around row + seed, by sweeping out both means: training noise alone. NaN with
        one seed."""
        rows, seeds = self.by_seed.shape
        if min(rows, seeds) < 2:
            return math.nan
        values = self.by_seed.to_numpy()
        rest = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
        return float(np.sqrt((rest**2).sum() / ((rows - 1) * (seeds - 1))))


def losses(record: StudyRecord, rows: Sequence[str]) -> Observed:
    """Each row's validation loss, averaged over the seeds that all of these rows have.

    Some rows may have more seeds and tuned values; counting those would compare a row's average over easy and hard
    seeds with another's over one. Where all have several tuned values, each row is taken at its best.
    """
    cells = record.cells[record.cells.row.isin(rows)]
    if len(record.choosing):  # each row was judged at a value of its own
        cells = cells[cells.tuned == cells.row.map(shown_at(record))].assign(tuned="")
    seeds, tuned = common(cells)
    used = cells[cells.seed.isin(seeds) & cells.tuned.isin(tuned)]
    if len(tuned) > 1:
        used = used[used.tuned == used.row.map(best_tuned(used))]
    wide = used[used.state == "complete"].pivot(index="row", columns="seed", values="val_loss")
    wide = wide.reindex(index=list(rows), columns=list(seeds))
    whole = wide.notna().all(axis=1) & bool(seeds)
    by_seed = wide[whole]
    ends = _ends(used[used.row.isin(set(wide.index[~whole]))])
    missing = {row: _reason(record, row, ends.get(row, {}), seeds) for row in wide.index[~whole]}
    return Observed(by_seed.mean(axis=1), missing, by_seed, seeds, tuple(filter(None, tuned)))


def common(cells: pd.DataFrame) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The seeds and tuned values at which every row was planned and has ended, in whatever way.

    Of an unfinished study, the seed and tuned value at which most rows have ended. The tuned values are those with the
    most seeds in common, and the seeds are the same at each.
    """
    ends = cells.assign(ended=cells.state.isin(FINISHED)).groupby(["seed", "tuned"], sort=False).agg(
        planned=("row", "nunique"), ended=("ended", "sum")).reset_index()
    everywhere = ends[ends.planned == cells.row.nunique()]
    whole = everywhere[everywhere.ended == everywhere.planned]
    if whole.empty:
        whole = everywhere[everywhere.ended > 0].sort_values("ended", ascending=False, kind="stable").head(1)
    if whole.empty:
        return (), ()
    seeds_at = {tuned: set(own.seed) for tuned, own in whole.groupby("tuned", sort=False)}
    seeds = max(seeds_at.values(), key=len)
    return tuple(sorted(seeds)), tuple(str(tuned) for tuned, found in seeds_at.items() if found >= seeds)


def _ends(cells: pd.DataFrame) -> dict[str, dict[str, set[int]]]:
    """The seeds of each row by the state in which they ended."""
    found: dict[str, dict[str, set[int]]] = {}
    for row, state, seed in zip(cells.row, cells.state, cells.seed, strict=True):
        found.setdefault(row, {}).setdefault(state, set()).add(int(seed))
    return found


def _reason(record: StudyRecord, row: str, ends: Mapping[str, set[int]], seeds: Sequence[int]) -> str:
    """Why a row has no loss: how its cells at the common seeds ended, else what is the matter with all of them."""
    words = [f"{state} (seed {', '.join(map(str, sorted(ends[state])))})" for state in FINISHED[1:] if state in ends]
    if words:
        return ", ".join(words)
    cells = record.of_row(row)
    if cells.empty:
        return NO_CELL
    if not seeds and cells.state.isin(FINISHED).any():
        return "no seed at which all rows have a cell"
    return NOT_FINISHED


def speeds(record: StudyRecord, rows: Sequence[str]) -> Observed:
    """The logarithm of each row's speed: of a ratio, the model is a product of factors.

    Rows of one size have their measured ratio to the baseline. Rows of different sizes were measured against different
    baselines: there it is tokens per second, whose drift between the baselines is not taken out.
    """
    first = next(iter(rows))
    key = "ratio" if all(of_one_size(record.design, first, row) for row in rows) else "tokens_per_second"
    measured = {row: record.speed.get(row, {}) for row in rows}
    noise = noises(record)
    noisy = {row for row in measured if row in noise and withheld(noise[row])}
    known = {row: math.log(float(found[key])) for row, found in measured.items() if found.get(key) and row not in noisy}
    missing = {row: f"its speed pass failed: {found['error']}" if "error" in found
               else TOO_NOISY if row in noisy else NO_SPEED for row, found in measured.items() if row not in known}
    return Observed(pd.Series(known, dtype=float), missing)


def is_not_yet(missing: Mapping[str, str]) -> bool:
    """Whether all rows that have no number merely wait for it."""
    return set(missing.values()) <= {NO_CELL, NOT_FINISHED, NO_SPEED}


def nothing_known(missing: Mapping[str, str], *, measure: str) -> str:
    """Why no row has a number, in a sentence."""
    if is_not_yet(missing):
        return "No loss is known yet." if measure == "loss" else "The speed pass has not been run."
    return f"No row has a {measure}: {'; '.join(dict.fromkeys(missing.values()))}."


OBSERVERS = dict(zip(MEASURES, (losses, speeds), strict=True))
