"""What a number of seeds can show: power of paired t tests and of equivalence tests, exactly. Imports neither torch nor
lightning.

`sd` is that of a paired difference between two rows, by seed, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, nct, norm, t

from ablations.analysis.intervals import ALPHA
from ablations.design.stopping import MOST_SEEDS

POWER = 0.8
"""Of a study that is worth its seeds, by convention."""
NODES = 200
"""Of the integral over what the spread of so many seeds may be."""


def difference_power(difference: float, *, sd: float, seeds: int, alpha: float = ALPHA) -> float:
    """How probably a two-sided paired t test shows a difference, on its own side of zero (noncentral t)."""
    return _one_sided(abs(difference), sd=sd, seeds=seeds, level=alpha / 2)


def _one_sided(difference: float, *, sd: float, seeds: int, level: float) -> float:
    if sd <= 0:
        return float(difference > 0)
    effect = difference * math.sqrt(seeds) / sd
    reach = float(t.isf(level, seeds - 1))
    found = float(nct.sf(reach, seeds - 1, effect))
    return found if math.isfinite(found) else float(effect > reach)  # far beyond what the series can add up


def level_power(difference: float, *, margin: float, sd: float, seeds: int, alpha: float = ALPHA) -> float:
    """How probably two one-sided t tests, each at alpha, show that a difference is within the margin.

    The probability that the mean is that far inside, over what the spread of the seeds may be found to be.
    """
    if sd <= 0:
        return float(abs(difference) < margin)
    degrees, root = seeds - 1, math.sqrt(seeds)
    reach = float(t.isf(alpha, degrees))
    # of the spread that is found, in squares, only what leaves room within the margin counts
    most = float(chi2.cdf(degrees * (margin * root / (reach * sd)) ** 2, degrees))
    nodes, weights = _nodes()
    spread = np.sqrt(chi2.ppf(most * (nodes + 1) / 2, degrees) / degrees)
    room, shift = margin * root / sd - reach * spread, difference * root / sd
    return float(most / 2 * weights @ (norm.cdf(room - shift) - norm.cdf(-room - shift)))


@cache  # as costly as all else
def _nodes() -> tuple[np.ndarray, np.ndarray]:
    """Of the quadrature by Gauss and Legendre."""
    return np.polynomial.legendre.leggauss(NODES)


def outside_power(difference: float, *, margin: float, sd: float, seeds: int, alpha: float = ALPHA) -> float:
    """How probably an interval lies wholly outside the margin."""
    return _one_sided(abs(difference) - margin, sd=sd, seeds=seeds, level=alpha / 2)


def smallest_difference(*, sd: float, seeds: int, power: float = POWER, alpha: float = ALPHA) -> float:
    """The smallest true difference that so many seeds show with this power; NaN for fewer than two."""
    if seeds < 2 or not math.isfinite(sd):
        return math.nan
    if sd <= 0:
        return 0.0
    highest = sd * (float(t.isf(alpha / 2, seeds - 1)) + 10) * 4  # the power there is 1 at any number of seeds
    return float(brentq(
        lambda difference: difference_power(difference, sd=sd, seeds=seeds, alpha=alpha) - power, 0, highest))


def is_settled(difference: float, *, sd: float, seeds: int, margin: float | None = None, alpha: float = ALPHA) -> bool:
    """Whether the tests of this module reject with what so many seeds gave.

    Args:
        difference: the mean of the seeds.
        sd: that these seeds have.
        seeds: how many.
        margin: of rows that are said to be level. None: they are said to differ.
        alpha: of the tests.
    """
    if seeds < 2 or math.isnan(sd):
        return False
    error, beyond = sd / math.sqrt(seeds), abs(difference) - (margin or 0.0)
    one_sided = margin is not None and beyond <= 0
    return bool(abs(beyond) > t.isf(alpha if one_sided else alpha / 2, seeds - 1) * error)


def smallest_margin(*, sd: float, seeds: int, power: float = POWER, alpha: float = ALPHA) -> float:
    """The smallest margin within which rows that are exactly level are shown to be so, with this power."""
    if seeds < 2 or not math.isfinite(sd):
        return math.nan
    if sd <= 0:
        return 0.0
    highest = sd * (float(t.isf(alpha, seeds - 1)) + 10) * 4
    return float(brentq(
        lambda margin: level_power(0.0, margin=margin, sd=sd, seeds=seeds, alpha=alpha) - power, 0, highest))


def seeds_needed(power_of: Callable[[int], float], *, power: float = POWER) -> int | None:
    """The smallest number of seeds, from 2 on, with this power; None: more than `MOST_SEEDS`.

    Args:
        power_of: the power by the number of seeds, which grows with it.
        power: asked for.
    """
    enough = 2
    while power_of(enough) < power:
        if enough >= MOST_SEEDS:
            return None
        enough = min(2 * enough, MOST_SEEDS)
    few = enough // 2
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (middle, enough) if power_of(middle) < power else (few, middle)
    return enough


def seeds_for_difference(difference: float, *, sd: float, power: float = POWER, alpha: float = ALPHA) -> int | None:
    """To show a difference, if it is the true one."""
    return seeds_needed(lambda n: difference_power(difference, sd=sd, seeds=n, alpha=alpha), power=power)


def seeds_for_level(
    difference: float, *, margin: float, sd: float, power: float = POWER, alpha: float = ALPHA
) -> int | None:
    """To show that two rows are level, or that they are not, if the difference is the true one."""
    power_of = level_power if abs(difference) < margin else outside_power
    return seeds_needed(lambda n: power_of(difference, margin=margin, sd=sd, seeds=n, alpha=alpha), power=power)
