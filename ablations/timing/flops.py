"""Floating-point operations by closed formula: matrix products only, causal attention counted as half.

Counted is what the mathematics needs, not what a kernel executes: an implementation that builds all (T, T) scores and
masks half of them is credited with half. Norms, activations, gains, softmax and centring count as nothing.

Symbols: B batch, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from lit_simplified.config import CHOICES, BlockConfig, ModelConfig, RunConfig

BACKWARD = 2
"""Products of the backward pass per product of the forward pass: one for the input, one for the matrix."""


def forward_flops(config: ModelConfig, *, batch: int, head_tokens: int | None = None) -> int:
    """Operations of a forward pass over (B, T) tokens.

    Args:
        config: the model; all T = `context` positions are used.
        batch: B.
        head_tokens: tokens that the head sees; None for all B*T. A masked model's head sees the hidden ones.
    """
    tokens = batch * config.context
    head = 2 * (tokens if head_tokens is None else head_tokens) * config.width * config.vocab_size
    blocks = sum(2 * tokens * block_weights(config, index=index) for index in range(config.depth))
    return head + blocks + config.depth * attention_flops(config, batch=batch)


def training_flops(config: ModelConfig, *, batch: int, head_tokens: int | None = None) -> int:
    """Operations of a training step; the optimiser counts as nothing. Arguments are those of `forward_flops`."""
    return (1 + BACKWARD) * forward_flops(config, batch=batch, head_tokens=head_tokens)


def step_flops(run: RunConfig, *, whole_head: bool = False) -> int | None:
    """Operations of one training step of a run, gradients not accumulated; None where its block has an unknown part.

    Args:
        run: the run.
        whole_head: masked task: whether the head computes all logits rather than those of the hidden tokens.
    """
    if not is_known(run.model.block):
        return None
    tokens = run.data.batch_size * run.model.context
    masked = run.task == "mlm" and not whole_head
    head = round(tokens * run.optim.mask_probability) if masked else tokens
    return training_flops(run.model, batch=run.data.batch_size, head_tokens=head)


def is_known(block: BlockConfig) -> bool:
    """Whether every part of a block is in the table of switches: of a part of the user's own nothing is counted."""
    own = getattr(block, "own", None) is not None  # a whole block
    return not own and all(getattr(block, name) in switch.names for name, switch in CHOICES.items())


def attention_flops(config: ModelConfig, *, batch: int) -> int:
    """Operations of Q K^T and A V of one block, over all heads; half of them where a position sees its past only."""
    whole = 2 * 2 * batch * config.context**2 * config.width
    return whole // 2 if config.causal else whole


def block_weights(config: ModelConfig, *, index: int) -> int:
    """Entries of the matrices that a token is multiplied with in the block at this place.

    An identity has none, but for what is kept at an end of the stack.
    """
    block, width = config.block, config.width
    value, projection = block.matrix("value", end=index == 0), block.matrix("projection", end=index == config.depth - 1)
    square = 2 + (value.kind != "identity") + (projection.kind != "identity")  # queries, keys, values, projection
    outer = int(block.mlp_ratio * width)
    outer -= outer % 2 if block.glu else 0
    inner = outer // 2 if block.glu else outer
    return width * (square * width + outer + inner)
