"""Loss against tokens: rows at every budget for which they were trained, each with a schedule of its own.

The stages of a study that screen and select train for a share of the steps, the one that extends for several times as
many. How a difference between two rows changes with the budget tells whether a verdict stands. Imports neither torch
nor lightning.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from ablations.analysis.tables import FINISHED, StudyRecord, best_tuned
from ablations.design.stages import EXTEND, JUDGE, SCREEN, SELECT

BUDGET_COLUMNS = (
    "row", "label", "stage", "share", "steps", "tokens", "tuned", "val_loss_mean", "n_seeds", "difference", "place",
)
MORE_TOKENS = 4.0
"""A verdict is withheld where, at the pace so far, it would turn within so many times the tokens."""


@dataclass(frozen=True)
class Gap:
    """How far two rows are apart at another budget than that of the runs that judge."""

    share: float
    """Of the steps of the runs that judge; above 1 of those that extend."""
    difference: float
    """Left - right, each at its best tuned values there. Infinite where one of them gave no model, NaN of neither."""
    n_seeds: int
    """That both have."""

    def later(self, difference: float, *, times: float = MORE_TOKENS) -> float:
        """The difference at so many times the tokens, if it goes on changing by as much with every doubling.

        Args:
            difference: at the whole budget.
            times: the tokens.
        """
        return difference + (difference - self.difference) * math.log(times) / math.log(1 / self.share)

    def turns(self, difference: float, *, margin: tuple[float, float] | None = None) -> bool:
        """Whether, at the pace so far, `MORE_TOKENS` times the tokens turn a verdict.

        Args:
            difference: at the whole budget.
            margin: the bounds between which rows are level. None: the verdict is that one of them is better.
        """
        return not stands(difference, self.later(difference), margin=margin)


def stands(now: float, there: float, *, error: float = 0.0, margin: tuple[float, float] | None = None) -> bool:
    """Whether the difference at another budget says what it says here.

    Args:
        now: the difference at the whole budget.
        there: that at the other; it counts as so much nearer to where the verdict turns.
        error: how much.
        margin: the bounds between which rows are level. None: the verdict is that one of them is better.
    """
    if math.isnan(there):
        return False
    low, high = margin or (0.0, 0.0)
    if margin is not None and low <= now <= high:
        return low <= there - error and there + error <= high
    return there - error > high if now > 0 else there + error < low


def earlier(record: StudyRecord, left: str, right: str, *, column: str = "val_loss") -> Gap | None:
    """The difference of two rows at the largest smaller budget at which both trained; None where there is none.

    Args:
        record: the study.
        left: a row's id.
        right: another's.
        column: the loss that is compared.
    """
    for stage, cells in _stages(record):
        own = _losses(cells, (left, right), column) if record.design.share_of(stage) < 1 else {}
        if left in own and right in own:
            return _between(own[left], own[right], record.design.share_of(stage))
    return None


def extended(record: StudyRecord, left: str, right: str, *, column: str = "val_loss") -> Gap | None:
    """Likewise, with more steps; None where one of their runs is missing, has not ended or failed.

    A row of which a seed collapsed or diverged there is infinitely far from one that trained.
    """
    cells = record.extended
    own = cells[cells.row.isin((left, right))] if len(cells) else cells
    if own.empty or own.row.nunique() < 2 or not own.state.isin(set(FINISHED) - {"failed"}).all():
        return None
    share, trained = record.design.share_of(EXTEND), _losses(own, (left, right), column)
    lost = set(own.row[own.state != "complete"])
    if lost:
        return Gap(share, math.nan if len(lost) > 1 else math.inf if left in lost else -math.inf, 0)
    return _between(trained[left], trained[right], share)


def _stages(record: StudyRecord) -> Iterator[tuple[str, pd.DataFrame]]:
    """The stages beside the one that judges, from that of the most steps to that of the fewest."""
    found = ((EXTEND, record.extended), (SELECT, record.choosing), (SCREEN, record.screening))
    once = found[:2] if record.design.screening_chooses else found
    return ((stage, cells) for stage, cells in once if len(cells) and record.design.share_of(stage) != 1)


def _losses(cells: pd.DataFrame, rows: tuple[str, ...], column: str) -> dict[str, dict[int, float]]:
    """By row and seed, at its best tuned values, of those that trained."""
    own = _at_best(cells[cells.row.isin(rows)]).dropna(subset=column)
    return {str(row): dict(zip(found.seed, found[column], strict=True)) for row, found in own.groupby("row")}


def _between(left: dict[int, float], right: dict[int, float], share: float) -> Gap:
    seeds = left.keys() & right.keys()
    if not seeds:
        return Gap(share, math.nan, 0)
    return Gap(share, sum(left[seed] - right[seed] for seed in seeds) / len(seeds), len(seeds))


def budgets(record: StudyRecord, rows: pd.DataFrame) -> pd.DataFrame:
    """Loss of the judged rows at every budget, smallest first: `BUDGET_COLUMNS`. Empty where there is only one.

    Each row is at its best tuned values of its stage. difference: to the baseline, paired by seed; place: among these
    rows at this budget, 1 the lowest loss; tokens: seen in training.

    Args:
        record: the study.
        rows: its table of rows.
    """
    whole = rows.dropna(subset="val_loss_mean")
    stages = [] if whole.empty else list(_stages(record))
    if not stages:
        return pd.DataFrame(columns=list(BUDGET_COLUMNS))
    parts = [_of_stage(record, stage, cells[cells.row.isin(whole.row)]) for stage, cells in stages]
    judged = whole[["row", "label", "tuned", "val_loss_mean", "n_seeds", "difference"]]
    parts.append(judged.assign(stage=JUDGE, share=1.0))
    table = pd.concat([part for part in parts if len(part)], ignore_index=True)
    steps, tokens = _budget(record)
    table = table.assign(
        steps=(table.share * steps).round() if steps else math.nan, tokens=table.share * tokens,
        place=table.groupby("stage").val_loss_mean.rank(method="min").astype("Int64"),
    )
    return table.sort_values("share", kind="stable", ignore_index=True).reindex(columns=list(BUDGET_COLUMNS))


def _budget(record: StudyRecord) -> tuple[int, float]:
    """Steps and tokens of a run that judges; 0 and NaN where rows differ in steps."""
    axes = {field for axis in record.design.axes for field in axis.fields}
    steps = record.attrs.get("spec", {}).get("optim", {}).get("steps", 0)
    seen = [curve[-1]["tokens"] for cell in record.cells.cell if (curve := record.curves.get(cell))]
    return (0, math.nan) if "optim.steps" in axes else (steps, float(max(seen, default=math.nan)))


def _of_stage(record: StudyRecord, stage: str, cells: pd.DataFrame) -> pd.DataFrame:
    found = _at_best(cells).groupby(["row", "label", "tuned"], sort=False).val_loss.agg(["mean", "count"]).reset_index()
    found = found.rename(columns={"mean": "val_loss_mean", "count": "n_seeds"}).dropna(subset="val_loss_mean")
    losses, baseline = _losses(cells, tuple(found.row), "val_loss"), record.design.baseline
    share = record.design.share_of(stage)
    differences = [math.nan if baseline not in losses or row == baseline else
                   _between(losses[row], losses[baseline], share).difference for row in found.row]
    return found.assign(stage=stage, share=share, difference=differences)


def _at_best(cells: pd.DataFrame) -> pd.DataFrame:
    """The complete cells of rows, each at its best tuned values."""
    finished = cells[cells.state.isin(FINISHED)]
    best = best_tuned(finished)
    return finished[(finished.tuned == finished.row.map(best)) & (finished.state == "complete")]


def turned(table: pd.DataFrame) -> list[str]:
    """Pairs of rows whose order is not the same at every budget, a sentence each, the widest first.

    Args:
        table: of `budgets`.
    """
    by_row = {str(label): dict(zip(own.share, own.val_loss_mean, strict=True))
              for label, own in table.groupby("label")}
    found = []
    for one, other in combinations(by_row, 2):
        shares = sorted(by_row[one].keys() & by_row[other].keys())
        gaps = [by_row[one][share] - by_row[other][share] for share in shares]
        if gaps and min(gaps) < 0 < max(gaps):
            said = ", ".join(f"{gap:+.3f} at {share:g}" for share, gap in zip(shares, gaps, strict=True))
            found.append((min(-min(gaps), max(gaps)), f"{one} - {other}: {said} times the steps"))
    return [text for _, text in sorted(found, reverse=True)]
