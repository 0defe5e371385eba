"""Paired rounds: who is timed when, what a round gives, and an interval that assumes nothing."""

from __future__ import annotations

import random
import time

import pytest
import torch

from ablations.timing.peak import SIDES, matmul_for
from ablations.timing.rounds import FEWEST, Mode, Rounds, interval, paired_rounds, spread

TURNS: list[tuple[str, int, str]] = []


class FakeSide:
    """Takes a fixed time per step."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.seconds = name, seconds

    def time(self, steps: int, mode: Mode = "train") -> float:
        TURNS.append((self.name, steps, mode))
        return self.seconds * steps


@pytest.fixture
def sides() -> tuple[FakeSide, FakeSide]:
    TURNS.clear()
    return FakeSide("P", 3.0), FakeSide("X", 2.0)


def test_sides_take_turns_in_every_mode(sides: tuple[FakeSide, FakeSide]) -> None:
    rounds: list[int] = []
    found = paired_rounds(
        *sides, rounds=2, bursts={"train": 5, "inference": 7}, on_round=lambda: rounds.append(len(TURNS))
    )
    one = [(name, steps, mode) for mode, steps in (("train", 5), ("inference", 7)) for name in "PXXP"]
    assert 2 * one == TURNS
    assert rounds == [8, 16]
    assert found.count == 2
    for mode in ("train", "inference"):
        assert (found.baseline[mode], found.other[mode], found.ratios(mode)) == ([3.0, 3.0], [2.0, 2.0], [1.5, 1.5])
    assert found.peak == []


def test_the_matrix_product_slows_neither_side(sides: tuple[FakeSide, FakeSide]) -> None:
    """Whoever comes first after it pays for the empty caches: a step that does not count."""
    class Emptied(FakeSide):
        def time(self, steps: int, mode: Mode = "train") -> float:
            after = bool(TURNS) and TURNS[-1][0] == "M"
            return super().time(steps, mode) + after

    def peak() -> float:
        TURNS.append(("M", 0, ""))
        return 100.0

    emptied = Emptied("P", 3.0), Emptied("X", 2.0)
    bursts: dict[Mode, int] = {"train": 5, "inference": 7}
    found = paired_rounds(*emptied, rounds=3, bursts=bursts, peak=peak)
    assert "".join(name for name, *_ in TURNS) == 3 * "MXPPXXPPXXP"
    assert [steps for name, steps, _ in TURNS[:4] if name != "M"] == [1, 1, 5]
    assert (found.baseline["train"], found.other["train"]) == ([3.0] * 3, [2.0] * 3)
    assert found.peak == [100.0] * 3
    assert found.utilization(50) == pytest.approx([50 / 2 / 100] * 3)
    assert found.utilization(60, of="baseline") == pytest.approx([60 / 3 / 100] * 3)


def test_no_round_is_begun_after_the_limit_but_the_fewest(sides: tuple[FakeSide, FakeSide]) -> None:
    assert paired_rounds(*sides, rounds=9, bursts={"train": 1}, limit=0).count == FEWEST
    assert paired_rounds(*sides, rounds=1, bursts={"train": 1}, limit=0).count == 1


def test_a_drift_of_the_machine_falls_on_both_sides_alike() -> None:
    clock = iter(range(1000))

    class Drifting(FakeSide):
        def time(self, steps: int, mode: Mode = "train") -> float:
            return self.seconds * steps + next(clock)  # every burst is slower than the one before

    found = paired_rounds(Drifting("P", 5.0), Drifting("X", 5.0), rounds=4, bursts={"train": 1})
    assert found.ratios() == [1.0] * 4


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    draw = random.Random(0)
    hits = 0
    for _ in range(400):
        low, high = interval([draw.lognormvariate(0, 1) for _ in range(9)])
        hits += low <= 1 <= high
    assert hits / 400 > 0.93  # 0.961 in theory
    assert interval([1.0, 2.0, 9.0]) == (1.0, 9.0)
    assert interval([1.0, *[2.0] * 7, 99.0]) == (2.0, 2.0)  # one outlier on either side is not believed
    assert spread([1.0, 2.0, 9.0]) == (2.0, 1.0, 9.0)


def test_rounds_without_a_matrix_product_have_no_utilization() -> None:
    with pytest.raises(ValueError, match="zip"):
        Rounds({"train": [1.0]}, {"train": [1.0]}).utilization(1)


@pytest.mark.parametrize(("precision", "dtype"), [
    ("32-true", torch.float32), ("64-true", torch.float64), ("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16),
])
def test_the_matrix_product_has_the_precision_of_the_model(
    precision: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIDES, "cpu", 64)
    matmul = matmul_for(torch.device("cpu"), precision=precision, seconds=0.001)
    assert matmul.left.dtype == matmul.out.dtype == dtype
    assert matmul.operations == 2 * 64**3
    start = time.perf_counter()
    assert matmul.flops_per_second() > 0
    assert time.perf_counter() - start < 5
