"""A factorial model of a study's grid: which blocks, which of their cells, and least squares on the block means.

Two designs, because a parallel block has one skip: the effects of the two skips are asked of the sequential blocks,
that of the layout of the blocks whose two skips are equal. In both, the unit is the block: the seeds of a block share
what the block has beyond main effects and two-way interactions, so they are averaged before anything else.

Imports neither torch nor lightning.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.regression.linear_model import OLS, RegressionResults
from statsmodels.tools.sm_exceptions import SingularMatrixWarning

from ablations.analysis.tables import FINISHED, Record, best_learning_rate
from lit_simplified.config import SWITCHES, BlockConfig, describe

Term = tuple[str, ...]
"""The factors of a main effect (one) or of an interaction (two)."""
MEASURES = ("loss", "speed")


@dataclass(frozen=True, eq=False)
class Factor:
    """A question about a block with two answers; the base is Pre-LN's. Coded -1/2 and +1/2: a coefficient is then the
    mean over the changed blocks minus the mean over the base ones."""

    name: str
    base: Mapping[str, Any]
    changed: Mapping[str, Any]

    @property
    def change(self) -> str:
        """In words: from -> to."""
        return f"{self.position(-0.5)} -> {self.position(+0.5)}"

    def position(self, code: float) -> str:
        """The answer of a code."""
        return str(next(iter((self.base if code < 0 else self.changed).values())))

    def codes(self, blocks: pd.DataFrame) -> pd.Series:
        """-1/2 or +1/2 per block, NaN for another answer."""
        at_base, at_changed = _matches(blocks, self.base), _matches(blocks, self.changed)
        return pd.Series(np.select([at_base, at_changed], [-0.5, 0.5], np.nan), index=blocks.index)


def _matches(blocks: pd.DataFrame, values: Mapping[str, Any]) -> pd.Series:
    return pd.concat([blocks[name] == value for name, value in values.items()], axis=1).all(axis=1)


ATTENTION = Factor("attention", {"attention": "softmax"}, {"attention": "shaped"})
MATRICES = Factor(
    "value + projection", {"value": "linear", "projection": "linear"}, {"value": "identity", "projection": "identity"}
)
NORM = Factor("norm", {"norm": "rms"}, {"norm": "none"})
LAYOUT = Factor("layout", {"layout": "sequential"}, {"layout": "parallel"})


@dataclass(frozen=True, eq=False)
class Design:
    """The blocks that a model is made of, and which of its terms are reported."""

    name: str
    factors: tuple[Factor, ...]
    layout: str | None = None
    """The layout of all its blocks. None: either."""
    about: str | None = None
    """Report the terms with this factor alone; the others are those of the other design. None: all."""

    def factor(self, name: str) -> Factor:
        """The factor of a name."""
        return next(factor for factor in self.factors if factor.name == name)


DESIGNS = (
    Design(
        "sequential blocks", layout="sequential",
        factors=(
            Factor("attention_skip", {"attention_skip": True}, {"attention_skip": False}),
            Factor("mlp_skip", {"mlp_skip": True}, {"mlp_skip": False}),
            ATTENTION, MATRICES, NORM,
        ),
    ),
    Design(
        "blocks with equal skips", about="layout",
        factors=(
            LAYOUT,
            Factor("skip", {"attention_skip": True, "mlp_skip": True}, {"attention_skip": False, "mlp_skip": False}),
            ATTENTION, MATRICES, NORM,
        ),
    ),
)


def designs_of(blocks: pd.DataFrame) -> tuple[Design, ...]:
    """The designs for a grid of blocks, whose norm, where they have one, is that of their task."""
    norm = next((kind for kind in blocks.norm if kind != "none"), "rms")
    own = replace(NORM, base={"norm": norm})
    return tuple(replace(design, factors=tuple(own if factor is NORM else factor for factor in design.factors))
                 for design in DESIGNS)


@dataclass(frozen=True)
class Observed:
    """One number per block of a design, and where it comes from."""

    values: pd.Series
    """By block id; blocks without one are left out."""
    seeds: tuple[int, ...] = ()
    learning_rates: tuple[float, ...] = ()
    seed_sd: float = math.nan
    """Standard deviation of a cell around block + seed: training noise alone. NaN with one seed."""


@dataclass(frozen=True)
class Fit:
    """A design's model of one measure."""

    design: Design
    measure: str
    terms: tuple[Term, ...]
    """Main effects and two-way interactions, in the order of the coefficients behind the intercept."""
    observed: Observed
    n_left_out: int
    """Blocks of the design that diverged, failed, or have no number yet."""
    result: RegressionResults | None
    """None: too few blocks for the model."""
    note: str
    """What the numbers cannot say, and why. Empty: nothing is amiss."""

    @property
    def reported(self) -> tuple[Term, ...]:
        """The terms that this design answers for."""
        return tuple(term for term in self.terms if self.design.about in (None, *term))

    def row(self, weights: Mapping[Term, float]) -> np.ndarray:
        """A contrast: a weight per coefficient."""
        return np.array([0.0, *(weights.get(term, 0.0) for term in self.terms)])


def grid_blocks(cells: pd.DataFrame) -> pd.DataFrame:
    """The distinct blocks of a study that differ in their switches alone, by block id.

    A block with a digest in its id differs in more: it is none of the grid.
    """
    blocks = cells.drop_duplicates("block").set_index("block")[list(SWITCHES)]
    plain = [row[0] == _plain_id(*row[1:]) for row in blocks.itertuples(name=None)]
    return blocks[np.array(plain, dtype=bool)]


@cache
def _plain_id(*switches: Any) -> str:
    return describe(BlockConfig(**dict(zip(SWITCHES, switches, strict=True))))


