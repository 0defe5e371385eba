"""`LitTransformer`: the training, validation and test steps around a `Transformer`. No architecture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lit_simplified.config import RunConfig, from_record, to_dict
from lit_simplified.hardware import refuse_beyond_memory
from lit_simplified.model import SMALL, Transformer, is_small, size_of
from lit_simplified.objectives import CHUNK, argmax, build_objective, cross_entropy
from lit_simplified.optim import build_optimizer, build_scheduler


class LitTransformer(pl.LightningModule):
    """A model, its objective and its optimiser.

    Args:
        config: the run, as `RunConfig` or as the plain dict that checkpoints hold.
    """

    def __init__(self, config: RunConfig | Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config if isinstance(config, RunConfig) else from_record(RunConfig, config)
        # Plain dicts only: a checkpoint must load with weights_only=True. `inspection.board` tells TensorBoard.
        self.save_hyperparameters({"config": to_dict(self.config)}, logger=False)
        self.model = Transformer(self.config.model)
        self.objective = build_objective(self.config)
        self.val_loss = MeanMetric()
        self.val_accuracy = self._accuracy() if self.objective.reports_accuracy else None
        self.test_loss = MeanMetric()
        self.test_accuracy = self._accuracy()
        if self.config.trainer.compile:
            # Block by block: equal blocks share one compilation, whichever method of the model is called.
            for block in self.model.blocks:
                block.compile()

    def _accuracy(self) -> MulticlassAccuracy:
        return MulticlassAccuracy(num_classes=self.config.model.vocab_size, average="micro")

    def training_step(self, windows: Tensor, batch_idx: int) -> Tensor:
        loss = self.objective.loss(self.model, windows, step=self._batch_number(batch_idx))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, windows: Tensor, batch_idx: int) -> None:
        self._evaluate(windows, self.val_loss, self.val_accuracy)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(_metrics("val", self.val_loss, self.val_accuracy), prog_bar=True)
        # `step` is Lightning's word for the x axis, which otherwise lags by one.
        self.log("step", float(self.trainer.global_step))

    def test_step(self, windows: Tensor, batch_idx: int) -> None:
        self._evaluate(windows, self.test_loss, self.test_accuracy)

    def on_test_epoch_end(self) -> None:
        self.log_dict(_metrics("test", self.test_loss, self.test_accuracy))

    def _evaluate(self, windows: Tensor, loss: MeanMetric, accuracy: MulticlassAccuracy | None) -> None:
        hidden, targets = self.objective.select(self.model, windows, step=None)
        weight = self.model.head.weight
        loss.update(cross_entropy(hidden, weight, targets), weight=targets.numel())
        if accuracy is not None:
            accuracy.update(argmax(hidden, weight), targets)

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the global norm and log it; Lightning's own clipping refuses fused optimisers in mixed precision."""
        limit = math.inf if gradient_clip_val is None else float(gradient_clip_val)
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDPStrategy):
            sharded: Any = strategy.model
            norm = sharded.clip_grad_norm_(limit)  # the norm over all shards
        else:
            norm = torch.nn.utils.clip_grad_norm_(self.parameters(), limit)
        if self.trainer.global_step % self.config.trainer.log_every == 0:
            self.log_dict({"train/gradient_norm": norm, "train/learning_rate": optimizer.param_groups[0]["lr"]})

    def configure_optimizers(self) -> Any:
        # The loss scaling of float16 has to be undone before clipping, which the fused kernel would do after it.
        fused = not self.config.trainer.precision.startswith("16")
        optimizer = build_optimizer(self.model, self.config.optim, fused=fused)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": build_scheduler(optimizer, self.config.optim), "interval": "step"},
        }

    def _batch_number(self, batch_idx: int) -> int:
        """A different number for every batch of every rank."""
        return batch_idx * self.trainer.world_size + self.trainer.global_rank


def refuse_untrainable(config: RunConfig, *, device: torch.device) -> None:
    """Refuse a run whose weights, gradients, moments of AdamW, a chunk of logits and one tensor per block of a batch
    fill the memory.

    Args:
        config: the run.
        device: where it trains. What a strategy divides among devices is not judged.

    Raises:
        ConfigError: with the estimate and what is there.
    """
    model, word = config.model, config.trainer.precision
    width = 8 if word.startswith("64") else 2 if word.endswith("16-true") else 4
    activations = config.data.batch_size * model.context * model.width * model.depth * (2 if "16" in word else width)
    if config.trainer.strategy.startswith(("fsdp", "deepspeed")) or (is_small(model) and activations < SMALL):
        return
    size = size_of(model)
    logits = min(CHUNK, config.data.batch_size * model.context) * model.vocab_size * width
    needed = (4 * size.trained + size.fixed) * width + activations + logits
    refuse_beyond_memory(
        needed, device=device, field="model", what="its training",
        value=f"{model.depth} blocks of width {model.width}, vocabulary {model.vocab_size}, batches of "
        f"{config.data.batch_size} x {model.context}",
    )


def _metrics(stage: str, loss: MeanMetric, accuracy: MulticlassAccuracy | None) -> dict[str, Tensor]:
    """The metrics of an evaluation, by the names they are logged under; resets them."""
    values = {f"{stage}/loss": loss.compute(), f"{stage}/perplexity": loss.compute().exp()}
    loss.reset()
    if accuracy is not None:
        values[f"{stage}/accuracy"] = accuracy.compute()
        accuracy.reset()
    return values
