"""What a study says to each of its claims. Imports neither torch nor lightning.

Every verdict is a test: of a difference between rows against none, of level by two one-sided tests against the margin
(TOST). The p values of all claims about losses are corrected together (Holm), and so are those about speed: of the
verdicts of a study on claims that do not hold, with 95 % probability none says otherwise. In a study with looks the
verdicts on losses are those of the looks (`design.stopping`), which share the same 5 % in their own way.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from ablations.analysis.budgets import MORE_TOKENS, Gap, earlier, extended, stands
from ablations.analysis.intervals import ALPHA, NOTHING, Interval, Tested, holm_by
from ablations.analysis.margins import MARGIN, RATIO_MARGIN
from ablations.analysis.quantities import QUANTITIES, Comparison, Quantity
from ablations.analysis.rates import TunedAxis, only_tuned_axis, sensitivity_of
from ablations.analysis.tables import FINISHED, StudyRecord, each, label_of, lost_seeds
from ablations.design.claims import RELATIONS, Claim
from ablations.design.collapse import COLLAPSED
from ablations.design.scales import PLUMBING
from ablations.design.selection import Outcome
from ablations.design.stages import EXTEND
from ablations.design.stopping import AGAINST, INCONCLUSIVE, SETTLED, decide

EQUIVALENCE = f"{1 - 2 * ALPHA:.0%}".replace("%", " %")
"""Level of the interval that must lie within the margin: two one-sided tests at `ALPHA`."""
SMOKE = f"scale {PLUMBING} trains too little to tell"
HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "inconclusive"
VERDICT_COLUMNS = (
    "claim", "name", "source", "left", "right", "quantity", "relation", "paper", "estimate", "low", "high", "n_seeds",
    "verdict", "why", "registered", "p", "p_holm", "doubt",
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
    passed_over: Mapping[str, str]
    """Tuned values at which its surviving seeds did better than at the one that it is shown at: how many were lost."""


@dataclass(frozen=True)
class _Judged:
    """A verdict before it is written down."""

    verdict: str
    why: str
    interval: Interval = NOTHING
    n_seeds: int = 0
    p: float = math.nan
    """Of the test that this verdict rests on; NaN where it rests on none."""
    otherwise: str = ""
    """Why there is no verdict where the test does not reject."""
    doubt: str = ""
    """What forbids the verdict even where the test rejects."""


@dataclass(frozen=True)
class _Margin:
    """How close is level."""

    low: float
    high: float
    words: str


def verdicts(record: StudyRecord, rows: pd.DataFrame) -> pd.DataFrame:
    """The claims of the study, with what it says to each: `VERDICT_COLUMNS`.

    estimate, low, high: of losses the difference (left - right) in nats, or bits per byte, of all else the ratio, with
    the 95 % interval; p: of the test that decides; p_holm: corrected over all claims about losses, or about speed;
    doubt: what forbids a verdict whatever the test says, as more seeds would not settle it.
    """
    claims = record.design.claims
    known = _sides(record, rows)
    judged = [_judge(claim, record, rows, known) for claim in claims]
    families = ["loss" if QUANTITIES[claim.quantity].is_loss else claim.quantity for claim in claims]
    corrected = holm_by(families, [one.p for one in judged])
    sizes = Counter(family for family, one in zip(families, judged, strict=True) if not math.isnan(one.p))
    found = [_row(claim, record, _decided(one, p, among=sizes[family]), p)
             for claim, one, p, family in zip(claims, judged, corrected, families, strict=True)]
    numbers = dict.fromkeys(("estimate", "low", "high", "p", "p_holm"), float)
    return pd.DataFrame(found, columns=list(VERDICT_COLUMNS)).astype({**numbers, "n_seeds": int})


def _decided(judged: _Judged, p_holm: float, *, among: int) -> _Judged:
    """The verdict if its test rejects among all of its family, else none."""
    if math.isnan(judged.p):
        return replace(judged, verdict=UNKNOWN, why=judged.doubt) if judged.doubt and judged.verdict != UNKNOWN \
            else judged
    if p_holm < ALPHA:
        return replace(judged, verdict=UNKNOWN, why=judged.doubt) if judged.doubt else judged
    why = judged.otherwise
    if judged.p < ALPHA:
        why = f"{judged.why}, but p {judged.p:.3f} is {p_holm:.3f} among {among} claims (Holm)"
    return replace(judged, verdict=UNKNOWN, why="; ".join(filter(None, (why, judged.doubt))))


def _row(claim: Claim, record: StudyRecord, judged: _Judged, p_holm: float) -> dict[str, Any]:
    return {
        "claim": claim.sentence, "name": claim.name, "source": record.design.source,
        "left": label_of(record.design, claim.left), "right": label_of(record.design, claim.right),
        "quantity": claim.quantity, "relation": claim.relation, "paper": claim.paper, **judged.interval._asdict(),
        "n_seeds": judged.n_seeds, "verdict": judged.verdict, "why": judged.why, "registered": claim.registered,
        "p": judged.p, "p_holm": p_holm, "doubt": judged.doubt,
    }


def _judge(claim: Claim, record: StudyRecord, rows: pd.DataFrame, known: Mapping[str, _Side]) -> _Judged:
    missing = [label_of(record.design, row) for row in (claim.left, claim.right) if row not in known]
    if missing:
        return _Judged(UNKNOWN, f"no finished cell of {' or '.join(dict.fromkeys(missing))} yet")
    quantity = QUANTITIES[claim.quantity]
    found = quantity.compare(record, rows, claim.left, claim.right)
    sides = [known[row] for row in (claim.left, claim.right)]
    if not quantity.is_loss:
        return _judge_ratio(claim, quantity, found, *sides)
    if record.only_plumbing:
        return _Judged(UNKNOWN, SMOKE, found.interval, found.n_seeds)
    looked = None if found.detail else _looked(claim, record, *sides)
    judged = _judge_loss(claim, quantity, found, *sides, margin=_loss_margin(claim, quantity, record), looked=looked)
    return judged if judged.doubt else replace(judged, doubt=_budget_doubt(claim, quantity, record, judged))


def _sides(record: StudyRecord, rows: pd.DataFrame) -> dict[str, _Side]:
    """What is known of the rows that claims are about, by id; of those that have a finished cell."""
    asked = {row for claim in record.design.claims for row in (claim.left, claim.right)}
    axis = only_tuned_axis(record) if asked else None
    tried = dict(list(record.tried[record.tried.row.isin(asked)].groupby("row", sort=False)))
    return {row: _side(record.of_row(row), line, axis, tried=tried.get(row, record.cells[:0]))
            for line in each(rows) if (row := str(line.row)) in asked}


def _side(cells: pd.DataFrame, line: Any, axis: TunedAxis | None, *, tried: pd.DataFrame) -> _Side:
    cells, tried = (table[table.state.isin(FINISHED)] for table in (cells, tried))
    states = set(cells.state)
    state = next((state for state in ("complete", "failed") if state in states), " and ".join(sorted(states)))
    return _Side(str(line.label), line, state, lost_seeds(line, name=line.label), _edge(tried, axis),
                 _passed_over(cells, line))


def _passed_over(cells: pd.DataFrame, line: Any) -> dict[str, str]:
    """By tuned value, from the finished cells of a row."""
    found = {}
    for tuned, own in cells.groupby("tuned", sort=False):
        lost = own.state.isin((COLLAPSED, "diverged"))
        if lost.any() and own.val_loss[own.state == "complete"].mean() < line.val_loss_mean:
            found[str(tuned)] = f"{lost.sum()} of {len(own)} seeds"
    found.pop(str(line.tuned), None)
    return found


def _edge(cells: pd.DataFrame, axis: TunedAxis | None) -> str:
    found = None if axis is None or cells.empty else sensitivity_of(cells, axis)[0]
    if axis is None or found is None or not found["still_falling"]:
        return ""
    return f"{axis.title} ({found['best']:g}): extend the axis ({axis.flag})"


def _budget_doubt(claim: Claim, quantity: Quantity, record: StudyRecord, judged: _Judged) -> str:
    """Why a verdict might not stand: with more tokens the difference is, or is on its way to be, where it turns.

    Nothing of one that rests on no difference: a row that never trained is not extended.
    """
    now = judged.interval.estimate
    if math.isnan(now):
        return ""
    unit = record.bits_per_nat if claim.quantity == "bits_per_byte" else 1.0
    column, margin = "test_loss" if claim.quantity == "test_loss" else "val_loss", _loss_margin(claim, quantity, record)
    bounds = (margin.low, margin.high) if RELATIONS[claim.relation].good is None else None
    if record.design.extend is not None:
        after = extended(record, claim.left, claim.right, column=column)
        return _not_confirmed(after, now, quantity, unit=unit, error=_error(judged), bounds=bounds, record=record)
    before = earlier(record, claim.left, claim.right, column=column)
    if before is None:
        return ""
    before = replace(before, difference=before.difference * unit)
    return "" if not before.turns(now, margin=bounds) else (
        f"the difference was {before.difference:+.3f} {quantity.unit} at {before.share:.3g} of the steps and is "
        f"{now:+.3f}: at this pace {MORE_TOKENS:.0f} times the tokens turn the verdict")


def _not_confirmed(
    after: Gap | None, now: float, quantity: Quantity, *, unit: float, error: float,
    bounds: tuple[float, float] | None, record: StudyRecord,
) -> str:
    """Why the extended runs do not confirm a verdict; empty where they do.

    Args:
        after: what they say; None where they have not ended.
        now: the difference at the whole budget.
        quantity: what is compared.
        unit: of it, in nats.
        error: of the difference of one seed.
        bounds: within which rows are level, where that is claimed.
        record: the study.
    """
    times = f"{record.design.share_of(EXTEND):g} times the tokens"
    if after is None:
        return f"the runs with {times}, which must confirm it, are not there yet"
    there = after.difference * unit
    if stands(now, there, error=error / math.sqrt(max(after.n_seeds, 1)), margin=bounds):
        return ""
    said = f"{there:+.3f} {quantity.unit} there, {now:+.3f} here" if math.isfinite(there) else \
        "one of the two did not train there"
    return f"not confirmed with {times}: {said}"


def _error(judged: _Judged) -> float:
    """The standard deviation of a paired difference: the error of one seed."""
    if math.isnan(judged.interval.low):
        return 0.0
    return Tested.of(judged.interval, degrees=judged.n_seeds - 1).error_high * math.sqrt(judged.n_seeds)


def _judge_ratio(claim: Claim, quantity: Quantity, found: Comparison, left: _Side, right: _Side) -> _Judged:
    if found.counted:
        return replace(_counted(claim, quantity, found.interval.estimate, left, right), why=found.detail,
                       interval=found.interval)
    if math.isnan(found.interval.low):
        return _Judged(UNKNOWN, found.detail, found.interval)
    tested = Tested.of(found.interval, log=True)
    margin = _ratio_margin(right)
    bounds = _Margin(math.log(margin.low), math.log(margin.high), margin.words)
    judged = _tested(claim, tested, bounds, quantity, left)
    return replace(judged, interval=found.interval)


def _counted(claim: Claim, quantity: Quantity, ratio: float, left: _Side, right: _Side) -> _Judged:
    """Of a count, which is exact."""
    good, margin = RELATIONS[claim.relation].good, _ratio_margin(right)
    if good is None:
        said = margin.low <= ratio <= margin.high
    else:
        said = ratio != quantity.neutral and ((ratio > quantity.neutral) != quantity.less_is_better) == good
    return _Judged(HOLDS if said else FAILS, "")


def _ratio_margin(right: _Side) -> _Margin:
    return _Margin(1 / (1 + RATIO_MARGIN), 1 + RATIO_MARGIN, f"{RATIO_MARGIN:.0%} of {right.label}")


def _looked(claim: Claim, record: StudyRecord, left: _Side, right: _Side) -> _Judged | None:
    """What the looks say of a claim about a loss, as the plan of the study asks them; None where it has none."""
    looks = record.design.shared_looks
    if looks is None:
        return None
    rows = [_by_seed(record.of_row(str(side.row.row)), side) for side in (left, right)]
    margin = claim.margin and claim.margin / (record.bits_per_nat if claim.quantity == "bits_per_byte" else 1.0)
    found = decide(replace(claim, margin=margin), looks=looks, left=rows[0], right=rows[1])
    if found.outcome in (SETTLED, AGAINST):
        why = f"{found.outcome} at the look of {found.seeds} seeds"
        return _Judged(HOLDS if found.outcome == SETTLED else FAILS, why)
    if found.outcome == INCONCLUSIVE:
        return _Judged(UNKNOWN, f"no look settled it: {found.seeds} seeds")
    return _Judged(UNKNOWN, f"look of {looks.after(found.seeds)} seeds not finished")


def _by_seed(cells: pd.DataFrame, side: _Side) -> dict[int, Outcome]:
    """How a row's cells have ended at the tuned values at which it is shown."""
    own = cells[(cells.tuned == side.row.tuned) & cells.state.isin(FINISHED)]
    return {int(cell.seed): Outcome(cell.state, cell.val_loss, cell.test_loss) for cell in each(own)}


