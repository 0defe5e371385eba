"""What looks at planned numbers of seeds err, show and save, by simulation. Imports neither torch nor lightning.

`ablations.design.stopping` has the rule; `python -m ablations.analysis.looks` prints errors, power and seeds saved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ablations.design.boundaries import boundaries
from ablations.design.claims import MARGIN
from ablations.design.stopping import OUTCOMES, SPENDING, Decision, Looks

__all__ = ["Decision", "Looks", "boundaries", "savings", "simulate"]

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


if __name__ == "__main__":
    for name in SPENDING:
        print(f"{name}\n\n{Looks(spending=name).table.to_markdown(index=False, floatfmt='.3g')}\n")
    print(savings().to_markdown(index=False, floatfmt=".3f"))
