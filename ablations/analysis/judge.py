"""How sure a study is of its claims, and what would make it sure. Imports neither torch nor lightning.

The noise floor is measured on the study itself: how far a run is from what its row and its seed have in common with
others. From it follows what a number of seeds can show, and how many settle a claim.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import chi2

from ablations.analysis.claims import FAILS, HOLDS, UNKNOWN, verdicts
from ablations.analysis.intervals import ALPHA, LEVEL, Interval, critical
from ablations.analysis.margins import MARGIN
from ablations.analysis.power import (
    is_settled,
    level_power,
    seeds_for_difference,
    seeds_for_level,
    smallest_difference,
    smallest_margin,
)
from ablations.analysis.quantities import QUANTITIES
from ablations.analysis.tables import StudyRecord, each, rows_table
from ablations.design.claims import RELATIONS, Claim
from ablations.design.design import StudyDesign
from ablations.design.stopping import AGAINST, INCONCLUSIVE, SETTLED
from lit_simplified.config import ConfigError

IN_NATS = ("val_loss", "test_loss")
"""Quantities that a margin in nats is about."""
OUTCOMES = {HOLDS: SETTLED, FAILS: AGAINST, UNKNOWN: INCONCLUSIVE}
NOTHING, SEEDS, HOPELESS, ROUNDS, OTHER = "nothing", "seeds", "hopeless", "rounds", "other"
"""What would settle a claim: nothing (it is settled), more seeds, too many seeds, a longer speed pass, or what `why`
says."""


@dataclass(frozen=True)
class NoiseFloor:
    """How far runs are from row + seed: what A/A runs, of one row at several seeds, differ by."""

    quantity: str
    sd: float
    """Of a run, in nats; NaN where no row has two seeds."""
    low: float
    """With `high`: the 95 % interval of the sd."""
    high: float
    degrees: int
    rows: int
    runs: int

    @property
    def pair_sd(self) -> float:
        """Of the difference of two runs of one seed."""
        return math.sqrt(2) * self.sd


@dataclass(frozen=True)
class Shown:
    """What a number of seeds shows with 80 % power."""

    seeds: int
    difference: float
    """The smallest, by a two-sided 5 % paired t test."""
    margin: float
    """The smallest within which two rows that are exactly level are shown to be level, by two one-sided 5 % tests."""
    level_power: float
    """Of showing them level within the margin that is asked about."""


@dataclass(frozen=True)
class JudgedClaim:
    """A claim with its verdict, and what would settle it."""

    claim: str
    left: str
    right: str
    relation: str
    quantity: str
    outcome: str
    why: str
    found: Interval
    n_seeds: int
    margin: float | None
    """Of a loss that is said to be level."""
    sd: float
    """Of a paired difference, of what is planned with: its own or the study's, whichever is larger. NaN: not a loss."""
    own_sd: float
    """Measured from this pair's own differences; NaN for fewer than two."""
    shown: Shown | None
    """What its seeds can show."""
    remedy: str
    seeds_needed: int | None
    """Of each row, to settle it with 80 % power if the estimate is the true difference."""


@dataclass(frozen=True)
class Judgement:
    """A study's noise, what its seeds can show, and its claims."""

    study: str
    scale: str
    noise: tuple[NoiseFloor, ...]
    margin: float
    """That `shown` is about."""
    alpha: float
    """Of each claim about a loss."""
    shown: tuple[Shown, ...]
    claims: tuple[JudgedClaim, ...]

    @property
    def outcome(self) -> str:
        """Of all claims: against if one is, settled if all are."""
        found = {claim.outcome for claim in self.claims}
        return AGAINST if AGAINST in found else SETTLED if found == {SETTLED} else INCONCLUSIVE

    @property
    def status(self) -> int:
        """The exit status of the command."""
        return {SETTLED: 0, AGAINST: 1, INCONCLUSIVE: 2}[self.outcome]


def judge(record: StudyRecord, *, claims: Sequence[Claim] | None = None, seeds: Sequence[int] = (),
          margin: float = MARGIN) -> Judgement:
    """Judge a study.

    What its claims still need is planned with alpha shared among those about losses (Bonferroni, which is never less
    strict than Holm).

    Args:
        record: the study.
        claims: in place of its own.
        seeds: numbers of seeds to say what they show. Empty: those that its rows have.
        margin: in nats, of claims without one of their own.
    """
    asked = tuple(_with_margin(claim, margin) for claim in (record.design.claims if claims is None else claims))
    record = replace(record, design=replace(record.design, claims=asked))
    rows = rows_table(record)
    losses = [claim.quantity for claim in asked if QUANTITIES[claim.quantity].is_loss]
    measured = [name for name in dict.fromkeys(("val_loss", *losses)) if name in record.cells]
    noise = {name: noise_floor(record, rows, name) for name in measured}
    alpha = ALPHA / max(1, len(losses))
    numbers = seeds or sorted({int(count) for count in rows.n_seeds if count > 1})
    found = verdicts(record, rows)
    seeds_settle = not record.only_plumbing and record.design.looks is None  # looks are a plan already
    return Judgement(
        record.name, record.scale, tuple(noise.values()), margin, alpha,
        tuple(shown_by(count, sd=noise["val_loss"].pair_sd, margin=margin) for count in numbers),
        tuple(_judged(claim, row, noise.get(claim.quantity), planned=seeds_settle, alpha=alpha)
              for claim, row in zip(asked, each(found), strict=True)),
    )


