"""Speeds of rows: the noise of the measurement is in their intervals, and forbids what it does not allow to tell."""

from __future__ import annotations

import math
import random
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from synthetic import plan_of, record_of, stored

from ablations.analysis.claims import verdicts
from ablations.analysis.findings import of_record
from ablations.analysis.intervals import NOTHING, Interval, with_noise
from ablations.analysis.tables import StudyRecord, rows_table
from ablations.report.columns import speeds
from ablations.report.html.page import content
from ablations.report.summary import summarise
from ablations.report.tables import rows_as_text
from ablations.timing.rounds import spread

RECORDED = {"pre_ln": (1.016, 0.895, 1.155), "parallel": (1.037, 1.029, 1.138), "sas_p": (0.5, 0.48, 0.52)}
"""Of a study on a busy machine: the baseline against itself, and what then held."""
OFF = {**RECORDED, "pre_ln": (0.84, 0.82, 0.86)}
CLAIMS = [{"left": "parallel", "is": "faster", "right": "pre_ln"}, {"left": "sas_p", "is": "slower", "right": "pre_ln"}]


def study(speed: dict[str, Any]) -> StudyRecord:
    plan = plan_of({"compare": {"block": list(RECORDED)}, "seeds": 2, "claims": CLAIMS})
    return record_of(plan, lambda config: 4.0 + 0.1 * config.seed, speed=speed)


def test_the_noise_of_the_baseline_is_in_every_interval() -> None:
    record = study(RECORDED)
    rows = rows_table(record).set_index("preset")
    assert tuple(rows.loc["pre_ln", ["speed_ratio", "speed_ratio_low", "speed_ratio_high"]]) == RECORDED["pre_ln"]
    low, high = rows.loc["parallel", ["speed_ratio_low", "speed_ratio_high"]]
    assert low < 0.9 < 1.19 < high
    faster, slower = verdicts(record, rows_table(record)).itertuples()
    assert (faster.verdict, slower.verdict) == ("inconclusive", "holds")


def test_the_reach_of_the_noise_is_its_far_end_added_in_squares() -> None:
    found = with_noise(Interval(1.2, 1.1, 1.3), Interval(0.99, 0.95, 1.02))
    assert math.log(1.2 / found.low) == pytest.approx(math.hypot(math.log(1.2 / 1.1), math.log(1 / 0.95)))
    assert math.log(found.high / 1.2) == pytest.approx(math.hypot(math.log(1.3 / 1.2), math.log(1 / 0.95)))
    assert with_noise(Interval(1.2, 1.1, 1.3), NOTHING) == (1.2, 1.1, 1.3)


def test_noise_that_excludes_one_withholds_speeds() -> None:
    record = study(OFF)
    rows = rows_table(record)
    assert rows.speed_ratio.notna().all()  # the record stays, with the reason beside it
    assert rows.speed_withheld.str.contains("excludes 1: run `speed --redo` when nothing else runs").all()
    for verdict in verdicts(record, rows).itertuples():
        assert (verdict.verdict, math.isnan(verdict.estimate)) == ("inconclusive", True)
        assert "0.840 [0.820, 0.860] times as fast as itself" in verdict.why
    assert set(rows_as_text(rows).speed) == {"withheld"}
    assert speeds(record, rows)[0].empty
    found = of_record(record)
    assert found.pairs.speed_ratio.isna().all()
    assert found.effects[found.effects.measure == "speed"].empty
    assert set(found.left_out.reason) == {"the speed pass was too noisy"}


def test_summary_and_report_say_why_speeds_are_withheld(tmp_path: Path) -> None:
    plan = plan_of({"compare": {"block": list(RECORDED)}, "seeds": 1})
    kept = stored(tmp_path, plan, lambda config: 4.0, speed=OFF)
    printed = StringIO()
    _, written = summarise(kept, folder=tmp_path / "out", console=Console(file=printed, width=300))
    assert "loss_by_speed.png" not in {path.name for path in written}
    page = content(kept)
    tiles = [note for title, value, note in page["highlights"] if (title, value) == ("training speed", "withheld")]
    for text in (printed.getvalue(), (tmp_path / "out" / "summary.md").read_text(), *tiles, *page["speed_withheld"]):
        assert "run `speed --redo`" in text
    assert len(tiles) == len(page["speed_withheld"]) == 1


def test_each_size_has_its_own_noise() -> None:
    plan = plan_of({"compare": {"block": ["pre_ln", "sas"], "model.depth": [2, 4]}, "seeds": 1})
    noise = {2: (1.0, 0.99, 1.01), 4: (1.1, 1.05, 1.2)}
    speed = {row.label: noise[int(row.levels["model.depth"])] if row.preset == "pre_ln" else (1.3, 1.29, 1.31)
             for row in plan.design.rows}
    rows = rows_table(record_of(plan, lambda config: 4.0, speed=speed))
    assert (rows.speed_withheld != "").to_list() == (rows.depth == 4).to_list()


@pytest.mark.slow
@pytest.mark.parametrize(("rounds", "stays", "least"), [
    (9, 0.0, 0.97), (15, 0.0, 0.97), (9, 0.5, 0.95), (15, 0.5, 0.94),
])
def test_the_interval_with_noise_covers_the_ratio(rounds: int, stays: float, least: float) -> None:
    """Of measurements that are not withheld.

    Args:
        rounds: of each measurement.
        stays: standard deviation of what stays for a whole measurement, in those of a round.
        least: coverage.
    """
    draw, hits, own = random.Random(0), [], []

    def measure() -> Interval:
        offset = draw.gauss(0, 0.03 * stays)
        return Interval(*spread([math.exp(offset + draw.gauss(0, 0.03)) for _ in range(rounds)]))

    for _ in range(2000):
        noise, ratio = measure(), measure()
        if noise.contains(1):
            hits.append(with_noise(ratio, noise).contains(1))
            own.append(ratio.contains(1))
    coverage, alone = sum(hits) / len(hits), sum(own) / len(own)
    print(f"{rounds} rounds, what stays {stays}: {coverage:.3f}; a row's own interval {alone:.3f}")
    assert coverage >= least
    assert stays == 0 or alone < 0.9
