"""Boundaries of looks at paired t statistics: exact at few seeds, by numerical integration.

Each look spends a share of the error (Lan & DeMets 1983). The boundaries follow from the joint distribution of paired t
statistics over the looks. The usual ones, which are those of normal statistics translated through their p values, err
in 5.2 to 5.6 % of studies of 3, 5, 8 and 12 seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from types import MappingProxyType

import numpy as np
from scipy.optimize import brentq
from scipy.special import betainc, betaincinv
from scipy.stats import norm, t

BINS, NODES = 200, 32
"""Of the integration: a boundary is right to 1 in 1,000."""
FARTHEST = 8.0
"""In standard deviations: what is farther below has no weight."""


def _obrien_fleming(fraction: np.ndarray, *, level: float) -> np.ndarray:
    return np.asarray(2 * norm.sf(norm.isf(level / 2) / np.sqrt(fraction)))


def _pocock(fraction: np.ndarray, *, level: float) -> np.ndarray:
    return level * np.log1p((math.e - 1) * fraction)


SPENT: Mapping[str, Callable[..., np.ndarray]] = MappingProxyType({
    "obrien-fleming": _obrien_fleming, "pocock": _pocock,
})
"""By name: how much of a one-sided level is spent when this share of the seeds is there."""


@cache
def boundaries(seeds: tuple[int, ...], *, level: float, spending: str) -> tuple[float, ...]:
    """By look, the one-sided critical value of a paired t statistic, so that all looks together err with `level`.

    With u = t / sqrt(t^2 + n - 1), the cosine between the differences and a constant, u of a look is

        u' = sqrt(n/n' B) u + sqrt((n' - n)/n' (1 - B)) v,      B ~ Beta(n/2, (n' - n)/2),

    v being the cosine of the new differences: B, u and v are independent where there is no difference, whatever the
    scale of the noise. So the mass that has not crossed yet is carried on from look to look.
    """
    fractions = np.array(seeds) / seeds[-1]
    shares = np.diff(SPENT[spending](fractions, level=level), prepend=0.0)
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