def _with_margin(claim: Claim, margin: float) -> Claim:
    """One about a loss in nats has a margin, which a plan needs."""
    return replace(claim, margin=margin) if claim.margin is None and claim.quantity in IN_NATS else claim


def noise_floor(record: StudyRecord, rows: pd.DataFrame, quantity: str = "val_loss") -> NoiseFloor:
    """Standard deviation of a run around its row and its seed, pooled over the rows that have several seeds.

    Each row is taken at its best tuned values. Least squares on rows and seeds, with the 95 % interval of the sd by chi
    squared.
    """
    cells = record.cells[(record.cells.state == "complete") & record.cells[quantity].notna()]
    cells = cells[cells.tuned == cells.row.map(dict(zip(rows.row, rows.tuned, strict=True)))]
    cells = cells[cells.groupby("row").seed.transform("nunique") > 1]
    count, several = len(cells), cells.row.nunique()
    if not count:
        return NoiseFloor(quantity, math.nan, math.nan, math.nan, 0, 0, 0)
    by_seed = pd.get_dummies(cells.seed, dtype=float)
    within = by_seed - by_seed.groupby(cells.row).transform("mean")
    losses = (cells[quantity] - cells.groupby("row")[quantity].transform("mean")).to_numpy()
    shared, _, rank, _ = np.linalg.lstsq(within.to_numpy(), losses, rcond=None)
    degrees = count - several - int(rank)
    if degrees < 1:
        return NoiseFloor(quantity, math.nan, math.nan, math.nan, 0, several, count)
    squares = float(((losses - within.to_numpy() @ shared) ** 2).sum())
    sd, low, high = (math.sqrt(squares / by) for by in (
        degrees, chi2.isf((1 - LEVEL) / 2, degrees), chi2.ppf((1 - LEVEL) / 2, degrees)))
    return NoiseFloor(quantity, sd, low, high, degrees, several, count)


def shown_by(seeds: int, *, sd: float, margin: float, alpha: float = ALPHA) -> Shown:
    """What so many seeds show, with this sd of a paired difference."""
    known = seeds > 1 and not math.isnan(sd)
    return Shown(seeds, smallest_difference(sd=sd, seeds=seeds, alpha=alpha),
                 smallest_margin(sd=sd, seeds=seeds, alpha=alpha),
                 level_power(0.0, margin=margin, sd=sd, seeds=seeds, alpha=alpha) if known else math.nan)


def _judged(claim: Claim, row: Any, noise: NoiseFloor | None, *, planned: bool, alpha: float) -> JudgedClaim:
    """A claim with its verdict; `planned`: with the seeds that would settle it, as far as seeds do."""
    found = Interval(row.estimate, row.low, row.high)
    judged = JudgedClaim(
        row.claim, row.left, row.right, row.relation, row.quantity, OUTCOMES[row.verdict], row.why, found,
        int(row.n_seeds), claim.margin if RELATIONS[claim.relation].good is None else None, math.nan, math.nan, None,
        NOTHING, None,
    )
    if not QUANTITIES[claim.quantity].is_loss:
        return replace(judged, remedy=_remedy_of_ratio(judged))
    own = _sd_of(found, judged.n_seeds)
    sd = float(np.fmax(own, math.nan if noise is None else noise.pair_sd))
    judged = replace(judged, own_sd=own, sd=sd, shown=shown_by(
        judged.n_seeds, sd=sd, margin=claim.margin or MARGIN, alpha=alpha))
    if judged.outcome != INCONCLUSIVE:
        return judged
    return _planned(judged, alpha=alpha) if planned and not row.doubt else replace(judged, remedy=OTHER)


def _sd_of(found: Interval, seeds: int) -> float:
    """The sd of the paired differences that an interval is from."""
    return math.nan if seeds < 2 else (found.high - found.low) / 2 / critical(seeds - 1) * math.sqrt(seeds)


def _remedy_of_ratio(judged: JudgedClaim) -> str:
    """Of a ratio, which seeds do not settle."""
    if judged.outcome != INCONCLUSIVE:
        return NOTHING
    return ROUNDS if judged.quantity == "speed" and not math.isnan(judged.found.low) else OTHER


