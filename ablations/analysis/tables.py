"""What a study holds, as tables: cells, rows, tuned values. Imports neither torch nor lightning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial

from ablations.analysis.intervals import mean_interval
from ablations.design.axes import BLOCK_FIELDS, Axis, text_of
from ablations.design.design import StudyDesign
from ablations.engine.identity import check_trials
from ablations.engine.optuna_private import journal_of
from ablations.engine.storage import attributes, latest, ours, read_design, row_of, state_of, tuned_of
from ablations.engine.trials import read_trials
from lit_simplified.config import SWITCHES, RunConfig, block_id, from_dict, preset_of

LEARNING_RATE = "optim.learning_rate"
FINISHED = ("complete", "diverged", "failed")
COLUMNS = (
    *SWITCHES, "preset", "n_seeds", "val_loss_mean", "val_loss_std", "params", "tokens_per_second", "speed_ratio",
    "speed_ratio_low", "speed_ratio_high", "peak_memory_mb", "state",
)
"""The columns that others rely on; the further axes of a study stand behind `preset`, and further ones at the end."""
MORE_COLUMNS = (
    "learning_rate", "tuned", "test_loss_mean", "test_perplexity_mean", "n_diverged", "n_failed",
    "training_seconds_mean", "mfu", "block", "row", "label", "val_loss_low", "val_loss_high",
)
NUMBERS = (
    "val_loss", "test_loss", "test_perplexity", "params", "tokens_per_second", "peak_memory_mb", "seconds",
    "validation_seconds",
)
CELL_COLUMNS = (
    "cell", "row", "label", "block", *SWITCHES, "preset", "seed", "learning_rate", "tuned", "state", "reason", *NUMBERS,
)
"""Of the table of cells; the further axes of the study follow."""


@dataclass(frozen=True)
class StudyRecord:
    """Everything that an analysis needs of a study, read once."""

    name: str
    design: StudyDesign
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
        """What the speed pass measured, by row id; empty before it."""
        return dict(self.attrs.get("speed", {}))

    @property
    def further(self) -> dict[str, Axis]:
        """The compared axes that are not a switch alone, by the titles of their columns."""
        return {self._column(axis): axis for axis in self.design.axes
                if axis.name.removeprefix(BLOCK_FIELDS) not in SWITCHES and axis.name != "block"}

    def _column(self, axis: Axis) -> str:
        """The column of an axis: its title, unless something else is called that."""
        title = self.design.titles()[axis.name]
        taken = title in (*CELL_COLUMNS, *COLUMNS, *MORE_COLUMNS) and axis.fields != (LEARNING_RATE,)
        return f"{title} (axis)" if taken else title


def read(study: optuna.Study) -> StudyRecord:
    """Read a study.

    Raises:
        StudyError: a result is that of another cell: the record is damaged.
    """
    trials = ours(read_trials(study))
    journal = journal_of(study)
    check_trials(trials, where=f"study {study.study_name}", storage=None if journal is None else str(journal.path))
    standing = latest(trials)
    design = read_design(study)
    rows = [_cell_row(trial, design) for trial in standing.values()]
    cells = pd.DataFrame(rows, columns=list(CELL_COLUMNS)).astype(dict.fromkeys(NUMBERS, float))
    curves = {cell: pd.DataFrame(trial.user_attrs["curve"]) for cell, trial in standing.items()
              if trial.user_attrs.get("curve")}
    record = StudyRecord(
        name=study.study_name, design=design, attrs=attributes(study), cells=cells, curves=curves,
        trials=[_trial_line(trial) for trial in trials],
    )
    for title, axis in record.further.items():
        cells[title] = [_level(design, row, axis) for row in cells.row]
    return record


def _level(design: StudyDesign, row: str, axis: Axis) -> Any:
    """The level of a row on an axis: as a number where the axis is one of numbers, else its label."""
    label = design.by_id[row].levels.get(axis.name) if row in design.by_id else None
    if label is None:
        return None
    return axis.numbers[axis.labels.index(label)] if axis.numbers is not None else label


def _cell_row(trial: FrozenTrial, design: StudyDesign) -> dict[str, Any]:
    config = from_dict(RunConfig, trial.user_attrs["config"])
    block, result = config.model.block, trial.user_attrs.get("result", {})
    state, row = state_of(trial), row_of(trial)
    test = result.get("test", {})
    return {
        "cell": trial.user_attrs["cell"], "row": row, "label": label_of(design, row), "block": block_id(block),
        **block.switches, "preset": preset_of(block), "seed": config.seed,
        "learning_rate": config.optim.learning_rate, "tuned": tuned_label(tuned_of(trial), config, design),
        "state": state,
        "reason": trial.user_attrs.get("reason", ""),
        "val_loss": result.get("val_loss") if state == "complete" else None,
        "test_loss": test.get("loss"), "test_perplexity": test.get("perplexity"), "params": result.get("parameters"),
        "tokens_per_second": result.get("tokens_per_second"), "peak_memory_mb": result.get("peak_memory_mb"),
        "seconds": result.get("seconds"), "validation_seconds": result.get("validation_seconds"),
    }


def label_of(design: StudyDesign, row: str) -> str:
    """What a row is called; its id where the design does not know it."""
    return design.by_id[row].label if row in design.by_id else row


def tuned_label(tuned: Mapping[str, Any], config: RunConfig, design: StudyDesign) -> str:
    """The tuned values of a cell in words: `0.01`, of several fields `learning_rate 0.01, warmup 0.2`.

    Where nothing is tuned it is the learning rate; nothing where that is what the rows compare.
    """
    if not tuned and any(LEARNING_RATE in axis.fields for axis in design.axes):
        return ""
    return tuned_text(tuned or {LEARNING_RATE: config.optim.learning_rate})


def tuned_text(tuned: Mapping[str, Any]) -> str:
    """Tuned values by dotted path, in words."""
    if len(tuned) == 1:
        return text_of(next(iter(tuned.values())))
    return ", ".join(f"{path.rpartition('.')[2]} {text_of(value)}" for path, value in tuned.items())


def _trial_line(trial: FrozenTrial) -> dict[str, Any]:
    config = from_dict(RunConfig, trial.user_attrs["config"])
    return {
        "number": trial.number, "cell": trial.user_attrs["cell"], "state": state_of(trial),
        "params": {**config.model.block.switches, "seed": config.seed, "learning_rate": config.optim.learning_rate},
        "row": row_of(trial), "val_loss": trial.value, "executions": trial.user_attrs["executions"],
        "reason": trial.user_attrs.get("reason", ""),
    }


def best_tuned(cells: pd.DataFrame) -> str:
    """Of one row's cells, the tuned values with the smallest mean loss; some that never diverged if there are any."""
    complete = cells[cells.state == "complete"]
    if complete.empty:
        return str(cells.tuned.iloc[0])
    spoilt = set(cells[cells.state != "complete"].tuned)
    sound = complete[~complete.tuned.isin(spoilt)]
    means = (complete if sound.empty else sound).groupby("tuned", sort=False).val_loss.mean()
    return str(means.idxmin())


