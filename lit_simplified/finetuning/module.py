"""`LitClassifier`: the steps around a `SequenceClassifier`, its curve, and the end of a run that diverged.

Shapes: B batch, O outputs.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from torch import Tensor
from torch.nn import functional as F

from lit_simplified.config import OptimConfig
from lit_simplified.finetuning.batches import Batch, EncodedTask
from lit_simplified.finetuning.metrics import decide, measure
from lit_simplified.finetuning.model import SequenceClassifier
from lit_simplified.finetuning.tasks import TextTask
from lit_simplified.optim import build_optimizer, build_scheduler

CHECK_EVERY = 10
"""Steps between checks that the loss is finite: reading it makes a GPU wait."""


@dataclass(frozen=True)
class EpochPoint:
    """The state after one epoch."""

    epoch: int
    """Epochs done."""
    seconds: float
    """Since training began, including validation."""
    train_loss: float
    """Mean over the epoch's steps: nats, or squared error."""
    val_loss: dict[str, float]
    """By split."""
    metrics: dict[str, dict[str, float]]
    """By split and name, as shares of 1."""


@dataclass
class _Epoch:
    """What an epoch accumulates."""

    loss: Tensor | float = 0.0
    steps: int = 0
    outputs: dict[int, list[Tensor]] = field(default_factory=dict)
    labels: dict[int, list[Tensor]] = field(default_factory=dict)


class LitClassifier(pl.LightningModule):
    """A classifier (cross-entropy) or a regressor (mean squared error), and its optimiser.

    Args:
        model: the model to train.
        task: the meaning of its outputs.
        data: the encoded splits, for their names and classes.
        optim: the optimiser, with the number of steps.
    """

    def __init__(
        self, model: SequenceClassifier, *, task: TextTask, data: EncodedTask, optim: OptimConfig, fused: bool = True
    ) -> None:
        super().__init__()
        self.model, self.task, self.optim, self.fused = model, task, optim, fused
        self.classes = data.outputs
        self.validation = [split for split in data.splits if split != "train"]
        self.curve: list[EpochPoint] = []
        self.reason = ""
        """Why the run diverged; empty while it has not."""
        self.now = _Epoch()
        self.began = time.perf_counter()

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of a batch.  (B, O), (B,) -> ()"""
        if self.task.regression:
            return F.mse_loss(outputs.squeeze(-1), labels.to(outputs.dtype))
        return F.cross_entropy(outputs, labels)

    def on_train_start(self) -> None:
        self.began = time.perf_counter()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(self.model(batch.tokens, batch.attention_mask), batch.labels)
        self.now.loss, self.now.steps = self.now.loss + loss.detach(), self.now.steps + 1
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self.now.steps % CHECK_EVERY == 0:
            self._stop_unless_finite(float(self.now.loss) / self.now.steps)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.now.outputs.setdefault(dataloader_idx, []).append(self.model(batch.tokens, batch.attention_mask).float())
        self.now.labels.setdefault(dataloader_idx, []).append(batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Add a point to the curve. Metrics need all predictions at once."""
        done, self.now = self.now, _Epoch()
        train_loss = float(done.loss) / max(1, done.steps)
        self._stop_unless_finite(train_loss)
        losses, metrics = {}, {}
        for number, split in enumerate(self.validation):
            outputs, labels = torch.cat(done.outputs[number]).cpu(), torch.cat(done.labels[number]).cpu()
            if not self._stop_unless_finite(float(outputs.sum()), what=f"outputs on {split}"):
                return
            losses[split] = float(self.loss(outputs, labels))
            metrics[split] = measure(self.task, decide(outputs), labels, classes=self.classes)
        if not self.reason:
            seconds = time.perf_counter() - self.began
            self.curve.append(EpochPoint(self.current_epoch + 1, seconds, train_loss, losses, metrics))

    def _stop_unless_finite(self, value: float, *, what: str = "mean training loss") -> bool:
        if not math.isfinite(value) and not self.reason:
            self.reason = f"{what} {value} at step {self.trainer.global_step}"
            self.trainer.should_stop = True
        return not self.reason

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """By the global norm; Lightning's own clipping refuses fused optimisers in mixed precision."""
        if gradient_clip_val is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.model, self.optim, fused=self.fused)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": build_scheduler(optimizer, self.optim), "interval": "step"},
        }


class FinetuneProgress(TQDMProgressBar):
    """One bar per epoch, removed when the epoch ends, with the loss and the latest metrics.

    Args:
        title: names the run.
    """

    def __init__(self, title: str) -> None:
        super().__init__(refresh_rate=10, leave=False)
        self.title = title

    def init_validation_tqdm(self) -> Tqdm:
        bar = super().init_validation_tqdm()
        bar.disable = True
        return bar

    def on_train_epoch_start(self, trainer: pl.Trainer, *arguments: Any) -> None:
        super().on_train_epoch_start(trainer, *arguments)
        self.train_progress_bar.set_description(f"{self.title}, epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        values: dict[str, Any] = {}
        if "loss" in trainer.progress_bar_metrics:
            values["loss"] = f"{trainer.progress_bar_metrics['loss']:.3f}"
        curve = getattr(pl_module, "curve", [])
        for metrics in curve[-1].metrics.values() if curve else ():
            values |= {name: f"{value:.3f}" for name, value in metrics.items()}
        return values
