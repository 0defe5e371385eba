"""Inspection during training: `Inspector` takes snapshots, `BoardWriter` writes them to TensorBoard.

Hooks exist only while a snapshot is taken, so that the steps in between are as fast as without an `Inspector`.

Shapes: B batch, T positions, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_simplified.config import RunConfig, TrainerConfig
from lit_simplified.datamodules.datamodule import WindowDataModule, spread
from lit_simplified.inspection.board import Board
from lit_simplified.inspection.parts import Parts
from lit_simplified.inspection.snapshot import Snapshot
from lit_simplified.model import Transformer
from lit_simplified.module import LitTransformer
from lit_simplified.signals import Signals, branch_gains, head_gains, probe, residual_ratios

SEQUENCES, ATTENDED = 2, 1
"""Windows of the fixed batch, and how many of them have their attention measured."""
MAP_POSITIONS = 256
"""Rows and columns of an attention map that are kept."""


class BoardWriter(pl.Callback):
    """Describes the run in TensorBoard and adds its snapshots. On the first rank."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.board: Board | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        logger = trainer.logger  # another, or none, if `trainer.options` says so
        if trainer.is_global_zero and isinstance(logger, TensorBoardLogger):
            self.board = Board(logger.experiment, self.config)
            self.board.begin(trainer.global_step)

    def add(self, snapshot: Snapshot) -> None:
        """Add a snapshot."""
        if self.board is not None:
            self.board.add(snapshot)

    def end(self, state: str) -> None:
        """Close the run as `complete` or `diverged`."""
        if self.board is not None:
            self.board.end(state)


class Inspector(pl.Callback):
    """Takes a snapshot before the first step, every `every` steps and after the last one, and saves it in the run's
    folder. It does not change the random numbers, gradients or weights of the training.

    Args:
        folder: the run's.
        trainer: `inspect_every` and `inspect_heads`.
        paused: stops the training's clock.
        on_snapshot: called with every snapshot, on the first rank.
    """

    def __init__(
        self, folder: Path, trainer: TrainerConfig, *, paused: Callable[[], AbstractContextManager[Any]],
        on_snapshot: Callable[[Snapshot], None],
    ) -> None:
        self.folder, self.paused, self.on_snapshot = folder, paused, on_snapshot
        self.every, self.heads = trainer.inspect_every, trainer.inspect_heads
        self.windows: Tensor | None = None
        self.parts: Parts | None = None
        self.weights: list[Tensor] = []
        self.gradients: dict[str, Tensor] = {}
        self.taken = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(trainer.strategy, FSDPStrategy):
            rank_zero_warn("trainer.inspect_every is ignored under FSDP, where no rank has all weights")
        elif trainer.is_global_zero and isinstance(pl_module, LitTransformer):
            data: WindowDataModule = trainer.datamodule  # type: ignore[attr-defined] # Lightning sets it undeclared
            validation = data.windows["validation"]
            # Not through the loader, which uses the random generator of the training.
            self.windows = validation.__getitems__(spread(len(validation), limit=SEQUENCES)).to(pl_module.device)
            self.parts = Parts(pl_module.model)
            self.taken = trainer.global_step  # a resumed run already has the snapshot of that step
            if trainer.global_step == 0:
                self._take(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self.parts is None or not self._due(trainer, trainer.global_step + 1):
            return
        with self.paused():
            self.gradients = self.parts.norms([p.grad for p in self.parts.parameters], prefix="grad", totals=True)
            self.weights = [p.detach().clone() for p in self.parts.parameters]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        # Once, not for every accumulated batch.
        if self.parts is not None and step > self.taken and self._due(trainer, step):
            self.taken = step
            self._take(trainer, pl_module)

    def _due(self, trainer: pl.Trainer, step: int) -> bool:
        return step % self.every == 0 or step == trainer.max_steps

    def _take(self, trainer: pl.Trainer, pl_module: Any) -> None:
        with self.paused():
            assert self.windows is not None
            found = probe_windows(
                pl_module, self.windows, heads=self.heads, context=trainer.precision_plugin.forward_context
            )
            scalars = {**_scalars(pl_module.model, found), **self.gradients, **self._updates()}
            values = torch.stack([value.float() for value in scalars.values()]).tolist()  # one transfer from a GPU
            snapshot = Snapshot(
                step=trainer.global_step, scalars=dict(zip(scalars, values, strict=True)),
                heads=_heads(pl_module.model), weights=_maps(found.weights), mixing=_maps(found.mixing),
            )
            snapshot.save(self.folder)
            self.on_snapshot(snapshot)

    def _updates(self) -> dict[str, Tensor]:
        """By part, ||change|| / ||weights|| of the last step; NaN for weights that were 0."""
        if self.parts is None or not self.weights:
            return {}
        sizes = self.parts.norms(self.weights, prefix="update")
        torch._foreach_sub_(self.weights, [p.detach() for p in self.parts.parameters])  # in place: they may be large
        moved = self.parts.norms(self.weights, prefix="update")
        self.weights = []
        return {tag: torch.where(size > 0, moved[tag] / size, torch.nan) for tag, size in sizes.items()}


def probe_windows(
    module: LitTransformer, windows: Tensor, *, heads: int, context: Callable[[], AbstractContextManager[Any]]
) -> Signals:
    """Probe a module during its training, on int64 windows (B, T + extra), without changing it.

    Args:
        module: the module in training.
        windows: the fixed batch.
        heads: number of heads of the first, the middle and the last block whose maps are kept.
        context: the context of the trainer's precision.
    """
    model = module.model
    depth = len(model.blocks)
    places = dict.fromkeys((0, depth // 2, depth - 1))
    maps = tuple((block, head) for block in places for head in range(min(heads, model.config.heads)))
    with _evaluating(model), torch.no_grad(), context():
        return probe(model, lambda: module.objective.select(model, windows, step=None), maps=maps, attended=ATTENDED)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


def _scalars(model: Transformer, found: Signals) -> dict[str, Tensor]:
    """Gains, ratios and signals by their tags, as scalars on the model's device."""
    scalars: dict[str, Tensor] = {}
    for index, block in enumerate(model.blocks):
        scalars |= {f"gains/block_{index:02}/{name}": gain for name, gain in branch_gains(block).items()}
        scalars |= {f"ratio/block_{index:02}/{name}": ratio for name, ratio in residual_ratios(block).items()}
    for name, gains in head_gains(model).items():
        for index, gain in enumerate(gains):
            scalars[f"gains/block_{index:02}/{name}"] = gain.mean()
            scalars[f"spread/block_{index:02}/{name}"] = gain.std(correction=0)
    device = next(model.parameters()).device
    for name, values in found.tokens.items():
        after = values[1:].to(device)
        scalars |= {f"signal/block_{index:02}/{name}": value for index, value in enumerate(after)}
    for name, values in found.attention.items():
        scalars |= {f"signal/block_{index:02}/{name}": value for index, value in enumerate(values.to(device))}
    return scalars


def _heads(model: Transformer) -> dict[str, Any]:
    return {
        f"gains/block_{index:02}/{name}": gain.float().cpu().numpy()
        for name, gains in head_gains(model).items() for index, gain in enumerate(gains)
    }


def _maps(matrices: Any) -> dict[str, Any]:
    return {
        f"attention/block_{block:02}/head_{head:02}": matrix[:MAP_POSITIONS, :MAP_POSITIONS].half().numpy()
        for (block, head), matrix in matrices.items()
    }
