"""Simulated studies with the noise of recorded ones: what share of each interval that is reported holds the truth, with
tuned values that other seeds choose and at which seeds are lost; and how often a verdict is wrong.

What an interval of a loss is about: the mean loss of the row at the tuned value at which it is shown, over the seeds
that train there. It does not say that this value is the best one, nor how often a seed is lost there.

`TIMES=4 python -m pytest tests/ablations/analysis/test_study_coverage.py -m slow -s` prints the tables of
`docs/statistics.md`; without TIMES from a quarter of the studies, in a minute and a half.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
from simulated import BASE, Simulation, Truth, simulation
from synthetic import plan_of, record_of

from ablations.analysis import intervals
from ablations.analysis.budgets import MORE_TOKENS, earlier
from ablations.analysis.claims import UNKNOWN, verdicts
from ablations.analysis.effects import effects
from ablations.analysis.margins import MARGIN
from ablations.analysis.pairs import pairwise
from ablations.analysis.quantities import QUANTITIES
from ablations.analysis.tables import StudyRecord, rows_table
from ablations.design.stages import Screen, Select
from ablations.timing.rounds import spread
from lit_simplified.config.presets import PRESETS

TIMES = int(os.environ.get("TIMES", "1"))
RATES = (0.0025, 0.005, 0.01, 0.02, 0.04)
MILD = (0.1, 0.01, 0.0, 0.01, 0.1)
LOW, HIGH = 0.92, 0.98
"""What the coverage of an interval that claims 95 % may be."""
BLOCKS = {"compare": {"block": ["pre_ln", "sas", "sas_p", "parallel"]}}


@dataclass(frozen=True)
class Case:
    """Pairs of rows to simulate."""

    lost: float
    """The probability that a seed is lost: at a row's best rate and above, or at every rate."""
    n_seeds: int
    select: Select
    noise: float = 1.0
    everywhere: bool = False

    @property
    def words(self) -> str:
        """As the head of a line of the table."""
        choosing = f"{self.select.seeds} for {self.select.share:g} of the steps" if self.select.seeds else "the same"
        return (f"| {self.lost:.0%}{' at every rate' * self.everywhere} | x {self.noise:.0f} | {self.n_seeds} | "
                f"{choosing} |")

    @property
    def rows(self) -> tuple[Truth, Truth]:
        """One that is as good at every rate but one, which is better if it trains, and one with a sharp best rate."""
        lost, always = self.lost, self.lost if self.everywhere else 0.0
        return (Truth((0.0, 0.0, 0.0, -0.03 if lost else 0.0, 0.0), (always, always, always, lost, lost)),
                Truth((0.2, 0.1, 0.0, 0.1, 0.2), (always, always, lost, lost, lost)))


ONE, TWO = Select(1), Select(2, 0.25)
CASES = [Case(lost, n_seeds, select, noise, everywhere=everywhere)
         for everywhere, lost, n_seeds, (select, noise) in product((False, True), (0.0, 0.2, 0.4), (3, 5),
                                                                   ((ONE, 1.0), (ONE, 3.0), (TWO, 1.0)))
         if not everywhere or (lost and noise == 1)]


@cache
def pairs_of(count: int, *, n_seeds: int, select: Select) -> Simulation:
    """Pairs of rows that have nothing to do with each other: many studies of two rows at the price of one."""
    levels = [round(0.001 * place, 4) for place in range(1, 2 * count + 1)]
    return simulation({"compare": {"optim.weight_decay": levels}}, rates=RATES, seeds=n_seeds, select=select)


@dataclass(frozen=True)
class Held:
    """Of pairs of rows that have an interval: whether theirs hold the truth."""

    mean: float
    """That of the left row's mean, at the value at which it is shown."""
    bits: float
    """The same in bits per byte."""
    difference: float
    """That of the difference, at the values at which they are shown."""
    best: float
    """The same interval, of the difference at the best values that never fail: which it does not claim to hold."""
    error: float
    """Of the estimate of the difference, in nats."""


def held(record: StudyRecord, truths: Sequence[Truth]) -> Iterator[Held]:
    """What became of every pair."""
    rows = rows_table(record)
    lines = {row.row: row for row in rows.itertuples()}
    ids = list(record.design.by_id)
    best = [min((mean for mean, lost in zip(truth.means, truth.fails, strict=True) if not lost), default=math.nan)
            for truth in truths]
    for left, right in zip(ids[::2], ids[1::2], strict=True):
        if not {left, right} <= lines.keys():
            continue
        found = QUANTITIES["val_loss"].compare(record, rows, left, right).interval
        means = [truth.means[RATES.index(lines[row].learning_rate)]
                 for truth, row in zip(truths, (left, right), strict=True)]
        own, loss, gap = lines[left], BASE + means[0], means[0] - means[1]
        bits = loss * record.bits_per_nat
        if not math.isnan(found.low):
            yield Held(own.val_loss_low <= loss <= own.val_loss_high,
                       own.bits_per_byte_low <= bits <= own.bits_per_byte_high, found.contains(gap),
                       found.contains(best[0] - best[1]), found.estimate - gap)


