"""The tasks as data: where their examples are, what the columns mean, and how predictions are scored.

Imports neither torch nor lightning.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lit_simplified.config import ConfigError

Metric = Literal["accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman"]

GLUE = "nyu-mll/glue"
REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
"""A commit of `GLUE`: a branch may move."""


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """Texts, or pairs of texts, with a class or a number for each."""

    name: str
    columns: tuple[str, ...]
    """The columns of the text, or of both texts."""
    metrics: tuple[Metric, ...]
    """Their mean is the score, as on GLUE's leaderboard."""
    validation: tuple[tuple[str, str], ...]
    """The splits that are scored, and the title of each in a table."""
    crammed_metric: Metric | None = None
    """The one of them by which "crammed" BERT is scored. None: all."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their numbers. Empty: those of the training labels, sorted."""
    label_range: tuple[float, float] | None = None
    """Regression: the smallest and the largest label. None: classification."""
    repository: str | None = None
    """On the Hugging Face hub. None: made on this machine (`finetuning.docstrings`)."""
    configuration: str | None = None
    """The name of the repository's part."""
    revision: str | None = None

    @property
    def regression(self) -> bool:
        return self.label_range is not None

    @property
    def splits(self) -> tuple[str, ...]:
        """`train`, and those that are scored."""
        return ("train", *(split for split, _ in self.validation))


def _glue(
    name: str, title: str, columns: tuple[str, ...], classes: tuple[str, ...], *metrics: Metric,
    validation: tuple[tuple[str, str], ...] | None = None, label_range: tuple[float, float] | None = None,
    crammed: Metric | None = None,
) -> TextTask:
    return TextTask(
        name=f"glue/{name}", columns=columns, classes=classes, metrics=metrics,
        validation=validation or (("validation", title),), label_range=label_range, crammed_metric=crammed,
        repository=GLUE, configuration=name, revision=REVISION,
    )


SENTENCES = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")
_TASKS = (
    _glue(
        "mnli", "MNLI", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), "accuracy",
        validation=(("validation_matched", "MNLI-m"), ("validation_mismatched", "MNLI-mm")),
    ),
    _glue("sst2", "SST-2", ("sentence",), ("negative", "positive"), "accuracy"),
    _glue("stsb", "STS-B", SENTENCES, (), "pearson", "spearman", label_range=(0.0, 5.0), crammed="pearson"),
    _glue("rte", "RTE", SENTENCES, ENTAILMENT, "accuracy"),
    _glue("qnli", "QNLI", ("question", "sentence"), ENTAILMENT, "accuracy"),
    _glue("qqp", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"), "accuracy", "f1", crammed="f1"),
    _glue("mrpc", "MRPC", SENTENCES, ("not_equivalent", "equivalent"), "accuracy", "f1", crammed="f1"),
    _glue("cola", "CoLA", ("sentence",), ("unacceptable", "acceptable"), "matthews"),
    _glue("wnli", "WNLI", SENTENCES, ENTAILMENT[::-1], "accuracy"),
    TextTask(name="docstrings", columns=("text",), metrics=("accuracy",), validation=(("validation", "docstrings"),)),
    TextTask(
        name="docstrings/kind", columns=("text",), metrics=("accuracy",), validation=(("validation", "kinds"),),
    ),
)

TASKS: Mapping[str, TextTask] = types.MappingProxyType({task.name: task for task in _TASKS})
"""The tasks by name, those of GLUE in the order of the paper's Table 2."""
GROUPS: Mapping[str, tuple[str, ...]] = types.MappingProxyType(
    {"glue/all": tuple(task.name for task in _TASKS if task.repository == GLUE and task.configuration != "wnli")}
)
"""Tasks that are run together."""


def find_task(name: str) -> TextTask:
    """The named task, or a `ConfigError` that lists the known ones."""
    if name not in TASKS:
        raise ConfigError("task", name, f"choose one of {', '.join(TASKS)}")
    return TASKS[name]
