"""What is timed: our model, its explicit stand-in or a peer, made into a `Step` under equal conditions.

Batch, optimiser, clipping, precision and seed come from one `RunConfig`; subjects differ in model and loss alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ablations.bench.explicit import make_explicit, plain_loss
from ablations.timing.flops import step_flops
from ablations.timing.step import Step, fabric_of
from lit_simplified.config import RunConfig
from lit_simplified.model import Transformer
from lit_simplified.objectives import build_objective


class Parts(NamedTuple):
    """A model with the two functions that are timed."""

    model: nn.Module
    loss: Callable[[Tensor], Tensor]
    """Windows (B, T + extra) -> scalar."""
    forward: Callable[[Tensor], Tensor]
    """Windows -> logits (B, T, V)."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One side of a comparison."""

    name: str
    run: RunConfig
    """Task, model, batch, optimiser, precision, device and seed."""
    assemble: Callable[[RunConfig], Parts]
    """Builds the model, on torch's default device."""
    whole_head: bool = False
    """Masked task: whether the head computes all logits rather than those of the hidden tokens."""

    def build(self, compiled: str | None = None) -> Step:
        """The step, on its device, not warmed up; `compiled`: a mode of torch.compile."""
        run = self.run
        fabric = fabric_of(run.trainer.accelerator, precision=run.trainer.precision)
        torch.manual_seed(run.seed)
        with fabric.init_module():
            parts = self.assemble(run)
        generator = torch.Generator().manual_seed(run.seed)
        return Step(
            parts.model, loss=parts.loss, forward=parts.forward, tokens=self.tokens,
            batch=torch.randint(run.model.vocab_size, self.batch_shape, generator=generator), optim=run.optim,
            fabric=fabric, compiled=compiled,
        )

    @property
    def batch_shape(self) -> tuple[int, int]:
        """(B, T + what the task needs beyond the context)."""
        return self.run.data.batch_size, self.run.model.context + build_objective(self.run).extra

    @property
    def tokens(self) -> int:
        """What a step counts as: B*T."""
        return self.run.data.batch_size * self.run.model.context

    @property
    def flops(self) -> int | None:
        """Counted operations of a training step; None where they are unknown."""
        return step_flops(self.run, whole_head=self.whole_head)


@contextmanager
def compiling(mode: str | None) -> Iterator[None]:
    """torch.compile in a mode, for the models of one comparison; nothing without a mode.

    It must not give up silently, as it does at its limit of recompilations, against which the code of models that are
    gone counts too.
    """
    if not mode:
        yield
        return
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


def assemble_ours(run: RunConfig) -> Parts:
    """Our model and the loss that it is trained with."""
    model, objective, context = Transformer(run.model), build_objective(run), run.model.context
    return Parts(model, lambda batch: objective.loss(model, batch), lambda batch: model(batch[:, :context]))


def assemble_explicit(run: RunConfig) -> Parts:
    """Our model with the (T, T) formula in every block, and a plain loss."""
    model, objective, context = make_explicit(Transformer(run.model)), build_objective(run), run.model.context
    return Parts(
        model, lambda batch: plain_loss(model, batch, objective=objective), lambda batch: model(batch[:, :context])
    )


def ours(name: str, run: RunConfig) -> Subject:
    """Our model as it is trained."""
    return Subject(name=name, run=run, assemble=assemble_ours)


def explicit(name: str, run: RunConfig) -> Subject:
    """The same by the explicit formula."""
    return Subject(name=f"{name} explicit", run=run, assemble=assemble_explicit)
