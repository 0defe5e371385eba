"""When a study may stop: looks at planned numbers of seeds, whose errors together stay within one alpha. Imports
neither torch nor lightning.

Looking again and again at 5 % is wrong more often than 5 %. So each look spends a share of alpha (Lan & DeMets 1983):
`obrien-fleming` next to nothing at first, `pocock` much at first. The boundaries follow from the joint distribution of
paired t statistics over the looks, exactly, by numerical integration. The usual boundaries, which are those of normal
statistics translated through their p values, err in 5.2 to 5.6 % of studies of 3, 5, 8 and 12 seeds.

`python -m ablations.analysis.looks` prints errors, power and seeds saved, by simulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import betainc, betaincinv
from scipy.stats import norm, t

from ablations.analysis.intervals import ALPHA, ROUNDING
from ablations.analysis.margins import MARGIN
from lit_simplified.config import ConfigError

SETTLED, AGAINST, CONTINUE, INCONCLUSIVE = "settled", "against", "continue", "inconclusive"
OUTCOMES = (CONTINUE, SETTLED, AGAINST, INCONCLUSIVE)
ORDERED = {"better": -1, "worse": 1}
"""Relations with a direction: the sign of left - right, in loss, that they claim."""
BINS, NODES = 200, 32
"""Of the integration: a boundary is right to 1 in 1,000."""
FARTHEST = 8.0
"""In standard deviations: what is farther below has no weight."""


def _obrien_fleming(fraction: np.ndarray, *, level: float) -> np.ndarray:
    return np.asarray(2 * norm.sf(norm.isf(level / 2) / np.sqrt(fraction)))


def _pocock(fraction: np.ndarray, *, level: float) -> np.ndarray:
    return level * np.log1p((math.e - 1) * fraction)


SPENDING: Mapping[str, Callable[..., np.ndarray]] = MappingProxyType({
    "obrien-fleming": _obrien_fleming, "pocock": _pocock,
})
"""By name: how much of a one-sided level is spent when this share of the seeds is there."""


class Decision(NamedTuple):
    """What the looks so far say of a claim."""

    outcome: str
    """settled (as claimed), against, continue (train the seeds up to the next look), or inconclusive: the last look is
    over."""
    seeds: int
    """At which it was decided; otherwise those of the last look, 0 before the first."""


@dataclass(frozen=True)
class Looks:
    """A plan of looks, and the rule that decides at each.

    Args:
        seeds: how many each look has; they are the first of one fixed order, so that rows stay paired.
        alpha: the two-sided error over all looks of a claim with a direction; the error of calling two rows level.
        spending: `obrien-fleming` keeps alpha for the last looks, `pocock` stops earlier where differences are large.
        claims: how many claims share alpha: each gets alpha / claims (Bonferroni, safe whatever their dependence).

    Raises:
        ConfigError: looks that do not grow, no such spending, an alpha that is none.
    """

    seeds: tuple[int, ...] = (3, 5, 8, 12)
    alpha: float = ALPHA
    spending: str = "obrien-fleming"
    claims: int = 1

    def __post_init__(self) -> None:
        seeds = self.seeds
        if not seeds or seeds[0] < 2 or any(after <= before for before, after in pairwise(seeds)):
            raise ConfigError("seeds", seeds, "give growing numbers of seeds from 2 on, e.g. 3 5 8 12")
        if not 0 < self.alpha < 0.5:
            raise ConfigError("alpha", self.alpha, "give a number between 0 and 0.5, e.g. 0.05")
        if self.spending not in SPENDING:
            raise ConfigError("spending", self.spending, f"choose one of {', '.join(SPENDING)}")
        if self.claims < 1:
            raise ConfigError("claims", self.claims, "give a number of at least 1")

    def critical(self, level: float) -> tuple[float, ...]:
        """By look, what a paired t statistic must exceed on one side; `level` is the error of that side."""
        return boundaries(self.seeds, level=level, spending=self.spending)

    @property
    def table(self) -> pd.DataFrame:
        """By look: seeds, alpha spent by then, the nominal two-sided p value to stay below, the t statistic of that."""
        level = self.alpha / self.claims / 2
        critical = np.array(self.critical(level))
        seeds = np.array(self.seeds)
        spent = 2 * SPENDING[self.spending](seeds / seeds[-1], level=level)
        return pd.DataFrame({"seeds": seeds, "spent": spent, "p": 2 * t.sf(critical, seeds - 1), "t": critical})

    def decide(
        self, differences: Sequence[float] | np.ndarray, *, relation: str, margin: float | None = None
    ) -> Decision:
        """What the differences so far say of a claim.

        Args:
            differences: left - right in loss, by seed, in the fixed order of seeds. What lies behind the last whole
                look is not looked at.
            relation: level, better or worse.
            margin: of `level`, in nats.

        Raises:
            ConfigError: a difference that is not finite, an unknown relation, `level` without a margin.
        """
        values = np.asarray(differences, dtype=float)
        if not np.isfinite(values).all():
            raise ConfigError("differences", values.tolist(), "a seed without a loss has no difference: leave the "
                              "decision to the verdict, which knows of rows that diverged")
        codes, seeds = self.decide_all(values[None], relation=relation, margin=margin)
        return Decision(OUTCOMES[codes[0]], int(seeds[0]))

    def decide_all(
        self, differences: np.ndarray, *, relation: str, margin: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `decide`, of many studies (runs, seeds): index into `OUTCOMES`, and the seeds used, of each."""
        crossed = self._rule(relation, margin)
        codes, used = np.zeros(len(differences), dtype=int), np.zeros(len(differences), dtype=int)
        for look, seeds in enumerate(self.seeds):
            if seeds > differences.shape[1]:
                return codes, used
            as_claimed, against = crossed(differences[:, :seeds], look)
            undecided = codes == 0
            used[undecided] = seeds
            codes[undecided & as_claimed], codes[undecided & against] = 1, 2
        return np.where(codes == 0, OUTCOMES.index(INCONCLUSIVE), codes), used

    def _rule(
        self, relation: str, margin: float | None
    ) -> Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
        """Of differences and the index of a look: whether the claim is settled, and whether against."""
        alpha = self.alpha / self.claims
        either = self.critical(alpha / 2)
        if relation in ORDERED:
            def ordered(differences: np.ndarray, look: int) -> tuple[np.ndarray, np.ndarray]:
                statistic = ORDERED[relation] * t_statistic(differences)
                return statistic > either[look], statistic < -either[look]

            return ordered
        if relation != "level":
            raise ConfigError("relation", relation, f"choose one of level, {', '.join(ORDERED)}")
        if margin is None or not margin > 0:
            raise ConfigError("margin", margin, "level needs a number of nats above 0")
        each = self.critical(alpha)  # both one-sided tests must reject, so each may have all of alpha

        def level(differences: np.ndarray, look: int) -> tuple[np.ndarray, np.ndarray]:
            below, above = t_statistic(differences - margin), t_statistic(differences + margin)
            within = (below < -each[look]) & (above > each[look])
            return within, (below > either[look]) | (above < -either[look])

        return level


