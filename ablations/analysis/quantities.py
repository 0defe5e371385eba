"""What a claim may be about, measured on two rows of a study. Imports neither torch nor lightning.

A further quantity is a function here, its line in `QUANTITIES`, and its name in `design.claims.QUANTITIES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import pandas as pd

from ablations.analysis.intervals import NOTHING, Interval, mean_interval
from ablations.analysis.pairs import paired_differences, row_of
from ablations.analysis.speeds import of_one_size, speed_of
from ablations.analysis.tables import StudyRecord

MASKED = "bits per byte are not defined for the masked task, which predicts the hidden tokens alone"
NOT_MEASURED = "the speed pass has not measured both"


@dataclass(frozen=True)
class Comparison:
    """Two rows in one quantity."""

    interval: Interval
    """Difference of left and right, or their ratio."""
    n_seeds: int = 0
    counted: bool = False
    """Whether it is exact: it needs no interval."""
    detail: str = ""
    """The two values of a count, or why there is nothing to compare or no interval."""


Compare = Callable[[StudyRecord, pd.DataFrame, str, str], Comparison]
"""From the study, its table of rows and the ids of the left and the right row."""


@dataclass(frozen=True)
class Quantity:
    """How two rows are compared in something."""

    compare: Compare
    less_is_better: bool
    unit: str = ""
    """Of a loss, which is compared by difference. Empty: compared by ratio."""

    @property
    def is_loss(self) -> bool:
        """Whether it is compared by difference, over seeds."""
        return bool(self.unit)

    @property
    def neutral(self) -> float:
        """The value of the comparison where both rows are the same."""
        return 0.0 if self.is_loss else 1.0


def losses(record: StudyRecord, rows: pd.DataFrame, left: str, right: str, *, column: str) -> Comparison:
    """Difference of a loss in nats, paired by seed."""
    differences = paired_differences(record, rows, left=left, right=right, column=column)
    return Comparison(mean_interval(differences), len(differences))


def bits_per_byte(record: StudyRecord, rows: pd.DataFrame, left: str, right: str) -> Comparison:
    """Difference of the validation loss in bits per byte of text, paired by seed."""
    if math.isnan(record.bits_per_nat):
        masked = record.attrs.get("spec", {}).get("task") == "mlm"
        return Comparison(NOTHING, detail=MASKED if masked else "the study's data card does not hold the bytes of its "
                          "text")
    found = losses(record, rows, left, right, column="val_loss")
    return Comparison(Interval(*(value * record.bits_per_nat for value in found.interval)), found.n_seeds)


def speed(record: StudyRecord, rows: pd.DataFrame, left: str, right: str) -> Comparison:
    """Ratio of training speeds, as the speed pass measured it; across sizes of tokens per second, with no interval."""
    if of_one_size(record.design, left, right):
        found = speed_of(record, rows, left=left, right=right)
        noisy = next(filter(None, (str(row_of(rows, row).speed_withheld) for row in (left, right))), "")
        return Comparison(found, detail=noisy or (NOT_MEASURED if math.isnan(found.estimate) else ""))
    pace = [record.speed.get(row, {}).get("tokens_per_second") for row in (left, right)]
    if not all(pace):
        return Comparison(NOTHING, detail=NOT_MEASURED)
    return Comparison(Interval(pace[0] / pace[1], math.nan, math.nan),  # type: ignore[operator]
                      detail="the two are of different size and were timed against different baselines: their tokens "
                             "per second have a ratio, and no interval")


def params(record: StudyRecord, rows: pd.DataFrame, left: str, right: str) -> Comparison:
    """Ratio of the numbers of parameters."""
    counts = [row_of(rows, row).params for row in (left, right)]
    if any(pd.isna(count) for count in counts):
        return Comparison(NOTHING, detail="the parameters of one of them were not recorded")
    first, second = map(int, counts)
    return Comparison(Interval(first / second, math.nan, math.nan), counted=True,
                      detail=f"{first:,} against {second:,}; a count, not an estimate")


def memory(record: StudyRecord, rows: pd.DataFrame, left: str, right: str) -> Comparison:
    """Ratio of the peak memory of a training step."""
    peaks = [row_of(rows, row).peak_memory_mb for row in (left, right)]
    if any(pd.isna(peak) for peak in peaks):
        return Comparison(NOTHING, detail="the peak memory of one of them was not measured")
    first, second = map(float, peaks)
    return Comparison(Interval(first / second, math.nan, math.nan), counted=True,
                      detail=f"{first:,.1f} against {second:,.1f} MiB; a count of bytes, not an estimate")


QUANTITIES: Mapping[str, Quantity] = MappingProxyType({
    "val_loss": Quantity(partial(losses, column="val_loss"), True, unit="nats"),
    "test_loss": Quantity(partial(losses, column="test_loss"), True, unit="nats"),
    "bits_per_byte": Quantity(bits_per_byte, True, unit="bits per byte"),
    "speed": Quantity(speed, False),
    "params": Quantity(params, True),
    "memory": Quantity(memory, True),
})
"""By the name that a claim gives it."""