def _planned(judged: JudgedClaim, *, alpha: float) -> JudgedClaim:
    """An open claim about a loss, with the seeds that would settle it."""
    estimate, margin, level = judged.found.estimate, judged.margin, RELATIONS[judged.relation].good is None
    if math.isnan(estimate) or math.isnan(judged.sd) or (level and margin is None):
        return replace(judged, remedy=OTHER)
    if is_settled(estimate, sd=judged.own_sd, seeds=judged.n_seeds, margin=margin, alpha=alpha):
        return replace(judged, remedy=OTHER)  # its tests reject: what keeps the verdict back is said in `why`
    if margin is None:
        needed = seeds_for_difference(estimate, sd=judged.sd, alpha=alpha)
    else:
        needed = seeds_for_level(estimate, margin=margin, sd=judged.sd, alpha=alpha)
    if needed is None:
        return replace(judged, remedy=HOPELESS)
    return replace(judged, remedy=SEEDS, seeds_needed=needed)


def claim_about(design: StudyDesign, *, left: str, right: str, relation: str = "level",
                margin: float | None = None) -> Claim:
    """A claim about two rows of a study that names them by label, id or named block.

    Raises:
        ConfigError: the study has no such row, or several; or the two are one.
    """
    ids = row_named(design, left, flag="--left"), row_named(design, right, flag="--right")
    if ids[0] == ids[1]:
        raise ConfigError("--right", right, "this is the row on the left: name another")
    known = RELATIONS[relation]
    labels = [design.by_id[row].label for row in ids]
    return Claim(ids[0], relation, ids[1], known.quantity, known.sentence.format(left=labels[0], right=labels[1]),
                 margin=margin)


def row_named(design: StudyDesign, name: str, *, flag: str) -> str:
    """The id of the row that somebody means: by label, id or named block.

    Raises:
        ConfigError: there is none; which are near. Or several.
    """
    for names in ({row.id: row.id for row in design.rows}, {row.label: row.id for row in design.rows}):
        if name in names:
            return names[name]
    found = [row for row in design.rows if row.preset == name]
    if len(found) == 1:
        return found[0].id
    if found:
        raise ConfigError(flag, name, f"{len(found)} rows have this block; choose one by its label: "
                          f"{'; '.join(row.label for row in found[:12])}")
    known = list(dict.fromkeys(text for row in design.rows for text in (row.label, row.preset, row.id) if text))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"the nearest are {', '.join(near)}" if near else f"it has {', '.join(known[:12])}"
    raise ConfigError(flag, name, f"the study has no such row; {hint}")


@dataclass(frozen=True)
class PlannedClaim:
    """A claim before any run."""

    claim: str
    relation: str
    quantity: str
    gap: float | None
    """The difference to be seen, or the margin to stay within, in nats. None: no loss, so no matter of seeds."""
    seeds_needed: int | None
    """None: more than a thousand, or no matter of seeds."""


@dataclass(frozen=True)
class SeedPlan:
    """What numbers of seeds would show, before any run."""

    study: str
    sd: float
    """Assumed, of a run around its row and its seed."""
    margin: float
    alpha: float
    """Of each claim about a loss."""
    shown: tuple[Shown, ...]
    claims: tuple[PlannedClaim, ...]

    @property
    def pair_sd(self) -> float:
        """Of the difference of two runs of one seed."""
        return math.sqrt(2) * self.sd


def plan_seeds(sd: float, *, seeds: Sequence[int], margin: float = MARGIN, design: StudyDesign | None = None
               ) -> SeedPlan:
    """Plan a study: what seeds show, and how many each claim needs.

    Two rows said to be level are planned as exactly level, within the claim's margin; one said to be better or worse
    as different by the claim's margin. Claims about losses share alpha, as in `judge`.

    Args:
        sd: of a run around its row and its seed, in nats.
        seeds: numbers of seeds.
        margin: of claims without one, in nats.
        design: of the study whose claims are planned.
    """
    pair_sd = math.sqrt(2) * sd
    claims = () if design is None else design.claims
    alpha = ALPHA / max(1, sum(QUANTITIES[claim.quantity].is_loss for claim in claims))
    return SeedPlan("" if design is None else design.name, sd, margin, alpha,
                    tuple(shown_by(count, sd=pair_sd, margin=margin) for count in seeds),
                    tuple(_plan(claim, sd=pair_sd, margin=margin, alpha=alpha) for claim in claims))


def _plan(claim: Claim, *, sd: float, margin: float, alpha: float) -> PlannedClaim:
    gap = _with_margin(claim, margin).margin
    if gap is None or claim.quantity not in IN_NATS:
        return PlannedClaim(claim.sentence, claim.relation, claim.quantity, None, None)
    level = RELATIONS[claim.relation].good is None
    needed = (seeds_for_level(0.0, margin=gap, sd=sd, alpha=alpha) if level
              else seeds_for_difference(gap, sd=sd, alpha=alpha))
    return PlannedClaim(claim.sentence, claim.relation, claim.quantity, gap, needed)
