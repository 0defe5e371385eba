"""The results of several fine-tunings as one table: a row per block, a column per score. Imports no torch."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lit_simplified.files import write_text
from lit_simplified.finetuning.tasks import Metric, TextTask

if TYPE_CHECKING:
    from lit_simplified.finetuning.run import FinetuneResult

MEAN, CRAMMED_MEAN, GUESS = "mean", "mean (crammed)", "majority class"
"""The average over the scores as GLUE's leaderboard counts them; over those by which "crammed" BERT is scored."""
Key = tuple[str, str]
"""A task and one of its scored splits."""
Run = tuple[str, int]
"""A checkpoint, by its SHA-256 (from scratch: none), and the seed of a fine-tuning."""
Chosen = Mapping[str, Metric]
"""By task, the metric that counts; for a task that is not in it, the mean of all."""


@dataclass(frozen=True)
class Score:
    """A score over seeds, times 100 as GLUE's are."""

    mean: float | None
    """Over the complete runs; None without any."""
    std: float | None
    """Sample standard deviation; None for a single run."""
    seeds: int
    """Complete runs."""
    diverged: int
    """Runs that diverged."""

    @property
    def text(self) -> str:
        """`81.2 ± 0.3`, `81.2 ± 0.3 (1 diverged)`, `diverged`, or empty without a run."""
        if self.mean is None:
            return "diverged" if self.diverged else ""
        spread = "" if self.std is None else f" ± {self.std:.1f}"
        return f"{self.mean:.1f}{spread}" + (f" ({self.diverged} diverged)" if self.diverged else "")


@dataclass(frozen=True)
class Row:
    """One kind of model."""

    label: str
    weights: str
    """pretrained, or from scratch."""
    seeds: int
    """Pairs of a checkpoint and a fine-tuning's seed."""
    parameters: int | None
    scores: dict[str, Score]
    """By column title, with `MEAN` if there are several columns, and `CRAMMED_MEAN` if it may differ."""


@dataclass(frozen=True)
class ScoreTable:
    """Rows in the order of their blocks; the last is the score of guessing."""

    titles: tuple[str, ...]
    rows: tuple[Row, ...]


def build_table(results: Sequence[FinetuneResult], tasks: Sequence[TextTask]) -> ScoreTable:
    """A row for each block, kind of weights and pretraining (size, steps, corpus), averaged over seeds."""
    columns = {title: (task.name, split) for task in tasks for split, title in task.validation}
    unique = {result.run_dir: result for result in results}  # from scratch, several checkpoints share a run
    groups: dict[tuple[str, bool, str], list[FinetuneResult]] = {}
    for result in unique.values():
        groups.setdefault((result.block, result.from_scratch, result.pretraining), []).append(result)
    pretrainings = Counter((block, fresh) for block, fresh, _ in groups)
    crammed = {task.name: task.crammed_metric for task in tasks if task.crammed_metric}
    means: dict[str, Chosen] = {}
    if len(columns) > 1:
        means = {MEAN: {}, CRAMMED_MEAN: crammed} if crammed else {MEAN: {}}
    rows = [
        _row(f"{block} ({pretraining})" if pretrainings[block, fresh] > 1 else block, group, columns, means)
        for (block, fresh, pretraining), group in groups.items()
    ]
    return ScoreTable((*columns, *means), (*rows, _guessing(list(unique.values()), columns, means)))


def _row(label: str, group: list[FinetuneResult], columns: dict[str, Key], means: dict[str, Chosen]) -> Row:
    by_run = _by_run(group, columns, {})
    scores = {title: _score(list(by_run[key].values())) for title, key in columns.items()}
    scores |= {title: _mean_score(_by_run(group, columns, chosen)) for title, chosen in means.items()}
    weights = "from scratch" if group[0].from_scratch else "pretrained"
    return Row(label, weights, len(set().union(*by_run.values())), group[0].parameters, scores)


def _by_run(
    group: list[FinetuneResult], columns: dict[str, Key], chosen: Chosen
) -> dict[Key, dict[Run, float | None]]:
    """The score of each run on each column; None for one that diverged."""
    by_run: dict[Key, dict[Run, float | None]] = {key: {} for key in columns.values()}
    for result in group:
        run = ("" if result.from_scratch else result.checkpoint_sha256, result.seed)
        for (task, split), values in by_run.items():
            if task == result.task:
                complete = result.state == "complete"
                values[run] = _value(result.metrics[split], chosen.get(task)) if complete else None
    return by_run


def _mean_score(by_run: dict[Key, dict[Run, float | None]]) -> Score:
    """The mean over the columns, of the runs that have them all."""
    whole = sorted(set.intersection(*(set(values) for values in by_run.values())))
    return _score([_mean([values[run] for values in by_run.values()]) for run in whole])


def _value(metrics: Mapping[str, float], metric: Metric | None) -> float:
    return metrics[metric] if metric else statistics.fmean(metrics.values())


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def _score(values: Sequence[float | None]) -> Score:
    known = [100 * value for value in values if value is not None]
    return Score(
        statistics.fmean(known) if known else None, statistics.stdev(known) if len(known) > 1 else None,
        len(known), len(values) - len(known),
    )


def _guessing(results: list[FinetuneResult], columns: dict[str, Key], means: dict[str, Chosen]) -> Row:
    def values(chosen: Chosen) -> list[float | None]:
        return [
            next((_value(result.guess[split], chosen.get(task)) for result in results if result.task == task), None)
            for task, split in columns.values()
        ]

    found = dict(zip(columns, values({}), strict=True)) | {title: _mean(values(of)) for title, of in means.items()}
    scores = {title: _score([] if value is None else [value]) for title, value in found.items()}
    return Row(GUESS, "", 0, None, scores)


def text_rows(table: ScoreTable) -> list[list[str]]:
    """The table as text, header first."""
    body = [
        [row.label, row.weights, str(row.seeds or ""), "" if row.parameters is None else f"{row.parameters:,}",
         *(row.scores[title].text for title in table.titles)]
        for row in table.rows
    ]
    return [["block", "weights", "runs", "parameters", *table.titles], *body]


def write_table(table: ScoreTable, results: Sequence[FinetuneResult], folder: Path) -> None:
    """`table.md`, `table.csv` (means and deviations in separate columns) and `table.json` (with every metric)."""
    head, *body = text_rows(table)
    lines = [head, [":--", ":--", *("--:" for _ in head[2:])], *body]
    write_text(folder / "table.md", "".join(f"| {' | '.join(line)} |\n" for line in lines))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    measures = ("", " std", " n", " diverged")
    writer.writerow(["block", "weights", "runs", "parameters", *(t + m for t in table.titles for m in measures)])
    for row in table.rows:
        scores = [row.scores[title] for title in table.titles]
        values = [value for score in scores for value in (score.mean, score.std, score.seeds, score.diverged)]
        writer.writerow([row.label, row.weights, row.seeds, row.parameters, *values])
    write_text(folder / "table.csv", stream.getvalue())
    runs = [
        {name: getattr(result, name) for name in (
            "run_dir", "task", "block", "from_scratch", "pretraining", "pretraining_seed", "seed", "state", "reason",
            "scores", "metrics",
        )}
        for result in {result.run_dir: result for result in results}.values()
    ]
    write_text(folder / "table.json", json.dumps({**asdict(table), "runs": runs}, indent=1))
