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

from lit_simplified.config import RunConfig, from_dict, to_dict
from lit_simplified.model import Transformer
from lit_simplified.objectives import build_objective, cross_entropy
from lit_simplified.optim import build_optimizer, build_scheduler


class LitTransformer(pl.LightningModule):
    """A model, its objective and its optimiser.

    Args:
        config: the run, as `RunConfig` or as the plain dict that checkpoints hold.
    """

    def __init__(self, config: RunConfig | Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config if isinstance(config, RunConfig) else from_dict(RunConfig, config)
        # Plain dicts only: a checkpoint must load with weights_only=True. `inspection.board` tells TensorBoard.
        self.save_hyperparameters({"config": to_dict(self.config)}, logger=False)
        self.model = Transformer(self.config.model)
        self.objective = build_objective(self.config)
        self.val_loss = MeanMetric()
        self.test_loss = MeanMetric()
        self.test_accuracy = MulticlassAccuracy(num_classes=self.config.model.vocab_size, average="micro")
        if self.config.trainer.compile:
            # Block by block: equal blocks share one compilation, and every entry to the model profits.
            for block in self.model.blocks:
                block.compile()

    def training_step(self, windows: Tensor, batch_idx: int) -> Tensor:
        loss = self.objective.loss(self.model, windows, step=self._batch_number(batch_idx))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, windows: Tensor, batch_idx: int) -> None:
        hidden, targets = self.objective.select(self.model, windows, step=self._batch_number(batch_idx))
        self.val_loss.update(cross_entropy(hidden, self.model.head.weight, targets), weight=targets.numel())

    def on_validation_epoch_end(self) -> None:
        loss = self.val_loss.compute()
        self.val_loss.reset()
        # `step` is Lightning's word for the x axis, which otherwise lags by one.
        self.log_dict({"val/loss": loss, "val/perplexity": loss.exp()}, prog_bar=True)
        self.log("step", float(self.trainer.global_step))

    def test_step(self, windows: Tensor, batch_idx: int) -> None:
        logits, targets = self.objective.predict(self.model, windows, step=self._batch_number(batch_idx))
        self.test_loss.update(torch.nn.functional.cross_entropy(logits, targets), weight=targets.numel())
        self.test_accuracy.update(logits.argmax(-1), targets)

    def on_test_epoch_end(self) -> None:
        loss = self.test_loss.compute()
        self.log_dict({"test/loss": loss, "test/perplexity": loss.exp(), "test/accuracy": self.test_accuracy.compute()})
        self.test_loss.reset()
        self.test_accuracy.reset()

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
        """A number of its own for every batch of every rank."""
        return batch_idx * self.trainer.world_size + self.trainer.global_rank
