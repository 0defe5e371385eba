"""`SequenceClassifier`: a pretrained transformer with a head over the mean of its positions.

Shapes: B batch, T positions, D width, O outputs (a number per class, or one number).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from lit_simplified.config import ModelConfig
from lit_simplified.model import Transformer


class SequenceClassifier(nn.Module):
    """Sequences to outputs.  (B, T) int64, (B, T) bool -> (B, O)

    The head is that of "crammed" BERT: the mean over the positions that are not padding, a layer with tanh, dropout, a
    linear map.

    Args:
        encoder: the transformer; its language model's head is not used.
        outputs: O.
        dropout: probability, of the head alone.
    """

    def __init__(self, encoder: Transformer, *, outputs: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        if not encoder.config.tied_head:
            encoder.head.requires_grad_(False)
        width = encoder.config.width
        self.dense, self.output = nn.Linear(width, width), nn.Linear(width, outputs)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.dense, self.output):
            nn.init.normal_(layer.weight, std=encoder.config.resolved_init_std)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """`attention_mask` is false at padding; every sequence has a position that is not."""
        hidden = self.encoder.hidden(tokens, attention_mask)  # (B, T, D)
        kept = hidden.masked_fill(~attention_mask[..., None], 0.0)
        mean = kept.sum(dim=1) / attention_mask.sum(dim=1, keepdim=True)  # (B, D)
        return self.output(self.dropout(torch.tanh(self.dense(mean))))


def with_dropout(config: ModelConfig, dropout: float) -> ModelConfig:
    """The same model with another dropout, which has no parameters: its weights fit."""
    return replace(config, block=replace(config.block, dropout=dropout))
