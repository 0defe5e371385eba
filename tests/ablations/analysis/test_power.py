"""What seeds can show, and the noise floor that it follows from."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower
from synthetic import plan_of, record_of

from ablations.analysis.judge import noise_floor
from ablations.analysis.power import (
    difference_power,
    is_settled,
    level_power,
    outside_power,
    seeds_for_difference,
    seeds_for_level,
    smallest_difference,
    smallest_margin,
)
from ablations.analysis.tables import StudyRecord, rows_table
from lit_simplified.config import RunConfig, preset_of

NAMES = ("pre_ln", "parallel", "sas", "sas_p")


@pytest.mark.parametrize("seeds", [2, 3, 8, 30, 1000])
def test_the_smallest_difference_is_that_of_an_independent_reference(seeds: int) -> None:
    expected = 0.0163 * TTestPower().solve_power(nobs=seeds, alpha=0.05, power=0.8)
    assert smallest_difference(sd=0.0163, seeds=seeds) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("seeds", "difference", "margin"), [(2, 0.0, 5.0), (3, 0.0, 1.5), (5, 0.3, 1.2),
                                                             (5, -0.3, 1.2), (8, 1.5, 0.4)])
def test_the_power_of_level_is_what_a_simulation_finds(seeds: int, difference: float, margin: float) -> None:
    runs = 40_000
    values = difference + np.random.default_rng(seeds).standard_normal((runs, seeds))
    mean, error = values.mean(1), values.std(1, ddof=1) / math.sqrt(seeds)
    one, two = (stats.t.ppf(level, seeds - 1) * error for level in (0.95, 0.975))
    inside, outside = (np.abs(mean) + one < margin).mean(), (np.abs(mean) - two > margin).mean()
    near = 4 * 0.5 / math.sqrt(runs)
    assert level_power(difference, margin=margin, sd=1, seeds=seeds) == pytest.approx(inside, abs=near)
    assert outside_power(difference, margin=margin, sd=1, seeds=seeds) == pytest.approx(outside, abs=near) or \
        abs(difference) < margin


@pytest.mark.parametrize("alpha", [0.05, 0.005])
def test_what_is_settled_is_what_the_tests_reject(alpha: float) -> None:
    values = np.random.default_rng(1).normal(0.4, 1, (40, 6))
    for own in values:
        given = {"sd": own.std(ddof=1), "seeds": 6, "alpha": alpha}
        assert is_settled(own.mean(), **given) == (stats.ttest_1samp(own, 0).pvalue < alpha)
        two = [stats.ttest_1samp(own, side, alternative=word).pvalue
               for side, word in ((1.5, "less"), (-1.5, "greater"))]
        assert abs(own.mean()) > 1.5 or is_settled(own.mean(), margin=1.5, **given) == (max(two) < alpha)
        beyond = stats.ttest_1samp(own, math.copysign(0.1, own.mean())).pvalue < alpha
        assert abs(own.mean()) < 0.1 or is_settled(own.mean(), margin=0.1, **given) == beyond
    assert not is_settled(9.0, sd=math.nan, seeds=1)


def test_seeds_needed_are_the_fewest_with_the_power() -> None:
    needed = seeds_for_difference(0.01, sd=0.0163)
    assert difference_power(0.01, sd=0.0163, seeds=needed) >= 0.8 > difference_power(0.01, sd=0.0163, seeds=needed - 1)
    needed = seeds_for_level(0.005, margin=0.023, sd=0.0163)
    powers = [level_power(0.005, margin=0.023, sd=0.0163, seeds=count) for count in (needed - 1, needed)]
    assert powers[0] < 0.8 <= powers[1]
    assert seeds_for_difference(2.0, sd=0.0163) == seeds_for_difference(2.0, sd=0.0) == 2
    assert seeds_for_difference(0.0, sd=0.0163) is None
    assert seeds_for_difference(1e-4, sd=0.0163) is None
    assert seeds_for_level(0.023, margin=0.023, sd=0.0163) is None
    assert seeds_for_level(0.05, margin=0.023, sd=0.0163) < 10  # enough to show that they are not level
    assert math.isnan(smallest_difference(sd=1.0, seeds=1))
    assert smallest_margin(sd=0.0163, seeds=8) == pytest.approx(0.0187, abs=1e-4)


def noisy(sd: float, *, seeds: list[int] | int = 60, names: tuple[str, ...] = NAMES) -> StudyRecord:
    """Row and seed give each run far more than its own noise does."""
    rng = np.random.default_rng(0)

    def loss(config: RunConfig) -> float:
        return 4 + NAMES.index(preset_of(config.model.block)) + math.sin(config.seed) + rng.normal(0, sd)

    return record_of(plan_of({"compare": {"block": list(names)}, "seeds": seeds}), loss)


def test_the_noise_floor_is_that_around_row_and_seed() -> None:
    record = noisy(0.0115)
    found = noise_floor(record, rows_table(record))
    assert (found.degrees, found.rows, found.runs) == (3 * 59, 4, 240)
    assert found.low < 0.0115 < found.high
    assert found.sd == pytest.approx(0.0115, rel=0.15)
    assert found.pair_sd == pytest.approx(0.0163, rel=0.15)
    table = record.cells.pivot(index="row", columns="seed", values="val_loss").to_numpy()
    apart = table - table.mean(0) - table.mean(1)[:, None] + table.mean()
    assert found.sd == pytest.approx(math.sqrt((apart**2).sum() / found.degrees))


def test_rows_with_other_seeds_and_lost_runs_leave_the_noise_floor_what_it_is() -> None:
    record = noisy(0.0115)
    cells = record.cells.copy()
    few = (cells.preset == "sas") & (cells.seed > 30)
    lost = (cells.preset == "pre_ln") & (cells.seed < 10)
    cells.loc[lost, "state"], cells.loc[lost, "val_loss"] = "diverged", np.nan
    alone = (cells.preset == "sas_p") & (cells.seed > 0)
    record = StudyRecord(record.name, record.design, record.attrs, cells[~few & ~alone], {}, [])
    found = noise_floor(record, rows_table(record))
    assert (found.rows, found.runs) == (3, 50 + 60 + 31)
    assert found.degrees == 141 - 3 - 59
    assert found.low < 0.0115 < found.high


def test_without_two_rows_and_seeds_in_common_there_is_no_noise_floor() -> None:
    for record in (noisy(0.01, seeds=[0]), noisy(0.01, seeds=5, names=("pre_ln",))):
        found = noise_floor(record, rows_table(record))
        assert math.isnan(found.sd)
        assert found.degrees == 0
