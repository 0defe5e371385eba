"""What a study holds, as tables: cells, rows, tuned values. Imports neither torch nor lightning."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.trial import FrozenTrial

from ablations.analysis.intervals import mean_interval
from ablations.analysis.speeds import speed_columns
from ablations.design.axes import BLOCK_FIELDS, Axis, text_of
from ablations.design.collapse import COLLAPSED, Plateau, card_of, plateau_of
from ablations.design.design import StudyDesign
from ablations.design.scales import PLUMBING
from ablations.design.selection import Found, Outcome, best
from ablations.design.stages import EXTEND, JUDGE, SCREEN, SELECT
from ablations.engine.identity import check_trials
from ablations.engine.optuna_private import journal_of
from ablations.engine.storage import attributes, latest, ours, read_design, row_of, stage_of, state_of, tuned_of
from ablations.engine.trials import read_trials
from lit_simplified.config import SWITCHES, BlockConfig, RunConfig, block_id, from_dict, preset_of

LEARNING_RATE = "optim.learning_rate"
FINISHED = ("complete", COLLAPSED, "diverged", "failed")
"""States of a cell that has ended; that of a row is the first that one of its cells has."""
COLUMNS = (
    *SWITCHES, "preset", "n_seeds", "val_loss_mean", "val_loss_std", "params", "tokens_per_second", "speed_ratio",
    "speed_ratio_low", "speed_ratio_high", "peak_memory_mb", "state",
)
"""The columns that others rely on; the further axes of a study stand behind `preset`, and further ones at the end."""
MORE_COLUMNS = (
    "learning_rate", "tuned", "test_loss_mean", "test_perplexity_mean", "n_diverged", "n_failed",
    "training_seconds_mean", "mfu", "block", "row", "label", "val_loss_low", "val_loss_high", "n_collapsed",
    "collapsed_loss_mean", "speed_withheld", "difference", "difference_low", "difference_high", "n_paired",
    "same_seeds", "bits_per_byte_mean", "bits_per_byte_low", "bits_per_byte_high",
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
    """A row per cell that judges, by the trial that stands for it: all that is reported comes from these."""
    curves: Mapping[str, Sequence[Mapping[str, Any]]]
    """Learning curve by cell, point by point: step, tokens, seconds, train_loss, val_loss."""
    trials: list[dict[str, Any]]
    """A line per trial, as in `trials.jsonl`."""
    blocks: tuple[BlockConfig, ...] = ()
    """Each block that was trained, once."""
    choosing: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Likewise, those that choose the tuned values, and judge nothing."""
    screening: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Likewise, those that tell which rows go on. Some may also be among those that choose."""
    extended: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Likewise, those with more steps, which tell whether an answer turns."""

    @cached_property
    def places(self) -> dict[str, np.ndarray]:
        """Where the cells of each row stand, by its id: to look for them row by row would read all for every row."""
        return {str(self.cells.row.iloc[own[0]]): own for own in places_of(self.cells.row)}

    def of_row(self, row: str) -> pd.DataFrame:
        """The cells of a row."""
        return self.cells.iloc[self.places.get(row, [])]

    @property
    def tried(self) -> pd.DataFrame:
        """The cells that tell how the loss depends on the tuned values: those that choose them, if some do."""
        return self.choosing if len(self.choosing) else self.cells

    @cached_property
    def every(self) -> pd.DataFrame:
        """The cells of all stages, each once."""
        others = [cells for cells in (self.choosing, self.screening, self.extended) if len(cells)]
        if not others:
            return self.cells
        return pd.concat([self.cells, *others], ignore_index=True).drop_duplicates("cell", ignore_index=True)

    def runs_of(self, row: str) -> pd.DataFrame:
        """Likewise, those of a row."""
        others = [cells[cells.row == row] for cells in (self.choosing, self.screening, self.extended)
                  if len(cells)]
        return pd.concat([self.of_row(row), *others]).drop_duplicates("cell") if others else self.of_row(row)

    @cached_property
    def whole(self) -> StudyRecord:
        """What tells of all rows: the study itself, or its screening as a study of its own, where it had one."""
        if self.screening.empty:
            return self
        return replace(self, cells=self.screening, choosing=pd.DataFrame(), screening=pd.DataFrame(),
                       extended=pd.DataFrame())

    @property
    def speed(self) -> dict[str, dict[str, Any]]:
        """What the speed pass measured, by row id; empty before it."""
        found: dict[str, dict[str, Any]] = self.attrs.get("speed", {})
        return found

    @property
    def scale(self) -> str:
        """The name of the study's size; empty where it is not known."""
        return str(self.attrs.get("spec", {}).get("scale", ""))

    @property
    def only_plumbing(self) -> bool:
        """Whether its losses mean nothing."""
        return self.scale == PLUMBING

    @property
    def card(self) -> Mapping[str, Any]:
        """The data card of every row; empty where an axis changes corpus or vocabulary."""
        return card_of(self.design, self.attrs)

    @property
    def bits_per_nat(self) -> float:
        """Bits per byte of validation text that a nat per token is; NaN where that is unknown.

        Not defined for the masked task, whose loss is that of the hidden tokens alone.
        """
        split = self.card.get("splits", {}).get("validation", {})
        if self.attrs.get("spec", {}).get("task") != "clm" or not split.get("bytes") or not split.get("tokens"):
            return math.nan
        return float(split["tokens"] / split["bytes"] / math.log(2))

    @property
    def plateau(self) -> Plateau:
        """The loss of token frequencies alone, on which collapsed runs end."""
        losses = self.every.val_loss[self.every.state.isin(("complete", COLLAPSED))]
        return plateau_of(self.card, losses, scale=self.scale)

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
    design, configs = read_design(study), _configs(trials)
    rows = [_cell_row(trial, configs[trial.number], design) for trial in standing.values()]
    cells = pd.DataFrame(rows, columns=list(CELL_COLUMNS)).astype(dict.fromkeys(NUMBERS, float))
    curves = {cell: trial.user_attrs["curve"] for cell, trial in standing.items() if trial.user_attrs.get("curve")}
    record = StudyRecord(
        name=study.study_name, design=design, attrs=attributes(study), cells=cells, curves=curves,
        trials=[_trial_line(trial, configs[trial.number]) for trial in trials],
        blocks=tuple(dict.fromkeys(config.parsed.model.block for config in configs.values())),
    )
    for title, axis in record.further.items():
        levels = {row: _level(design, row, axis) for row in cells.row.unique()}
        cells[title] = [levels[row] for row in cells.row]
    return by_stage(with_collapsed(record), [stage_of(trial) for trial in standing.values()])


