"""What a study says to each of its claims. Imports neither torch nor lightning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ablations.analysis.collapse import COLLAPSED
from ablations.analysis.intervals import NOTHING, Interval
from ablations.analysis.pairs import row_of
from ablations.analysis.quantities import QUANTITIES, Comparison, Quantity
from ablations.analysis.rates import TunedAxis, only_tuned_axis, sensitivity_of
from ablations.analysis.tables import FINISHED, StudyRecord, label_of
from ablations.design.claims import RELATIONS, Claim

MARGIN = 0.02
"""Two rows are level if they differ by less than this share of the second. The margin is ours: He & Hofmann 2024 call
blocks comparable whose losses differ by up to 0.023 nats of 1.155 (Pre-LN against SAS), which is 2 %."""
HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "inconclusive"
VERDICT_COLUMNS = (
    "claim", "name", "source", "left", "right", "quantity", "relation", "paper", "estimate", "low", "high", "n_seeds",
    "verdict", "why", "registered",
)


@dataclass(frozen=True)
class _Side:
    """What is known of one of the two rows."""

    label: str
    row: Any
    """Its line of the table of rows."""
    state: str
    """Over all its tuned values: complete or failed if some cell is, else collapsed, diverged, or both words."""
    lost: str
    """How many seeds collapsed or diverged at its best tuned values, in words. Those that are left flatter it."""
    edge: str
    """Where its best value is at the edge of the tuned axis and may be better beyond: which, and the remedy."""


@dataclass(frozen=True)
class _Judged:
    """A verdict before it is written down."""

    verdict: str
    why: str
    interval: Interval = NOTHING
    n_seeds: int = 0


@dataclass(frozen=True)
class _Margin:
    """How close is level."""

    low: float
    high: float
    words: str


def verdicts(record: StudyRecord, rows: pd.DataFrame) -> pd.DataFrame:
    """The claims of the study, with what it says to each: `VERDICT_COLUMNS`.

    estimate, low, high: of losses the difference in nats (left - right), of all else the ratio.
    """
    found = [_row(claim, record, rows) for claim in record.design.claims]
    numbers = dict.fromkeys(("estimate", "low", "high"), float)
    return pd.DataFrame(found, columns=list(VERDICT_COLUMNS)).astype({**numbers, "n_seeds": int})


def _row(claim: Claim, record: StudyRecord, rows: pd.DataFrame) -> dict[str, Any]:
    judged = _judge(claim, record, rows)
    return {
        "claim": claim.sentence, "name": claim.name, "source": record.design.source,
        "left": label_of(record.design, claim.left), "right": label_of(record.design, claim.right),
        "quantity": claim.quantity, "relation": claim.relation, "paper": claim.paper, **judged.interval._asdict(),
        "n_seeds": judged.n_seeds, "verdict": judged.verdict, "why": judged.why, "registered": claim.registered,
    }


def _judge(claim: Claim, record: StudyRecord, rows: pd.DataFrame) -> _Judged:
    there = set(rows.row)
    missing = [label_of(record.design, row) for row in (claim.left, claim.right) if row not in there]
    if missing:
        return _Judged(UNKNOWN, f"no finished cell of {' or '.join(dict.fromkeys(missing))} yet")
    quantity = QUANTITIES[claim.quantity]
    found = quantity.compare(record, rows, claim.left, claim.right)
    sides = [_side(record, rows, row) for row in (claim.left, claim.right)]
    judge = _judge_loss if quantity.is_loss else _judge_ratio
    return judge(claim, quantity, found, *sides)


def _side(record: StudyRecord, rows: pd.DataFrame, row: str) -> _Side:
    line = row_of(rows, row)
    cells = record.of_row(row)
    cells = cells[cells.state.isin(FINISHED)]
    states = set(cells.state)
    state = next((state for state in ("complete", "failed") if state in states), " and ".join(sorted(states)))
    return _Side(str(line.label), line, state, lost_seeds(line), _edge(cells, only_tuned_axis(record)))


def lost_seeds(row: Any) -> str:
    """How many seeds of a row gave no model at its best tuned values: `1 of 3 seeds of sas collapsed`."""
    ended = row.n_seeds + row.n_collapsed + row.n_diverged
    counts = ((row.n_collapsed, COLLAPSED), (row.n_diverged, "diverged"))
    return " and ".join(f"{count} of {ended} seeds of {row.label} {state}" for count, state in counts if count)


def _edge(cells: pd.DataFrame, axis: TunedAxis | None) -> str:
    found = None if axis is None else sensitivity_of(cells, axis)[0]
    if axis is None or found is None or not found["still_falling"]:
        return ""
    return f"{axis.title} ({found['best']:g}): extend the axis ({axis.flag})"


def _judge_ratio(claim: Claim, quantity: Quantity, found: Comparison, left: _Side, right: _Side) -> _Judged:
    interval = Interval(*[found.interval.estimate] * 3) if found.counted else found.interval
    if math.isnan(interval.low):
        return _Judged(UNKNOWN, found.detail, found.interval)
    if RELATIONS[claim.relation].good is None:
        judged = _level(interval, _ratio_margin(right), quantity, left)
    else:
        judged = _ordered(claim, interval, quantity, counted=found.counted)
    return _Judged(judged.verdict, found.detail or judged.why, found.interval)


def _ratio_margin(right: _Side) -> _Margin:
    return _Margin(1 / (1 + MARGIN), 1 + MARGIN, f"{MARGIN:.0%} of {right.label}")


def _judge_loss(claim: Claim, quantity: Quantity, found: Comparison, left: _Side, right: _Side) -> _Judged:
    if left.state != "complete" or right.state != "complete":
        return _ended_early(claim, left, right)
    if found.n_seeds < 2:
        return _Judged(UNKNOWN, f"{found.n_seeds} seed{'s' * (found.n_seeds != 1)} in common: an interval needs two or "
                       "more", found.interval, found.n_seeds)
    level = RELATIONS[claim.relation].good is None
    if level:
        judged = _level(found.interval, _loss_margin(claim, quantity, right), quantity, left)
    else:
        judged = _ordered(claim, found.interval, quantity)
    doubt = "" if judged.verdict == UNKNOWN else _doubt(left, right, found.interval, near=level and
                                                        judged.verdict == HOLDS)
    return _Judged(UNKNOWN if doubt else judged.verdict, doubt or judged.why, found.interval, found.n_seeds)


def _loss_margin(claim: Claim, quantity: Quantity, right: _Side) -> _Margin:
    if claim.margin is not None:
        return _Margin(-claim.margin, claim.margin, f"{claim.margin:.3f} nats (the claim's own margin)")
    share = MARGIN * float(getattr(right.row, quantity.column))
    return _Margin(-share, share, f"{share:.3f} nats ({MARGIN:.0%} of {right.label})")


def _ended_early(claim: Claim, left: _Side, right: _Side) -> _Judged:
    """One of them has no model at all. To collapse or diverge is a result: it is worse than any loss of a trained one.
    A failure is none."""
    failed = [side.label for side in (left, right) if side.state == "failed"]
    if failed:
        return _Judged(UNKNOWN, f"{failed[0]} failed: see the reasons in `status`")
    if "complete" not in (left.state, right.state):
        both = f"both {left.state}" if left.state == right.state else f"{left.label} {left.state}, {right.label} " \
               f"{right.state}"
        return _Judged(UNKNOWN, both)
    worse = left if left.state != "complete" else right
    good = RELATIONS[claim.relation].good
    said = None if good is None else right if good else left
    ended = f"{worse.state} in every cell" if " and " not in worse.state else \
        f"{worse.state.replace(' and ', ' in some cells and ')} in the others"
    return _Judged(HOLDS if worse is said else FAILS, f"{worse.label} {ended}, which is worse than any loss")


def _level(found: Interval, margin: _Margin, quantity: Quantity, left: _Side) -> _Judged:
    if margin.low <= found.low and found.high <= margin.high:
        return _Judged(HOLDS, f"the whole interval is within {margin.words}")
    if found.low > margin.high or found.high < margin.low:
        worse = (found.low > margin.high) == quantity.less_is_better
        return _Judged(FAILS, f"{left.label} is {'worse' if worse else 'better'} by more than {margin.words}")
    return _Judged(UNKNOWN, f"the interval crosses the margin of {margin.words}: {_remedy(quantity)}")


def _ordered(claim: Claim, found: Interval, quantity: Quantity, *, counted: bool = False) -> _Judged:
    """better, worse and their kin: the whole interval must be on the side that the claim says."""
    good = RELATIONS[claim.relation].good
    what = "ratio" if not quantity.is_loss else "difference"
    if counted and found.estimate == quantity.neutral:
        return _Judged(FAILS, "the two are equal")
    if found.contains(quantity.neutral):
        return _Judged(UNKNOWN, f"the interval of the {what} contains {quantity.neutral:g}: {_remedy(quantity)}")
    above = found.low > quantity.neutral
    better = above != quantity.less_is_better
    why = f"the interval of the {what} is {'above' if above else 'below'} {quantity.neutral:g}"
    return _Judged(HOLDS if better == good else FAILS, why)


def _remedy(quantity: Quantity) -> str:
    return "more seeds" if quantity.is_loss else "measure more rounds"


def _doubt(left: _Side, right: _Side, found: Interval, *, near: bool) -> str:
    """Why a verdict might not stand: a row may be better beyond the axis, or worse than its surviving seeds.

    Only in the direction that would undo it: a row that is better already stays so at better tuned values.

    Args:
        near: whether the verdict is that the two are level, which either direction would undo.
    """
    for side, other_is_worse in ((left, found.estimate < 0), (right, found.estimate > 0)):
        if side.edge and (near or not other_is_worse):
            return f"{side.label} is still gaining at the edge of {side.edge}"
        if side.lost and (near or other_is_worse):
            return f"{side.lost}, and the others flatter it"
    return ""