def codes_of(design: Design, blocks: pd.DataFrame) -> pd.DataFrame:
    """-1/2 or +1/2 by block of the design and factor; a factor with one answer in this study is no question of it."""
    if design.layout is not None:
        blocks = blocks[blocks.layout == design.layout]
    codes = pd.DataFrame({factor.name: factor.codes(blocks) for factor in design.factors}, index=blocks.index).dropna()
    return codes.loc[:, codes.nunique() == 2]


def fit_all(record: Record, blocks: pd.DataFrame) -> list[Fit]:
    """The models of loss and of speed (its logarithm), of both designs."""
    grid = grid_blocks(record.cells)
    codes = {design: codes_of(design, grid) for design in designs_of(grid)}
    on_loss = [fit(design, codes=own, observed=losses(record.cells[record.cells["block"].isin(own.index)]),
                   measure="loss") for design, own in codes.items()]
    on_speed = [fit(design, codes=own, observed=speeds(blocks, own.index), measure="speed")
                for design, own in codes.items()]
    return [*on_loss, *on_speed]


def fit(design: Design, *, codes: pd.DataFrame, observed: Observed, measure: str) -> Fit:
    """Least squares of a design's numbers on its main effects and two-way interactions."""
    names = list(codes.columns)
    terms: tuple[Term, ...] = (*((name,) for name in names), *combinations(names, 2))
    left_out = len(codes) - len(observed.values)
    enough = len(codes) > len(terms) + 1 and len(observed.values) > 0
    result = _least_squares(codes, terms, observed.values) if enough else None
    note = _note(design, n_blocks=len(codes), terms=terms, observed=observed, result=result, measure=measure)
    return Fit(design, measure, terms, observed, left_out, result, note)


def _least_squares(codes: pd.DataFrame, terms: tuple[Term, ...], values: pd.Series) -> RegressionResults:
    used = codes.loc[values.index]
    columns = [np.ones(len(used)), *(used[list(term)].prod(axis=1).to_numpy() for term in terms)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularMatrixWarning)  # what cannot be told then is found out per contrast
        return OLS(values.to_numpy(dtype=float), np.column_stack(columns)).fit()


def _note(
    design: Design, *, n_blocks: int, terms: tuple[Term, ...], observed: Observed,
    result: RegressionResults | None, measure: str,
) -> str:
    if n_blocks <= len(terms) + 1:
        return ("This study plans too little of the grid to tell main effects and interactions apart. They need the "
                "whole grid, which `run` trains unless --presets names blocks.")
    if result is None:
        return "No loss is known yet." if measure == "loss" else "The speed pass has not been run."
    if result.df_resid < 1:
        return (f"The {len(observed.values)} {design.name} that are left are as many as the model's coefficients: "
                "estimates have no intervals.")
    if np.linalg.matrix_rank(result.model.exog) < len(terms) + 1:
        return f"Of the {design.name} too many are left out to tell some terms apart: those have no estimate."
    return ""


def speeds(blocks: pd.DataFrame, wanted: pd.Index) -> Observed:
    """The logarithm of each block's speed ratio: of a ratio, the model is a product of factors."""
    ratios = blocks.set_index("block").speed_ratio.astype(float)
    return Observed(ratios[ratios.index.isin(wanted)].dropna().map(math.log))


def losses(cells: pd.DataFrame) -> Observed:
    """Each block's validation loss, averaged over the seeds that all blocks of the design have.

    Some blocks may have more seeds and learning rates; counting those would compare a block's average over easy and
    hard seeds with another's over one. Where all have several learning rates, each block is taken at its best.
    """
    seeds, rates = common(cells)
    used = cells[cells.seed.isin(seeds) & cells.learning_rate.isin(rates)]
    if len(rates) > 1:
        best = {name: best_learning_rate(own) for name, own in used.groupby("block", sort=False)}
        used = used[used.learning_rate == used["block"].map(best)]
    by_seed = used[used.state == "complete"].pivot(index="block", columns="seed", values="val_loss")
    by_seed = by_seed.reindex(columns=list(seeds)).dropna()
    return Observed(by_seed.mean(axis=1), seeds, rates, _seed_sd(by_seed))


def _seed_sd(by_seed: pd.DataFrame) -> float:
    """Residual standard deviation of block + seed, by sweeping out both means."""
    blocks, seeds = by_seed.shape
    if min(blocks, seeds) < 2:
        return math.nan
    values = by_seed.to_numpy()
    rest = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    return float(np.sqrt((rest**2).sum() / ((blocks - 1) * (seeds - 1))))


def common(cells: pd.DataFrame) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The seeds and learning rates at which every block was planned and has ended, in whatever way.

    Of an unfinished study, the seed and learning rate at which most blocks have ended. The learning rates are those
    with the most seeds in common, and the seeds are the same at each.
    """
    ends = cells.assign(ended=cells.state.isin(FINISHED)).groupby(["seed", "learning_rate"]).agg(
        planned=("block", "nunique"), ended=("ended", "sum")).reset_index()
    everywhere = ends[ends.planned == cells["block"].nunique()]
    whole = everywhere[everywhere.ended == everywhere.planned]
    if whole.empty:
        whole = everywhere[everywhere.ended > 0].sort_values("ended", ascending=False, kind="stable").head(1)
    if whole.empty:
        return (), ()
    seeds_at = {rate: set(whole[whole.learning_rate == rate].seed) for rate in map(float, whole.learning_rate)}
    seeds = max(seeds_at.values(), key=len)
    return tuple(sorted(seeds)), tuple(sorted(rate for rate, found in seeds_at.items() if found >= seeds))
