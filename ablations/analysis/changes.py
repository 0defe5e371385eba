"""Two studies, before and after a change: which blocks moved, beyond noise or not. Imports neither torch nor lightning.

A change to the code, the data or the settings is judged by the cells that both studies have: same block, seed and
learning rate. Pairing takes out what a seed gives both, the order of the data above all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from rich.console import Console
from scipy.stats import t
from statsmodels.stats.multitest import multipletests

from ablations.analysis.intervals import LEVEL, NOTHING, Interval, critical, mean_interval
from ablations.analysis.tables import FINISHED, Record, best_learning_rate, blocks_table, each, label, read
from ablations.engine.storage import JOURNAL, StudyError, flatten, is_url, journal_path, open_storage, open_study
from ablations.report.tables import comparison_document, rich_table, shown_comparison
from lit_simplified.files import write_text

RESULTS = Path("results")
UP, DOWN, NOISE, UNKNOWN = "moved up", "moved down", "within noise", "cannot be told"
COMPARISON_COLUMNS = (
    "block", "preset", "learning_rate", "n_seeds", "before", "after", "difference", "low", "high", "p", "p_holm",
    "verdict", "why", "speed_before", "speed_after", "speed_verdict", "states",
)
NUMBERS = (
    "learning_rate", "before", "after", "difference", "low", "high", "p", "p_holm", "speed_before", "speed_after",
)
INCOMPARABLE = ("corpus", "task", "model.vocab_size", "data.recipe", "data.val_windows")
"""Settings that change what a loss means."""


def compare(before: Record, after: Record) -> pd.DataFrame:
    """A row per block of either study, what moved most surely first: `COMPARISON_COLUMNS`.

    difference is the mean over seeds of after - before, in nats, at the learning rate that is the block's best in
    `before` of those that both have. Its interval is a t interval over seeds; with one seed, it is made with the
    spread over seeds of the other blocks' differences, pooled. Verdicts are corrected over blocks (Holm). Speeds
    moved if their intervals do not overlap.
    """
    pairs = _pairs(before.cells, after.cells)
    names = list(dict.fromkeys([*before.cells["block"], *after.cells["block"]]))
    by_block = {str(name): pairs[pairs["block"] == name] for name in names}
    spread, degrees = _pooled([own.difference.to_numpy() for own in by_block.values()])
    rows = [_row(name, own, spread=spread, degrees=degrees) for name, own in by_block.items()]
    _judge(rows)
    states = _changed_states(before.cells, after.cells)
    speeds = [{str(row.block): _speed(row) for row in each(blocks_table(record))} for record in (before, after)]
    for row in rows:
        row.update(_identity(row["block"], before.cells, after.cells), states=states.get(row["block"], ""))
        row.update(_speeds(*(known.get(row["block"], NOTHING) for known in speeds)))
    table = pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS)).astype(dict.fromkeys(NUMBERS, float))
    return table.sort_values("p", na_position="last", kind="stable", ignore_index=True)


def _pairs(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """The complete cells that both have, of each block at one learning rate, with the difference of their losses."""
    keys = ["block", "seed", "learning_rate"]
    complete = [cells[cells.state == "complete"][[*keys, "val_loss"]] for cells in (before, after)]
    both = complete[0].merge(complete[1], on=keys, suffixes=("_before", "_after"))
    both = both.rename(columns={"val_loss_before": "before", "val_loss_after": "after"})
    if both.learning_rate.nunique() > 1:
        best = {name: _best(before[before["block"] == name], own) for name, own in both.groupby("block", sort=False)}
        both = both[both.learning_rate == both["block"].map(best)]
    return both.assign(difference=both.after - both.before)


def _best(cells: pd.DataFrame, pairs: pd.DataFrame) -> float:
    """A block's best learning rate in one study, of those that both have."""
    return best_learning_rate(cells[cells.state.isin(FINISHED) & cells.learning_rate.isin(pairs.learning_rate)])