def covered(case: Case, *, draws: int = 12 * TIMES, count: int = 40, rng_seed: int = 0) -> pd.DataFrame:
    """A line for every pair that has an interval, of `draws` times `count`."""
    study, rng = pairs_of(count, n_seeds=case.n_seeds, select=case.select), np.random.default_rng(rng_seed)
    return pd.DataFrame([one for _ in range(draws)
                         for one in held(study.draw(case.rows * count, rng, noise=case.noise, group=2), case.rows)])


def line_of(case: Case, found: pd.DataFrame, *, of: int = 12 * 40 * TIMES) -> str:
    """As a line of the table."""
    mean, _, difference, best, error = found.mean()
    best = "" if case.everywhere else f"{best:.3f}"
    return f"{case.words} {mean:.3f} | {difference:.3f} | {best} | {error:+.4f} | {1 - len(found) / of:.2f} |"


def test_the_intervals_of_a_study_are_one() -> None:
    """Ranking, pairs and claims tell the same interval of the same two rows, after lost seeds are left out."""
    study = simulation({**BLOCKS, "baseline": {"block": "pre_ln"}}, rates=RATES, seeds=5, select=Select(1),
                       claims=[(1, "level", 0)])
    truth = Case(0.4, 5, Select(1), everywhere=True).rows[0]
    rows = rows_table(record := study.draw([truth] * 4, np.random.default_rng(3)))
    own, claim = rows[rows.preset == "sas"].iloc[0], verdicts(record, rows).iloc[0]
    found = pairwise(record, rows).set_index(["left", "right"]).loc["pre_ln", "sas"]
    interval = (own.difference, own.difference_low, own.difference_high)
    assert (claim.left, claim.right) == ("sas", "pre_ln")
    assert own.n_paired < 5
    assert interval == pytest.approx((-found.loss_difference, -found.loss_high, -found.loss_low))
    assert interval == pytest.approx((claim.estimate, claim.low, claim.high))


@pytest.mark.slow
def test_every_interval_of_a_loss_holds_the_truth() -> None:
    """In every case, closer over all of them together, and with no error in one direction."""
    print("\n| seeds lost | noise | judging seeds | choosing seeds | mean | difference | best | error | without |")
    found = [covered(case, rng_seed=place) for place, case in enumerate(CASES)]
    for case, own in zip(CASES, found, strict=True):
        print(line_of(case, own))
    shares = pd.DataFrame([own.mean() for own in found])[["mean", "bits", "difference"]]
    assert shares.min().min() >= LOW
    assert shares.max().max() <= HIGH
    together = pd.concat(found)
    print("all of them:", together[[*shares]].mean().round(4).to_dict(), len(together))
    assert (abs(together[[*shares]].mean() - 0.95) < 3 * math.sqrt(0.05 * 0.95 / len(together))).all()
    assert max(abs(own.error.mean()) / own.error.sem() for own in found) < 3.5


@pytest.mark.slow
@pytest.mark.parametrize("n_seeds", [3, 5])
def test_seeds_that_judge_and_choose_flatter(n_seeds: int) -> None:
    """Why others choose: the best of several noisy values is better than it will be again."""
    found = covered(case := Case(0.0, n_seeds, Select(0), noise=3.0))
    print(f"\n{line_of(case, found)}")
    assert found.error.mean() < -5 * found.error.sem()


FACTORS = {"norm": ("rms", "none"), "attention": ("softmax", "shaped"), "mlp_skip": ("true", "false")}
EFFECT_RATES = (0.005, 0.01, 0.02)


@dataclass(frozen=True)
class Effects:
    """Studies of switches to simulate."""

    factors: tuple[str, ...]
    lost: float
    n_seeds: int
    screen: Screen | None = None

    def drawn(self, repetitions: int) -> pd.DataFrame:
        """A line for every effect on loss of every study."""
        compare = {f"model.block.{name}": list(FACTORS[name]) for name in self.factors}
        study = simulation({"compare": compare}, rates=EFFECT_RATES, seeds=self.n_seeds, select=ONE, screen=self.screen)
        signs = pd.DataFrame({row.id: {name: 1 if row.levels[f"model.block.{name}"] == FACTORS[name][1] else -1
                                       for name in self.factors} for row in study.plan.design.rows}).T
        better, means = 0.03 * bool(self.lost), 0.1 * signs.sum(axis=1) - 0.03 * signs.norm * signs.attention
        truths = {row: Truth((mean + 0.1, mean, mean - better), (0.0, 0.0, self.lost)) for row, mean in means.items()}
        rng = np.random.default_rng(2)
        return pd.concat([effects_held(study.draw(list(truths.values()), rng).whole, truths, signs)
                          for _ in range(repetitions)])


