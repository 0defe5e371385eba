"""`finetune(FinetuneConfig, run=, seed=) -> FinetuneResult`: one checkpoint, one task, one seed."""

from __future__ import annotations

import hashlib
import json
import logging
import statistics
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import torch
import yaml

from lit_simplified.config import ConfigError, OptimConfig, digest, to_dict
from lit_simplified.files import finite, write_text
from lit_simplified.finetuning.batches import EncodedTask, TaskDataModule, encode_task
from lit_simplified.finetuning.checkpoint import Checkpoint, read_checkpoint
from lit_simplified.finetuning.config import FinetuneConfig
from lit_simplified.finetuning.examples import locate
from lit_simplified.finetuning.metrics import constant_guess, measure, score
from lit_simplified.finetuning.model import SequenceClassifier, with_dropout
from lit_simplified.finetuning.module import EpochPoint, FinetuneProgress, LitClassifier
from lit_simplified.finetuning.tasks import TextTask, find_task
from lit_simplified.hardware import keep_freed_memory, refuse_emulated_precision
from lit_simplified.model import Transformer

RESULT, CONFIG = "result.json", "config.yaml"


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """The result of a fine-tuning. Scores and metrics are shares of 1, measured after the last epoch."""

    state: Literal["complete", "diverged"]
    reason: str
    """Why it diverged; empty for a complete run."""
    run_dir: str
    task: str
    block: str
    """The preset, or the switches in short."""
    from_scratch: bool
    pretraining: str
    """Eight digits that all seeds of one pretraining share; from scratch, those of one model."""
    pretraining_seed: int
    seed: int
    checkpoint: str
    checkpoint_sha256: str
    score: float | None
    """Mean over the splits of `scores`; None for a diverged run."""
    scores: dict[str, float]
    """By split: the mean of its metrics. Empty for a diverged run."""
    metrics: dict[str, dict[str, float]]
    """By split and name."""
    guess: dict[str, dict[str, float]]
    """The metrics of always guessing the majority class of the training split (regression: its mean label)."""
    curve: tuple[EpochPoint, ...]
    classes: tuple[str, ...]
    examples: dict[str, int]
    """By split."""
    truncated: dict[str, int]
    """Examples by split that were longer than the model's context."""
    steps: int
    seconds: float
    """Training and validation."""
    parameters: int
    """Trained parameters, head included."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A fine-tuning that is about to be trained."""

    config: FinetuneConfig
    task: TextTask
    checkpoint: Checkpoint
    seed: int
    data_digest: str

    @property
    def folder(self) -> Path:
        """Named by all that determines the result; from scratch, of the checkpoint only sizes and tokenizer do."""
        fresh, pretrained = self.config.from_scratch, self.checkpoint.config
        identity = {
            **self.config.identity(), "data": self.data_digest, "tokenizer": self.checkpoint.tokenizer.sha256,
            "weights": to_dict(pretrained.model) if fresh else self.checkpoint.sha256,
        }
        weights = "scratch" if fresh else f"s{pretrained.seed}"
        identity_digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        name = f"{self.checkpoint.block}-{weights}-f{self.seed}-{identity_digest[:8]}"
        return Path(self.config.out_dir) / self.task.name / name


def finetune(
    config: FinetuneConfig, *, run: Path | Checkpoint, seed: int = 0, redo: bool = False
) -> FinetuneResult:
    """Fine-tune a pretrained model on one task, and write config and result to a folder of its own under `out_dir`.

    A finished run is not repeated: its result is returned. An interrupted one starts over.

    Args:
        config: task and settings.
        run: the folder of a run of `fit`, a checkpoint file in it, or a `Checkpoint`.
        seed: seeds the head, the order of the examples and dropout; from scratch, all weights.
        redo: train even if it is finished.

    Raises:
        ConfigError: an unusable checkpoint, unusable examples or settings, with the remedy.
    """
    if isinstance(config.from_scratch, str):
        raise ConfigError("from_scratch", config.from_scratch, "a single run is one or the other: give true or false")
    refuse_emulated_precision(config.precision, accelerator=config.accelerator, field="precision")
    task = find_task(config.task)
    checkpoint = run if isinstance(run, Checkpoint) else read_checkpoint(run)
    check_head(config, checkpoint)
    place = locate(task, config)
    this = _Run(config=config, task=task, checkpoint=checkpoint, seed=seed, data_digest=place.digest)
    if not redo and (finished := read_result(this.folder)) is not None:
        return finished
    data = encode_task(
        task, place, cache_dir=config.cache_dir, max_examples=config.max_examples, tokenizer=checkpoint.tokenizer,
        context=checkpoint.config.model.context,
    )
    return _train(this, data)


def check_head(config: FinetuneConfig, checkpoint: Checkpoint) -> None:
    """Raise `ConfigError` for a head that reads nothing of the text."""
    if config.head == "cramming" and checkpoint.config.model.causal:
        remedy = f"the first position of a causal model ({checkpoint.file}) has read no text: choose mean"
        raise ConfigError("head", config.head, remedy)