def with_collapsed(record: StudyRecord) -> StudyRecord:
    """The study with the complete runs that ended on the plateau called collapsed. They keep their loss."""
    cells, plateau = record.cells, record.plateau
    if plateau.loss is None:
        return record
    on_it = (cells.state == "complete") & (cells.val_loss > plateau.edge)
    reason = f"ended on the loss of token frequencies ({plateau.loss:.3f} nats)"
    cells = cells.assign(state=cells.state.mask(on_it, COLLAPSED), reason=cells.reason.mask(on_it, reason))
    return replace(record, cells=cells)


def by_stage(record: StudyRecord, stages: Sequence[str]) -> StudyRecord:
    """The study with the cells of each stage apart.

    Args:
        record: with all of them together.
        stages: that of each cell.
    """
    own = {stage: record.cells[np.array([one == stage for one in stages], dtype=bool)].reset_index(drop=True)
           for stage in (JUDGE, SELECT, SCREEN, EXTEND)}
    if record.design.screening_chooses:
        kept = own[SCREEN].row.isin({*own[SELECT].row, *own[JUDGE].row})
        own[SELECT] = pd.concat([own[SCREEN][kept], own[SELECT]], ignore_index=True)
    return replace(record, cells=own[JUDGE], choosing=own[SELECT], screening=own[SCREEN], extended=own[EXTEND])


@dataclass(frozen=True)
class _Config:
    """What the tables say of a configuration. The seed is the trial's own: all else of it is read once for all seeds.
    """

    parsed: RunConfig
    block: Mapping[str, Any]
    """The columns about the block."""


def _configs(trials: Sequence[FrozenTrial]) -> dict[int, _Config]:
    """The configuration of each trial, by its number."""
    known: dict[str, _Config] = {}
    blocks: dict[BlockConfig, Mapping[str, Any]] = {}  # a name is looked for among all named blocks
    found = {}
    for trial in trials:
        values = {name: value for name, value in trial.user_attrs["config"].items() if name != "seed"}
        key = json.dumps(values)
        if key not in known:
            parsed = from_dict(RunConfig, values)
            block = parsed.model.block
            if block not in blocks:
                blocks[block] = {"block": block_id(block), **block.switches, "preset": preset_of(block)}
            known[key] = _Config(parsed, blocks[block])
        found[trial.number] = known[key]
    return found


def _seed(trial: FrozenTrial) -> int:
    return int(trial.user_attrs["config"].get("seed", RunConfig.seed))


def _level(design: StudyDesign, row: str, axis: Axis) -> Any:
    """The level of a row on an axis: as a number where the axis is one of numbers, else its label."""
    label = design.by_id[row].levels.get(axis.name) if row in design.by_id else None
    if label is None:
        return None
    return axis.numbers[axis.labels.index(label)] if axis.numbers is not None else label


