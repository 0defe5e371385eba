"""How sure a study is, in words and as JSON: `python -m ablations judge`. Imports neither torch nor lightning."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from rich.console import Console

from ablations.analysis.intervals import ALPHA
from ablations.analysis.judge import (
    HOPELESS,
    NOTHING,
    ROUNDS,
    SEEDS,
    JudgedClaim,
    Judgement,
    NoiseFloor,
    PlannedClaim,
    SeedPlan,
    claim_about,
    judge,
)
from ablations.analysis.margins import MARGIN
from ablations.analysis.power import MOST_SEEDS
from ablations.analysis.quantities import QUANTITIES
from ablations.analysis.tables import read
from ablations.engine.lookup import find_study
from ablations.report.formats import to_json
from ablations.report.tables import between, number, rich_table

SCHEMA = 1
"""Of the JSON: it grows with a key that changes its meaning or goes; new keys leave it."""
NATS = "{:.4f}"


def judge_study(
    study: str, *, left: str | None = None, right: str | None = None, relation: str = "level",
    margin: float | None = None, seeds: Sequence[int] = (),
) -> Judgement:
    """Judge a recorded study, or two of its rows.

    Args:
        study: a name under `results/`, a path, or URL#STUDY.
        left: with `right`: rows by label, id or named block. None: the study's own claims.
        right: likewise.
        relation: what is asked of the two: level, better or worse.
        margin: in nats, of claims without one of their own.
        seeds: numbers of seeds to say what they show. Empty: those that the rows have.

    Raises:
        StudyError: there is no such study.
        ConfigError: it has no such row.
    """
    record = read(find_study(study))
    claims = None
    if left is not None and right is not None:
        claims = [claim_about(record.design, left=left, right=right, relation=relation, margin=margin)]
    return judge(record, claims=claims, seeds=seeds, margin=MARGIN if margin is None else margin)


def print_judgement(found: Judgement, *, console: Console) -> None:
    """Noise, what seeds show, every claim, and the outcome."""
    for line in map(noise_line, found.noise):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if found.shown:
        console.print(rich_table(_shown_table(found), title="What so many seeds show, at 80 % power, in nats"))
    if found.claims:
        console.print(rich_table(_claims_table(found.claims), title="The claims, and what would settle them"))
    for line in _closing(found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def noise_line(noise: NoiseFloor) -> str:
    """The noise floor of a loss in a sentence."""
    name = noise.quantity.replace("_", " ")
    if math.isnan(noise.sd):
        return f"noise of {name}: unknown, it takes two rows with two seeds in common"
    return (f"noise of {name}: sd {noise.sd:.4f} nats [{noise.low:.4f}, {noise.high:.4f}] of a run around its row and "
            f"seed ({noise.rows} rows, {noise.runs} runs, degrees of freedom: {noise.degrees}); of a difference paired "
            f"by seed {noise.pair_sd:.4f}")


def _shown_table(found: Judgement | SeedPlan) -> pd.DataFrame:
    rows = [(shown.seeds, number(shown.difference, NATS), number(shown.margin, NATS),
             number(shown.level_power, "{:.0%}")) for shown in found.shown]
    return pd.DataFrame(rows, columns=["seeds", "smallest difference", "level within at best",
                                       f"power of level within {found.margin:g}"])


def _claims_table(claims: Sequence[JudgedClaim]) -> pd.DataFrame:
    rows = [(claim.claim, _found(claim), claim.n_seeds or "", number(claim.sd, NATS), _can_show(claim), claim.outcome,
             to_settle(claim)) for claim in claims]
    return pd.DataFrame(rows, columns=["claim", "found", "seeds", "sd of pairs", "can show", "verdict", "to settle it"])


def _found(claim: JudgedClaim) -> str:
    return between(*claim.found, form="{:+.4f}" if QUANTITIES[claim.quantity].is_loss else "{:.3f}")


def _can_show(claim: JudgedClaim) -> str:
    if claim.shown is None or math.isnan(claim.shown.difference):
        return ""
    if claim.margin is None:
        return number(claim.shown.difference, NATS)
    return f"level within {claim.margin:g}: {claim.shown.level_power:.0%}"


def to_settle(claim: JudgedClaim) -> str:
    """What would settle a claim, in words."""
    words = {NOTHING: "", SEEDS: f"{claim.seeds_needed} seeds", ROUNDS: "more rounds of the speed pass",
             HOPELESS: f"would take more than {MOST_SEEDS:,} seeds"}
    return words.get(claim.remedy, claim.why)


def _closing(found: Judgement) -> Iterator[str]:
    if not found.claims:
        yield "The study has no claims. Name two rows with --left and --right"
    if any(claim.remedy == SEEDS for claim in found.claims):
        yield (f"Seeds are those of each row, for 80 % power at {shared(found.alpha)}, if the estimate is the true "
               "difference; the sd is that of the pair's own differences or of the noise above, whichever is larger.")
    counts = [f"{sum(claim.outcome == name for claim in found.claims)} {name}"
              for name in ("settled", "against", "inconclusive")]
    yield f"{found.study}: {', '.join(counts)}; status {found.status}"


def shared(alpha: float) -> str:
    """What the claims about losses have of alpha, in words."""
    count = round(ALPHA / alpha)
    return f"{ALPHA:.0%}" + f" / {count} (so many claims share it)" * (count > 1)


def judgement_json(found: Judgement) -> str:
    """The judgement for programs; `docs/judge.md` explains every key."""
    return to_json({
        "schema": SCHEMA, "study": found.study, "scale": found.scale, "outcome": found.outcome,
        "status": found.status, "margin": found.margin, "alpha": found.alpha,
        "noise": [{**dataclasses.asdict(noise), "pair_sd": noise.pair_sd} for noise in found.noise],
        "shown": [dataclasses.asdict(shown) for shown in found.shown],
        "claims": [_claim_json(claim) for claim in found.claims],
    }, indent=2)


def _claim_json(claim: JudgedClaim) -> dict[str, Any]:
    plain = dataclasses.asdict(claim)
    plain.pop("found")
    return {**plain, **claim.found._asdict(), "to_settle": to_settle(claim)}


def print_plan(plan: SeedPlan, *, console: Console) -> None:
    """What numbers of seeds would show, and how many each claim of a study needs."""
    console.print(f"assumed noise: sd {plan.sd:g} nats of a run around its row and seed; of a difference paired by "
                  f"seed {plan.pair_sd:.4f}", highlight=False, markup=False, soft_wrap=True)
    console.print(rich_table(_shown_table(plan), title="What so many seeds show, at 80 % power, in nats"))
    if plan.claims:
        rows = [(claim.claim, number(claim.gap, "{:g}"), planned_seeds(claim)) for claim in plan.claims]
        table = pd.DataFrame(rows, columns=["claim", "gap", "seeds needed"])
        console.print(f"seeds of each row, for 80 % power at {shared(plan.alpha)}:", highlight=False, markup=False)
        console.print(rich_table(table, title=f"The claims of {plan.study or 'the study'}"))


def planned_seeds(claim: PlannedClaim) -> str:
    """How many seeds a claim needs, in words."""
    if claim.gap is None:
        return f"not a matter of seeds ({claim.quantity})"
    return f"more than {MOST_SEEDS:,}" if claim.seeds_needed is None else str(claim.seeds_needed)


def plan_json(plan: SeedPlan) -> str:
    """The plan for programs."""
    return to_json({"schema": SCHEMA, **dataclasses.asdict(plan), "pair_sd": plan.pair_sd}, indent=2)

