"""Loss against tokens: rows at every budget for which they were trained, each with a schedule of its own.

The stages of a study that screen and select train for a share of the steps. That a difference between two rows grows
or shrinks from there to the whole budget tells whether it will stand with more of it. Imports neither torch nor
lightning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from ablations.analysis.tables import FINISHED, StudyRecord, best_tuned, each
from ablations.design.stages import JUDGE, SCREEN, SELECT

BUDGET_COLUMNS = (
    "row", "label", "stage", "share", "steps", "tokens", "tuned", "val_loss_mean", "n_seeds", "difference", "place",
)
MORE_TOKENS = 4.0
"""A verdict is withheld where, at the pace so far, it would turn within so many times the tokens."""


@dataclass(frozen=True)
class Earlier:
    """How far two rows were apart at a smaller budget."""

    share: float
    """Of the steps of the runs that judge."""
    difference: float
    """Left - right, each at its best tuned values there."""

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
        later = self.later(difference)
        if margin is None:
            return difference * later <= 0
        low, high = margin
        return (low <= difference <= high) != (low <= later <= high)


def earlier(record: StudyRecord, left: str, right: str, *, column: str = "val_loss") -> Earlier | None:
    """The difference of two rows at the largest smaller budget that both were trained for; None where there is none.

    Args:
        record: the study.
        left: a row's id.
        right: another's.
        column: the loss that is compared.
    """
    for stage, cells in ((SELECT, record.choosing), (SCREEN, record.screening)):
        share = record.design.share_of(stage)
        if cells.empty or share >= 1:
            continue
        own = cells[cells.row.isin((left, right))]
        losses = _at_best(own).groupby("row")[column].mean()
        if {left, right} <= set(losses.dropna().index):
            return Earlier(share, float(losses[left] - losses[right]))
    return None


def budgets(record: StudyRecord, rows: pd.DataFrame) -> pd.DataFrame:
    """Loss of the judged rows at every budget, smallest first: `BUDGET_COLUMNS`. Empty where there is only one.

    Each row is at its best tuned values of its stage. difference: to the baseline, paired by seed where the runs judge;
    place: among these rows at this budget, 1 the lowest loss; tokens: seen in training.

    Args:
        record: the study.
        rows: its table of rows.
    """
    whole = rows.dropna(subset="val_loss_mean")
    stages = [(stage, cells) for stage, cells in ((SCREEN, record.screening), (SELECT, record.choosing))
              if len(cells) and record.design.share_of(stage) < 1]
    if not stages or whole.empty:
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
    return table.reindex(columns=list(BUDGET_COLUMNS))


def _budget(record: StudyRecord) -> tuple[int, float]:
    """Steps and tokens of a run that judges; 0 and NaN where rows differ in steps."""
    axes = {field for axis in record.design.axes for field in axis.fields}
    steps = record.attrs.get("spec", {}).get("optim", {}).get("steps", 0)
    seen = [curve[-1]["tokens"] for cell in record.cells.cell if (curve := record.curves.get(cell))]
    return (0 if "optim.steps" in axes else steps), float(max(seen, default=math.nan))


def _of_stage(record: StudyRecord, stage: str, cells: pd.DataFrame) -> pd.DataFrame:
    found = _at_best(cells).groupby(["row", "label", "tuned"], sort=False).val_loss.agg(["mean", "count"]).reset_index()
    found = found.rename(columns={"mean": "val_loss_mean", "count": "n_seeds"}).dropna(subset="val_loss_mean")
    baseline = found.val_loss_mean[found.row == record.design.baseline]
    difference = found.val_loss_mean - baseline.iloc[0] if len(baseline) else math.nan
    return found.assign(stage=stage, share=record.design.share_of(stage), difference=difference)


def _at_best(cells: pd.DataFrame) -> pd.DataFrame:
    """The complete cells of rows, each at its best tuned values."""
    finished = cells[cells.state.isin(FINISHED)]
    best = best_tuned(finished)
    return finished[(finished.tuned == finished.row.map(best)) & (finished.state == "complete")]


def turned(table: pd.DataFrame) -> list[str]:
    """Pairs of rows whose order at the whole budget is not that of the smallest, a sentence each, the widest first.

    Args:
        table: of `budgets`.
    """
    if table.empty:
        return []
    first, last = table[table.share == table.share.min()], table[table.share == 1]
    start = {str(row.row): float(row.val_loss_mean) for row in each(first)}
    rows = [row for row in each(last) if row.row in start]
    found = []
    for index, one in enumerate(rows):
        for other in rows[index + 1:]:
            before, after = start[one.row] - start[other.row], one.val_loss_mean - other.val_loss_mean
            if before * after < 0:
                found.append((min(abs(before), abs(after)), f"{one.label} - {other.label}: {before:+.3f} nats at "
                              f"{table.share.min():.3g} of the steps, {after:+.3f} at all of them"))
    return [text for _, text in sorted(found, reverse=True)]
