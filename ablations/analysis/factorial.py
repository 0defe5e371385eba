"""Models of a study's axes: least squares of one number per row on main effects and two-way interactions.

The rows that answer a question are found in `row_sets`. The unit is the row: the seeds of a row share what the row has
beyond main effects and two-way interactions, so they are averaged before anything else.

Intervals. Where the rows outnumber the coefficients, they come from the residual (basis `rows`), from the first degree
of freedom on: it holds what three and more axes do together as well as training noise, so the interval covers the
effect with either. The spread over seeds holds training noise alone. Where rows differ in more than the model has, an
interval from it is too narrow: with two thirds of the variance of a row's mean of that kind, 95 % intervals from three
seeds cover 87 %, whereas those from two degrees of freedom of the residual cover 95 %, wide as they are. So the seeds
stand in only where there is no residual at all (basis `seeds`): then the interval says how well the effect among
these very rows is known. Imports neither torch nor lightning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import scipy.linalg

from ablations.analysis.intervals import NOTHING, Interval, critical, mean_interval, mean_p, p_value
from ablations.analysis.observed import MEASURES, OBSERVERS, Observed, nothing_known
from ablations.analysis.row_sets import Contrast, RowSet, contrasts_of, factors_of, row_sets
from ablations.analysis.steps import STEPWISE, Steps, fit_steps
from ablations.analysis.tables import StudyRecord

CLOSE = 1e-8


@dataclass(frozen=True)
class Estimate:
    """A contrast with its interval, and what that comes from: rows, seeds or none."""

    interval: Interval
    p: float
    basis: str


UNKNOWN = Estimate(NOTHING, math.nan, "none")


@dataclass(frozen=True, eq=False)
class Model:
    """The columns of some rows: main effects and two-way interactions, each once."""

    rows: RowSet
    contrasts: tuple[Contrast, ...]
    """Of the columns behind the intercept, in order."""
    matrix: np.ndarray
    aliases: Mapping[Contrast, Contrast]
    """By a contrast without a column of its own: the one whose column is a multiple of its."""
    opposite: frozenset[Contrast]
    """Those of them that are a negative multiple."""

    def weights(self, contrasts: Mapping[Contrast, float]) -> np.ndarray:
        """A weight per column."""
        return np.array([0.0, *(contrasts.get(contrast, 0.0) for contrast in self.contrasts)])

    @property
    def asked(self) -> tuple[Contrast, ...]:
        """The contrasts to report; of those that are one, the first."""
        return tuple(dict.fromkeys(self.aliases.get(contrast, contrast) for contrast in self.rows.asked))

    def alias(self, contrast: Contrast) -> str:
        """What the contrast cannot be told from, in words: `a x b = c x d`. Empty: it stands alone."""
        same = [f"{'-' * (other in self.opposite)}{_name(other)}" for other, kept in self.aliases.items()
                if kept == contrast]
        if same:
            return " = ".join((_name(contrast), *same))
        told = self.projection[1 + self.contrasts.index(contrast), 1:]
        tied = [other for other, share in zip(self.contrasts, told, strict=True)
                if other != contrast and abs(share) > CLOSE]
        return f"{_name(contrast)} cannot be told from {', '.join(dict.fromkeys(map(_name, tied)))}" if tied else ""

    @cached_property
    def _inverse(self) -> tuple[np.ndarray, int]:
        return _inverse_of(self.matrix)

    @property
    def rank(self) -> int:
        """Coefficients that the rows tell apart."""
        return self._inverse[1]

    @property
    def solve(self) -> np.ndarray:
        """From the numbers of the rows to the coefficients."""
        return self._inverse[0]

    @cached_property
    def projection(self) -> np.ndarray:
        """Onto what the rows tell: of a contrast that they tell alone, the line is 1 at itself."""
        return self.solve @ self.matrix


def _inverse_of(matrix: np.ndarray) -> tuple[np.ndarray, int]:
    """The pseudo-inverse of a matrix and its rank, from one decomposition: of 2,000 rows it takes seconds."""
    inverse, rank = scipy.linalg.pinv(matrix, return_rank=True)
    return inverse, int(rank)


def _name(contrast: Contrast) -> str:
    return " x ".join(name for name, _ in contrast)


def model_of(rows: RowSet) -> Model:
    """The model of some rows. A column that is another's multiple is left out, and both are one term.

    The column of a level is its indicator minus that one's mean over the rows; that of an interaction the product. The
    coefficient of a level is then the mean over the rows with it minus that over those with the reference, all else
    balanced, and that of an interaction the difference of two such differences.
    """
    levels = {(one.name, label): _centred([one.levels[row] == label for row in rows.rows])
              for one in rows.factors for label in one.contrasts}
    contrasts = contrasts_of(rows.factors)
    columns = np.array([np.prod([levels[part] for part in contrast], axis=0) for contrast in contrasts])
    directions = _directions(columns)
    kept: list[int] = []
    aliases: dict[Contrast, Contrast] = {}
    opposite = set()
    for index, contrast in enumerate(contrasts):
        same = next((other for other in kept if directions[index, other]), None)
        if same is None:
            kept.append(index)
        else:
            aliases[contrast] = contrasts[same]
            opposite |= {contrast} if directions[index, same] < 0 else set()
    matrix = np.column_stack([np.ones(len(rows.rows)), *columns[kept]])
    return Model(rows, tuple(contrasts[index] for index in kept), matrix, aliases, frozenset(opposite))


def _centred(values: Sequence[bool]) -> np.ndarray:
    column = np.asarray(values, dtype=float)
    return column - column.mean()


def _directions(columns: np.ndarray) -> np.ndarray:
    """1 or -1 where two of the columns, here as lines, are multiples of each other but for a constant, else 0."""
    centred = columns - columns.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1)
    sizes = np.outer(norms, norms)
    cosines = np.divide(centred @ centred.T, sizes, out=np.zeros_like(sizes), where=sizes > CLOSE)
    return np.where(np.abs(np.abs(cosines) - 1) < CLOSE, np.round(cosines), 0).astype(int)


@dataclass(frozen=True, eq=False)
class Fit:
    """A model of one measure."""

    model: Model
    measure: str
    observed: Observed

    @property
    def name(self) -> str:
        """The rows, in words."""
        return self.model.rows.name

    @cached_property
    def matrix(self) -> np.ndarray:
        """The model's matrix of the rows that have a number."""
        places = {row: place for place, row in enumerate(self.model.rows.rows)}
        return self.model.matrix[[places[row] for row in self.observed.values.index]]

    @property
    def _whole(self) -> bool:
        """Whether every row has a number: then what follows from the matrix is the model's."""
        return tuple(self.observed.values.index) == self.model.rows.rows

    @cached_property
    def _inverse(self) -> tuple[np.ndarray, int]:
        if self._whole:
            return self.model.solve, self.model.rank
        return _inverse_of(self.matrix) if len(self.matrix) else (np.empty((len(self.model.contrasts) + 1, 0)), 0)

    @property
    def _solve(self) -> np.ndarray:
        return self._inverse[0]

    @cached_property
    def _projection(self) -> np.ndarray:
        return self.model.projection if self._whole else self._solve @ self.matrix

    @property
    def rank(self) -> int:
        """Coefficients that the rows tell apart."""
        return self._inverse[1]

    @property
    def degrees(self) -> int:
        """Degrees of freedom of the residual."""
        return len(self.matrix) - self.rank

    @cached_property
    def squares(self) -> float:
        """Sum of the squared residuals."""
        values = self.observed.values.to_numpy()
        return float(((values - self.matrix @ (self._solve @ values)) ** 2).sum())

    @property
    def residual_sd(self) -> float:
        """Of a row around the model; NaN without degrees of freedom."""
        return math.sqrt(self.squares / self.degrees) if self.degrees else math.nan

    @property
    def r_squared(self) -> float:
        """Share of the variance between rows that the model explains; NaN without degrees of freedom."""
        total = float(((self.observed.values - self.observed.values.mean()) ** 2).sum())
        return 1 - self.squares / total if self.degrees and total > 0 else math.nan

    def contrast(self, contrasts: Mapping[Contrast, float]) -> Estimate:
        """A weighted sum of contrasts; nothing for what the rows that are left do not tell."""
        weights = self.model.weights(contrasts)
        if not len(self.matrix) or not self.estimable(weights):
            return UNKNOWN
        of_rows = weights @ self._solve
        estimate = float(of_rows @ self.observed.values.to_numpy())
        if self.degrees:
            error = self.residual_sd * float(np.linalg.norm(of_rows))
            reach = critical(self.degrees) * error
            p = p_value(estimate, error=error, degrees=self.degrees)
            return Estimate(Interval(estimate, estimate - reach, estimate + reach), p, "rows")
        return self._over_seeds(of_rows, estimate)

    def estimable(self, weights: np.ndarray) -> bool:
        """Whether the rows that have a number determine a contrast: it must be a sum of their lines of the matrix."""
        return bool(np.allclose(weights @ self._projection, weights, atol=CLOSE))

    def _over_seeds(self, of_rows: np.ndarray, estimate: float) -> Estimate:
        """The contrast of each seed on its own, and a t interval of their mean."""
        if len(self.observed.seeds) < 2:
            return Estimate(Interval(estimate, math.nan, math.nan), math.nan, "none")
        by_seed = of_rows @ self.observed.by_seed.to_numpy()
        return Estimate(mean_interval(by_seed), mean_p(by_seed), "seeds")

    @property
    def note(self) -> str:
        """What the numbers cannot say, and why. Empty: nothing is amiss."""
        if not len(self.observed.values):
            return nothing_known(self.observed.missing, measure=self.measure)
        words = []
        if self.rank < self.model.rank:
            words.append(f"Of {self.name}, too many are left out to tell some terms apart: those have no estimate.")
        if not self.degrees:
            few = "with a single seed, " if self.measure == "loss" else ""
            words.append(f"The model of {self.name} has as many coefficients as rows: " + (
                f"intervals of effects on {self.measure} come from the seeds." if len(self.observed.seeds) > 1 else
                f"{few}effects on {self.measure} have no intervals."))
        return " ".join(words)


def fit_all(record: StudyRecord, rows: pd.DataFrame) -> list[Fit | Steps]:
    """The models of loss and of speed (its logarithm); none for a study that compares nothing.

    Args:
        record: the study.
        rows: its table of rows.

    Raises:
        ValueError: a row is at a level that its axis does not have.
    """
    if record.design.kind in STEPWISE:
        return [fit_steps(record, rows, measure=measure) for measure in MEASURES]
    sets = row_sets(factors_of(record.design), whole=record.design.kind == "fraction")
    models = [model_of(own) for own in sets]
    return [Fit(model, measure, OBSERVERS[measure](record, model.rows.rows)) for measure in MEASURES
            for model in models]
