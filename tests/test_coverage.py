"""Simulated studies with known effects: 95 % intervals cover them, and chance is not mistaken for an effect."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic import plan_of, record_of, with_losses

from ablations.analysis.effects import effects_of
from ablations.analysis.factorial import Fit, fit_all, model_of
from ablations.analysis.observed import losses
from ablations.analysis.row_sets import factors_of, row_sets
from ablations.analysis.steps import STEPWISE
from ablations.analysis.tables import StudyRecord, rows_table
from lit_simplified.config import RunConfig

NORM, DEPTH, ATTENTION = "model.block.norm", "model.depth", "model.block.attention"
MLP_SKIP, WIDTH = "model.block.mlp_skip", "model.width"
TRAINING = 0.01
"""Standard deviation of what a run's own randomness does to its loss."""
OWN = 0.02
"""Of what a row has beyond main effects and two-way interactions."""


@dataclass(frozen=True)
class Setting:
    """A kind of study to simulate."""

    study: Any
    own: float
    basis: str
    """What its intervals must come from."""
    lost: int = 0
    """Rows that diverge."""


SETTINGS = {
    "three levels": Setting({"compare": {
        NORM: ["rms", "layer", "none"], ATTENTION: ["softmax", "shaped"], MLP_SKIP: [True, False], DEPTH: [2, 4],
    }, "seeds": 2}, OWN, "rows"),
    "numeric axis": Setting({"compare": {
        DEPTH: [2, 4, 8], NORM: ["rms", "none"], ATTENTION: ["softmax", "shaped"],
    }, "seeds": 3}, OWN, "rows"),  # two degrees of freedom
    "fraction": Setting({"compare": {
        NORM: ["rms", "none"], ATTENTION: ["softmax", "shaped"], MLP_SKIP: [True, False], DEPTH: [2, 4],
        WIDTH: [32, 64],
    }, "design": {"fraction": {"rows": 16}}, "seeds": 3}, 0.0, "seeds"),
    "grid": Setting("grid", OWN, "rows"),
    "grid with lost rows": Setting("grid", OWN, "rows", lost=4),
    "one at a time": Setting({"compare": {
        NORM: ["rms", "layer", "none"], ATTENTION: ["softmax", "shaped"], DEPTH: [2, 4],
    }, "baseline": {DEPTH: 2}, "design": "one_at_a_time", "seeds": 3}, 0.0, "seeds"),
}


def planted(config: RunConfig) -> float:
    """Main effects and two-way interactions alone, in any of these studies."""
    block = config.model.block
    norm = {"rms": 0.0, "layer": 0.05, "none": 0.2}[block.norm]
    shaped, no_mlp_skip, parallel = block.attention == "shaped", not block.mlp_skip, block.layout == "parallel"
    loss = norm - 0.1 * shaped + 0.15 * no_mlp_skip + 0.03 * config.model.depth
    loss += 0.08 * parallel + 0.04 * (not block.attention_skip) - 0.05 * (config.model.width == 64)
    loss += norm * (0.3 * shaped - 0.02 * config.model.depth) + 0.06 * shaped * no_mlp_skip - 0.09 * parallel * shaped
    return 4.0 + loss


@dataclass(frozen=True)
class Simulated:
    """What many studies of one setting gave."""

    coverage: float
    """Share of intervals that hold the planted effect."""
    alarms: float
    """Share of studies without any effect in which one is called distinct."""
    bases: frozenset[str]


def simulate(setting: Setting, *, repetitions: int, seed: int = 0) -> Simulated:
    plan, rng = plan_of(setting.study), np.random.default_rng(seed)
    truth = {row: planted(config) for row, config in plan.rows.items()}
    flat = dict.fromkeys(truth, 4.0)
    record = record_of(plan, lambda config: 4.0)
    fit = fitter(record)
    expected = on_loss(fit(with_losses(record, truth))).estimate
    inside: list[bool] = []
    alarms, bases = 0, set()
    for _ in range(repetitions):
        own = dict(zip(truth, rng.normal(0, setting.own, len(truth)), strict=True))
        noise = record.cells.row.map(own) + 0.5 * record.cells.seed + rng.normal(0, TRAINING, len(record.cells))
        gone = rng.choice(list(truth), size=setting.lost, replace=False)
        found, none = (on_loss(fit(lose(with_losses(record, own_losses, noise=noise.to_numpy()), gone)))
                       for own_losses in (truth, flat))
        inside += list(((found.low <= expected) & (expected <= found.high))[found.estimate.notna()])
        alarms += bool(none.distinct.any())
        bases |= set(found.basis)
    return Simulated(float(np.mean(inside)), alarms / repetitions, frozenset(bases))


def lose(record: StudyRecord, rows: Sequence[str]) -> StudyRecord:
    """The same study, some rows of which diverged."""
    cells = record.cells
    cells.loc[cells.row.isin(rows), ["state", "val_loss"]] = ["diverged", np.nan]
    return record


def fitter(record: StudyRecord) -> Callable[[StudyRecord], pd.DataFrame]:
    """The effects of studies of one design on loss; its models are made once."""
    design = record.design
    if design.kind in STEPWISE:
        return lambda study: effects_of(fit_all(study, rows_table(study)))
    models = [model_of(rows) for rows in row_sets(factors_of(design), whole=design.kind == "fraction")]
    return lambda study: effects_of([Fit(model, "loss", losses(study, model.rows.rows)) for model in models])


def on_loss(found: pd.DataFrame) -> pd.DataFrame:
    keys = ["term", "change", "where"]
    return found[(found.kind != "simple") & (found.measure == "loss")].set_index(keys).sort_index()


@pytest.fixture(autouse=True)
def _cheap_collections() -> Iterator[None]:
    """statsmodels' multipletests collects garbage each time; there is nothing of ours in what is old."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("name", SETTINGS)
def test_intervals_hold_the_planted_effects_in_a_few_studies(name: str) -> None:
    found = simulate(SETTINGS[name], repetitions=20)
    assert found.bases == {SETTINGS[name].basis}
    assert found.coverage >= 0.85
    assert found.alarms <= 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_coverage_and_false_alarms(name: str) -> None:
    found = simulate(SETTINGS[name], repetitions=200, seed=1)
    assert 0.92 <= found.coverage <= 0.98
    assert found.alarms <= 0.09  # 5 % and 2.6 standard errors of 200 studies


@pytest.mark.slow
def test_seeds_do_not_cover_what_is_a_rows_own() -> None:
    """Why the seeds stand in only where no degree of freedom is left: they know the training noise alone."""
    settings: Mapping[str, Any] = {**SETTINGS["fraction"].study}
    twice_the_noise = TRAINING / 3**0.5 * 2**0.5  # two thirds of the variance of a row's mean
    found = simulate(Setting(settings, twice_the_noise, "seeds"), repetitions=200, seed=1)
    assert 0.84 <= found.coverage <= 0.90
