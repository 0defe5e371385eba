"""What the paper reports about the named blocks, as data, and what a study says to each. Imports neither torch nor
lightning.

"Simplifying Transformer Blocks" (He & Hofmann, ICLR 2024), 18 blocks of width 768 for the causal figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from ablations.analysis.intervals import NOTHING, Interval, mean_interval
from ablations.analysis.pairs import named, paired_differences, row_of, speed_of
from ablations.analysis.rates import sensitivity_of
from ablations.analysis.tables import FINISHED, Record

MARGIN = 0.02
"""Two losses are level if they differ by less than this share of the second. The margin is ours: the paper calls blocks
comparable whose losses differ by up to 0.023 nats of 1.155 (Pre-LN against SAS), which is 2 %."""
Relation = Literal["level", "worse", "better", "faster", "slower", "fewer"]
HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot be told"
VERDICT_COLUMNS = (
    "claim", "source", "left", "right", "measure", "relation", "paper", "estimate", "low", "high", "n_seeds", "verdict",
    "why",
)


@dataclass(frozen=True)
class Claim:
    """One thing the paper says about two named blocks."""

    left: str
    relation: Relation
    """level, worse, better: validation loss after the same number of steps. faster, slower: training steps per second.
    fewer: parameters."""
    right: str
    source: str
    paper: str
    """What the paper reports, in words."""

    @property
    def measure(self) -> str:
        """loss, speed or parameters."""
        return {"faster": "speed", "slower": "speed", "fewer": "parameters"}.get(self.relation, "loss")

    @property
    def text(self) -> str:
        """The claim as a sentence."""
        return _SENTENCES[self.relation].format(left=self.left, right=self.right)


_SENTENCES = {
    "level": "{left} is level with {right} per step",
    "worse": "{left} is worse than {right} per step",
    "better": "{left} is better than {right} per step",
    "faster": "{left} trains faster than {right}",
    "slower": "{left} trains slower than {right}",
    "fewer": "{left} has fewer parameters than {right}",
}

_PER_STEP, _ENCODERS = "Fig. 5, 23", "Table 1"
CLAIMS = (
    Claim("parallel", "level", "pre_ln", _PER_STEP, "about the same loss by step"),
    Claim("sas", "level", "pre_ln", _PER_STEP, "about the same loss by step; 1.178 against 1.155 nats (+2.0 %)"),
    Claim("sas_p", "level", "pre_ln", _PER_STEP, "about the same loss by step"),
    Claim("sas_p", "level", "sas", _PER_STEP, "about the same loss by step"),
    Claim("sas_p_no_norm", "worse", "sas_p", _PER_STEP, "slightly worse; about 1.245 nats without norms"),
    Claim("v_skipinit", "worse", "pre_ln", "Fig. 2, 5", "clearly slower per step; the worst of the blocks compared"),
    Claim("shaped_orthogonal", "worse", "pre_ln", "Fig. 2", "clearly slower per step"),
    Claim("shaped_orthogonal", "better", "v_skipinit", "Fig. 2", "a small, steady gain"),
    Claim("sas", "better", "shaped_orthogonal", "Fig. 3",
          "identity values and projections beat trained orthogonal ones; 1.178 against 1.194 nats"),
    Claim("naive_skipless", "worse", "pre_ln", "Sec. 4", "rank collapse: training stalls"),
    Claim("parallel", "faster", "pre_ln", _ENCODERS, "1.05 times"),
    Claim("v_skipinit", "slower", "pre_ln", _ENCODERS, "0.95 times"),
    Claim("sas", "faster", "pre_ln", _ENCODERS, "1.09 times"),
    Claim("sas_p", "faster", "pre_ln", _ENCODERS, "1.16 times"),
    Claim("sas_p_no_norm", "faster", "pre_ln", _ENCODERS, "1.20 times"),
    Claim("sas", "fewer", "pre_ln", "text", "-13 %: 146 against 167 million at 18 blocks"),
    Claim("sas_p", "fewer", "pre_ln", _ENCODERS, "-16 %: 101 against 120 million at 16 blocks"),
)


@dataclass(frozen=True)
class _Side:
    """What is known of one of the two blocks."""

    name: str
    row: Any
    """Its row of the table of blocks."""
    fate: str
    """complete, diverged or failed, over all its learning rates."""
    some_diverged: bool
    """At its best learning rate. Those that are left flatter it."""
    still_falling: bool
    """Its best learning rate is at the edge of the axis, and it may be better beyond."""


@dataclass(frozen=True)
class _Found:
    """A verdict before it is written down."""

    verdict: str
    why: str
    interval: Interval = NOTHING
    n_seeds: int = 0


def claims_of(record: Record) -> list[Claim]:
    """The claims that a study can be held against: of its masked models the paper says what they cost, not more."""
    masked = record.attrs.get("spec", {}).get("task") == "mlm"
    return [claim for claim in CLAIMS if not masked or claim.source == _ENCODERS]


def verdicts(record: Record, blocks: pd.DataFrame) -> pd.DataFrame:
    """The paper's claims about blocks that the study holds, with what it says to each: `VERDICT_COLUMNS`.

    estimate, low, high: difference of losses in nats (left - right), ratio of speeds or ratio of parameters.
    """
    known = set(named(blocks))
    rows = [_row(claim, record, blocks) for claim in claims_of(record) if {claim.left, claim.right} <= known]
    numbers = dict.fromkeys(("estimate", "low", "high"), float)
    return pd.DataFrame(rows, columns=list(VERDICT_COLUMNS)).astype({**numbers, "n_seeds": int})


def not_covered(record: Record, blocks: pd.DataFrame) -> list[str]:
    """The named blocks that claims are about and that the study does not hold."""
    wanted = dict.fromkeys(name for claim in claims_of(record) for name in (claim.left, claim.right))
    return [name for name in wanted if name not in named(blocks)]


def _row(claim: Claim, record: Record, blocks: pd.DataFrame) -> dict[str, Any]:
    found = _JUDGES[claim.measure](claim, record, blocks)
    return {
        "claim": claim.text, "source": claim.source, "left": claim.left, "right": claim.right,
        "measure": claim.measure, "relation": claim.relation, "paper": claim.paper, **found.interval._asdict(),
        "n_seeds": found.n_seeds, "verdict": found.verdict, "why": found.why,
    }


def _judge_parameters(claim: Claim, record: Record, blocks: pd.DataFrame) -> _Found:
    counts = [row_of(blocks, name).params for name in (claim.left, claim.right)]
    if any(pd.isna(count) for count in counts):
        return _Found(UNKNOWN, "the parameters of one of them were not recorded")
    left, right = map(int, counts)
    return _Found(HOLDS if left < right else FAILS, f"{left:,} against {right:,}; a count, not an estimate",
                  Interval(left / right, math.nan, math.nan))


def _judge_speed(claim: Claim, record: Record, blocks: pd.DataFrame) -> _Found:
    ratio = speed_of(blocks, left=claim.left, right=claim.right)
    if math.isnan(ratio.estimate):
        return _Found(UNKNOWN, "the speed pass has not measured both")
    if ratio.contains(1):
        return _Found(UNKNOWN, "the interval of the ratio contains 1: measure more rounds", ratio)
    faster = ratio.low > 1
    why = f"the interval of the ratio is {'above' if faster else 'below'} 1"
    return _Found(HOLDS if faster == (claim.relation == "faster") else FAILS, why, ratio)


def _judge_loss(claim: Claim, record: Record, blocks: pd.DataFrame) -> _Found:
    left, right = (_side(record, blocks, name) for name in (claim.left, claim.right))
    differences = paired_differences(record, blocks, left=claim.left, right=claim.right)
    interval, n_seeds = mean_interval(differences), len(differences)
    if left.fate != "complete" or right.fate != "complete":
        return _ended_early(claim, left, right)
    if n_seeds < 2:
        return _Found(UNKNOWN, f"{n_seeds} seed{'s' * (n_seeds != 1)} in common: an interval needs two or more",
                      interval, n_seeds)
    judge = _level if claim.relation == "level" else _ordered
    found = judge(claim, interval, margin=MARGIN * float(right.row.val_loss_mean))
    doubt = _doubt(left, right, interval, found.verdict, level=claim.relation == "level")
    return _Found(UNKNOWN if doubt else found.verdict, doubt or found.why, interval, n_seeds)


def _side(record: Record, blocks: pd.DataFrame, name: str) -> _Side:
    row = row_of(blocks, name)
    cells = record.cells[(record.cells["block"] == row.block) & record.cells.state.isin(FINISHED)]
    states = set(cells.state)
    fate = next(state for state in ("complete", "failed", "diverged") if state in states)
    return _Side(name, row, fate, bool(row.n_diverged), bool(sensitivity_of(cells)["still_falling"]))


def _ended_early(claim: Claim, left: _Side, right: _Side) -> _Found:
    """One of them has no loss at all. Divergence is a result: it is worse than any loss. A failure is none."""
    failed = [side.name for side in (left, right) if side.fate == "failed"]
    if failed:
        return _Found(UNKNOWN, f"{failed[0]} failed: see the reasons in `status`")
    if left.fate == right.fate:
        return _Found(UNKNOWN, "both diverged")
    worse = left if left.fate == "diverged" else right
    said = {"worse": left, "better": right}.get(claim.relation)
    why = f"{worse.name} diverged in every cell, which is worse than any loss"
    return _Found(HOLDS if worse is said else FAILS, why)


def _level(claim: Claim, found: Interval, *, margin: float) -> _Found:
    within = f"{margin:.3f} nats ({MARGIN:.0%} of {claim.right})"
    if -margin <= found.low and found.high <= margin:
        return _Found(HOLDS, f"the whole interval is within {within}")
    if found.low > margin or found.high < -margin:
        return _Found(FAILS, f"{claim.left} is {'worse' if found.low > margin else 'better'} by more than {within}")
    return _Found(UNKNOWN, f"the interval crosses the margin of {within}: more seeds")


def _ordered(claim: Claim, found: Interval, *, margin: float) -> _Found:
    if found.contains(0):
        return _Found(UNKNOWN, "the interval of the difference contains 0: more seeds")
    worse = found.low > 0
    why = f"the interval of the difference is {'above' if worse else 'below'} 0"
    return _Found(HOLDS if worse == (claim.relation == "worse") else FAILS, why)


def _doubt(left: _Side, right: _Side, found: Interval, verdict: str, *, level: bool) -> str:
    """Why a verdict might not stand: a block may be better beyond the axis, or worse than its surviving seeds.

    Only in the direction that would undo it: a block that is better already stays so with a better learning rate.
    """
    if verdict == UNKNOWN:
        return ""
    near = level and verdict == HOLDS
    for side, other_is_worse in ((left, found.estimate < 0), (right, found.estimate > 0)):
        if side.still_falling and (near or not other_is_worse):
            return (f"{side.name} is still gaining at the edge of its learning rates ({side.row.learning_rate:g}): "
                    "extend the axis (--lr)")
        if side.some_diverged and (near or other_is_worse):
            return f"{side.row.n_diverged} of the seeds of {side.name} diverged, and the others flatter it"
    return ""


_JUDGES = {"loss": _judge_loss, "speed": _judge_speed, "parameters": _judge_parameters}
