"""What looks at planned numbers of seeds err, show and save, by simulation. Imports neither torch nor lightning.

`ablations.design.stopping` has the rule. `python -m ablations.analysis.looks` prints errors, power and seeds saved;
with `--replay docs/small-clm` what looks would have saved in a recorded study.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ablations.analysis.intervals import critical
from ablations.analysis.tables import each
from ablations.design.boundaries import boundaries
from ablations.design.claims import LOSSES, MARGIN
from ablations.design.stopping import AGAINST, INCONCLUSIVE, OUTCOMES, SETTLED, SPENDING, Decision, Looks

__all__ = ["Decision", "Looks", "boundaries", "replay", "savings", "simulate"]

CELL_SD = 0.0115
"""Of a run's loss around its row and its seed, in nats, as it was measured at small for named blocks."""


class Simulated(NamedTuple):
    """Shares of the outcomes, and the mean number of seeds."""

    settled: float
    against: float
    seeds: float


def simulate(
    looks: Looks, *, relation: str, difference: float, margin: float | None = None, heavy: bool = False,
    runs: int = 200_000, seed: int = 0,
) -> Simulated:
    """Many studies of two rows under a plan of looks.

    Args:
        looks: the plan.
        relation: what is claimed.
        difference: the true one, left - right in nats.
        margin: of `level`.
        heavy: whether the noise of a run has the tails of Student's t with 5 degrees of freedom; its sd is the same.
        runs: how many studies.
        seed: of the random numbers.
    """
    rng, size = np.random.default_rng(seed), (2, runs, looks.seeds[-1])
    noise = rng.standard_t(5, size) / math.sqrt(5 / 3) if heavy else rng.standard_normal(size)
    differences = difference + CELL_SD * (noise[0] - noise[1])
    codes, used = looks.decide_all(differences, relation=relation, margin=margin)
    shares = np.bincount(codes, minlength=len(OUTCOMES)) / runs
    return Simulated(float(shares[1]), float(shares[2]), float(used.mean()))


TRUE_DIFFERENCES = (0.0, 0.01, MARGIN, 0.05, 0.2)
FIXED = 8
PLANS: Mapping[str, Looks] = MappingProxyType({
    "OF": Looks(spending="obrien-fleming"), "Pocock": Looks(), f"{FIXED} seeds": Looks((FIXED,)),
})


def savings(runs: int = 200_000) -> pd.DataFrame:
    """Two plans beside a fixed number of seeds: shares settled and against, seeds used and saved, by claim."""
    asked = product((("worse", None), ("level", MARGIN)), (False, True), TRUE_DIFFERENCES)
    rows = []
    for (relation, margin), heavy, difference in asked:
        row: dict[str, Any] = {"claim": relation, "noise": "t, 5 df" if heavy else "normal", "true": difference}
        for name, plan in PLANS.items():
            found = simulate(plan, relation=relation, difference=difference, margin=margin, heavy=heavy, runs=runs)
            row |= {f"{name}: settled": found.settled, f"{name}: against": found.against}
            if len(plan.seeds) > 1:
                row |= {f"{name}: seeds": found.seeds, f"{name}: saved": FIXED - found.seeds}
        rows.append(row)
    return pd.DataFrame(rows)


def replay(folder: Path, looks: Looks | None = None, *, runs: int = 20_000) -> tuple[pd.DataFrame, pd.Series]:
    """What looks would have saved in a recorded study, with its estimates for the true differences.

    The tables of a study have means and intervals, not the loss of every seed. So seeds are drawn anew, from a normal
    distribution with the means and the covariance of the record, which follow from those of all pairs.

    Args:
        folder: with `claims.csv` and `pairwise.csv`, as `summary` writes them.
        looks: the plan, whose alpha the claims share.
        runs: how many times the study is repeated.

    Returns:
        By claim about a loss: estimate and sd of a difference, what the recorded seeds say as the last look of the
        plan, shares settled and against, mean seeds, and the same shares at 8 seeds. By row: its mean seeds.
    """
    table = pd.read_csv(folder / "claims.csv").rename(columns={"measure": "quantity"})  # as older versions call it
    claims = list(each(table[table.quantity.isin(("loss", *LOSSES)) & (table.n_seeds > 1)]))
    looks = replace(looks or Looks(), claims=len(claims))
    rows = {row for claim in claims for row in (claim.left, claim.right)}
    losses = resampled(pd.read_csv(folder / "pairwise.csv"), rows,
                       seeds=max(FIXED, looks.seeds[-1]), runs=runs)
    seeds = {row: np.zeros(runs, dtype=int) for row in losses}
    lines = []
    for claim in claims:
        asked: dict[str, Any] = {"relation": claim.relation, "margin": MARGIN}
        sd = _pair_sd(claim.high - claim.low, claim.n_seeds)
        differences = losses[claim.left] - losses[claim.right]
        codes, used = looks.decide_all(differences, **asked)
        fixed, _ = replace(looks, seeds=(FIXED,)).decide_all(differences, **asked)
        for row in (claim.left, claim.right):
            seeds[row] = np.maximum(seeds[row], used)
        shares, of_fixed = (np.bincount(found, minlength=len(OUTCOMES)) / runs for found in (codes, fixed))
        lines.append((claim.claim, claim.estimate, sd, _at_last(looks, claim, sd, **asked), *shares[1:3], used.mean(),
                      *of_fixed[1:3]))
    columns = ["claim", "estimate", "sd", "recorded", "settled", "against", "seeds", f"{FIXED}: settled",
               f"{FIXED}: against"]
    return pd.DataFrame(lines, columns=columns), pd.Series({row: own.mean() for row, own in seeds.items()})