def read_result(folder: Path) -> FinetuneResult | None:
    """The result in a run's folder, if it is finished."""
    try:
        values = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        curve = tuple(EpochPoint(**point) for point in values["curve"])
        return FinetuneResult(**{**values, "curve": curve, "classes": tuple(values["classes"])})
    except (OSError, ValueError, TypeError, KeyError, RecursionError):  # missing, or of another version
        return None


def _train(run: _Run, data: EncodedTask) -> FinetuneResult:
    _silence_advice()
    (run.folder / RESULT).unlink(missing_ok=True)
    values = {
        "finetune": to_dict(run.config), "seed": run.seed, "checkpoint": str(run.checkpoint.file),
        "checkpoint_sha256": run.checkpoint.sha256, "pretraining": to_dict(run.checkpoint.config),
    }
    write_text(run.folder / CONFIG, yaml.safe_dump(values, sort_keys=False))
    if run.config.threads:
        torch.set_num_threads(run.config.threads)
    pl.seed_everything(run.seed, workers=True, verbose=False)
    keep_freed_memory()
    module = build_module(run.config, task=run.task, checkpoint=run.checkpoint, data=data)
    trainer = _trainer(run)
    began = time.perf_counter()
    trainer.fit(module, TaskDataModule(data, batch_size=run.config.batch_size, seed=run.seed))
    result = _result(run, data, module, steps=trainer.global_step, seconds=time.perf_counter() - began)
    write_text(run.folder / RESULT, json.dumps(finite(asdict(result)), indent=1))
    return result


def build_module(
    config: FinetuneConfig, *, task: TextTask, checkpoint: Checkpoint, data: EncodedTask
) -> LitClassifier:
    """The checkpoint's model with a new head, or one with fresh weights, and its optimiser."""
    encoder = Transformer(with_dropout(checkpoint.config.model, config.dropout))
    if not config.from_scratch:
        encoder.load_state_dict(checkpoint.weights())
    model = SequenceClassifier(encoder, outputs=data.outputs, dropout=config.dropout, head=config.head)
    batches = -(-len(data.splits["train"].sequences) // config.batch_size)
    optim = OptimConfig(
        steps=config.epochs * batches, learning_rate=config.learning_rate, weight_decay=config.weight_decay,
        beta1=config.beta1, beta2=config.beta2, eps=config.eps, warmup=config.warmup, schedule=config.schedule,
    )
    # The loss scaling of float16 has to be undone before clipping, which the fused kernel would do after it.
    return LitClassifier(model, task=task, data=data, optim=optim, fused=not config.precision.startswith("16"))


def _trainer(run: _Run) -> pl.Trainer:
    config = run.config
    weights = "from scratch" if config.from_scratch else f"seed {run.checkpoint.config.seed}"
    title = f"{run.task.name}: {run.checkpoint.block}, {weights}, seed {run.seed}"
    return pl.Trainer(
        accelerator=config.accelerator, devices=1, precision=config.precision,  # type: ignore[arg-type]
        max_epochs=config.epochs, gradient_clip_val=config.clip, num_sanity_val_steps=0, logger=False,
        callbacks=[FinetuneProgress(title)] if config.progress_bar else [], enable_progress_bar=config.progress_bar,
        enable_model_summary=False, enable_checkpointing=False, use_distributed_sampler=False,
    )


def _silence_advice() -> None:
    """Silence advice that does not apply here; errors and real warnings stay."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
                    ".*Trying to infer the `batch_size`.*"):
        warnings.filterwarnings("ignore", message=message)


def _result(run: _Run, data: EncodedTask, module: LitClassifier, *, steps: int, seconds: float) -> FinetuneResult:
    diverged = bool(module.reason)
    metrics = {} if diverged else module.curve[-1].metrics
    scores = {split: score(values) for split, values in metrics.items()}
    guess = constant_guess(run.task, data.splits["train"].labels)
    return FinetuneResult(
        state="diverged" if diverged else "complete", reason=module.reason, run_dir=str(run.folder),
        task=run.task.name, block=run.checkpoint.block, from_scratch=bool(run.config.from_scratch),
        pretraining=digest(run.checkpoint.config.model) if run.config.from_scratch else run.checkpoint.pretraining,
        pretraining_seed=run.checkpoint.config.seed, seed=run.seed,
        checkpoint=str(run.checkpoint.file), checkpoint_sha256=run.checkpoint.sha256,
        score=statistics.fmean(scores.values()) if scores else None, scores=scores, metrics=metrics,
        guess={
            split: measure(run.task, guess.expand(len(encoded.labels)), encoded.labels, classes=data.outputs)
            for split, encoded in data.splits.items() if split != "train"
        },
        curve=tuple(module.curve), classes=data.classes,
        examples={split: len(encoded.sequences) for split, encoded in data.splits.items()},
        truncated={split: encoded.truncated for split, encoded in data.splits.items()},
        steps=steps, seconds=seconds,
        parameters=sum(p.numel() for p in module.parameters() if p.requires_grad),
    )