def _cell_row(trial: FrozenTrial, config: _Config, design: StudyDesign) -> dict[str, Any]:
    result = trial.user_attrs.get("result", {})
    state, row = state_of(trial), row_of(trial)
    test = result.get("test", {})
    return {
        "cell": trial.user_attrs["cell"], "row": row, "label": label_of(design, row), **config.block,
        "seed": _seed(trial), "learning_rate": config.parsed.optim.learning_rate,
        "tuned": tuned_label(tuned_of(trial), config.parsed, design), "state": state,
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


def _trial_line(trial: FrozenTrial, config: _Config) -> dict[str, Any]:
    switches = {name: config.block[name] for name in SWITCHES}
    return {
        "number": trial.number, "cell": trial.user_attrs["cell"], "state": state_of(trial),
        "params": {**switches, "seed": _seed(trial), "learning_rate": config.parsed.optim.learning_rate},
        "row": row_of(trial), "val_loss": trial.value, "executions": trial.user_attrs["executions"],
        "reason": trial.user_attrs.get("reason", ""),
    }


def best_tuned(cells: pd.DataFrame) -> dict[str, str]:
    """Of each row, the tuned values with the smallest mean loss among those at which no seed was lost.

    A seed is lost where it collapsed, diverged or failed. If every value lost one, those that lost the fewest.
    """
    found: dict[str, str] = dict(zip(*_columns(cells.drop_duplicates("row"), "row", "tuned"), strict=True))
    complete = cells.state == "complete"
    known = cells.assign(lost=~complete, loss=cells.val_loss.where(complete))
    means = known.groupby(["row", "tuned"], sort=False).agg(lost=("lost", "sum"), loss=("loss", "mean")).reset_index()
    best = means.dropna(subset="loss").sort_values(["lost", "loss"], kind="stable").drop_duplicates("row")
    return found | dict(zip(*_columns(best, "row", "tuned"), strict=True))


def shown_at(record: StudyRecord) -> dict[str, str]:
    """The tuned values at which each row that has a finished cell is shown.

    Where other seeds choose them it is the chosen one: among values that several seeds have judged, as in a study whose
    axis was extended, the best of these would flatter again.
    """
    finished = record.cells[record.cells.state.isin(FINISHED)]
    found = best_tuned(finished)
    if record.choosing.empty:
        return found
    judged, tried = _outcomes(finished), _outcomes(record.choosing[record.choosing.state.isin(FINISHED)])
    for row, values in tried.items():
        known = [Found(chosen_on, judged.get(row, {}).get(value, ())) for value, chosen_on in values.items()]
        chosen = list(values)[best(known)]
        if chosen in judged.get(row, {}):
            found[row] = chosen
    return found


def _outcomes(cells: pd.DataFrame) -> dict[str, dict[str, list[Outcome]]]:
    """How cells ended, by row and tuned values."""
    found: dict[str, dict[str, list[Outcome]]] = {}
    for row, tuned, state, loss in zip(*_columns(cells, "row", "tuned", "state", "val_loss"), strict=True):
        found.setdefault(row, {}).setdefault(tuned, []).append(Outcome(state, loss))
    return found


def _columns(table: pd.DataFrame, *names: str) -> list[list[Any]]:
    return [table[name].to_list() for name in names]


def places_of(*columns: pd.Series) -> list[np.ndarray]:
    """Where each value, or combination of values, stands in a column or several; in the order of the first."""
    keys = pd.Series(list(zip(*columns, strict=True)), dtype=object) if len(columns) > 1 else columns[0]
    codes = pd.factorize(keys)[0]
    ends = np.cumsum(np.bincount(codes))
    return np.split(np.argsort(codes, kind="stable"), ends)[:-1]


def mean_of(values: np.ndarray) -> float:
    """The mean of the known values, as a column of pandas has it; NaN of none."""
    known = ~np.isnan(values)
    count = int(known.sum())
    return float(np.where(known, values, 0.0).sum() / count) if count else math.nan


def rows_table(record: StudyRecord) -> pd.DataFrame:
    """A row per row of the study that has a finished cell, at its best tuned values; best loss first.

    The difference is that to the baseline's row, paired by seed over the seeds that both have a loss of.
    """
    finished = record.cells[record.cells.state.isin(FINISHED)]
    used = finished[finished.tuned == finished.row.map(shown_at(record))]
    titles = list(record.further)
    same = (*SWITCHES, "preset", *titles, "block", "row", "label", "learning_rate", "tuned")
    columns = {name: used[name].to_numpy() for name in (*same, "state", "seed", *NUMBERS)}
    speed, ratios, cells = record.speed, speed_columns(record), {}
    for places in places_of(used.row):
        cells[str(columns["row"][places[0]])] = {name: column[places] for name, column in columns.items()}
    baseline = losses_by_seed(cells.get(record.design.baseline))
    rows = []
    for row, own in cells.items():
        numbers = _numbers(own, speed.get(row, {}), bits_per_nat=record.bits_per_nat)
        paired = _paired(losses_by_seed(own), {} if row == record.design.baseline else baseline)
        rows.append({**{name: own[name][0] for name in same}, **numbers, **paired, "speed_withheld": "",
                     **ratios.get(row, {})})
    place = COLUMNS.index("preset") + 1
    more = [name for name in MORE_COLUMNS if name not in titles]
    table = pd.DataFrame(rows, columns=[*COLUMNS[:place], *titles, *COLUMNS[place:], *more])
    table["params"] = table.params.astype("Int64")
    return table.sort_values("val_loss_mean", na_position="last", kind="stable", ignore_index=True)


def losses_by_seed(cells: Mapping[str, np.ndarray] | None) -> dict[int, float]:
    """The losses of the complete cells of a row, from the columns of its cells; of no row none."""
    if cells is None:
        return {}
    complete = (cells["state"] == "complete") & ~np.isnan(cells["val_loss"])
    return dict(zip(map(int, cells["seed"][complete]), map(float, cells["val_loss"][complete]), strict=True))


def _paired(own: Mapping[int, float], baseline: Mapping[int, float]) -> dict[str, Any]:
    """The difference of a row to the baseline's; nothing of a row without one in common with it."""
    seeds = sorted(own.keys() & baseline.keys())
    found = mean_interval([own[seed] - baseline[seed] for seed in seeds])
    return {"difference": found.estimate, "difference_low": found.low, "difference_high": found.high,
            "n_paired": len(seeds), "same_seeds": not baseline or own.keys() == baseline.keys()}


def lost_seeds(row: Any, *, name: str = "") -> str:
    """How many seeds of a row gave no model at its best tuned values: `1 of 3 seeds of sas collapsed`.

    Args:
        row: its line in the table of rows.
        name: what it is called; empty: `1 of 3 seeds collapsed`.
    """
    of = f" of {name}" if name else ""
    ended = row.n_seeds + row.n_collapsed + row.n_diverged
    counts = ((row.n_collapsed, COLLAPSED), (row.n_diverged, "diverged"))
    return " and ".join(f"{count} of {ended} seeds{of} {state}" for count, state in counts if count)


def _numbers(
    cells: Mapping[str, np.ndarray], speed: Mapping[str, Any], *, bits_per_nat: float
) -> dict[str, Any]:
    """The numbers of a row, from the columns of its cells."""
    state = cells["state"]
    complete = state == "complete"
    means = {name: mean_of(cells[name][complete]) for name in NUMBERS}
    losses = cells["val_loss"][complete]
    loss, known = mean_interval(losses), losses[~np.isnan(losses)]
    return {
        "n_seeds": int(complete.sum()), "val_loss_mean": means["val_loss"],
        "val_loss_std": float(known.std(ddof=1)) if len(known) > 1 else math.nan,
        "params": np.fmax.reduce(cells["params"]),
        "tokens_per_second": speed.get("tokens_per_second", means["tokens_per_second"]),
        "peak_memory_mb": speed.get("peak_memory_mb", means["peak_memory_mb"]), "mfu": speed.get("mfu"),
        "state": next(name for name in FINISHED if (state == name).any()),
        "test_loss_mean": means["test_loss"], "test_perplexity_mean": means["test_perplexity"],
        "n_diverged": int((state == "diverged").sum()), "n_failed": int((state == "failed").sum()),
        "training_seconds_mean": means["seconds"], "val_loss_low": loss.low, "val_loss_high": loss.high,
        "n_collapsed": int((state == COLLAPSED).sum()),
        "collapsed_loss_mean": mean_of(cells["val_loss"][state == COLLAPSED]),
        "bits_per_byte_mean": loss.estimate * bits_per_nat, "bits_per_byte_low": loss.low * bits_per_nat,
        "bits_per_byte_high": loss.high * bits_per_nat,
    }


def tuned_table(record: StudyRecord) -> pd.DataFrame:
    """Validation loss by row and tuned values, long form: mean, standard deviation and number over the complete seeds,
    and how many collapsed or diverged."""
    finished = record.tried[record.tried.state.isin(FINISHED)]
    keys = ["row", "label", "preset", "tuned", "learning_rate"]
    found = finished.assign(
        val_loss=finished.val_loss.where(finished.state == "complete"), diverged=finished.state == "diverged",
        collapsed=finished.state == COLLAPSED,
    ).groupby(keys, sort=False)
    table = found.val_loss.agg(val_loss_mean="mean", val_loss_std="std", n_seeds="count")
    table["n_diverged"], table["n_collapsed"] = found.diverged.sum().astype(int), found.collapsed.sum().astype(int)
    return table.reset_index()


def each(table: pd.DataFrame) -> Iterator[Any]:
    """The rows of a table, its columns as attributes."""
    return iter(table.itertuples(index=False))
