"""The frozen dataclass that describes a fine-tuning. Imports neither torch nor lightning."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from lit_simplified.config import ConfigError, Schedule
from lit_simplified.config.checks import Range, Words, check_fields
from lit_simplified.config.schema import Count, Epsilon, Share, Size, Threads
from lit_simplified.config.words import ACCELERATORS, PRECISIONS
from lit_simplified.finetuning.tasks import GROUPS, TASKS

Head = Literal["mean", "cramming"]


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Everything that determines a fine-tuning, except checkpoint and seed.

    The defaults are the paper's for GLUE. Where it gives no value (betas, warm-up, no weight decay, no clipping), they
    are those of "crammed" BERT, whose recipe it follows.
    """

    task: str
    """glue/cola, glue/sst2, glue/mrpc, glue/qqp, glue/stsb, glue/mnli, glue/qnli, glue/rte, glue/wnli; glue/all: the
    eight tasks of the paper's Table 2 (all but wnli). docstrings: the library that a docstring of this machine's Python
    belongs to. docstrings/kind: the kind of object that it describes. The last two need no network."""
    data_dir: str | None = None
    """Folder with the task's splits, instead of the hub: train.jsonl and validation.jsonl (mnli: validation_matched and
    validation_mismatched), or .csv, .tsv, .parquet, with the hub's columns; for glue/all one such folder per task."""
    from_scratch: bool | Literal["both"] = False
    """true: same architecture and tokenizer, but random weights, as a control. both: pretrained and from scratch."""
    head: Head = "mean"
    """mean: of all positions, a layer as wide as the model with tanh, dropout, a linear map. cramming: the head with
    which crammed BERT is scored, the same over the first position, with a layer of 1,024 units (encoders only)."""
    epochs: Annotated[int, Range(1, 10**6)] = 5
    """Passes over the training examples. The score is measured after the last one."""
    batch_size: Size = 32
    """Examples per step."""
    learning_rate: Annotated[float, Range(above=0, most=1e30)] = 1.5e-4
    """Peak learning rate. The default is for the paper's width of 768; models as small as this project's default learn
    better at 1e-3."""
    schedule: Schedule = "cosine"
    """Decay after the warm-up: cosine or linear to 0, or none."""
    warmup: Share = 0.1
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: Annotated[float, Range(0, 1e3)] = 0.0
    """On matrices and embeddings."""
    beta1: Share = 0.9
    beta2: Share = 0.98
    eps: Epsilon = 1e-6
    """Epsilon of AdamW."""
    clip: Annotated[float, Range(above=0, most=1e9)] | None = None
    """Largest global gradient norm. None: no clipping."""
    dropout: Share = 0.1
    """Dropout on the embedding, on the output of each branch, and in the head."""
    max_examples: Count | None = None
    """Number of training examples to use, always the same ones. None: all."""
    accelerator: Annotated[str, Words(ACCELERATORS)] = "auto"
    """cpu, gpu, auto: Lightning's choice of hardware. One device is used."""
    precision: Annotated[str, Words(PRECISIONS)] = "32-true"
    """32-true, bf16-mixed, 16-mixed, 64-true, ..."""
    threads: Threads | None = None
    """CPU threads of torch. None: torch's default."""
    progress_bar: bool = True
    """Show progress in the terminal."""
    cache_dir: str = "data/cache"
    """Folder for downloads and for the examples of the docstrings tasks."""
    out_dir: str = "results/finetune"
    """Each run gets its own folder here, inside its task's."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.task not in TASKS and self.task not in GROUPS:
            raise ConfigError("task", self.task, f"choose one of {', '.join((*TASKS, *GROUPS))}")
        if self.data_dir is not None and self.task.startswith("docstrings"):
            remedy = f"{self.task} is made from this machine's Python: leave it out"
            raise ConfigError("data_dir", self.data_dir, remedy)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of a group, or the single task."""
        return GROUPS.get(self.task, (self.task,))

    def identity(self) -> dict[str, Any]:
        """The fields that determine a result, whatever the machine."""
        elsewhere = ("data_dir", "accelerator", "threads", "progress_bar", "cache_dir", "out_dir")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in elsewhere}
