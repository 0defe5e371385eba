"""Everything that is computed from a study, once. Imports neither torch nor lightning."""

from __future__ import annotations

from dataclasses import dataclass

import optuna
import pandas as pd

from ablations.analysis.budgets import budgets
from ablations.analysis.claims import verdicts
from ablations.analysis.curves import loss_by_axis, row_curves
from ablations.analysis.effects import FitQuality, effects_of, left_out_of, quality_of
from ablations.analysis.factorial import fit_all
from ablations.analysis.margins import Worth, worth_of
from ablations.analysis.pairs import pairwise
from ablations.analysis.rates import sensitivity
from ablations.analysis.tables import StudyRecord, read, rows_table, tuned_table
from ablations.analysis.training import training_table


@dataclass(frozen=True)
class Findings:
    """What a study says, in numbers."""

    record: StudyRecord
    rows: pd.DataFrame
    """A row per row of the study that is judged, best loss first."""
    screening: pd.DataFrame
    """Likewise, every row as it was screened, with `kept`: whether it went on. Empty where no row was screened."""
    budgets: pd.DataFrame
    """Loss of the judged rows at every budget of a stage; empty where all stages have the same."""
    tuned: pd.DataFrame
    """Loss by row and tuned values."""
    sensitivity: pd.DataFrame
    """How the loss depends on the tuned axis; empty without one that is numeric."""
    training: pd.DataFrame
    """How many rows train, by the levels of the axes; of a study with a screening, as they were screened."""
    effects: pd.DataFrame
    """Of the rows that train, how well they do; likewise."""
    quality: tuple[FitQuality, ...]
    """What the effects rest on."""
    left_out: pd.DataFrame
    """Rows that a model of the effects does without: measure, row, label, reason."""
    pairs: pd.DataFrame
    """Rows against each other, paired by seed."""
    claims: pd.DataFrame
    worth: Worth
    """Of the margin within which rows are level."""
    by_axis: pd.DataFrame
    """Loss along each axis of numbers: axis, title, x, line, row, val_loss_mean, low, high, n_seeds, state."""

    @property
    def is_tuned(self) -> bool:
        """Whether the rows were trained at several tuned values."""
        return bool(self.tuned.tuned.nunique() > 1)


def find(study: optuna.Study) -> Findings:
    """Read a study and compute everything."""
    return of_record(read(study))


def of_record(record: StudyRecord) -> Findings:
    """Compute everything from what was read."""
    rows, whole = rows_table(record), record.whole
    all_rows = rows if whole is record else rows_table(whole)
    fits = fit_all(whole, all_rows)
    baseline = record.design.baseline
    curve = row_curves(record, rows[rows.row == baseline]).get(baseline)
    return Findings(
        record=record, rows=rows, screening=screening_table(record, all_rows), budgets=budgets(record, rows),
        tuned=tuned_table(record), sensitivity=sensitivity(record), training=training_table(whole, all_rows),
        effects=effects_of(fits), quality=quality_of(fits), left_out=left_out_of(fits, whole),
        pairs=pairwise(record, rows), claims=verdicts(record, rows),
        worth=worth_of(curve, bits_per_nat=record.bits_per_nat), by_axis=loss_by_axis(record, rows),
    )


def screening_table(record: StudyRecord, rows: pd.DataFrame) -> pd.DataFrame:
    """Every row as it was screened; empty of a study without a screening.

    Args:
        record: the study.
        rows: the table of rows of its screening.
    """
    if record.screening.empty:
        return rows.iloc[:0].assign(kept=False)
    went_on = {*record.cells.row, *record.choosing.row}
    return rows.assign(kept=rows.row.isin(went_on))
