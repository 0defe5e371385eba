"""Simulated studies with the noise of recorded ones: what share of the intervals of a study holds the truth, with tuned
values, and with tuned values at which seeds collapse; and how many studies of equal blocks decide a claim.

`python -m pytest tests/ablations/analysis/test_study_coverage.py -m slow -s` prints the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from synthetic import card, plan_of, record_of

from ablations.analysis.claims import verdicts
from ablations.analysis.pairs import pairwise
from ablations.analysis.tables import StudyRecord, best_tuned, rows_table, with_collapsed

SEED, BLOCK, CELL = 0.034, 0.0115, 0.0096
"""Standard deviations in nats, of the recorded studies: of what a seed does to every row, to all cells of a row, and to
one cell."""
UNIGRAM, PLATEAU = 5.974, 5.983
"""The loss of token frequencies, and where a run that fails ends; with `CELL` around it."""
BASE = 4.41
RATES = (0.0025, 0.005, 0.01, 0.02, 0.04)
LEFT, RIGHT = "sas", "pre_ln"


@dataclass(frozen=True)
class Row:
    """The mean loss of a row at each rate, above `BASE`, and how often a seed fails there."""

    means: Mapping[float, float]
    fails: Mapping[float, float]

    def best(self) -> float:
        """The rate with the smallest mean among those that never fail."""
        return min((rate for rate in self.means if not self.fails.get(rate)), key=self.means.__getitem__)


SHARP = Row({0.005: 0.1, 0.01: 0.0, 0.02: 0.1}, {})
FLAT = Row(dict.fromkeys(RATES, 0.0), {})
ONE = Row({0.01: 0.0}, {})


def unstable(share: float) -> Row:
    """A rate that is better by 0.03, and at which some share of the seeds fails."""
    return Row({0.005: 0.1, 0.01: 0.0, 0.02: -0.03}, {0.02: share})


@dataclass(frozen=True)
class Setting:
    """A study of two rows to simulate."""

    left: Row
    right: Row
    noise: float = 1.0
    """A factor on what is a cell's own."""


SETTINGS = {
    "one rate": Setting(ONE, ONE), "best of three": Setting(SHARP, SHARP),
    "flat five, sharp three": Setting(FLAT, SHARP),
    "flat five, sharp three, three times the noise": Setting(FLAT, SHARP, noise=3.0),
    "a rate fails with p 0.2": Setting(unstable(0.2), SHARP),
    "a rate fails with p 0.4": Setting(unstable(0.4), SHARP),
}


@cache
def template(blocks: tuple[str, ...], rates: tuple[float, ...], n_seeds: int, claims: bool = False) -> StudyRecord:
    """A study without noise, whose losses are replaced."""
    told = [{"left": left, "is": relation, "right": right} for left, right in combinations(blocks, 2)
            for relation in ("better", "level") if claims]
    plan = plan_of({"compare": {"block": list(blocks)}, "tune": {"optim.learning_rate": list(rates)},
                    "seeds": n_seeds, "claims": told, "baseline": {"block": blocks[-1]}})
    return record_of(plan, lambda config: BASE, corpus=card(UNIGRAM))


def draw(record: StudyRecord, rows: Mapping[str, Row], rng: np.random.Generator, *, noise: float = 1.0) -> StudyRecord:
    """The study with losses drawn anew, without the rates that a row is not trained at."""
    cells = record.cells
    kept = np.array([rate in rows[name].means for name, rate in zip(cells.preset, cells.learning_rate, strict=True)])
    cells = cells[kept].reset_index(drop=True)
    shared = dict(zip(cells.seed.unique(), rng.normal(0, SEED, cells.seed.nunique()), strict=True))
    own = cells.groupby(["preset", "seed"]).ngroup().to_numpy()
    means = [rows[name].means[rate] for name, rate in zip(cells.preset, cells.learning_rate, strict=True)]
    fails = [rows[name].fails.get(rate, 0.0) for name, rate in zip(cells.preset, cells.learning_rate, strict=True)]
    cell = rng.normal(0, CELL * noise, len(cells))
    loss = BASE + np.array(means) + cells.seed.map(shared) + rng.normal(0, BLOCK, own.max() + 1)[own] + cell
    lost = rng.random(len(cells)) < np.array(fails)
    cells["val_loss"] = np.where(lost, PLATEAU + np.abs(cell), loss)
    return with_collapsed(replace(record, cells=cells))


def judged(record: StudyRecord, *, selection: int) -> StudyRecord:
    """The study that judges the rows: with selection seeds, at the tuned values that were the best on those alone."""
    if not selection:
        return record
    chosen = best_tuned(record.cells[record.cells.seed < selection])
    cells = record.cells
    return replace(record, cells=cells[(cells.seed >= selection) & (cells.tuned == cells.row.map(chosen))])


@dataclass(frozen=True)
class Coverage:
    """Of the 95 % intervals of a paired difference."""

    chosen: float
    """Share that hold the difference of the two rows at the tuned values that they were shown at, of seeds that train.
    """
    best: float
    """Share that hold their difference at the best values that never fail."""
    without: float
    """Share of studies without an interval."""


