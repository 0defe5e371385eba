"""Timing a model's steps: what the study's speed pass and the benchmark share. Needs torch and lightning alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from ablations.timing.memory import Allocations
from ablations.timing.rounds import Mode
from lit_simplified.config import BlockConfig, OptimConfig, RunConfig
from lit_simplified.model import Transformer
from lit_simplified.objectives import build_objective
from lit_simplified.optim import build_optimizer

logging.getLogger("lightning.fabric.utilities.rank_zero").setLevel(logging.WARNING)  # one line per model is too many

WARM_UP = 2
"""Steps before the clock runs: allocation, kernel selection, the optimiser's state."""


class Step:
    """A model with its optimiser and a batch, ready to be stepped and timed.

    Args:
        model: on the device of `fabric`.
        loss: batch -> scalar to be trained on; holds the model.
        forward: batch -> what inference gives; holds the model.
        batch: int64 tokens, (B, T + what the task needs beyond the context).
        tokens: B*T, what a step counts as.
        optim: AdamW's settings, the same for every model that is compared.
        fabric: device and precision. fp16 runs without loss scaling.
        compiled: a mode of torch.compile for loss and forward, or None.
    """

    def __init__(
        self, model: nn.Module, *, loss: Callable[[Tensor], Tensor], forward: Callable[[Tensor], Tensor],
        batch: Tensor, tokens: int, optim: OptimConfig, fabric: Fabric, compiled: str | None = None,
    ) -> None:
        self.model, self.batch, self.tokens, self.fabric = model, batch.to(fabric.device), tokens, fabric
        self.compiled = compiled
        self.loss = loss if compiled is None else torch.compile(loss, mode=compiled)
        self.forward = forward if compiled is None else torch.compile(forward, mode=compiled)
        self.optimizer = build_optimizer(model, optim)
        self.clip = optim.clip
        self.warm = False

    def step(self) -> None:
        """Forward, backward, clipping, optimiser."""
        if self.compiled is not None:
            torch.compiler.cudagraph_mark_step_begin()
        with self.fabric.autocast():
            loss = self.loss(self.batch)
        loss.backward()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def infer(self) -> Tensor:
        """Forward alone, without what a backward pass would need."""
        if self.compiled is not None:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.inference_mode(), self.fabric.autocast():
            return self.forward(self.batch)

    def warm_up(self) -> None:
        """The first steps, once."""
        if not self.warm:
            self.time(WARM_UP)
            self.warm = True

    def time(self, steps: int, mode: Mode = "train") -> float:
        """Seconds that some steps take, with the device's queue empty before and after."""
        self.model.train(mode == "train")
        run = self.step if mode == "train" else self.infer
        synchronize(self.fabric.device)
        start = time.perf_counter()
        for _ in range(steps):
            run()
        synchronize(self.fabric.device)
        return time.perf_counter() - start

    @property
    def parameters(self) -> int:
        """Trained entries, shared ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)

    def live_tensors(self) -> Iterator[Tensor]:
        """What lives between two steps: parameters, buffers, batch, the optimiser's state."""
        yield from (*self.model.parameters(), *self.model.buffers(), self.batch)
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


class TrainingStep(Step):
    """The training step of a run's configuration, on random tokens; inference gives logits, of an encoder its output.

    One batch per step: gradients are not accumulated, whatever the configuration says.
    """

    def __init__(self, config: RunConfig, *, block: BlockConfig | None = None) -> None:
        shape = replace(config.model, block=block or config.model.block)
        self.config = replace(config, model=shape)
        self.objective = build_objective(self.config)
        fabric = fabric_of(config.trainer.accelerator, precision=config.trainer.precision)
        torch.manual_seed(0)
        with fabric.init_module():
            model = Transformer(shape)
        if config.trainer.compile:
            for part in model.blocks:
                part.compile()
        # What an encoder is asked for is what its blocks give, not a logit for every word at every position.
        encode = model if shape.causal else model.hidden
        windows = torch.randint(shape.vocab_size, (config.data.batch_size, shape.context + self.objective.extra))
        super().__init__(
            model, loss=lambda batch: self.objective.loss(model, batch),
            forward=lambda batch: encode(batch[:, : shape.context]), batch=windows,
            tokens=config.data.batch_size * shape.context, optim=config.optim, fabric=fabric,
        )


Built = TypeVar("Built", bound=Step)


def build_with_peak_memory(build: Callable[[], Built]) -> tuple[Built, float | None]:
    """Build a step, warm it up, and measure its peak memory: the most bytes alive at once over a training step.

    Parameters, gradients, optimiser state, activations and temporary tensors count. On CUDA the allocator counts, less
    what lived before; on a CPU `Allocations` does, which is exact and repeatable but leaves out scratch memory inside
    kernels. Unknown on other devices, and on a CPU for compiled code, which hides its tensors.

    Returns:
        The step, and MiB or None.
    """
    cuda = torch.cuda.is_available()
    before = torch.cuda.memory_allocated() if cuda else 0
    step = build()
    step.warm_up()
    device = step.fabric.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step.step()
        synchronize(device)
        return step, (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if device.type != "cpu" or step.compiled is not None:
        return step, None
    with Allocations() as allocations:
        allocations.add(*step.live_tensors())
        step.step()
    return step, allocations.peak / 2**20


def fabric_of(accelerator: str, *, precision: str) -> Fabric:
    """One device in a precision, both by Lightning's names."""
    return Fabric(accelerator=accelerator, devices=1, precision=precision)  # type: ignore[arg-type]


def synchronize(device: torch.device) -> None:
    """Wait until the device's queue is empty."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch's CPU threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