def resampled(pairs: pd.DataFrame, rows: Collection[str], *, seeds: int, runs: int) -> dict[str, np.ndarray]:
    """By row: losses (runs, seeds), up to what all rows share. Pairs have the means and the spread of the record."""
    names = sorted(rows)
    pairs = pairs[pairs.left.isin(rows) & pairs.right.isin(rows)]
    ends = [pairs[side].map(names.index).to_numpy() for side in ("left", "right")]
    gaps, squares = np.zeros((len(names), len(names))), np.zeros((len(names), len(names)))
    gaps[*ends] = pairs.loss_difference
    squares[*ends] = [_pair_sd(width, int(count)) ** 2
                      for width, count in zip(pairs.loss_high - pairs.loss_low, pairs.n_seeds, strict=True)]
    gaps, squares = gaps - gaps.T, squares + squares.T
    centred = np.eye(len(names)) - 1 / len(names)
    values, vectors = np.linalg.eigh(-centred @ squares @ centred / 2)  # the covariance, as in multidimensional scaling
    spread = vectors * np.sqrt(np.maximum(values, 0))
    noise = np.random.default_rng(0).standard_normal((runs, seeds, len(names))) @ spread.T
    return {name: mean + noise[..., place] for place, (name, mean) in enumerate(zip(names, gaps.mean(1), strict=True))}


def _pair_sd(width: float, seeds: int) -> float:
    """Of the paired differences whose 95 % interval is so wide."""
    return width / 2 / critical(seeds - 1) * math.sqrt(seeds)


def _at_last(looks: Looks, claim: Any, sd: float, **asked: Any) -> str:
    """What the recorded seeds say, where they are a look: the last of a plan that ends there."""
    seeds = tuple(count for count in looks.seeds if count <= claim.n_seeds)
    if not seeds or seeds[-1] != claim.n_seeds:
        return ""
    spread = np.arange(claim.n_seeds) - (claim.n_seeds - 1) / 2
    same = claim.estimate + sd * spread / spread.std(ddof=1)  # a test asks for mean and sd alone
    settled, against = replace(looks, seeds=seeds).rule(**asked)(same[None], len(seeds) - 1)
    return SETTLED if settled[0] else AGAINST if against[0] else INCONCLUSIVE


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what looks err, show and save: simulated, or of a recorded study."""
    parser = argparse.ArgumentParser(prog="python -m ablations.analysis.looks", description=main.__doc__)
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="with the claims.csv and pairwise.csv of a study")
    parser.add_argument("--looks", nargs="+", type=int, default=Looks.seeds, metavar="N", help="of the replay")
    given = parser.parse_args(arguments)
    if given.replay is None:
        for name in SPENDING:
            print(f"{name}\n\n{Looks(spending=name).table.to_markdown(index=False, floatfmt='.3g')}\n")
        print(savings().to_markdown(index=False, floatfmt=".3f"))
        return
    looks = Looks(tuple(given.looks))
    claims, rows = replay(given.replay, looks)
    print(claims.to_markdown(index=False, floatfmt=".3f"))
    print(f"\n{len(rows)} rows: {rows.sum():.1f} runs with looks at {looks.words}, {FIXED * len(rows)} with {FIXED} "
          f"seeds: {FIXED * len(rows) - rows.sum():.1f} saved. By row: " +
          ", ".join(f"{row} {count:.1f}" for row, count in rows.items()))


if __name__ == "__main__":
    main()
