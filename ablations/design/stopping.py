"""When a study may stop: looks at planned numbers of seeds, whose errors together stay within one alpha.

Looking again and again at 5 % is wrong more often than 5 %. So each look spends a share of alpha: `obrien-fleming` next
to nothing at first, `pocock` much at first. `boundaries` has what follows for paired t statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ablations.design.claims import ALPHA, MARGIN, Claim
from lit_simplified.config import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from ablations.design.selection import Outcome

SETTLED, AGAINST, CONTINUE, INCONCLUSIVE = "settled", "against", "continue", "inconclusive"
OUTCOMES = (CONTINUE, SETTLED, AGAINST, INCONCLUSIVE)
ORDERED = {"better": -1, "worse": 1}
"""Relations with a direction: the sign of left - right, in loss, that they claim."""
SPENDING = ("pocock", "obrien-fleming")
"""How alpha is spent."""
MOST_SEEDS = 1000
"""More are hopeless."""
ROUNDING = 1e-12
"""Smaller differences are none: where nothing varies, rounding against rounding would have a p by chance."""


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
        spending: `pocock` stops early where differences are large; `obrien-fleming` keeps alpha for the last looks, and
            at 3 seeds all but never stops.
        claims: how many claims share alpha: each gets alpha / claims (Bonferroni, safe whatever their dependence).

    Raises:
        ConfigError: looks that do not grow, no such spending, an alpha that is none.
    """

    seeds: tuple[int, ...] = (3, 5, 8, 12)
    alpha: float = ALPHA
    spending: str = "pocock"
    claims: int = 1

    def __post_init__(self) -> None:
        seeds = self.seeds
        if not seeds or seeds[0] < 2 or seeds[-1] > MOST_SEEDS \
                or any(after <= before for before, after in pairwise(seeds)):
            raise ConfigError("seeds", seeds, f"give growing numbers of seeds from 2 to {MOST_SEEDS}, e.g. 3 5 8 12")
        if not 0 < self.alpha < 0.5:
            raise ConfigError("alpha", self.alpha, "give a number between 0 and 0.5, e.g. 0.05")
        if self.spending not in SPENDING:
            raise ConfigError("spending", self.spending, f"choose one of {', '.join(SPENDING)}")
        if self.claims < 1:
            raise ConfigError("claims", self.claims, "give a number of at least 1")

    @property
    def words(self) -> str:
        """3, 5 and 8 seeds (pocock)."""
        *others, last = map(str, self.seeds)
        return f"{', '.join(others)}{' and ' * bool(others)}{last} seeds ({self.spending})"

    def after(self, seeds: int) -> int:
        """How many seeds the next look has; the last, behind the last."""
        return next((more for more in self.seeds if more > seeds), self.seeds[-1])

    def critical(self, level: float) -> tuple[float, ...]:
        """By look, what a paired t statistic must exceed on one side; `level` is the error of that side."""
        from ablations.design.boundaries import boundaries  # scipy, which a worker has no need of

        return boundaries(self.seeds, level=level, spending=self.spending)

    @property
    def table(self) -> pd.DataFrame:
        """By look: seeds, alpha spent by then, the nominal two-sided p value to stay below, the t statistic of that."""
        import pandas as pd
        from scipy.stats import t

        from ablations.design.boundaries import SPENT

        level = self.alpha / self.claims / 2
        critical = np.array(self.critical(level))
        seeds = np.array(self.seeds)
        spent = 2 * SPENT[self.spending](seeds / seeds[-1], level=level)
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
        crossed = self.rule(relation, margin)
        codes, used = np.zeros(len(differences), dtype=int), np.zeros(len(differences), dtype=int)
        for look, seeds in enumerate(self.seeds):
            if seeds > differences.shape[1]:
                return codes, used
            as_claimed, against = crossed(differences[:, :seeds], look)
            undecided = codes == 0
            used[undecided] = seeds
            codes[undecided & as_claimed], codes[undecided & against] = 1, 2
        return np.where(codes == 0, OUTCOMES.index(INCONCLUSIVE), codes), used

    def rule(
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


def decide(
    claim: Claim, *, looks: Looks, left: Mapping[int, Outcome], right: Mapping[int, Outcome]
) -> Decision:
    """What the looks that are over say of a claim about a loss; what lies behind the last of them is not looked at.

    A seed that a row did not train has no difference: those behind it take its place.

    Args:
        claim: about two rows; its margin is in nats.
        looks: the plan.
        left: how the left row's cells have ended, by seed.
        right: likewise.
    """
    over = max((seeds for seeds in looks.seeds if all(seed in left and seed in right for seed in range(seeds))),
               default=0)
    sides = [[row[seed] for seed in range(over)] for row in (left, right)]
    if over and not all(any(outcome.trained for outcome in row) for row in sides):
        return Decision(INCONCLUSIVE, over)  # a row without any model: the verdict needs no difference
    differences = [one.loss_in(claim.quantity) - other.loss_in(claim.quantity)
                   for one, other in zip(*sides, strict=True) if one.trained and other.trained]
    found = looks.decide([value for value in differences if math.isfinite(value)], relation=claim.relation,
                         margin=claim.margin or MARGIN)
    last = found.outcome == CONTINUE and over == looks.seeds[-1]
    return Decision(INCONCLUSIVE, over) if last else found
