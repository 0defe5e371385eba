"""Which rows train at all, by the levels of a study's axes. Imports neither torch nor lightning.

Whether a row trains and how well it does are two questions. The effects (`effects`) answer the second, of the rows that
train with every seed; a model of both would mix a collapse of 1.5 nats with differences of 0.02.
"""

from __future__ import annotations

import pandas as pd

from ablations.analysis.tables import StudyRecord

TRAINING_COLUMNS = (
    "term", "level", "n_rows", "n_train", "n_seeds", "n_collapsed", "n_diverged", "n_failed", "share",
)
LOST = ("n_collapsed", "n_diverged", "n_failed")


def training_table(record: StudyRecord, rows: pd.DataFrame) -> pd.DataFrame:
    """Of the rows at each level of each axis, how many train: `TRAINING_COLUMNS`.

    Each row counts at its best tuned values. It trains if no seed collapsed, diverged or failed there; share is that of
    the seeds that did not. n_seeds, n_collapsed and so on are sums over the rows.

    Args:
        record: the study.
        rows: its table of rows.
    """
    titles, found = record.design.titles(), []
    for axis in record.design.factors:
        levels = rows.row.map({row.id: row.levels.get(axis.name) for row in record.design.rows})
        for label in axis.labels:
            own = rows[levels == label]
            if own.empty:
                continue
            lost = own[list(LOST)].sum()
            trained = int(own.n_seeds.sum())
            found.append((titles[axis.name], label, len(own), int((own[list(LOST)].sum(axis=1) == 0).sum()), trained,
                          *map(int, lost), trained / max(trained + int(lost.sum()), 1)))
    return pd.DataFrame(found, columns=list(TRAINING_COLUMNS))
