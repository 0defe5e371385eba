"""Other libraries' Pre-LN transformers of the same size, activation and kind of norm, as their users run them.

All are trained on the same batch by the same optimiser; the loss is `F.cross_entropy` over all logits, as their users
write it. A peer's package is imported when the peer is built.

Shapes: B batch, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ablations.bench.subjects import Parts, Subject
from lit_simplified.config import PRE_LN, BlockConfig, ModelConfig, RunConfig
from lit_simplified.objectives import MaskedLM, build_objective

MATCHED: BlockConfig = replace(PRE_LN, norm="layer", norm_eps=1e-5, activation="gelu")
"""Our Pre-LN with what the peers have: LayerNorm and the exact GELU."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A library's model."""

    package: str
    """What is imported."""
    install: str
    """What `pip install` needs."""
    build: Callable[[ModelConfig], nn.Module]
    logits: Callable[[Any, Tensor], Tensor]
    """(model, tokens (B, T)) -> (B, T, V)."""
    note: str
    """How it differs from our model of the same size."""
    causal_only: bool = False

    @property
    def installed(self) -> bool:
        return find_spec(self.package) is not None

    def subject(self, name: str, run: RunConfig) -> Subject:
        """The peer at the size of a run, whose block is `MATCHED`, with or without a GLU."""
        return Subject(name=name, run=run, assemble=self.assemble, whole_head=True)

    def assemble(self, run: RunConfig) -> Parts:
        model, objective, context = self.build(run.model), build_objective(run), run.model.context

        def loss(batch: Tensor) -> Tensor:
            if isinstance(objective, MaskedLM):
                inputs, hidden = objective.corrupt(batch, vocab_size=run.model.vocab_size, step=0)
                targets = batch.masked_fill(~hidden, -100)  # the index that cross_entropy ignores
            else:
                inputs, targets = batch[:, :-1], batch[:, 1:]
            return F.cross_entropy(self.logits(model, inputs).flatten(0, 1), targets.flatten())

        return Parts(model, loss, lambda batch: self.logits(model, batch[:, :context]))


def hidden_width(config: ModelConfig) -> int:
    """Columns of the MLP's last matrix."""
    outer = int(config.block.mlp_ratio * config.width)
    return outer // 2 if config.block.glu else outer


def build_gpt2(config: ModelConfig) -> nn.Module:
    """GPT-2 of transformers, SDPA, no dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.context, n_embd=config.width, n_layer=config.depth,
        n_head=config.heads, n_inner=hidden_width(config), activation_function="gelu", resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa", use_cache=False, bos_token_id=0, eos_token_id=0,
    ))


def build_x_transformers(config: ModelConfig) -> nn.Module:
    """x-transformers with flash attention and none of its extras."""
    from x_transformers import Decoder, Encoder, TransformerWrapper

    layers = (Decoder if config.causal else Encoder)(
        dim=config.width, depth=config.depth, heads=config.heads, attn_dim_head=config.width // config.heads,
        attn_flash=True, ff_no_bias=True, ff_mult=hidden_width(config) / config.width, ff_glu=config.block.glu,
    )
    return TransformerWrapper(
        num_tokens=config.vocab_size, max_seq_len=config.context, attn_layers=layers, tie_embedding=True
    )


def build_litgpt(config: ModelConfig) -> nn.Module:
    """litgpt's GPT; it has no tied head and no learned positions: the head is tied by hand, positions are left out."""
    from litgpt.model import GPT, Config

    model = GPT(Config(
        block_size=config.context, vocab_size=config.vocab_size, padded_vocab_size=config.vocab_size,
        n_layer=config.depth, n_head=config.heads, n_embd=config.width, intermediate_size=hidden_width(config),
        rotary_percentage=0.0, parallel_residual=False, bias=False, norm_class_name="LayerNorm",
        mlp_class_name="GptNeoxMLP", gelu_approximate="none",
    ))
    model.apply(model._init_weights)
    model.lm_head.weight = model.transformer.wte.weight
    return model


class EncoderStack(nn.Module):
    """Tokens to logits through torch's own `TransformerEncoderLayer`.  (B, T) int64 -> (B, T, V)

    With `is_causal` the layer calls its fused causal attention, the mask it wants beside is not read.
    """

    mask: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.causal = config.causal
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        nn.init.normal_(self.embedding.weight, std=config.resolved_init_std)
        self.positions = nn.Parameter(torch.empty(config.context, config.width).normal_(std=config.resolved_init_std))
        # The layer has no GLU: where our MLP has one, this one's is as wide as makes the parameters equal.
        feedforward = hidden_width(config) * 3 // 2 if config.block.glu else hidden_width(config)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.width, config.heads, feedforward, dropout=0.0, activation=F.gelu, batch_first=True,
                norm_first=True, bias=False,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, bias=False)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.head.weight = self.embedding.weight
        mask = nn.Transformer.generate_square_subsequent_mask(config.context)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = self.mask[:length, :length] if self.causal else None
        x = self.embedding(tokens) + self.positions[:length]
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=self.causal)
        return self.head(self.norm(x))


def _call(model: Any, tokens: Tensor) -> Tensor:
    return model(tokens)


def _gpt2_logits(model: Any, tokens: Tensor) -> Tensor:
    return model(tokens).logits


PEERS: Mapping[str, Peer] = MappingProxyType({
    "transformers": Peer(
        package="transformers", install="transformers", build=build_gpt2, logits=_gpt2_logits, causal_only=True,
        note="GPT-2: biases on every matrix and norm",
    ),
    "x-transformers": Peer(
        package="x_transformers", install="x-transformers", build=build_x_transformers, logits=_call,
        note="norms without biases",
    ),
    "torch": Peer(
        package="torch", install="torch", build=EncoderStack, logits=_call,
        note="TransformerEncoderLayer: norms without biases; in place of a GLU an MLP of as many parameters",
    ),
    "litgpt": Peer(
        package="litgpt", install="--no-deps litgpt", build=build_litgpt, logits=_call, causal_only=True,
        note="no positions (rotary_percentage 0), head tied by hand",
    ),
})
