"""How close two rows must be to be level, and what that distance is worth. Imports neither torch nor lightning."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ablations.design.claims import MARGIN

RATIO_MARGIN = 0.02
"""Of speed, parameters and memory, as a share of the right row's. Ours."""
FEWEST = 3
"""Points of a curve from which a slope is taken."""


@dataclass(frozen=True)
class Worth:
    """What the margin is in other units; NaN where that is unknown."""

    bits_per_byte: float
    per_percent: float
    """By how many nats 1 % more tokens lowers the baseline's loss."""

    @property
    def percent(self) -> float:
        """How many per cent more tokens lower the baseline's loss by the margin."""
        return 100 * math.expm1(MARGIN / self.per_percent * math.log(1.01)) if self.per_percent > 0 else math.nan


def worth_of(curve: pd.DataFrame | None, *, bits_per_nat: float) -> Worth:
    """What the margin is worth in a study. Shown beside the verdicts, which it does not decide.

    The slope is that of the loss against the logarithm of the tokens, over the last half of the tokens.

    Args:
        curve: the baseline's learning curve; None where there is none.
        bits_per_nat: bits per byte of text that a nat per token is; NaN where that is unknown.
    """
    return Worth(MARGIN * bits_per_nat, math.nan if curve is None else _nats_per_percent(curve))


def _nats_per_percent(curve: pd.DataFrame) -> float:
    late = curve[(curve.tokens >= curve.tokens.max() / 2) & (curve.tokens > 0)].dropna(subset="val_loss")
    if len(late) < FEWEST:
        return math.nan
    slope = np.polyfit(np.log(late.tokens.to_numpy(dtype=float)), late.val_loss.to_numpy(dtype=float), 1)[0]
    return float(-slope * math.log(1.01))
