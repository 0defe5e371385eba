"""`build_block` and `build_stack`: the one place that reads the switches.

    sequential                                     parallel

    x ---+--- norm - attention - gain --+          x ---+--- norm --+-- attention - gain --+
         |                              +               |           |                      +-- + --- out
         +------- attention_skip -------+               |           +-- mlp ------- gain --+   |
                                        |               +----------- skip ---------------------+
         +------------------------------+
         |
         +--- norm - mlp ------- gain --+
         |                              +--- out
         +------- mlp_skip -------------+

A block is `Chain(token_mixing, channel_mixing)` or one branch around a `Sum(attention, mlp)`; a branch is `Skip` with
its skip, `Sum(skip_gain, branch)` where the skip has a gain, and `Chain` without. `print(block)` is the figure of the
block.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor, nn

from lit_simplified.blocks.attention import SelfAttention, ShapedMixing, SkipInitMixing, SoftmaxMixing
from lit_simplified.blocks.linear import build_matrix, initial_matrix, initial_of
from lit_simplified.blocks.mlp import MLP, build_activation
from lit_simplified.blocks.norm import build_norm
from lit_simplified.blocks.own import build_own
from lit_simplified.blocks.residual import Chain, Gain, Skip, Sum
from lit_simplified.config import BlockConfig, ConfigError, ModelConfig
from lit_simplified.config.own import parse


def build_block(
    config: BlockConfig, *, width: int, heads: int, index: int, depth: int, causal: bool = True,
    init_std: float | None = None,
) -> nn.Module:
    """One transformer block, initialised.  (B, T, D) -> (B, T, D)

    Args:
        config: the switches.
        width: D.
        heads: H, a divisor of D.
        index: the block's place, from 0; the first keeps its value matrix and, without norms, one norm. Alone, the
            last one with projection_init=last_tied is tied to its own W_V; in a `Transformer`, to the whole stack.
        depth: number of blocks in the stack; initial gains depend on it.
        causal: whether a position attends to its past only.
        init_std: standard deviation of the weights; None for the width-aware default of `ModelConfig`.

    Raises:
        ConfigError: a field or a combination that cannot be built, with the remedy.
    """
    if not 0 <= index < depth:
        raise ValueError(f"index={index!r}: give the block's place in the stack, from 0 to {depth - 1}")
    if config.own is not None:
        return build_own(config.own, field="own", width=width, heads=heads, index=index, depth=depth, causal=causal)
    std = ModelConfig(block=config, width=width, heads=heads, depth=depth, init_std=init_std).resolved_init_std
    attention = build_attention(
        config, width=width, heads=heads, first=index == 0, last=index == depth - 1, causal=causal, std=std
    )
    mlp = build_mlp(config, width=width, depth=depth, std=std)
    first_norm = _norm(config, width=width, kept=index == 0 and config.first_norm)
    if config.layout == "parallel":
        return _branch(config.mlp_skip, **first_norm, branches=Sum(attention=attention, mlp=mlp))
    skip = config.mlp_skip and _gain(config.resolved_mlp_skip_gain, trainable=config.gains_trainable)
    return Chain(
        token_mixing=_branch(config.attention_skip, **first_norm, attention=attention),
        channel_mixing=_branch(skip, **_norm(config, width=width), mlp=mlp),
    )


def build_stack(config: ModelConfig) -> list[nn.Module]:
    """The blocks of a model, each from `build_block`, with what ties one to the others.

    Raises:
        ConfigError: as `build_block`.
    """
    blocks = [
        build_block(
            config.block, width=config.width, heads=config.heads, index=index, depth=config.depth,
            causal=config.causal, init_std=config.init_std,
        )
        for index in range(config.depth)
    ]
    if config.block.resolved_projection_init == "last_tied":
        _tie_last_projection(config.block, blocks)
    return blocks


def _branch(skip: bool | nn.Module, **parts: nn.Module) -> Chain:
    """Parts one after the other: with a skip around them, without, or with one that has a gain."""
    if isinstance(skip, Gain):
        return Sum(skip_gain=skip, branch=Chain(**parts))
    return Skip(**parts) if skip else Chain(**parts)


def _norm(config: BlockConfig, *, width: int, kept: bool = False) -> dict[str, nn.Module]:
    """The norm as a named part, or nothing. `kept`: the one place where a block without norms still has one."""
    absent = config.norm == "none"
    return {} if absent and not kept else {"norm": build_norm(config, width=width, outer=absent)}


def _gain(initial: float | None, *, trainable: bool) -> nn.Module:
    return nn.Identity() if initial is None else Gain(initial, trainable=trainable)


def _dropout(probability: float) -> nn.Module:
    return nn.Dropout(probability) if probability else nn.Identity()


def build_attention(
    config: BlockConfig, *, width: int, heads: int, first: bool, last: bool, causal: bool, std: float
) -> SelfAttention:
    """The attention sub-layer of a block."""
    query = _linear(width, width, std=0.0 if config.resolved_query_init == "zero" else std, bias=config.query_key_bias)
    key = _linear(width, width, std=std, bias=config.query_key_bias)
    initial_value = initial_matrix(config.resolved_value_init, width=width, std=std)
    return SelfAttention(
        heads=heads,
        query=query,
        key=key,
        value=build_matrix(config.matrix("value", end=first), initial_value),
        mixing=_mixing(config, width=width, heads=heads, causal=causal),
        projection=_projection(config, initial_value, last=last, width=width, std=std),
        dropout=_dropout(config.dropout),
        gain=_gain(config.resolved_attention_gain, trainable=config.gains_trainable),
    )


def _projection(config: BlockConfig, initial_value: Tensor, *, last: bool, width: int, std: float) -> nn.Module:
    match config.resolved_projection_init:
        case "tied":
            initial = initial_value.T.clone()
        case "last_tied":  # of this block alone; `build_stack` takes the others in
            initial = initial_value.T.clone() if last else initial_matrix("orthogonal", width=width, std=std)
        case init:
            initial = initial_matrix(init, width=width, std=std)
    return build_matrix(config.matrix("projection", end=last), initial)


@torch.no_grad()
def _tie_last_projection(config: BlockConfig, blocks: Iterable[nn.Module]) -> None:
    """Make W_init of the last projection the transpose of the product of all other values' and projections', which are
    orthogonal: so the product of the whole stack is the identity. In float64, as rounding adds up over dozens."""
    parts = [part for block in blocks for part in block.modules() if isinstance(part, SelfAttention)]
    first, *others = [initial_of(matrix) for part in parts for matrix in (part.value, part.projection)][:-1]
    product = reduce(lambda product, matrix: matrix @ product, others, first)
    parts[-1].projection = build_matrix(config.matrix("projection", end=True), product.T.to(torch.get_default_dtype()))


def _mixing(config: BlockConfig, *, width: int, heads: int, causal: bool) -> SoftmaxMixing:
    if parse(config.attention):
        return build_own(config.attention, field="attention", heads=heads, width=width, causal=causal)
    alpha, beta = config.alpha, config.resolved_beta
    match config.attention:
        case "softmax":
            return SoftmaxMixing(causal=causal)
        case "skipinit":
            return SkipInitMixing(heads=heads, causal=causal, alpha=alpha, beta=beta)
        case "shaped":
            return ShapedMixing(heads=heads, causal=causal, alpha=alpha, beta=beta, gamma=config.gamma)
    raise ConfigError("block.attention", config.attention, "nothing builds this attention: add a case to _mixing")


def build_mlp(config: BlockConfig, *, width: int, depth: int, std: float) -> MLP:
    """The MLP sub-layer of a block."""
    outer = int(config.mlp_ratio * width)
    outer -= outer % 2 if config.glu else 0
    return MLP(
        up=_linear(width, outer, std=std),
        activation=build_activation(config),
        down=_linear(outer // 2 if config.glu else outer, width, std=std),
        dropout=_dropout(config.dropout),
        gain=_gain(config.resolved_mlp_gain(depth), trainable=config.gains_trainable),
    )


def _linear(inputs: int, outputs: int, *, std: float, bias: bool = False) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(linear.weight, std=std)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