def _pooled(samples: Sequence[np.ndarray]) -> tuple[float, int]:
    """Standard deviation of a difference over seeds, pooled over the blocks with several; its degrees of freedom."""
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
        p = _p(found.estimate, error=float(differences.std(ddof=1)) / math.sqrt(len(differences)),
               degrees=len(differences) - 1)
    elif degrees:
        reach = critical(degrees) * spread
        found = Interval(found.estimate, found.estimate - reach, found.estimate + reach)
        p = _p(found.estimate, error=spread, degrees=degrees)
        why = f"one seed; noise of the blocks with several (sd {spread:.4f})"
    else:
        why = "no seeds: one seed, and no block with several"
    return {
        "block": name, "learning_rate": pairs.learning_rate.iloc[0] if len(pairs) else math.nan,
        "n_seeds": len(pairs), "before": pairs.before.mean(), "after": pairs.after.mean(),
        "difference": found.estimate, "low": found.low, "high": found.high, "p": p, "p_holm": math.nan,
        "verdict": UNKNOWN, "why": why,
    }


def _p(difference: float, *, error: float, degrees: int) -> float:
    """Two-sided. Runs that repeat exactly have no error: then any difference is one."""
    if error == 0:
        return float(difference == 0)
    return float(2 * t.sf(abs(difference) / error, degrees))


def _judge(rows: Sequence[dict[str, Any]]) -> None:
    """Holm over all blocks that have a p, in place."""
    known = [row for row in rows if not math.isnan(row["p"])]
    if not known:
        return
    corrected = multipletests([row["p"] for row in known], alpha=1 - LEVEL, method="holm")[1]
    for row, p in zip(known, corrected, strict=True):
        moved = UP if row["difference"] > 0 else DOWN
        row.update(p_holm=float(p), verdict=moved if p < 1 - LEVEL else NOISE)


def _identity(block: str, before: pd.DataFrame, after: pd.DataFrame) -> dict[str, Any]:
    """Name of a block, and whether one study alone has it."""
    ours = [cells[cells["block"] == block] for cells in (before, after)]
    found = {"preset": next(iter([*ours[0].preset, *ours[1].preset]))}
    missing = [when for when, cells in zip(("after", "before"), ours, strict=True) if cells.empty]
    return {**found, "why": f"only in {missing[0]}"} if missing else found


def _changed_states(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, str]:
    """By block, the cells that ended differently."""
    keys = ["block", "seed", "learning_rate"]
    both = before[[*keys, "state"]].merge(after[[*keys, "state"]], on=keys, suffixes=("_before", "_after"))
    found: dict[str, list[str]] = {}
    for row in each(both[both.state_before != both.state_after]):
        words = f"seed {row.seed}, lr {row.learning_rate:g}: {row.state_before} -> {row.state_after}"
        found.setdefault(str(row.block), []).append(words)
    return {block: "; ".join(words) for block, words in found.items()}


def _speed(row: Any) -> Interval:
    return Interval(*(math.nan if value is None else float(value)
                      for value in (row.speed_ratio, row.speed_ratio_low, row.speed_ratio_high)))


def _speeds(before: Interval, after: Interval) -> dict[str, Any]:
    """Both are relative to Pre-LN in their own study: what makes every block faster alike does not show here."""
    if math.isnan(before.low) or math.isnan(after.low):
        verdict = UNKNOWN
    else:
        verdict = UP if after.low > before.high else DOWN if after.high < before.low else NOISE
    return {"speed_before": before.estimate, "speed_after": after.estimate, "speed_verdict": verdict}


def differences(before: Record, after: Record) -> list[tuple[str, Any, Any]]:
    """Settings and versions in which the two studies differ: dotted name, before, after."""
    old, new = (flatten(_conditions(record)) for record in (before, after))
    return [(key, old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)]


