"""What a study holds, as tables: cells, distinct blocks, learning rates. Imports neither torch nor lightning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial

from ablations.analysis.intervals import mean_interval
from ablations.design.space import block_id
from ablations.engine.storage import attributes, latest, ours, state_of
from lit_simplified.config import SWITCHES, RunConfig, from_dict, preset_of

FINISHED = ("complete", "diverged", "failed")
COLUMNS = (
    *SWITCHES, "preset", "n_seeds", "val_loss_mean", "val_loss_std", "params", "tokens_per_second", "speed_ratio",
    "speed_ratio_low", "speed_ratio_high", "peak_memory_mb", "state",
)
"""The columns that others rely on; further ones follow them."""
MORE_COLUMNS = (
    "learning_rate", "test_loss_mean", "test_perplexity_mean", "n_diverged", "n_failed", "training_seconds_mean",
    "block", "val_loss_low", "val_loss_high",
)
CELL_COLUMNS = (
    "cell", "block", *SWITCHES, "preset", "seed", "learning_rate", "state", "reason", "val_loss", "test_loss",
    "test_perplexity", "params", "tokens_per_second", "peak_memory_mb", "seconds", "validation_seconds",
)
NUMBERS = (
    "val_loss", "test_loss", "test_perplexity", "params", "tokens_per_second", "peak_memory_mb", "seconds",
    "validation_seconds",
)


@dataclass(frozen=True)
class Record:
    """Everything the summary needs of a study, read once."""

    name: str
    attrs: dict[str, Any]
    """The study's own attributes: spec, corpus, machines, speed."""
    cells: pd.DataFrame
    """A row per cell, by the trial that stands for it."""
    curves: dict[str, pd.DataFrame]
    """Learning curve by cell: step, tokens, seconds, train_loss, val_loss."""
    trials: list[dict[str, Any]]
    """A line per trial, as in `trials.jsonl`."""

    @property
    def speed(self) -> dict[str, dict[str, Any]]:
        """Rows of the speed pass by block id; empty before it."""
        return dict(self.attrs.get("speed", {}))


def read(study: optuna.Study) -> Record:
    """Read a study."""
    trials = ours(study.get_trials(deepcopy=False))
    standing = latest(trials)
    rows = [_cell_row(trial) for trial in standing.values()]
    cells = pd.DataFrame(rows, columns=list(CELL_COLUMNS)).astype(dict.fromkeys(NUMBERS, float))
    curves = {cell: pd.DataFrame(trial.user_attrs["curve"]) for cell, trial in standing.items()
              if trial.user_attrs.get("curve")}
    return Record(
        name=study.study_name, attrs=attributes(study), cells=cells, curves=curves,
        trials=[_trial_line(trial) for trial in trials],
    )


def _cell_row(trial: FrozenTrial) -> dict[str, Any]:
    config = from_dict(RunConfig, trial.user_attrs["config"])
    block, result = config.model.block, trial.user_attrs.get("result", {})
    state = state_of(trial)
    test = result.get("test", {})
    return {
        "cell": trial.user_attrs["cell"], "block": block_id(block), **{name: getattr(block, name) for name in SWITCHES},
        "preset": preset_of(block), "seed": config.seed, "learning_rate": config.optim.learning_rate, "state": state,
        "reason": trial.user_attrs.get("reason", ""),
        "val_loss": result.get("val_loss") if state == "complete" else None,
        "test_loss": test.get("loss"), "test_perplexity": test.get("perplexity"), "params": result.get("parameters"),
        "tokens_per_second": result.get("tokens_per_second"), "peak_memory_mb": result.get("peak_memory_mb"),
        "seconds": result.get("seconds"), "validation_seconds": result.get("validation_seconds"),
    }


def _trial_line(trial: FrozenTrial) -> dict[str, Any]:
    config = from_dict(RunConfig, trial.user_attrs["config"])
    switches = {name: getattr(config.model.block, name) for name in SWITCHES}
    return {
        "number": trial.number, "cell": trial.user_attrs["cell"], "state": state_of(trial),
        "params": {**switches, "seed": config.seed, "learning_rate": config.optim.learning_rate},
        "val_loss": trial.value, "executions": trial.user_attrs["executions"],
        "reason": trial.user_attrs.get("reason", ""),
    }


def best_learning_rate(cells: pd.DataFrame) -> float:
    """Of one block's cells, the learning rate with the smallest mean loss; one that never diverged if there is any."""
    complete = cells[cells.state == "complete"]
    if complete.empty:
        return float(cells.learning_rate.min())
    spoilt = set(cells[cells.state != "complete"].learning_rate)
    sound = complete[~complete.learning_rate.isin(spoilt)]
    means = (complete if sound.empty else sound).groupby("learning_rate").val_loss.mean()
    return float(str(means.idxmin()))


def blocks_table(record: Record) -> pd.DataFrame:
    """A row per distinct block that has a finished cell, at its best learning rate; best loss first."""
    finished = record.cells[record.cells.state.isin(FINISHED)]
    rows = [_block_row(cells, record.speed.get(str(name), {})) for name, cells in finished.groupby("block", sort=False)]
    table = pd.DataFrame(rows, columns=[*COLUMNS, *MORE_COLUMNS])
    table["params"] = table.params.astype("Int64")
    return table.sort_values("val_loss_mean", na_position="last", kind="stable", ignore_index=True)


def _block_row(cells: pd.DataFrame, speed: dict[str, Any]) -> dict[str, Any]:
    rate = best_learning_rate(cells)
    cells = cells[cells.learning_rate == rate]
    complete = cells[cells.state == "complete"]
    first, loss = cells.iloc[0], mean_interval(complete.val_loss.to_numpy())
    return {
        **{name: first[name] for name in (*SWITCHES, "preset", "block")},
        "n_seeds": len(complete), "val_loss_mean": complete.val_loss.mean(), "val_loss_std": complete.val_loss.std(),
        "params": cells.params.max(),
        "tokens_per_second": speed.get("tokens_per_second", complete.tokens_per_second.mean()),
        "speed_ratio": speed.get("ratio"), "speed_ratio_low": speed.get("low"), "speed_ratio_high": speed.get("high"),
        "peak_memory_mb": speed.get("peak_memory_mb", complete.peak_memory_mb.mean()),
        "state": next(state for state in FINISHED if (cells.state == state).any()),
        "learning_rate": rate, "test_loss_mean": complete.test_loss.mean(),
        "test_perplexity_mean": complete.test_perplexity.mean(),
        "n_diverged": int((cells.state == "diverged").sum()), "n_failed": int((cells.state == "failed").sum()),
        "training_seconds_mean": complete.seconds.mean(), "val_loss_low": loss.low, "val_loss_high": loss.high,
    }


def learning_rates_table(record: Record) -> pd.DataFrame:
    """Validation loss by block and learning rate, long form: mean, standard deviation and number over the seeds."""
    finished = record.cells[record.cells.state.isin(FINISHED)]
    keys = ["block", "preset", "learning_rate"]
    table = finished.groupby(keys, sort=False).val_loss.agg(val_loss_mean="mean", val_loss_std="std", n_seeds="count")
    table["n_diverged"] = finished.groupby(keys, sort=False).state.agg(lambda states: int((states == "diverged").sum()))
    return table.reset_index()


def each(table: pd.DataFrame) -> Iterator[Any]:
    """The rows of a table, its columns as attributes."""
    return iter(table.itertuples(index=False))


def label(row: Any) -> str:
    """How a block is called in tables and plots."""
    return str(row.preset or row.block)