def _judge_loss(
    claim: Claim, quantity: Quantity, found: Comparison, left: _Side, right: _Side, *, margin: _Margin,
    looked: _Judged | None = None,
) -> _Judged:
    if left.state != "complete" or right.state != "complete":
        return _ended_early(claim, left, right)
    if found.detail:
        return _Judged(UNKNOWN, found.detail)
    if looked is not None:
        near = RELATIONS[claim.relation].good is None and looked.verdict == HOLDS
        return replace(looked, interval=found.interval, n_seeds=found.n_seeds,
                       doubt=_doubt(left, right, found.interval, near=near))
    if found.n_seeds < 2:
        return _Judged(UNKNOWN, f"{found.n_seeds} seed{'s' * (found.n_seeds != 1)} in common: an interval needs two or "
                       "more", found.interval, found.n_seeds)
    tested = Tested.of(found.interval, degrees=found.n_seeds - 1)
    judged = _tested(claim, tested, margin, quantity, left)
    near = RELATIONS[claim.relation].good is None and judged.verdict == HOLDS
    return replace(judged, interval=found.interval, n_seeds=found.n_seeds,
                   doubt=_doubt(left, right, found.interval, near=near))


def _loss_margin(claim: Claim, quantity: Quantity, record: StudyRecord) -> _Margin:
    own = claim.margin is not None
    ours = MARGIN * (record.bits_per_nat if quantity.unit != "nats" else 1.0)
    reach = float(claim.margin) if claim.margin is not None else ours
    return _Margin(-reach, reach, f"{reach:.3f} {quantity.unit}{' (the claim has its own margin)' * own}")


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