def _conditions(record: Record) -> Mapping[str, Any]:
    machines = record.attrs.get("machines") or [{}]
    kept = ("cpu", "gpu", "cores", "workers", "versions")
    return {**record.attrs.get("spec", {}), "machine": {name: machines[-1].get(name) for name in kept}}


def compare_studies(before: str, after: str, *, folder: Path | None, console: Console) -> pd.DataFrame:
    """Compare two studies; print what differs between them and what moved.

    Args:
        before: the name of a study under `results/`, the path of its folder or journal, or a database URL. A storage
            with several studies needs `#STUDY` behind it.
        after: likewise.
        folder: where `comparison.csv` and `comparison.md` are written. None: nowhere.
        console: where to print.

    Raises:
        StudyError: there is no such study, or several.
    """
    records = tuple(read(find_study(given)) for given in (before, after))
    table, changed = compare(*records), differences(*records)
    doubtful = [key for key, *_ in changed if key in INCOMPARABLE]
    names = (f"{before} ({records[0].name})", f"{after} ({records[1].name})")
    shown = shown_comparison(table[table.n_seeds > 0]).drop(columns=["speed", "why"])
    for line in said(changed, doubtful):
        console.print(line, highlight=False, markup=False)
    console.print(rich_table(shown, title=f"{names[1]} against {names[0]}: loss in nats, 95 %"))
    for line in found(table):
        console.print(line, highlight=False, markup=False)
    if folder is not None:
        lines = [*said(changed, doubtful), *found(table)]
        write_text(folder / "comparison.csv", table.to_csv(index=False))
        write_text(folder / "comparison.md", comparison_document(table, names=names, lines=lines))
    return table


def said(changed: Sequence[tuple[str, Any, Any]], doubtful: Sequence[str]) -> list[str]:
    """What differs between the studies, a line each."""
    if not changed:
        return ["Settings, corpus and machine are the same in both."]
    lines = [f"differs: {key}: {old!r} before, {new!r} after" for key, old, new in changed]
    if doubtful:
        lines.append(f"Their losses do not measure the same thing, because {', '.join(doubtful)} differs.")
    return lines


def found(table: pd.DataFrame) -> list[str]:
    """How many blocks moved, and what else changed, a line each."""
    verdicts = table.verdict.value_counts()
    lines = ["loss: " + ", ".join(f"{verdicts.get(verdict, 0)} {verdict}" for verdict in (UP, DOWN, NOISE, UNKNOWN))]
    for why, own in table[table.n_seeds == 0].groupby("why", sort=False):
        lines.append(f"{why}: {', '.join(label(row) for row in own.itertuples())}")
    lines += [f"{label(row)}: {row.states}" for row in table[table.states != ""].itertuples()]
    for row in table[table.speed_verdict.isin((UP, DOWN))].itertuples():
        lines.append(f"{label(row)}: speed {row.speed_verdict}, {row.speed_before:.3f} -> {row.speed_after:.3f}")
    return lines


def find_study(given: str) -> optuna.Study:
    """The study that somebody means by a name, a path or a URL."""
    place, _, name = given.partition("#")
    if is_url(place):
        if not name:
            raise StudyError(f"{given!r}: a database may hold many studies. Write URL#STUDY, as in {place}#small-clm")
        return open_study(place, name=name)
    if not Path(place).exists():
        if not (RESULTS / place / JOURNAL).exists():
            known = ", ".join(sorted(path.parent.name for path in RESULTS.glob(f"*/{JOURNAL}"))) or "none"
            raise StudyError(f"{given!r}: no such path, and no such study under {RESULTS}/. Studies there: {known}")
        place = str(RESULTS / place)
    return open_study(place, name=name or _only_study(place))


def _only_study(place: str) -> str:
    names = [study.study_name for study in open_storage(place, create=False).get_all_studies()]
    if len(names) != 1:
        raise StudyError(f"{journal_path(place)}: holds {len(names)} studies ({', '.join(names) or 'none'}). Say which "
                         f"one: {place}#STUDY")
    return names[0]