def effects_held(record: StudyRecord, truths: Mapping[str, Truth], signs: pd.DataFrame) -> pd.DataFrame:
    """Whether the interval of each effect of a study holds the truth.

    Where it comes from the seeds that is what the mean losses of these rows make of it, each at the value at which it
    is shown. Where it comes from the rows, what a row has of its own is noise, and so is at which value it is shown.

    Args:
        record: the study.
        truths: by row.
        signs: by row and factor, -1 at the reference and else 1.
    """
    rows = rows_table(record)
    found = effects(record, rows)
    found = found[(found.measure == "loss") & (found.kind != "simple")]
    rates = dict(zip(rows.row, rows.learning_rate, strict=True)) if "seeds" in set(found.basis) else {}
    means = pd.Series({row: truth.means[EFFECT_RATES.index(rates.get(row, 0.01))] for row, truth in truths.items()})
    parts = [term.split(" x ") for term in found.term]
    truth = np.array([(signs[own].prod(axis=1) * means).sum() * 2 ** len(own) / len(signs) for own in parts])
    return found.assign(held=(found.low <= truth) & (truth <= found.high))[["kind", "basis", "held"]]


@pytest.mark.slow
@pytest.mark.parametrize("setting", [
    Effects(("norm", "attention", "mlp_skip"), 0.4, 3), Effects(("norm", "attention"), 0.4, 5),
    Effects(("norm", "attention", "mlp_skip"), 0.4, 3, Screen(0.1, 1)),
])
def test_effects_hold_the_truth(setting: Effects) -> None:
    found = setting.drawn(130 * TIMES)
    held = found.groupby("kind").held.mean()
    seeds = "1, screening" if setting.screen else setting.n_seeds
    print(f"\n| {len(setting.factors)} | {setting.lost:.0%} | {seeds} | {found.basis.iloc[0]} | {held['main']:.3f} | "
          f"{held['interaction']:.3f} |")
    assert LOW <= found.held.mean() <= HIGH


def wrong(lost: float, *, n_seeds: int, select: Select, repetitions: int) -> tuple[float, float]:
    """Share of studies in which any two of three equal rows are told apart, and in which any of them is said to be
    level, or not level, with a fourth one that is exactly as far away as the margin."""
    claims = [(left, "better", right) for left, right in combinations(range(3), 2)]
    study = simulation(BLOCKS, rates=EFFECT_RATES, seeds=n_seeds, select=select,
                       claims=[*claims, *((row, "level", 3) for row in range(3))])
    equal = Truth((0.1, 0.0, -0.03 * bool(lost)), (0.0, 0.0, lost))
    far = replace(equal, means=[mean + MARGIN for mean in equal.means])
    rng, found = np.random.default_rng(5), []
    for _ in range(repetitions):
        record = study.draw([equal] * 3 + [far], rng)
        told = verdicts(record, rows_table(record)).verdict
        found.append(((told[:3] != UNKNOWN).any(), (told[3:] != UNKNOWN).any()))
    apart, level = np.mean(found, axis=0)
    return float(apart), float(level)


@pytest.mark.slow
@pytest.mark.parametrize(("lost", "n_seeds", "select"), [(0.0, 5, ONE), (0.4, 3, ONE), (0.4, 3, Select(0))])
def test_few_studies_have_a_wrong_verdict(lost: float, n_seeds: int, select: Select) -> None:
    repetitions = 120 * TIMES
    apart, level = wrong(lost, n_seeds=n_seeds, select=select, repetitions=repetitions)
    print(f"\n| {lost:.0%} | {n_seeds} | {select.seeds or 'the same'} | {apart:.3f} | {level:.3f} |")
    assert max(apart, level) <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / repetitions)


ROUNDS, OF_ROUND = 15, 0.03
"""Of a speed pass: how many, and the standard deviation of the logarithm of a round's ratio."""


