"""`SequenceClassifier`: a pretrained transformer with a head over one vector of each sequence.

Shapes: B batch, T positions, D width, O outputs (a number per class, or one number).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from lit_simplified.config import ModelConfig
from lit_simplified.finetuning.config import Head
from lit_simplified.model import Transformer


def mean_position(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean over the positions that are not padding.  (B, T, D), (B, T) bool -> (B, D)"""
    kept = hidden.masked_fill(~attention_mask[..., None], 0.0)
    return kept.sum(dim=1) / attention_mask.sum(dim=1, keepdim=True)


def first_position(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """The first position, which is never padding.  (B, T, D), (B, T) bool -> (B, D)"""
    return hidden[:, 0]


HEADS: Mapping[Head, tuple[Callable[[Tensor, Tensor], Tensor], int | None]] = {
    "mean": (mean_position, None), "cramming": (first_position, 1024),
}
"""What each head reads of a sequence, and the units of its layer; None: as many as the model is wide."""


class SequenceClassifier(nn.Module):
    """Sequences to outputs.  (B, T) int64, (B, T) bool -> (B, O)

    The head: one vector of the sequence, a layer with tanh, dropout, a linear map.

    Args:
        encoder: the transformer; its language model's head is not used.
        outputs: O.
        dropout: probability, of the head alone.
        head: an entry of `HEADS`.
    """

    def __init__(self, encoder: Transformer, *, outputs: int, dropout: float, head: Head = "mean") -> None:
        super().__init__()
        self.encoder = encoder
        self.pool, units = HEADS[head]
        if not encoder.config.tied_head:
            encoder.head.requires_grad_(False)
        width = encoder.config.width
        units = units or width
        self.dense, self.output = nn.Linear(width, units), nn.Linear(units, outputs)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.dense, self.output):
            nn.init.normal_(layer.weight, std=encoder.config.resolved_init_std)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """`attention_mask` is false at padding; every sequence has a position that is not."""
        hidden = self.encoder.hidden(tokens, attention_mask)  # (B, T, D)
        pooled = self.pool(hidden, attention_mask)  # (B, D)
        return self.output(self.dropout(torch.tanh(self.dense(pooled))))


def with_dropout(config: ModelConfig, dropout: float) -> ModelConfig:
    """The same model with another dropout, which has no parameters: its weights fit."""
    return replace(config, block=replace(config.block, dropout=dropout))
