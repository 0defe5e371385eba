"""What happens to a signal on its way through a model: measures of token representations and of attention, and the
probe that takes them behind every block.

The measures of tokens take (..., T, D) to (...): one number per sequence. Ranks and similarity are computed in float64,
since the singular values of a collapsed sequence differ by more than float32 can tell apart.

Shapes: B batch, T positions, D width, H heads, K head width, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_simplified.blocks.attention import SelfAttention, SoftmaxMixing
from lit_simplified.blocks.linear import ResidualLinear
from lit_simplified.blocks.mlp import MLP
from lit_simplified.blocks.residual import NO_CONTEXT, Context, Gain
from lit_simplified.config.own import specs_of
from lit_simplified.model import Transformer

TOKEN_MEASURES = (
    "cosine", "effective_rank", "stable_rank", "rank_one_distance", "rms", "kurtosis", "max_over_median",
)
"""What `of_tokens` gives."""
ATTENTION_MEASURES = ("entropy", "identity")
"""What `of_attention` gives."""
TINY = 1e-300


def cosine(tokens: Tensor) -> Tensor:
    """Mean cosine similarity of all pairs of different tokens: 1 when they all point one way.  (..., T, D) -> (...)

    The sum over all pairs is the square of the sum, so that no (T, T) matrix is needed. A token that is 0 is similar to
    none.
    """
    units = nn.functional.normalize(tokens.double(), dim=-1, eps=TINY)
    count = units.shape[-2]
    alike = units.square().sum(dim=(-2, -1))  # each token with itself
    return (units.sum(dim=-2).square().sum(dim=-1) - alike) / (count * (count - 1))


def spectrum(tokens: Tensor) -> Tensor:
    """The squared singular values, largest first; NaN if any token is not finite.  (..., T, D) -> (..., min(T, D))

    Of the smaller of the two Gram matrices, in float64: singular values below 1e-8 of the largest are lost.
    """
    x = tokens.double()
    gram = x @ x.mT if x.shape[-2] <= x.shape[-1] else x.mT @ x
    if not torch.isfinite(gram).all():  # a diverged model is looked at, too
        return torch.full_like(gram[..., 0], torch.nan)
    return torch.linalg.eigvalsh(gram.cpu()).flip(-1).clamp(min=0)


def effective_rank(squares: Tensor) -> Tensor:
    """exp of the entropy of the singular values' shares (Roy & Vetterli 2007), of `spectrum`.  (..., R) -> (...)"""
    values = squares.sqrt()
    shares = values / values.sum(dim=-1, keepdim=True).clamp(min=TINY)
    return torch.special.entr(shares).sum(dim=-1).exp()


def stable_rank(squares: Tensor) -> Tensor:
    """||X||_F^2 / ||X||_2^2, of `spectrum`.  (..., R) -> (...)"""
    return squares.sum(dim=-1) / squares[..., 0].clamp(min=TINY)


def rank_one_distance(squares: Tensor) -> Tensor:
    """||X - X_1||_F / ||X||_F with X_1 the nearest matrix of rank one, of `spectrum`: 0 after a collapse.

    (..., R) -> (...)
    """
    return (squares[..., 1:].sum(dim=-1) / squares.sum(dim=-1).clamp(min=TINY)).sqrt()


def rms(tokens: Tensor) -> Tensor:
    """sqrt(mean(x^2)).  (..., T, D) -> (...)"""
    return tokens.double().square().mean(dim=(-2, -1)).sqrt()


def kurtosis(tokens: Tensor) -> Tensor:
    """mean_j(s_j^4) / mean_j(s_j^2)^2 of the units' RMS s_j over tokens (He et al. 2024, arXiv 2405.19279).

    1 when all units are equally large, D when one carries everything.  (..., T, D) -> (...)
    """
    squares = tokens.double().square().mean(dim=-2)
    return squares.square().mean(dim=-1) / squares.mean(dim=-1).square().clamp(min=TINY)


def max_over_median(tokens: Tensor) -> Tensor:
    """Mean over tokens of the largest activation over the median one, in absolute value.  (..., T, D) -> (...)"""
    sizes = tokens.abs()
    return (sizes.amax(dim=-1).double() / sizes.median(dim=-1).values.double().clamp(min=TINY)).mean(dim=-1)


