"""The table of fine-tunings: means and deviations by hand, what diverged, rows, files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sklearn_metrics

from lit_simplified.finetuning import GROUPS, TASKS, FinetuneResult
from lit_simplified.finetuning.metrics import measure
from lit_simplified.finetuning.table import build_table, text_rows, write_table


def result(task: str, scores: dict[str, float], **changes: Any) -> FinetuneResult:
    values: dict[str, Any] = {
        "state": "complete", "reason": "", "task": task, "block": "sas", "from_scratch": False, "pretraining": "p",
        "pretraining_seed": 0, "seed": 0, "checkpoint": "c", "checkpoint_sha256": "c0", "score": 0.0,
        "scores": scores, "metrics": {split: {"accuracy": value} for split, value in scores.items()},
        "guess": {split: {"accuracy": 0.5, "f1": 0.3} for split in ("validation", "validation_matched",
                                                                     "validation_mismatched")},
        "curve": (), "classes": (), "examples": {}, "truncated": {}, "steps": 1, "seconds": 1.0, "parameters": 1234,
    } | changes
    keys = ("block", "from_scratch", "pretraining", "checkpoint_sha256", "seed")
    return FinetuneResult(**{"run_dir": "/".join(str(values[key]) for key in ("task", *keys)), **values})


def test_means_and_deviations_over_seeds_by_hand() -> None:
    tasks = [TASKS["glue/mnli"], TASKS["glue/sst2"]]
    mnli = {"validation_matched": 0.6, "validation_mismatched": 0.7}
    found = [
        result("glue/mnli", mnli), result("glue/sst2", {"validation": 0.8}),
        result("glue/mnli", {name: value + 0.1 for name, value in mnli.items()}, checkpoint_sha256="c1"),
        result("glue/sst2", {"validation": 0.9}, checkpoint_sha256="c1"),
        result("glue/mnli", mnli, block="pre_ln", parameters=5),
        result("glue/sst2", {"validation": 0.8}, block="pre_ln"),
        result("glue/sst2", {"validation": 0.8}, block="pre_ln"),  # the same run, met twice
    ]
    table = build_table(found, tasks)
    assert text_rows(table) == [
        ["block", "weights", "runs", "parameters", "MNLI-m", "MNLI-mm", "SST-2", "mean"],
        ["sas", "pretrained", "2", "1,234", "65.0 ± 7.1", "75.0 ± 7.1", "85.0 ± 7.1", "75.0 ± 7.1"],
        ["pre_ln", "pretrained", "1", "5", "60.0", "70.0", "80.0", "70.0"],
        ["majority class", "", "", "", "40.0", "40.0", "40.0", "40.0"],
    ]


def test_diverged_runs_are_shown_and_not_averaged() -> None:
    tasks = [TASKS["glue/rte"], TASKS["glue/sst2"]]
    nothing: dict[str, Any] = {"state": "diverged", "metrics": {}, "score": None}
    found = [
        result("glue/rte", {"validation": 0.5}), result("glue/sst2", {"validation": 0.7}),
        result("glue/rte", {}, seed=1, **nothing), result("glue/sst2", {"validation": 0.9}, seed=1),
        result("glue/rte", {}, block="sas_p_no_norm", **nothing),
        result("glue/sst2", {"validation": 0.9}, block="sas_p_no_norm"),
    ]
    _, sas, no_norm, _ = text_rows(build_table(found, tasks))
    assert sas[4:] == ["50.0 (1 diverged)", "80.0 ± 14.1", "60.0 (1 diverged)"]
    assert no_norm[4:] == ["diverged", "90.0", "diverged"]


def test_rows_are_blocks_pretrainings_and_weights() -> None:
    task = TASKS["glue/rte"]
    score = {"validation": 0.5}
    found = [
        result(task.name, score), result(task.name, score, from_scratch=True),
        result(task.name, score, pretraining="q", checkpoint_sha256="c2"), result(task.name, score, block="pre_ln"),
    ]
    labels = [line[:3] for line in text_rows(build_table(found, [task]))[1:]]
    assert labels == [
        ["sas (p)", "pretrained", "1"], ["sas", "from scratch", "1"], ["sas (q)", "pretrained", "1"],
        ["pre_ln", "pretrained", "1"], ["majority class", "", ""],
    ]


def test_glue_is_averaged_as_on_the_leaderboard_and_as_crammed_bert_is() -> None:
    """Predictions for all eight tasks, scored by sklearn and scipy: nine columns, two averages."""
    random = np.random.default_rng(0)
    found, leaderboard, crammed = [], [], []
    for name in GROUPS["glue/all"]:
        task, classes = TASKS[name], 3 if name == "glue/mnli" else 2
        metrics = {}
        for split, _ in task.validation:
            labels = random.integers(0, 11, 200) / 2.0 if task.regression else random.integers(0, classes, 200)
            noise = labels + random.normal(size=200).round(1)
            predicted = noise if task.regression else np.where(random.random(200) < 0.7, labels, labels * 0)
            metrics[split] = measure(task, torch.tensor(predicted), torch.tensor(labels), classes=classes)
            both, own = scores_of(name.removeprefix("glue/"), labels, predicted)
            leaderboard.append(both)
            crammed.append(own)
        found.append(result(name, {}, metrics=metrics, guess=metrics))
    table = build_table(found, [TASKS[name] for name in GROUPS["glue/all"]])
    assert table.titles[-2:] == ("mean", "mean (crammed)")
    for row in table.rows:
        assert row.scores["mean"].mean == pytest.approx(100 * np.mean(leaderboard), abs=1e-4)
        assert row.scores["mean (crammed)"].mean == pytest.approx(100 * np.mean(crammed), abs=1e-4)
    assert [row.scores["QQP"].mean for row in table.rows] == pytest.approx([100 * leaderboard[6]] * 2, abs=1e-4)
    assert abs(np.mean(leaderboard) - np.mean(crammed)) > 1e-3
    single = build_table(found[:1], [TASKS["glue/mrpc"]])
    assert single.titles == ("MRPC",)


def scores_of(task: str, labels: Any, predicted: Any) -> tuple[float, float]:
    """What GLUE's leaderboard makes of predictions, and what the evaluation of crammed BERT does."""
    if task == "stsb":
        pearson = stats.pearsonr(predicted, labels).statistic
        return (pearson + stats.spearmanr(predicted, labels).statistic) / 2, pearson
    if task == "cola":
        return (sklearn_metrics.matthews_corrcoef(labels, predicted),) * 2
    accuracy = sklearn_metrics.accuracy_score(labels, predicted)
    if task not in ("mrpc", "qqp"):
        return accuracy, accuracy
    f1 = sklearn_metrics.f1_score(labels, predicted)
    return (accuracy + f1) / 2, f1


def test_the_tables_files(tmp_path: Path) -> None:
    found = [result("glue/rte", {"validation": value}, seed=seed) for seed, value in enumerate((0.5, 0.7))]
    write_table(build_table(found, [TASKS["glue/rte"]]), found, tmp_path)
    assert (tmp_path / "table.md").read_text() == (
        "| block | weights | runs | parameters | RTE |\n| :-- | :-- | --: | --: | --: |\n"
        "| sas | pretrained | 2 | 1,234 | 60.0 ± 14.1 |\n| majority class |  |  |  | 40.0 |\n"
    )
    with (tmp_path / "table.csv").open() as stream:
        row = next(csv.DictReader(stream))
    assert (row["block"], row["RTE n"], row["RTE diverged"]) == ("sas", "2", "0")
    assert (float(row["RTE"]), float(row["RTE std"])) == pytest.approx((60.0, 200**0.5))
    written = json.loads((tmp_path / "table.json").read_text())
    assert written["rows"][0]["scores"]["RTE"]["mean"] == pytest.approx(60.0)
    assert [run["metrics"]["validation"]["accuracy"] for run in written["runs"]] == [0.5, 0.7]
