"""`Transformer`: embedding, positions, blocks, final norm and head.

Shapes: B batch, T positions, D width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_simplified.blocks.attention import SelfAttention
from lit_simplified.blocks.factory import build_stack
from lit_simplified.blocks.kv_cache import KVCache
from lit_simplified.blocks.norm import build_norm
from lit_simplified.blocks.residual import Context
from lit_simplified.config import BlockConfig, ModelConfig
from lit_simplified.config.own import specs_of
from lit_simplified.hardware import refuse_beyond_memory

SMALL = 2**24
"""Numbers."""


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


class ScaledSinusoidalPositions(SinusoidalPositions):
    """x -> x + scale * P[start : start + T], the scale trained from 1/sqrt(D).  (B, T, D) -> (B, T, D)"""

    def __init__(self, *, context: int, width: int, rms: float) -> None:
        # Crammed BERT has sines of amplitude 1 where tokens have an RMS of 0.02 and D is 768: the same ratio anywhere.
        super().__init__(context=context, width=width, rms=rms / 0.02 * math.sqrt(width / 768) * math.sqrt(0.5))
        self.scale = nn.Parameter(torch.tensor(width**-0.5))

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        return x + self.scale * self.table[start : start + x.shape[1]]


class Transformer(nn.Module):
    """Tokens to logits.  (B, T) int64 -> (B, T, V)

    `blocks` is the sequence of blocks. The embedding matrix has the standard deviation of the other weights, as a tied
    head needs it, and what enters the first block is scaled to `embedding_rms`, or normalised.

    Raises:
        ConfigError: a model that is larger than the memory, before it takes any, or a part that cannot be built.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        _refuse_too_large(config)
        self.config = config
        std = config.resolved_init_std
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        nn.init.normal_(self.embedding.weight, std=std)
        self.embedding_scale = config.embedding_rms / std
        self.positions = _build_positions(config, std=std, scale=self.embedding_scale)
        self.embedding_norm = build_norm(config.block, width=config.width) if config.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(config.block.dropout) if config.block.dropout else nn.Identity()
        self.blocks = nn.ModuleList(build_stack(config))
        self.norm = build_norm(config.block, width=config.width, outer=True)
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
        embedded = self.positions(self.embedding(tokens) * self.embedding_scale, start)
        x = self.dropout(self.embedding_norm(embedded))
        for block in self.blocks:
            x = block(x, context)
        return self.norm(x)


def is_small(config: ModelConfig) -> bool:
    """Whether a model is so small that its memory needs no thought, by a bound on its size that takes no time."""
    block = (8 + 3 * config.block.mlp_ratio) * config.width**2
    return config.depth * block + (2 * config.vocab_size + config.context) * config.width < SMALL


class Size(NamedTuple):
    """How many numbers a model has."""

    trained: int
    fixed: int
    """In buffers, and in parameters that are not trained."""


@lru_cache(maxsize=64)
def size_of(config: ModelConfig) -> Size:
    """The size of a model that is not built: the first, a middle and the last block stand for a stack of any depth.

    Parts of your own, whose size only their code knows, are left out.
    """
    own = specs_of(config.block)
    bare = replace(config.block, **{name: getattr(BlockConfig(), name) for name in own})
    kept = min(config.depth, 3)
    with torch.device("meta"):  # no memory, no random numbers
        model = Transformer(replace(config, block=bare, depth=kept))
    middle = model.blocks[kept // 2]
    several = config.depth - kept
    if "own" in own:
        model.blocks, several = nn.ModuleList(), 0
    whole, block = _count(model), _count(middle)
    return Size(whole.trained + several * block.trained, whole.fixed + several * block.fixed)


def _count(module: nn.Module) -> Size:
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    every = sum(tensor.numel() for tensors in (module.parameters(), module.buffers()) for tensor in tensors)
    return Size(trained, every - trained)


def _refuse_too_large(config: ModelConfig) -> None:
    place = torch.empty(0)
    if is_small(config) or place.device.type == "meta":
        return
    refuse_beyond_memory(
        sum(size_of(config)) * place.itemsize, device=place.device, field="model", what="the model",
        value=f"{config.depth} blocks of width {config.width}, vocabulary {config.vocab_size}",
    )


def _build_positions(config: ModelConfig, *, std: float, scale: float) -> nn.Module:
    if config.positions == "learned":
        return LearnedPositions(context=config.context, width=config.width, std=std, scale=scale)
    sinusoids = ScaledSinusoidalPositions if config.positions == "scaled_sinusoidal" else SinusoidalPositions
    return sinusoids(context=config.context, width=config.width, rms=config.embedding_rms)