def simulate(
    setting: Setting, *, n_seeds: int, repetitions: int, selection: int = 0, rng_seed: int = 0
) -> Coverage:
    """The intervals of many studies of a setting.

    Args:
        setting: the rows.
        n_seeds: that judge the rows.
        repetitions: studies.
        selection: further seeds on which the tuned values are chosen; 0: on those that judge.
        rng_seed: of the draws.
    """
    rates = tuple(sorted({*setting.left.means, *setting.right.means}))
    record, rng = template((LEFT, RIGHT), rates, n_seeds + selection), np.random.default_rng(rng_seed)
    rows = {LEFT: setting.left, RIGHT: setting.right}
    best = rows[LEFT].means[rows[LEFT].best()] - rows[RIGHT].means[rows[RIGHT].best()]
    held: list[tuple[bool, bool]] = []
    for _ in range(repetitions):
        drawn = draw(record, rows, rng, noise=setting.noise)
        table = rows_table(judged(drawn, selection=selection)).set_index("preset")
        row = table.loc[LEFT] if {LEFT, RIGHT} <= set(table.index) else None
        if row is None or np.isnan(row.difference_low):
            continue
        chosen = rows[LEFT].means[row.learning_rate] - rows[RIGHT].means[table.loc[RIGHT].learning_rate]
        held.append((row.difference_low <= chosen <= row.difference_high,
                     row.difference_low <= best <= row.difference_high))
    shares = np.mean(held, axis=0)
    return Coverage(float(shares[0]), float(shares[1]), 1 - len(held) / repetitions)


def errors(row: Row, *, n_seeds: int, repetitions: int, rng_seed: int = 0) -> float:
    """Share of studies of five equal blocks in which any claim is decided wrongly: a better one, or one not level."""
    blocks = ("sas", "sas_p", "parallel", "sas_p_no_norm", "pre_ln")
    record, rng = template(blocks, tuple(sorted(row.means)), n_seeds, claims=True), np.random.default_rng(rng_seed)
    wrong = 0
    for _ in range(repetitions):
        drawn = draw(record, dict.fromkeys(blocks, row), rng)
        found = verdicts(drawn, rows_table(drawn))
        decided = found.verdict != "inconclusive"
        wrong += bool((decided & ((found.relation != "level") | (found.verdict == "does not hold"))).any())
    return wrong / repetitions


def test_the_intervals_of_a_study_are_one() -> None:
    """Ranking, pairs and claims tell the same interval of the same two rows, after collapsed seeds are left out."""
    rng = np.random.default_rng(3)
    drawn = draw(template((LEFT, RIGHT), (0.005, 0.01, 0.02), 5, claims=True),
                 {LEFT: unstable(0.4), RIGHT: SHARP}, rng)
    rows = rows_table(drawn)
    own = rows[rows.preset == LEFT].iloc[0]
    pair, claim = pairwise(drawn, rows).iloc[0], verdicts(drawn, rows).iloc[0]
    interval = (own.difference, own.difference_low, own.difference_high)
    assert (claim.left, claim.right) == (pair.left, pair.right) == (LEFT, RIGHT)
    assert interval == pytest.approx((pair.loss_difference, pair.loss_low, pair.loss_high))
    assert interval == pytest.approx((claim.estimate, claim.low, claim.high))


@pytest.mark.slow
@pytest.mark.parametrize("n_seeds", [3, 5])
@pytest.mark.parametrize("name", SETTINGS)
def test_intervals_hold_the_difference(name: str, n_seeds: int) -> None:
    """The best of several values, chosen on the seeds that judge it, costs up to 3 %.

    Where seeds fail at the better value, an interval holds the difference at the values that it names. It need not hold
    that at the best value that always trains: with few seeds a value that does not always train is shown by luck.
    """
    found = simulate(SETTINGS[name], n_seeds=n_seeds, repetitions=1000)
    print(f"\n| {name} | {n_seeds} | {found.chosen:.3f} | {found.best:.3f} | {found.without:.3f} |")
    assert (0.89 if "three times" in name else 0.915) <= found.chosen <= 0.98
    assert found.without == 0
    assert found.best == found.chosen or "fails" in name


@pytest.mark.slow
@pytest.mark.parametrize("n_seeds", [3, 5])
@pytest.mark.parametrize(("name", "row"), [("one rate", ONE), ("best of three", SHARP), ("flat five", FLAT),
                                           ("a rate fails with p 0.2", unstable(0.2)),
                                           ("a rate fails with p 0.4", unstable(0.4))])
def test_equal_blocks_are_told_apart_in_few_studies(name: str, row: Row, n_seeds: int) -> None:
    share = errors(row, n_seeds=n_seeds, repetitions=300)
    print(f"\n| five equal blocks, {name} | {n_seeds} | {share:.3f} |")
    assert share <= 0.05 + 2.6 * (0.05 * 0.95 / 300) ** 0.5
