"""`Transformer`: embedding, positions, blocks, final norm and head.

Shapes: B batch, T positions, D width, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lit_simplified.blocks.attention import SelfAttention
from lit_simplified.blocks.factory import build_block
from lit_simplified.blocks.kv_cache import KVCache
from lit_simplified.blocks.norm import build_norm
from lit_simplified.blocks.residual import Context
from lit_simplified.config import ModelConfig
from lit_simplified.config.own import specs_of


class LearnedPositions(nn.Module):
    """x -> x + scale * P[start : start + T], P trained.  (B, T, D) -> (B, T, D)"""

    def __init__(self, *, context: int, width: int, std: float, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.table = nn.Parameter(torch.empty(context, width).normal_(std=std))

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        return x + self.scale * self.table[start : start + x.shape[1]]


class SinusoidalPositions(nn.Module):
    """x -> x + P[start : start + T], P of sines and cosines with the given RMS.  (B, T, D) -> (B, T, D)"""

    table: Tensor

    def __init__(self, *, context: int, width: int, rms: float) -> None:
        super().__init__()
        frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
        angles = torch.arange(context)[:, None] * frequencies  # (T, D/2)
        # A sine has RMS sqrt(1/2). Unscaled, the sinusoids would drown an embedding that starts at RMS 0.02.
        table = math.sqrt(2) * rms * torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)
        self.register_buffer("table", table, persistent=False)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        return x + self.table[start : start + x.shape[1]]


class Transformer(nn.Module):
    """Tokens to logits.  (B, T) int64 -> (B, T, V)

    `blocks` is the sequence of blocks. The embedding matrix has the standard deviation of the other weights, as a tied
    head needs it, and what enters the first block is scaled to `embedding_rms`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        std = config.resolved_init_std
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        nn.init.normal_(self.embedding.weight, std=std)
        self.embedding_scale = config.embedding_rms / std
        self.positions = _build_positions(config, std=std, scale=self.embedding_scale)
        self.dropout = nn.Dropout(config.block.dropout) if config.block.dropout else nn.Identity()
        self.blocks = nn.ModuleList(
            build_block(
                config.block, width=config.width, heads=config.heads, index=index, depth=config.depth,
                causal=config.causal, init_std=config.init_std,
            )
            for index in range(config.depth)
        )
        self.norm = build_norm(config.block, width=config.width)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tied_head:
            self.head.weight = self.embedding.weight
        else:
            nn.init.normal_(self.head.weight, std=std)

    @property
    def takes_cache(self) -> bool:
        """Whether the model can be given a cache: of parts of your own it has none but a mixing with `cached`."""
        own = set(specs_of(self.config.block))
        mixings = [part.mixing for part in self.blocks.modules() if isinstance(part, SelfAttention)]
        return own <= {"attention"} and all(getattr(mixing, "cached", None) is not None for mixing in mixings)

    def forward(
        self, tokens: Tensor, attention_mask: Tensor | None = None, *, kv_cache: KVCache | None = None
    ) -> Tensor:
        """Logits, (B, T, V), from tokens, (B, T).

        Args:
            tokens: int64; with a cache, those that come after what it has read.
            attention_mask: (B, T) bool, false at padding.
            kv_cache: what was read before; it then holds `tokens` too. T is 1 unless it is empty (causal models only).

        Raises:
            ValueError: more positions than `ModelConfig.context`, or what the cache does not take.
        """
        return self.head(self.hidden(tokens, attention_mask, kv_cache=kv_cache))

    def hidden(
        self, tokens: Tensor, attention_mask: Tensor | None = None, *, kv_cache: KVCache | None = None
    ) -> Tensor:
        """What the head reads: the last block's output, normalised.  (B, T) -> (B, T, D)

        Arguments and errors are those of `forward`.
        """
        if kv_cache is not None and not kv_cache.length and not self.takes_cache:
            raise ValueError("cache: the model has a part of your own that cannot go on from one; leave it out")
        start, length = kv_cache.length if kv_cache is not None else 0, tokens.shape[1]
        if start + length > self.config.context:
            held = f" after the {start} of the cache" if start else ""
            raise ValueError(f"tokens.shape[1]={length}{held}: the model has {self.config.context} positions (context)")
        context = Context(attention_mask, kv_cache)
        x = self.dropout(self.positions(self.embedding(tokens) * self.embedding_scale, start))
        for block in self.blocks:
            x = block(x, context)
        return self.norm(x)


def _build_positions(config: ModelConfig, *, std: float, scale: float) -> nn.Module:
    if config.positions == "learned":
        return LearnedPositions(context=config.context, width=config.width, std=std, scale=scale)
    return SinusoidalPositions(context=config.context, width=config.width, rms=config.embedding_rms)
