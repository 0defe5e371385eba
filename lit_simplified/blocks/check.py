"""`check_own`: what a part of your own has to hold before it trains. On tiny random inputs, a fraction of a second.

Parameters are moved a little first, so that a gain that starts at 0 hides nothing.

Shapes: B batch, T positions, D width, H heads, K head width, M hidden width of the MLP.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_simplified.blocks.kv_cache import KVCache
from lit_simplified.blocks.own import blaming, build_own
from lit_simplified.blocks.residual import NO_CONTEXT, Context
from lit_simplified.config import ConfigError, ModelConfig
from lit_simplified.config.own import Spec, specs_of

BATCH, POSITIONS, HEADS, HEAD_WIDTH = 2, 12, 2, 8
"""Of the inputs; a model that is smaller has its own."""
PADDED = 3
"""Positions of padding, at the end of one sequence and at the beginning of the other."""
TOLERANCE = 1e-4
"""Up to which two ways to the same numbers may differ."""


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """A part that is checked."""

    field: str
    spec: Spec
    part: nn.Module
    shape: tuple[int, ...]
    """Of each input."""
    names: tuple[str, ...]
    """Of the inputs."""
    axis: int
    """Of positions."""
    causal: bool
    device: str

    def inputs(self) -> list[Tensor]:
        """Random numbers with gradients."""
        return [torch.randn(self.shape, device=self.device, requires_grad=True) for _ in self.names]

    def __call__(self, inputs: list[Tensor], context: Context = NO_CONTEXT) -> Tensor:
        """The output, with the same random numbers every time; activations know no context."""
        torch.manual_seed(0)
        given = inputs if self.field == "activation" else [*inputs, context]
        with blaming(self.spec, field=self.field):
            return self.part(*given)

    def gradients(self, output: Tensor, sources: list[Tensor]) -> list[Tensor]:
        """Of a random sum of the output, with respect to sources; zeros where it does not reach."""
        if not output.requires_grad:
            return [torch.zeros_like(source) for source in sources]
        with blaming(self.spec, field=self.field):
            found = torch.autograd.grad(
                (output * torch.randn_like(output)).sum(), sources, allow_unused=True, retain_graph=True
            )
        return [torch.zeros_like(s) if g is None else g for g, s in zip(found, sources, strict=True)]

    def at(self, tensor: Tensor, positions: slice) -> Tensor:
        """Some positions of an input or output."""
        return tensor[(slice(None),) * self.axis + (positions,)]

    def refuse(self, seen: str, remedy: str) -> ConfigError:
        return ConfigError(f"block.{self.field}", str(self.spec), f"{self.spec.name}: {seen}: {remedy}")


def check_own(config: ModelConfig, *, device: str = "cpu") -> None:
    """Check the parts of your own that a model has; at once for a model without any.

    Args:
        config: the model, of which the check takes a smaller one.
        device: where the parts run.

    Raises:
        ConfigError: what a part does not hold, with what was seen and the remedy; an exception of its code with the
            file and the line.
    """
    specs = specs_of(config.block)
    if not specs:
        return
    with torch.random.fork_rng(devices=[] if device == "cpu" else None), torch.enable_grad():
        torch.manual_seed(0)
        for name, spec in specs.items():
            for subject in _subjects(config, name, spec, device=device):
                _check(subject)


def _subjects(config: ModelConfig, name: str, spec: Spec, *, device: str) -> Iterator[_Subject]:
    """The part at the first place of the stack, and a whole block at the last one, too."""
    heads, size = min(config.heads, HEADS), min(config.width // config.heads, HEAD_WIDTH)
    width, positions = heads * size, min(config.context, POSITIONS)
    for index in sorted({0, config.depth - 1 if name == "own" else 0}):
        part = build_own(
            str(spec), field=name, heads=heads, width=width, causal=config.causal, eps=config.block.norm_eps,
            index=index, depth=config.depth,
        )
        mixes = name == "attention"
        yield _Subject(
            field=name, spec=spec, part=part.to(device).train(), causal=config.causal, device=device,
            shape=(BATCH, heads, positions, size) if mixes else (BATCH, positions, width),
            names=("query", "key", "value") if mixes else ("input",), axis=2 if mixes else 1,
        )


def _check(subject: _Subject) -> None:
    _check_signature(subject)
    _check_output(subject)
    with torch.no_grad():
        for parameter in subject.part.parameters():
            noise = torch.randn_like(parameter) / 10
            parameter.copy_(torch.where(parameter == 0, noise, parameter * (1 + noise.clamp(-0.5, 0.5))))
    _check_gradients(subject)
    if subject.causal:
        _check_causality(subject)
    else:
        _check_padding(subject)
    if subject.causal and subject.field == "attention" and getattr(subject.part, "cached", None) is not None:
        _check_cache(subject)


def _check_signature(subject: _Subject) -> None:
    """`forward` takes the inputs, and a context or none."""
    forward = inspect.signature(subject.part.forward)
    names = ["x" if name == "input" else name for name in subject.names]
    context = [] if subject.field == "activation" else [NO_CONTEXT]
    for given in ([None] * len(names), [*([None] * len(names)), *context]):
        try:
            forward.bind(*given)
        except TypeError as error:
            wanted = ", ".join([*names, *(["context=NO_CONTEXT"] if context else [])])
            raise subject.refuse(f"forward{forward} {error}", f"write forward(self, {wanted})") from error


def _check_output(subject: _Subject) -> None:
    """Shape, type and finiteness at initialisation."""
    inputs = subject.inputs()
    output: Any = subject(inputs)
    if not isinstance(output, Tensor):
        raise subject.refuse(f"forward gives a {type(output).__name__}", "return one tensor")
    if output.shape != inputs[-1].shape or output.dtype != inputs[-1].dtype:
        raise subject.refuse(
            f"an input of shape {tuple(inputs[-1].shape)} and type {inputs[-1].dtype} gives {tuple(output.shape)} and "
            f"{output.dtype}", "return what is shaped like the input",
        )
    if not output.isfinite().all():
        raise subject.refuse("the output is not finite", "look for a division by 0, a logarithm or a large exponent")


def _check_gradients(subject: _Subject) -> None:
    """Finite, and not zero for every trained parameter."""
    trained = [(name, p) for name, p in subject.part.named_parameters() if p.requires_grad]
    inputs = subject.inputs()
    output = subject(inputs)
    found = subject.gradients(output, [*inputs, *(p for _, p in trained)])
    names = [*(f"the {name}" for name in subject.names), *(f"the parameter {name}" for name, _ in trained)]
    for name, gradient in zip(names, found, strict=True):
        if not gradient.isfinite().all():
            raise subject.refuse(f"the gradient of {name} is not finite", "look for a division by 0 or a root of 0")
    for (name, _), gradient in zip(trained, found[len(inputs) :], strict=True):
        if not gradient.any():
            raise subject.refuse(
                f"no gradient reaches the parameter {name}",
                "use it in forward, leave it out, or set requires_grad=False",
            )
    if not any(gradient.any() for gradient in found[: len(inputs)]):
        raise subject.refuse("no gradient reaches the input", "compute the output from it, without detach or no_grad")


def _check_causality(subject: _Subject) -> None:
    """The gradient of the output at a position with respect to later inputs is exactly zero."""
    inputs = subject.inputs()
    output = subject(inputs)
    for position in range(inputs[0].shape[subject.axis] - 1):
        here = subject.at(output, slice(position, position + 1))
        for name, gradient in zip(subject.names, subject.gradients(here, inputs), strict=True):
            later = _per_position(subject, gradient)[position + 1 :]
            if later.any():
                seen = position + 1 + int(later.nonzero()[0])
                raise subject.refuse(
                    f"output at position {position} depends on {name} {seen}",
                    "the model is causal: let a position read itself and those before it (causal=True in the "
                    "constructor), or train the masked task, task=mlm",
                )


def _per_position(subject: _Subject, gradient: Tensor) -> Tensor:
    """Whether any number of a position is not zero.  any shape -> (T,)"""
    return (gradient != 0).movedim(subject.axis, 0).flatten(1).any(dim=1)


def _check_padding(subject: _Subject) -> None:
    """Other numbers at padding leave the output at real positions as it was."""
    positions = subject.shape[subject.axis]
    if subject.field == "activation" or positions <= PADDED:
        return
    attention_mask = torch.ones(BATCH, positions, dtype=torch.bool, device=subject.device)
    attention_mask[0, -PADDED:] = attention_mask[1, :PADDED] = False
    mask = attention_mask[:, None, :, None] if subject.field == "attention" else attention_mask[..., None]
    inputs = subject.inputs()
    others = [torch.where(mask, x, 3 * torch.randn_like(x)) for x in inputs]
    with torch.no_grad():
        before, after = (subject(given, Context(attention_mask)) for given in (inputs, others))
    least = TOLERANCE * before.abs().max().clamp(min=1)
    change = _per_position(subject, ((before - after).abs() > least) & mask)
    if change.any():
        raise subject.refuse(
            f"output at position {int(change.nonzero()[0])} changes with inputs at padding",
            "the masked task pads: leave out the positions where context.attention_mask, (B, T), is false",
        )


def _check_cache(subject: _Subject) -> None:
    """Read on from a cache, position by position, `cached` gives what `forward` gives."""
    cached: Callable[..., Tensor] = subject.part.cached  # type: ignore[assignment]
    positions = subject.shape[subject.axis]
    first = max(1, positions // 2)
    subject.part.eval()
    inputs = subject.inputs()
    context = Context(kv_cache=KVCache(positions))
    with torch.no_grad():
        whole, pieces = subject(inputs), []
        for start, end in [(0, first), *((t, t + 1) for t in range(first, positions))]:
            with blaming(subject.spec, field=subject.field):
                pieces.append(cached(*(subject.at(x, slice(start, end)) for x in inputs), context))
    if not torch.allclose(whole, torch.cat(pieces, dim=subject.axis), rtol=TOLERANCE, atol=TOLERANCE):
        raise subject.refuse("`cached` gives other numbers than forward", "write `cached`, or `step` where the class "
                             "inherits it, for what forward computes; or set cached = None and nothing is cached")
