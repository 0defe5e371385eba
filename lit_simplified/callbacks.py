"""Callbacks of a run: learning curve and training time, divergence, memory, checkpoints, progress bar."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor

from lit_simplified.checkpoint import verify, write_checkpoint


@dataclass(frozen=True)
class CurvePoint:
    """One validation on the learning curve."""

    step: int
    """Optimiser steps done."""
    tokens: int
    """Tokens seen in training."""
    seconds: float
    """Training time so far, without validation."""
    train_loss: float
    """Mean training loss since the previous point, nats per token."""
    val_loss: float
    """Validation loss, nats per token."""


class Recorder(pl.Callback):
    """Keeps the learning curve and the training time; both survive a resume.

    Args:
        tokens_per_device: from a number of optimiser steps to the tokens that one device has seen after them.
        log_every: steps between logged speeds.
        on_validation: called with every new point.
    """

    def __init__(
        self, *, tokens_per_device: Callable[[int], int], log_every: int,
        on_validation: Callable[[CurvePoint], None] | None = None,
    ) -> None:
        self.tokens_per_device = tokens_per_device
        self.devices = 1
        self.log_every = log_every
        self.on_validation = on_validation
        self.curve: list[CurvePoint] = []
        self.seconds = 0.0
        self.validation_seconds = 0.0
        self.inspection_seconds = 0.0
        self.resumed_at: float | None = None
        self.validating_since = 0.0
        self.loss_sum: Tensor | float = 0.0
        self.batches = 0
        self.warm: tuple[int, float] = (0, 0.0)  # steps and seconds when the speed became steady

    def state_dict(self) -> dict[str, Any]:
        return {
            "curve": [asdict(point) for point in self.curve], "seconds": self.elapsed(),
            "validation_seconds": self.validation_seconds, "inspection_seconds": self.inspection_seconds,
            "loss_sum": float(self.loss_sum), "batches": self.batches, "warm": list(self.warm),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curve = [CurvePoint(**point) for point in state_dict["curve"]]
        self.seconds, self.loss_sum = state_dict["seconds"], state_dict["loss_sum"]
        self.validation_seconds, self.inspection_seconds = (
            state_dict["validation_seconds"], state_dict["inspection_seconds"]
        )
        self.batches, self.warm = state_dict["batches"], tuple(state_dict["warm"])

    def elapsed(self) -> float:
        """Training seconds so far."""
        return self.seconds + (time.perf_counter() - self.resumed_at if self.resumed_at is not None else 0.0)

    def tokens_per_second(self, steps: int) -> float:
        """Mean speed after the first steps, which include the warm-up."""
        warm_steps, warm_seconds = self.warm
        seconds = self.elapsed() - warm_seconds
        return (self.tokens(steps) - self.tokens(warm_steps)) / seconds if seconds > 0 else 0.0

    def tokens(self, steps: int) -> int:
        """Tokens that all devices have seen after a number of steps."""
        return self.tokens_per_device(steps) * self.devices

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.devices = trainer.world_size

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock of the training, and run that of the inspection."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # else pending GPU work would count as inspection
        began = time.perf_counter()
        self.seconds, self.resumed_at = self.elapsed(), None
        try:
            yield
        finally:
            self.resumed_at = time.perf_counter()
            self.inspection_seconds += self.resumed_at - began

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.resumed_at = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Lightning divides the loss by the number of accumulated batches.
        self.loss_sum = self.loss_sum + outputs["loss"].detach() * trainer.accumulate_grad_batches
        self.batches += 1
        step = trainer.global_step
        if step and step % self.log_every == 0:
            if self.warm == (0, 0.0):
                self.warm = (step, self.elapsed())
            elif step > self.warm[0]:
                pl_module.log("speed/tokens_per_second", self.tokens_per_second(step), prog_bar=True)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # else pending GPU work would count as validation
        self.seconds, self.resumed_at = self.elapsed(), None
        self.validating_since = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validation_seconds += time.perf_counter() - self.validating_since
        self.curve.append(CurvePoint(
            step=trainer.global_step,
            tokens=self.tokens(trainer.global_step),
            seconds=self.seconds,
            train_loss=float(self.loss_sum) / self.batches if self.batches else math.nan,
            val_loss=float(trainer.callback_metrics["val/loss"]),
        ))
        self.loss_sum, self.batches = 0.0, 0
        if self.on_validation is not None and trainer.is_global_zero:
            self.on_validation(self.curve[-1])
        if trainer.state.fn == "fit":
            self.resumed_at = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds, self.resumed_at = self.elapsed(), None


class RandomState(pl.Callback):
    """Saves the states of the random generators (dropout), which Lightning's checkpoints lack."""

    def __init__(self) -> None:
        self.restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.restored = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.restored is not None:
            torch.set_rng_state(self.restored["cpu"].cpu())
            if len(self.restored["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all([state.cpu() for state in self.restored["cuda"]])


class Checkpoints(pl.Callback):
    """Has the checkpoint written every few steps, after the validation of a step that has one.

    Lightning's own `ModelCheckpoint` writes before it: a run resumed from there would lack that point of its curve.
    """

    def __init__(self, file: Path, *, every: int, val_every: int) -> None:
        self.file = file
        self.every = every
        self.val_every = val_every
        self.saved = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.val_every:
            self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        if step % self.every == 0 and step > self.saved:  # once, not for every accumulated batch
            self.saved = step
            trainer.save_checkpoint(self.file, weights_only=False)


class CheckpointFiles(TorchCheckpointIO):
    """How Lightning writes and reads checkpoints: durably, with a digest that is verified before anything is read.

    Args:
        check: called before a file is put in place; what it raises prevents that.
    """

    def __init__(self, check: Callable[[], Any]) -> None:
        self.check = check

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write_checkpoint(Path(path), checkpoint, check=self.check)

    def load_checkpoint(self, path: str | Path, *arguments: Any, **options: Any) -> dict[str, Any]:
        verify(Path(path))
        return super().load_checkpoint(path, *arguments, **{**options, "weights_only": True})


class DivergenceGuard(pl.Callback):
    """Stops a run whose loss is not finite, or above `factor` times that of a uniform guess.

    Checks every `every` batches: reading the loss makes a GPU wait.
    """

    def __init__(self, *, vocab_size: int, every: int, factor: float = 3.0) -> None:
        self.limit = factor * math.log(vocab_size)
        self.every = every
        self.reason = ""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        last = trainer.global_step >= trainer.max_steps
        if batch_idx % self.every and not last:
            return
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
        if not trainer.strategy.reduce_boolean_decision(loss <= self.limit, all=True):  # NaN compares false
            self.reason = f"training loss {loss:.4g} at step {trainer.global_step} (limit {self.limit:.4g})"
            trainer.should_stop = True


class Progress(TQDMProgressBar):
    """The progress bar with loss, perplexity and tokens per second."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        values = {}
        if "train/loss" in metrics:
            loss = metrics["train/loss"]
            values = {"loss": f"{loss:.3f}", "perplexity": f"{math.exp(min(loss, 99)):.1f}"}
        if "val/loss" in metrics:
            values["val_loss"] = f"{metrics['val/loss']:.3f}"
        if "speed/tokens_per_second" in metrics:
            values["tokens/s"] = f"{metrics['speed/tokens_per_second']:,.0f}"
        return values


def reset_peak_memory() -> None:
    """Start a new measurement for `peak_memory_mb`."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak of the resident set so far
        except OSError:
            return  # elsewhere: the peak since the process started


def peak_memory_mb() -> float:
    """Peak memory since the reset, in MiB: allocated tensors on a GPU, else the whole process's resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