def t_statistic(differences: np.ndarray) -> np.ndarray:
    """(runs, seeds) -> (runs): mean by its standard error. Differences that repeat exactly are surely what they are."""
    mean = differences.mean(axis=1)
    error = differences.std(axis=1, ddof=1) / math.sqrt(differences.shape[1])
    sure = np.where(np.abs(mean) <= ROUNDING, 0.0, np.copysign(np.inf, mean))
    return np.divide(mean, error, out=sure, where=error > 0)


@cache
def boundaries(seeds: tuple[int, ...], *, level: float, spending: str) -> tuple[float, ...]:
    """By look, the one-sided critical value of a paired t statistic, so that all looks together err with `level`.

    With u = t / sqrt(t^2 + n - 1), the cosine between the differences and a constant, u of a look is

        u' = sqrt(n/n' B) u + sqrt((n' - n)/n' (1 - B)) v,      B ~ Beta(n/2, (n' - n)/2),

    v being the cosine of the new differences: B, u and v are independent where there is no difference, whatever the
    scale of the noise. So the mass that has not crossed yet is carried on from look to look.
    """
    fractions = np.array(seeds) / seeds[-1]
    shares = np.diff(SPENDING[spending](fractions, level=level), prepend=0.0)
    found = [float(t.isf(shares[0], seeds[0] - 1))]
    edges = _edges(found[0], seeds[0])
    survival = t.sf(edges, seeds[0] - 1)
    for (before, now), share in zip(pairwise(seeds), shares[1:], strict=True):
        beyond = _carried(-np.diff(survival), _centres(edges, before), before=before, now=now)
        found.append(_root(beyond, share))
        edges = _edges(found[-1], now)
        survival = beyond(edges)
    return tuple(found)


def _root(beyond: Callable[[np.ndarray], np.ndarray], share: float) -> float:
    return float(brentq(lambda value: float(beyond(np.array([value]))[0]) - share, 0, 1e9))


def _edges(top: float, n: int) -> np.ndarray:
    """Bins of a t statistic below its boundary, of even width where it is normal."""
    highest = float(norm.isf(t.sf(top, n - 1)))
    return np.asarray(t.isf(norm.sf(np.linspace(-FARTHEST, highest, BINS + 1)), n - 1))


def _centres(edges: np.ndarray, n: int) -> np.ndarray:
    """The cosine in the middle, by probability, of each bin."""
    survival = t.sf(edges, n - 1)
    return _cosine(t.isf((survival[1:] + survival[:-1]) / 2, n - 1), n)


def _cosine(statistic: np.ndarray, n: int) -> np.ndarray:
    return statistic / np.sqrt(statistic**2 + n - 1)


def _carried(mass: np.ndarray, cosines: np.ndarray, *, before: int, now: int) -> Callable[[np.ndarray], np.ndarray]:
    """How much of the mass that had not crossed before is beyond each value of t at this look."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    more = now - before
    share = betaincinv(before / 2, more / 2, (nodes + 1) / 2)
    reached, new = cosines[:, None] * np.sqrt(share * before / now), np.sqrt((1 - share) * more / now)

    def beyond(values: np.ndarray) -> np.ndarray:
        return np.array([mass @ _cosine_beyond((u - reached) / new, more) @ weights / 2 for u in _cosine(values, now)])

    return beyond


def _cosine_beyond(value: np.ndarray, n: int) -> np.ndarray:
    """The probability that the cosine of n random numbers with a constant is above a value."""
    value = np.clip(value, -1, 1)
    if n == 1:
        return np.where(value >= 1, 0.0, np.where(value > -1, 0.5, 1.0))
    return np.asarray(betainc((n - 1) / 2, (n - 1) / 2, (1 - value) / 2))


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
    "OF": Looks(), "Pocock": Looks(spending="pocock"), f"{FIXED} seeds": Looks((FIXED,)),
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