def speeds_held(stays: float, *, repetitions: int = 60 * TIMES) -> tuple[float, float, float]:
    """Coverage of the intervals of a row's speed and of a pair's, over the speed passes that are not withheld, and the
    share of those that are.

    Args:
        stays: standard deviation of what stays for as long as a row is measured, in that of a round.
        repetitions: speed passes.
    """
    names = list(PRESETS)
    study = record_of(plan_of({"compare": {"block": names}, "baseline": {"block": "pre_ln"}}, seeds=1),
                      lambda config: BASE)
    rng, held, withheld = np.random.default_rng(7), [], []
    for _ in range(repetitions):
        noise = rng.normal(0, OF_ROUND * stays, len(names))[:, None] + rng.normal(0, OF_ROUND, (len(names), ROUNDS))
        speed = {row.id: {**spread(np.exp(own))._asdict(), "ratio": float(np.exp(np.median(own)))}
                 for row, own in zip(study.design.rows, noise, strict=True)}
        record = replace(study, attrs={**study.attrs, "speed": speed})
        rows = rows_table(record)
        withheld.append(bool(rows.speed_withheld.iloc[0]))
        pairs = pairwise(record, rows).dropna(subset="speed_low")
        others = rows[rows.preset != "pre_ln"]
        if not withheld[-1]:
            held.append((((others.speed_ratio_low <= 1) & (others.speed_ratio_high >= 1)).mean(),
                         ((pairs.speed_low <= 1) & (pairs.speed_high >= 1)).mean()))
    return (*np.mean(held, axis=0), float(np.mean(withheld)))


@pytest.mark.slow
@pytest.mark.parametrize(("stays", "lowest"), [(0.0, 0.98), (0.5, LOW), (1.0, 0.7)])
def test_intervals_of_speed_err_on_the_safe_side(stays: float, lowest: float) -> None:
    row, pair, withheld = speeds_held(stays)
    print(f"\n| {stays:g} | {row:.3f} | {pair:.3f} | {withheld:.2f} |")
    assert min(row, pair) >= lowest


@dataclass(frozen=True)
class Drift:
    """The true difference of two rows, which drifts by as much with every doubling of the tokens."""

    now: float
    per_doubling: float

    def at(self, times: float) -> float:
        """The difference at so many times the tokens."""
        return self.now + self.per_doubling * math.log2(times)

    def rows(self, share: float) -> tuple[Truth, Truth]:
        """The two of them."""
        left = Truth([mean + self.now for mean in MILD], (0.0,) * 5, early=self.at(share) - self.now)
        return left, Truth(MILD, (0.0,) * 5)


LATER = (-0.03, -0.01, 0.01, 0.03, 0.06)
"""Differences at `MORE_TOKENS` times the tokens, of rows of which the right one is better at the whole budget."""


def drifting(by: float) -> list[tuple[bool, Drift]]:
    """Rows of which the better one loses its lead, and rows that are level (then True) and grow apart."""
    ordered = [Drift(later + by * math.log2(MORE_TOKENS), -by) for later in LATER]
    return [*((False, one) for one in ordered if one.now > 0), (True, Drift(0.0, by)), (True, Drift(0.01, by))]


def paced(by: float, *, select: Select, n_seeds: int = 5, draws: int = 10 * TIMES, count: int = 40) -> pd.DataFrame:
    """A line for every verdict that the judging seeds would give: whether it is that rows are level, whether it is
    withheld, and whether it is wrong at `MORE_TOKENS` times the tokens."""
    kinds = drifting(by)
    kinds = [kinds[place % len(kinds)] for place in range(count)]
    truths = [truth for _, drift in kinds for truth in drift.rows(select.share)]
    study, rng, found = pairs_of(count, n_seeds=n_seeds, select=select), np.random.default_rng(11), []
    for _ in range(draws):
        record = study.draw(truths, rng, group=2)
        rows, ids = rows_table(record), list(record.design.by_id)
        for left, right, (level, drift) in zip(ids[::2], ids[1::2], kinds, strict=True):
            now = QUANTITIES["val_loss"].compare(record, rows, left, right).interval
            before, later = earlier(record, left, right), drift.at(MORE_TOKENS)
            assert before is not None
            if level:
                decided = intervals.Tested.of(now, degrees=n_seeds - 1).p_within(-MARGIN, MARGIN) < intervals.ALPHA
                found.append((level, decided, before.turns(now.estimate, margin=(-MARGIN, MARGIN)),
                              abs(later) > MARGIN))
            else:
                found.append((level, not now.contains(0.0), before.turns(now.estimate), now.estimate * later < 0))
    table = pd.DataFrame(found, columns=["level", "decided", "withheld", "wrong"])
    return table[table.decided]


@pytest.mark.slow
@pytest.mark.parametrize("select", [Select(1, 0.25), TWO])
@pytest.mark.parametrize("by", [0.0, 0.01, 0.03])
def test_verdicts_that_more_tokens_turn_are_withheld(by: float, select: Select) -> None:
    found = paced(by, select=select)
    told = {key: own.withheld for key, own in found.groupby(["level", "wrong"])}
    text = [f"{told[key].mean():.2f} of {len(told[key])}" if key in told else ""
            for key in ((False, True), (False, False), (True, True), (True, False))]
    print(f"\n| {by:g} | {select.seeds} | {' | '.join(text)} |")
    assert told[False, False].mean() < 0.25
    if by == 0.03:
        assert min(told[level, True].mean() for level in (False, True)) > 0.6
