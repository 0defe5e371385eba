"""Self-attention with softmax, Value-SkipInit or shaped mixing, none of which builds a (T, T) matrix.

    softmax    A V
    skipinit   alpha*V + beta*A V                          He et al. 2023, Eq. 4 of the paper
    shaped     alpha*V + beta*A V - gamma*C V              Noci et al. 2023, Eq. 5 of the paper

A V comes from `scaled_dot_product_attention` (flash kernels). C is A with all scores 0, so C V is a running mean when
causal and a mean otherwise, over the positions that may be attended to: O(T) time and memory, and exact.

With a cache, `forward` reads the prompt, and `step` one position at a time: A V is over the cached keys and values, C V
is a mean brought up to date, and alpha*V needs the newest value alone.

Shapes: B batch, T positions, D width, H heads, K head width (D = H*K).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_simplified.blocks.kv_cache import Past
from lit_simplified.blocks.residual import NO_CONTEXT, Context
from lit_simplified.blocks.scan import running_sum


def attend(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, context: Context = NO_CONTEXT) -> Tensor:
    """A V for A = softmax(Q K^T / sqrt(K) + mask).  3 x (B, H, T, K) -> (B, H, T, K)

    A padding mask enters as one more key coordinate, against a query coordinate of 1: a large negative number added to
    the scores of the keys that are not allowed. So the kernels for causal attention, which take no mask, serve here
    too, and no (T, T) mask is built. A position with no allowed key gets 0.
    """
    scale = 1 / math.sqrt(query.shape[-1])
    if context.attention_mask is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scale)
    attention_mask = context.attention_mask[:, None, :, None]  # (B, 1, T, 1)
    # A quarter of the smallest number: far below any score, and still finite after the scores are added.
    penalty = torch.zeros_like(key[..., :1]).masked_fill(~attention_mask, torch.finfo(key.dtype).min / 4)
    mixed = F.scaled_dot_product_attention(
        F.pad(query, (0, 1), value=1.0), torch.cat((key, penalty), dim=-1), F.pad(value, (0, 1)),
        is_causal=causal, scale=scale,
    )[..., :-1]
    return mixed * (_count(attention_mask, causal=causal) > 0)


def uniform_mean(value: Tensor, *, causal: bool, context: Context = NO_CONTEXT) -> Tensor:
    """C V: the mean of the values that a position may attend to.  (B, H, T, K) -> (B, H, T, K) or (B, H, 1, K)

    Sums in float32 at least: a bfloat16 running sum stops growing after 256 terms. A position with no allowed key
    gets 0.
    """
    wide = torch.promote_types(value.dtype, torch.float32)
    if context.attention_mask is None:
        if not causal:
            return value.mean(dim=-2, keepdim=True, dtype=wide).to(value.dtype)
        counts = torch.arange(1, value.shape[-2] + 1, device=value.device, dtype=wide)[:, None]  # (T, 1)
        return (_running_sum(value.to(wide)) / counts).to(value.dtype)
    attention_mask = context.attention_mask[:, None, :, None]  # (B, 1, T, 1)
    kept = value.masked_fill(~attention_mask, 0.0)
    total = _running_sum(kept.to(wide)) if causal else kept.sum(dim=-2, keepdim=True, dtype=wide)
    return (total / _count(attention_mask, causal=causal).clamp(min=1)).to(value.dtype)


def _running_sum(value: Tensor) -> Tensor:
    """Of the values up to each position.  (B, H, T, K) -> (B, H, T, K), heads side by side in memory as in `value`"""
    sums = running_sum(value.transpose(1, 2).flatten(-2))  # (B, T, D)
    return sums.unflatten(-1, (value.shape[1], -1)).transpose(1, 2)


def _count(attention_mask: Tensor, *, causal: bool) -> Tensor:
    """How many keys each position may attend to.  (B, 1, T, 1) -> (B, 1, T, 1) or (B, 1, 1, 1)"""
    return attention_mask.cumsum(dim=-2) if causal else attention_mask.sum(dim=-2, keepdim=True)


class SoftmaxMixing(nn.Module):
    """A V.  3 x (B, H, T, K) -> (B, H, T, K)"""

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, query: Tensor, key: Tensor, value: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        return attend(query, key, value, causal=self.causal, context=context)

    def cached(self, query: Tensor, key: Tensor, value: Tensor, context: Context) -> Tensor:
        """`forward` for positions behind those that the cache holds, which it adds to them.

        Raises:
            ValueError: not causal, a padding mask, or what the cache has no room for (`Past.append`).
        """
        kv_cache, attention_mask = context.kv_cache, context.attention_mask
        if kv_cache is None or not self.causal:
            raise ValueError(f"kv_cache={kv_cache}, causal={self.causal}: only causal attention reads on from a cache")
        if attention_mask is not None:
            shape = tuple(attention_mask.shape)
            raise ValueError(f"attention_mask, {shape}: a cache takes no mask; give sequences of equal length")
        past = kv_cache.past(self, key, value)
        if past.length == key.shape[2]:  # nothing was read before
            return self(query, key, value)
        return self.step(query, value, past)

    def step(self, query: Tensor, value: Tensor, past: Past) -> Tensor:
        """`forward` for one position, of which `past` has key and value already.  2 x (B, H, 1, K) -> (B, H, 1, K)"""
        return attend(query, past.keys(), past.values(), causal=False)

    def extra_repr(self) -> str:
        return f"causal={self.causal}"


class SkipInitMixing(SoftmaxMixing):
    """alpha*V + beta*A V, one trained alpha and beta per head (Eq. 4).  3 x (B, H, T, K) -> (B, H, T, K)"""

    def __init__(self, *, heads: int, causal: bool, alpha: float, beta: float) -> None:
        super().__init__(causal=causal)
        self.alpha = nn.Parameter(torch.full((heads, 1, 1), float(alpha)))
        self.beta = nn.Parameter(torch.full((heads, 1, 1), float(beta)))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        return self.weigh(value, super().forward(query, key, value, context))

    def step(self, query: Tensor, value: Tensor, past: Past) -> Tensor:
        return self.weigh(value, super().step(query, value, past))

    def weigh(self, value: Tensor, mixed: Tensor) -> Tensor:
        """alpha*V + beta*A V.  2 x (B, H, T, K) -> (B, H, T, K)"""
        return torch.addcmul(_per_unit(self.alpha, value) * value, _per_unit(self.beta, mixed), mixed)


def _per_unit(gain: Tensor, x: Tensor) -> Tensor:
    """A gain per head as one per unit of x, in its type.  (H, 1, 1) -> (H, 1, K)

    Heads and their units are one axis of x in memory. With a gain for every unit an elementwise kernel takes them as
    one, too: about a tenth less time for all of the mixing, at widths of 64 to 768, and a few per cent where other
    processes take the memory's bandwidth.
    """
    return gain.to(x.dtype).expand(-1, -1, x.shape[-1]).contiguous()


class ShapedMixing(SkipInitMixing):
    """alpha*V + beta*A V - gamma*C V, trained gains per head (Eq. 5).  3 x (B, H, T, K) -> (B, H, T, K)"""

    def __init__(self, *, heads: int, causal: bool, alpha: float, beta: float, gamma: float) -> None:
        super().__init__(heads=heads, causal=causal, alpha=alpha, beta=beta)
        self.gamma = nn.Parameter(torch.full((heads, 1, 1), float(gamma)))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        centre = uniform_mean(value, causal=self.causal, context=context)
        return self.centred(super().forward(query, key, value, context), centre)

    def step(self, query: Tensor, value: Tensor, past: Past) -> Tensor:
        return self.centred(super().step(query, value, past), past.mean(value))

    def centred(self, mixed: Tensor, centre: Tensor) -> Tensor:
        """... - gamma*C V.  2 x (B, H, T, K) -> (B, H, T, K)"""
        return torch.addcmul(mixed, _per_unit(self.gamma, centre), centre, value=-1)


class SelfAttention(nn.Module):
    """x -> gain * concat_h(mixing(Q_h, K_h, V_h)) W_P.  (B, T, D) -> (B, T, D)

    The factory passes the parts in; a part that a block does not have is an `nn.Identity`.
    """

    mixing: SoftmaxMixing  # or one of your own, which has the same forward

    def __init__(
        self, *, heads: int, query: nn.Module, key: nn.Module, value: nn.Module, mixing: SoftmaxMixing,
        projection: nn.Module, dropout: nn.Module, gain: nn.Module,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = query, key, value
        self.mixing, self.projection, self.dropout, self.gain = mixing, projection, dropout, gain

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        query, key, value = (self.split(part(x)) for part in (self.query, self.key, self.value))
        mix = self.mixing if context.kv_cache is None else self.mixing.cached
        mixed = mix(query, key, value, context).transpose(1, 2).reshape(x.shape)
        return self.gain(self.dropout(self.projection(mixed)))

    def split(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, K): head h reads the h-th column block."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