def _tested(claim: Claim, tested: Tested, margin: _Margin, quantity: Quantity, left: _Side) -> _Judged:
    level = RELATIONS[claim.relation].good is None
    return _level(tested, margin, quantity, left) if level else _ordered(claim, tested, quantity)


def _level(tested: Tested, margin: _Margin, quantity: Quantity, left: _Side) -> _Judged:
    """Two one-sided tests where the estimate is within the margin, else a test of being beyond it."""
    crosses = f"the {EQUIVALENCE} interval crosses the margin of {margin.words}: {_remedy(quantity)}"
    if margin.low <= tested.estimate <= margin.high:
        return _Judged(HOLDS, f"the {EQUIVALENCE} interval is within {margin.words}",
                       p=tested.p_within(margin.low, margin.high), otherwise=crosses)
    worse = (tested.estimate > margin.high) == quantity.less_is_better
    return _Judged(FAILS, f"{left.label} is {'worse' if worse else 'better'} by more than {margin.words}",
                   p=tested.p_outside(margin.low, margin.high), otherwise=crosses)


def _ordered(claim: Claim, tested: Tested, quantity: Quantity) -> _Judged:
    """better, worse and their kin: the whole interval must be on the side that the claim says."""
    what = "ratio" if not quantity.is_loss else "difference"
    null = 0.0  # of a ratio, the logarithm of 1
    above = tested.estimate > null
    better = above != quantity.less_is_better
    return _Judged(
        HOLDS if better == RELATIONS[claim.relation].good else FAILS,
        f"the interval of the {what} is {'above' if above else 'below'} {quantity.neutral:g}", p=tested.p_other(null),
        otherwise=f"the interval of the {what} contains {quantity.neutral:g}: {_remedy(quantity)}",
    )


def _remedy(quantity: Quantity) -> str:
    return "more seeds" if quantity.is_loss else "measure more rounds"


def _doubt(left: _Side, right: _Side, found: Interval, *, near: bool) -> str:
    """Why a verdict might not stand: a row may be better beyond the axis, or worse than its surviving seeds.

    Only in the direction that would undo it: a row that is better already stays so at better tuned values.

    Args:
        near: whether the verdict is that the two are level, which either direction would undo.
    """
    for side, other, other_is_worse in ((left, right, found.estimate < 0), (right, left, found.estimate > 0)):
        value = str(other.row.tuned)
        if value in side.passed_over and (near or not other_is_worse):
            return (f"{other.label} is shown at {value}, where {side.label} did better still but lost "
                    f"{side.passed_over[value]}: whether that value trains is for more seeds to tell")
        if side.edge and (near or not other_is_worse):
            return f"{side.label} is still gaining at the edge of {side.edge}"
        if side.lost and (near or other_is_worse):
            return f"{side.lost}, and the others flatter it"
    return ""
