"""The usual research code as a stand-in: every block's mixing by the explicit (T, T) formula.

    S = Q K^T / sqrt(K),   A = softmax(S where j <= i, else -inf),   (alpha*I + beta*A - gamma*C) V

The scores, the mask, I and C are (T, T) matrices, as in the code of most papers. All else is our model, weights and
gains included, so that a comparison says what the formula costs.

Shapes: B batch, T positions, H heads, K head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_simplified.blocks.attention import SelfAttention
from lit_simplified.blocks.residual import NO_CONTEXT, Context
from lit_simplified.model import Transformer
from lit_simplified.objectives import MaskedLM, Objective


class ExplicitMixing(nn.Module):
    """(alpha*I + beta*A - gamma*C) V, or what of it `source` has.  3 x (B, H, T, K) -> (B, H, T, K)

    Args:
        source: a mixing of ours; its gains are taken over, not copied.
        positions: T at most, the size of the buffers.
        causal: whether a position sees only itself and its past.
    """

    seen: Tensor
    identity: Tensor
    uniform: Tensor
    alpha: Tensor
    beta: Tensor
    gamma: Tensor

    def __init__(self, source: nn.Module, *, positions: int, causal: bool) -> None:
        super().__init__()
        gains = {name: getattr(source, name) for name in ("alpha", "beta", "gamma") if hasattr(source, name)}
        for name, gain in gains.items():
            self.register_parameter(name, gain)
        self.shaped, self.skipinit = "gamma" in gains, "alpha" in gains
        example = next(iter(gains.values()), torch.empty(0))
        seen = torch.ones(positions, positions, dtype=torch.bool, device=example.device)
        self.register_buffer("seen", seen.tril() if causal else seen, persistent=False)
        # In the gains' precision: a float32 C would make a float64 model wrong by 1e-8.
        if self.skipinit:
            identity = torch.eye(positions, dtype=example.dtype, device=example.device)
            self.register_buffer("identity", identity, persistent=False)
        if self.shaped:
            uniform = self.seen.to(example.dtype)
            self.register_buffer("uniform", uniform / uniform.sum(-1, keepdim=True), persistent=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        if context != NO_CONTEXT:
            raise ValueError(f"context={context}: the stand-in takes no mask and no cache; leave it out")
        length = query.shape[-2]
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])  # (B, H, T, T)
        lowest = torch.full([], torch.finfo(scores.dtype).min, dtype=scores.dtype, device=scores.device)
        attention = torch.where(self.seen[:length, :length], scores, lowest).softmax(dim=-1).to(value.dtype)
        if self.skipinit:
            attention = self.beta * attention + self.alpha * self.identity[:length, :length]
        if self.shaped:
            attention = attention - self.gamma * self.uniform[:length, :length]
        return attention.to(value.dtype) @ value


def make_explicit(model: Transformer) -> Transformer:
    """Replace every mixing of a model by the explicit formula, in place; return the model."""
    for part in list(model.modules()):
        if isinstance(part, SelfAttention):
            # `mixing` is declared as ours, which also knows caches; the stand-in has a forward pass alone.
            part._modules["mixing"] = ExplicitMixing(
                part.mixing, positions=model.config.context, causal=model.config.causal
            )
    return model


def plain_loss(model: Transformer, windows: Tensor, *, objective: Objective) -> Tensor:
    """Mean cross-entropy as research code writes it: all logits at once. Same task and value as `objective.loss`."""
    if isinstance(objective, MaskedLM):
        inputs, hidden = objective.corrupt(windows, vocab_size=model.config.vocab_size, step=0)
        return F.cross_entropy(model.head(model.hidden(inputs)[hidden]), windows[hidden])
    return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def explicit_bytes(*, batch: int, heads: int, positions: int, depth: int, itemsize: int = 4) -> int:
    """About how many bytes of (B, H, T, T) matrices live when the backward pass of shaped attention begins.

    Kept per block are the softmax's result and the shaped matrix; three more exist while a block is computed. Counted
    (`Allocations`, T 1024): 4.6 matrices for one block, 6.8 for two, 11.2 for four, the (T, T) buffers included.
    """
    kept, passing = 2, 3
    return (kept * depth + passing) * batch * heads * positions**2 * itemsize