def rows_table(record: StudyRecord) -> pd.DataFrame:
    """A row per row of the study that has a finished cell, at its best tuned values; best loss first."""
    finished = record.cells[record.cells.state.isin(FINISHED)]
    titles = list(record.further)
    rows = [_row(cells, record.speed.get(str(name), {}), titles) for name, cells in finished.groupby("row", sort=False)]
    place = COLUMNS.index("preset") + 1
    more = [name for name in MORE_COLUMNS if name not in titles]
    table = pd.DataFrame(rows, columns=[*COLUMNS[:place], *titles, *COLUMNS[place:], *more])
    table["params"] = table.params.astype("Int64")
    return table.sort_values("val_loss_mean", na_position="last", kind="stable", ignore_index=True)


def _row(cells: pd.DataFrame, speed: dict[str, Any], titles: list[str]) -> dict[str, Any]:
    cells = cells[cells.tuned == best_tuned(cells)]
    complete = cells[cells.state == "complete"]
    first, loss = cells.iloc[0], mean_interval(complete.val_loss.to_numpy())
    same = (*SWITCHES, "preset", *titles, "block", "row", "label", "learning_rate", "tuned")
    return {
        **{name: first[name] for name in same},
        "n_seeds": len(complete), "val_loss_mean": complete.val_loss.mean(), "val_loss_std": complete.val_loss.std(),
        "params": cells.params.max(),
        "tokens_per_second": speed.get("tokens_per_second", complete.tokens_per_second.mean()),
        "speed_ratio": speed.get("ratio"), "speed_ratio_low": speed.get("low"), "speed_ratio_high": speed.get("high"),
        "peak_memory_mb": speed.get("peak_memory_mb", complete.peak_memory_mb.mean()), "mfu": speed.get("mfu"),
        "state": next(state for state in FINISHED if (cells.state == state).any()),
        "test_loss_mean": complete.test_loss.mean(), "test_perplexity_mean": complete.test_perplexity.mean(),
        "n_diverged": int((cells.state == "diverged").sum()), "n_failed": int((cells.state == "failed").sum()),
        "training_seconds_mean": complete.seconds.mean(), "val_loss_low": loss.low, "val_loss_high": loss.high,
    }


def tuned_table(record: StudyRecord) -> pd.DataFrame:
    """Validation loss by row and tuned values, long form: mean, standard deviation and number over the seeds."""
    finished = record.cells[record.cells.state.isin(FINISHED)]
    keys = ["row", "label", "preset", "tuned", "learning_rate"]
    table = finished.groupby(keys, sort=False).val_loss.agg(val_loss_mean="mean", val_loss_std="std", n_seeds="count")
    table["n_diverged"] = finished.groupby(keys, sort=False).state.agg(lambda states: int((states == "diverged").sum()))
    return table.reset_index()


def each(table: pd.DataFrame) -> Iterator[Any]:
    """The rows of a table, its columns as attributes."""
    return iter(table.itertuples(index=False))