def of_tokens(tokens: Tensor) -> dict[str, Tensor]:
    """All measures of token representations, by name.  (..., T, D) -> (...) each"""
    squares = spectrum(tokens).to(tokens.device)
    return {
        "cosine": cosine(tokens), "effective_rank": effective_rank(squares), "stable_rank": stable_rank(squares),
        "rank_one_distance": rank_one_distance(squares), "rms": rms(tokens), "kurtosis": kurtosis(tokens),
        "max_over_median": max_over_median(tokens),
    }


def entropy(weights: Tensor) -> Tensor:
    """Mean entropy in nats of the rows of an attention matrix: 0 when each position reads one.  (..., T, T) -> (...)"""
    return torch.special.entr(weights).sum(dim=-1).double().mean(dim=-1)


def identity(mixing: Tensor) -> Tensor:
    """Cosine of the angle between a mixing matrix and I: 1 when every token keeps its own value, up to a factor.

    tr(M) / (||M||_F sqrt(T)).  (..., T, T) -> (...)
    """
    size = torch.linalg.matrix_norm(mixing).double() * mixing.shape[-1] ** 0.5
    return mixing.diagonal(dim1=-2, dim2=-1).double().sum(dim=-1) / size.clamp(min=TINY)


def of_attention(weights: Tensor, mixing: Tensor) -> dict[str, Tensor]:
    """All measures of attention, by name, from A and what multiplies the values.  2 x (..., T, T) -> (...) each"""
    return {"entropy": entropy(weights), "identity": identity(mixing)}


@dataclass(frozen=True)
class Signals:
    """What a probe found, for a stack of L blocks; means over sequences, and over heads where there are some."""

    tokens: Mapping[str, Tensor]
    """By name of `TOKEN_MEASURES`, float64 (L + 1,): the first block's input, then the output of every block."""
    attention: Mapping[str, Tensor]
    """By name of `ATTENTION_MEASURES`, float64 (L,): entropy of A, identity component of what multiplies the values.
    Empty with a mixing or a block of your own."""
    weights: Mapping[tuple[int, int], Tensor]
    """A of the chosen (block, head) for the first sequence, float32 (T, T)."""
    mixing: Mapping[tuple[int, int], Tensor]
    """What multiplies the values there, alpha*I + beta*A - gamma*C or A, float32 (T, T)."""


def probe(
    model: Transformer, forward: Callable[[], Any], *, maps: tuple[tuple[int, int], ...] = (),
    attended: int | None = None,
) -> Signals:
    """Measure behind every block while `forward` calls the model.

    Hooks are there during this call alone. What multiplies the values is had from mixing's own code, whatever its kind:
    applied to the identity matrix in their place it gives the (T, T) matrix, which exists for one block at a time.

    Args:
        model: the model that `forward` calls, once.
        forward: a forward pass; gradients are kept if they are enabled where this is called.
        maps: blocks and heads whose matrices are kept.
        attended: the number of sequences whose attention is measured, which is most of the work. None: all.
    """
    tokens: list[dict[str, Tensor]] = []
    heads: list[dict[str, Tensor]] = []
    kept: tuple[dict[tuple[int, int], Tensor], dict[tuple[int, int], Tensor]] = ({}, {})

    def before(block: nn.Module, arguments: tuple[Any, ...]) -> None:
        tokens.append(_means(of_tokens(arguments[0].detach())))

    def after(block: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        tokens.append(_means(of_tokens(output.detach())))

    def mixes(mixing: Any, arguments: tuple[Any, ...], output: Tensor) -> None:
        query, key, _, context = arguments
        attention_mask = None if context.attention_mask is None else context.attention_mask[:attended]
        weights, matrix = attention_matrices(mixing, query[:attended], key[:attended], context=Context(attention_mask))
        heads.append(_means(of_attention(weights, matrix)))
        for index, head in maps:
            if index == len(heads) - 1:
                kept[0][index, head], kept[1][index, head] = weights[0, head].cpu(), matrix[0, head].cpu()

    hooks = [model.blocks[0].register_forward_pre_hook(before)]
    hooks += [block.register_forward_hook(after) for block in model.blocks]
    hooks += [mixing.register_forward_hook(mixes) for mixing in mixings(model)]
    try:
        with _eager(model):
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    return Signals(_stacked(tokens), _stacked(heads), *kept)


@torch.no_grad()
def attention_matrices(
    mixing: SoftmaxMixing, query: Tensor, key: Tensor, *, context: Context = NO_CONTEXT
) -> tuple[Tensor, Tensor]:
    """A, and what multiplies the values.  2 x (B, H, T, K) -> 2 x (B, H, T, T), float32 at least"""
    wide = torch.promote_types(query.dtype, torch.float32)
    query, key = query.detach().to(wide), key.detach().to(wide)
    with torch.autocast(query.device.type, enabled=False):
        weights = attention_weights(query, key, causal=mixing.causal, context=context)
        if type(mixing) is SoftmaxMixing:
            return weights, weights
        eye = torch.eye(query.shape[-2], dtype=wide, device=query.device).expand_as(weights)
        return weights, mixing.forward(query, key, eye, context)  # calling it would call the hook that asks


def attention_weights(query: Tensor, key: Tensor, *, causal: bool, context: Context = NO_CONTEXT) -> Tensor:
    """A = softmax(Q K^T / sqrt(K) + mask), 0 in a row that may attend to nothing.  2 x (B, H, T, K) -> (B, H, T, T)"""
    scores = query @ key.mT / query.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1), -torch.inf)
    if context.attention_mask is not None:
        scores = scores.masked_fill(~context.attention_mask[:, None, None], -torch.inf)
    weights = scores.softmax(dim=-1)
    return weights if context.attention_mask is None else weights.nan_to_num(0.0)


