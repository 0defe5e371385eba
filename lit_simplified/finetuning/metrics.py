"""Scores of predictions, by torchmetrics.

N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef
from torchmetrics.functional.classification import (
    binary_f1_score,
    multiclass_accuracy,
    multiclass_f1_score,
    multiclass_matthews_corrcoef,
)

from lit_simplified.finetuning.tasks import Metric, TextTask


def decide(outputs: Tensor) -> Tensor:
    """A model's predictions: the argmax over classes, or the number itself.  (N, C) -> (N,), (N, 1) -> (N,)"""
    return outputs.squeeze(-1) if outputs.shape[-1] == 1 else outputs.argmax(-1)


def measure(task: TextTask, predictions: Tensor, labels: Tensor, *, classes: int) -> dict[str, float]:
    """The task's metrics, of predictions and labels, (N,) each, as shares of 1.

    A correlation (pearson, spearman, matthews) with a constant is undefined; it counts as 0, the worth of a
    constant prediction.
    """
    scores: dict[str, float] = {}
    for metric in task.metrics:
        correlation = metric in ("pearson", "spearman", "matthews")
        undefined = correlation and (_constant(predictions) or _constant(labels))
        scores[metric] = 0.0 if undefined else float(_METRICS[metric](predictions, labels, classes))
    return scores


def score(metrics: dict[str, float]) -> float:
    """One number for a split: the mean of its metrics, as on GLUE's leaderboard."""
    return sum(metrics.values()) / len(metrics)


def constant_guess(task: TextTask, labels: Tensor) -> Tensor:
    """The best constant guess from the training labels, a scalar: the majority class, or the mean.  (N,) -> ()"""
    return labels.mean() if task.regression else labels.bincount().argmax()


def _constant(values: Tensor) -> bool:
    return bool((values == values[0]).all())


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.float64)


_METRICS: dict[Metric, Callable[[Tensor, Tensor, int], Tensor]] = {
    "accuracy": lambda predicted, labels, classes: multiclass_accuracy(predicted, labels, classes, average="micro"),
    "f1": lambda predicted, labels, _: binary_f1_score(predicted, labels),
    "macro_f1": lambda predicted, labels, classes: multiclass_f1_score(predicted, labels, classes, average="macro"),
    "matthews": lambda predicted, labels, classes: multiclass_matthews_corrcoef(predicted, labels, classes),
    "pearson": lambda predicted, labels, _: pearson_corrcoef(_wide(predicted), _wide(labels)),
    "spearman": lambda predicted, labels, _: spearman_corrcoef(_wide(predicted), _wide(labels)),
}
