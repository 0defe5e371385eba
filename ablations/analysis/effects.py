"""Main effects: what moving one switch does to loss and speed, all else equal. Imports neither torch nor lightning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from ablations.analysis.tables import FINISHED, Record
from lit_simplified.config import SWITCHES, BlockConfig, describe

CONFIDENCE, RESAMPLES = 0.95, 9999


@dataclass(frozen=True)
class Factor:
    """A switch and the two positions that are compared; the first is Pre-LN's."""

    name: str
    base: Mapping[str, Any]
    changed: Mapping[str, Any]
    split: str
    """The switch with which it is known to interact: its effect is also given for each position of that one."""
    only: Mapping[str, Any] | None = None
    """The cells that are compared. None: all."""

    @property
    def change(self) -> str:
        """In words: from -> to."""
        name = next(iter(self.base))
        return f"{self.base[name]} -> {self.changed[name]}"


SEQUENTIAL = {"layout": "sequential"}  # a parallel block has one skip for both: their effects could not be told apart
FACTORS = (
    Factor("attention_skip", {"attention_skip": True}, {"attention_skip": False}, "attention", SEQUENTIAL),
    Factor("mlp_skip", {"mlp_skip": True}, {"mlp_skip": False}, "attention_skip", SEQUENTIAL),
    # A sequential block finds a parallel partner only where both its skips are equal.
    Factor("layout", {"layout": "sequential"}, {"layout": "parallel"}, "attention_skip"),
    Factor("attention", {"attention": "softmax"}, {"attention": "shaped"}, "attention_skip"),
    Factor(
        "value + projection", {"value": "linear", "projection": "linear"},
        {"value": "identity", "projection": "identity"}, "attention_skip",
    ),
    Factor("norm", {"norm": "rms"}, {"norm": "none"}, "attention_skip"),
)
COLUMNS = (
    "switch", "change", "where", "measure", "mean", "low", "high", "median", "n_blocks", "n_pairs", "n_left_out",
)


def effects(record: Record, blocks: pd.DataFrame) -> pd.DataFrame:
    """Every factor's effect on loss (difference in nats) and on speed (ratio), over all pairs and split in two.

    Args:
        record: the study.
        blocks: its table of blocks, for the speeds.
    """
    rows: list[dict[str, Any]] = []
    for factor in FACTORS:
        loss, speed = loss_pairs(record.cells, factor), speed_pairs(blocks, factor)
        positions = sorted({*loss[factor.split], *speed[factor.split]}, key=str, reverse=True)
        for where, position in (("all", None), *((f"{factor.split}={p}", p) for p in positions)):
            chosen = loss if position is None else loss[loss[factor.split] == position]
            rows.append(_row(factor, where, "loss", chosen))
            chosen = speed if position is None else speed[speed[factor.split] == position]
            rows.append(_row(factor, where, "speed", chosen))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def loss_pairs(cells: pd.DataFrame, factor: Factor) -> pd.DataFrame:
    """Pairs of finished cells that differ in this switch alone, with `difference` in validation loss, changed - base.

    NaN where one of the two diverged or failed.
    """
    finished = cells[cells.state.isin(FINISHED)]
    pairs = _pairs(finished, factor, keys=("seed", "learning_rate"), value="val_loss")
    return pairs.assign(difference=pairs.val_loss_changed - pairs.val_loss_base)


def speed_pairs(blocks: pd.DataFrame, factor: Factor) -> pd.DataFrame:
    """Pairs of measured blocks that differ in this switch alone, with `difference` in the log of the speed ratio."""
    measured = blocks.dropna(subset="speed_ratio")
    pairs = _pairs(measured, factor, keys=(), value="speed_ratio")
    ratio = pairs.speed_ratio_changed.astype(float) / pairs.speed_ratio_base.astype(float)
    return pairs.assign(difference=np.log(ratio))


def _pairs(table: pd.DataFrame, factor: Factor, *, keys: tuple[str, ...], value: str) -> pd.DataFrame:
    others = [name for name in SWITCHES if name not in factor.base]
    columns = [*others, *keys, value]
    # A block with a digest in its id differs from the others in more than its switches.
    plain = [row["block"] == describe(_plain_block(row)) for _, row in table.iterrows()]
    table = table[pd.Series(plain, index=table.index, dtype=bool)]
    for name, position in (factor.only or {}).items():
        table = table[table[name] == position]
    base, changed = (_where(table, values)[columns] for values in (factor.base, factor.changed))
    return base.merge(changed, on=[*others, *keys], suffixes=("_base", "_changed"))


def _plain_block(row: pd.Series) -> BlockConfig:
    return BlockConfig(**{name: row[name] for name in SWITCHES})


def _where(table: pd.DataFrame, values: Mapping[str, Any]) -> pd.DataFrame:
    for name, value in values.items():
        table = table[table[name] == value]
    return table


def _row(factor: Factor, where: str, measure: str, pairs: pd.DataFrame) -> dict[str, Any]:
    """One effect. The seeds and learning rates of one pair of blocks are averaged first: they are not independent."""
    others = [name for name in SWITCHES if name not in factor.base]
    used = pairs.dropna(subset="difference")
    per_block = used.groupby(others).difference.mean().to_numpy(dtype=float)
    low, high = confidence_interval(per_block)
    back = np.exp if measure == "speed" else np.asarray  # the mean of logs is the log of the geometric mean
    mean = per_block.mean() if len(per_block) else np.nan
    median = np.median(per_block) if len(per_block) else np.nan
    return {
        "switch": factor.name, "change": factor.change, "where": where, "measure": measure, "mean": float(back(mean)),
        "low": float(back(low)), "high": float(back(high)), "median": float(back(median)),
        "n_blocks": len(per_block), "n_pairs": len(used), "n_left_out": len(pairs) - len(used),
    }


def confidence_interval(values: np.ndarray) -> tuple[float, float]:
    """Bootstrap interval of the mean; NaN for fewer than two values."""
    if len(values) < 2:
        return np.nan, np.nan
    found = bootstrap(
        (values,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="percentile", random_state=0,
    ).confidence_interval
    return float(found.low), float(found.high)