def mixings(model: Transformer) -> list[SoftmaxMixing]:
    """The mixing of every block, where there is an attention matrix; empty with a mixing or a block of your own."""
    parts = [part.mixing for block in model.blocks for part in block.modules() if isinstance(part, SelfAttention)]
    own = {"attention", "own"} & set(specs_of(model.config.block))
    return [] if own else parts


def _eager(model: Transformer) -> AbstractContextManager[Any]:
    """Compiled blocks run as they are: else they would be compiled anew with their hooks, and again without them."""
    compiled = any(block._compiled_call_impl is not None for block in model.blocks)
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()  # the former imports the compiler


def _means(measures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Over sequences and heads, to the CPU in one piece."""
    values = torch.stack([value.double().mean() for value in measures.values()]).cpu()
    return dict(zip(measures, values.unbind(), strict=True))


def _stacked(places: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([place[name] for place in places]) for name in (places[0] if places else ())}


def head_gains(model: Transformer) -> dict[str, list[Tensor]]:
    """The gains per head of skipinit and shaped attention, `alpha`, `beta`, `gamma`: block by block, (H,) each."""
    found: dict[str, list[Tensor]] = {}
    for mixing in mixings(model):
        for name, gain in mixing.named_parameters():
            found.setdefault(name, []).append(gain.detach().flatten())
    return found


def branch_gains(block: nn.Module) -> dict[str, Tensor]:
    """The scalar gains of a block's branches, `attention` (b_SA) and `mlp` (b_FF), and of its `mlp_skip` (a_FF), where
    it has them."""
    parts = [part for part in block.modules() if isinstance(part, SelfAttention | MLP)]
    gains = [("mlp" if isinstance(part, MLP) else "attention", part.gain) for part in parts]
    gains += [("mlp_skip", part) for name, part in block.named_modules() if name.endswith("skip_gain")]
    return {name: part.gain.detach() for name, part in gains if isinstance(part, Gain)}


def residual_ratios(block: nn.Module) -> dict[str, Tensor]:
    """b/a of a block's reparameterised matrices, `value` and `projection` (paper, Fig. 4), where both are trained.

    What blocks with identity matrices keep at an end of the stack is among them with all_gains alone, which trains its
    gains.
    """
    return {
        name: (part.delta_gain / part.gain).detach()
        for attention in block.modules() if isinstance(attention, SelfAttention)
        for name in ("value", "projection")
        if isinstance(part := getattr(attention, name), ResidualLinear) and part.gain.requires_grad
    }
