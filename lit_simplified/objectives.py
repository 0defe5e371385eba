"""What a model is trained for: an objective turns a window of tokens into inputs, targets and a loss.

Shapes: B batch, T positions, D width, V vocabulary, N predicted tokens.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions
from torch.nn import functional as F

from lit_simplified.config import MaskCount, MaskRule, RunConfig
from lit_simplified.model import Transformer

SPECIAL_TOKENS = 3
"""The first ids of every tokenizer: end of document, padding, mask."""
MASK_ID = 2
SHARES: Mapping[MaskRule, tuple[float, float]] = {"80-10-10": (0.1, 0.1), "all": (0.0, 0.0)}
"""Of the masked tokens, the share that becomes a random token and the share that stays; the others become the mask."""
CHUNK = 512
"""Rows of logits that exist at once on a CPU: few enough to stay in its cache, enough for an efficient product."""


class Objective(ABC):
    """A training task. Subclasses differ in one method; loss, validation and test are shared."""

    extra: int
    """Tokens of a window beyond the model's context."""

    reports_accuracy = False
    """Whether validation reports accuracy too, which computes all logits a second time."""

    @abstractmethod
    def select(self, model: Transformer, windows: Tensor, *, step: int | None) -> tuple[Tensor, Tensor]:
        """The head's inputs, (N, D), and its targets, (N,), for windows (B, T + extra).

        `step` is the number of the training batch: random draws depend on it and the seed only. None: an evaluation,
        where they depend on the windows only, so that all models get the same targets.
        """

    def loss(self, model: Transformer, windows: Tensor, *, step: int | None = 0) -> Tensor:
        """Mean cross-entropy in nats per predicted token, a scalar."""
        hidden, targets = self.select(model, windows, step=step)
        return cross_entropy(hidden, model.head.weight, targets)


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the logits `hidden @ weight.T`, computed in chunks of rows.

    (N, D), (V, D), (N,) -> scalar. Exact, with gradients. A step of 6 blocks of width 256 with a vocabulary of 8,192
    takes 254 MiB instead of 427 at 2,048 tokens, 777 instead of 1,496 at 8,192, and the same time within 1 %.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):  # the chunked operator does not cast by itself, as `linear` would
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    # It computes gradients before the loss is scaled for float16: they would underflow.
    options = None if hidden.dtype == torch.float16 else _chunks(device)
    return F.linear_cross_entropy(hidden, weight, targets, options=options)


def argmax(hidden: Tensor, weight: Tensor) -> Tensor:
    """The argmax of each row of the logits `hidden @ weight.T`, computed in chunks of rows.

    (N, D), (V, D) -> (N,)
    """
    return torch.cat([F.linear(rows, weight).argmax(-1) for rows in hidden.split(CHUNK)])


def _chunks(device: str) -> LinearCrossEntropyOptions:
    if device == "cpu":
        return LinearCrossEntropyOptions(batch_chunk_size=CHUNK, chunking_method=None)
    return LinearCrossEntropyOptions()


class CausalLM(Objective):
    """Predict each next token; the target of a position is its right neighbour."""

    extra = 1

    def select(self, model: Transformer, windows: Tensor, *, step: int | None) -> tuple[Tensor, Tensor]:
        return model.hidden(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()


def choose_independently(windows: Tensor, draw: Tensor, fate: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """Which tokens are hidden, (B, T) bool, and what becomes of them, (B, T) from 0 to 1: each by a draw of its own.

    `windows`, (B, T), may be on any device; the draws, (B, T) from 0 to 1, are on the CPU.
    """
    return draw < probability, fate


def choose_exactly(windows: Tensor, draw: Tensor, fate: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """As `choose_independently`, the same number in every window, with the same shares of each fate.

    Special tokens are left alone; a window with too few others has all of them hidden.
    """
    ordinary = windows.cpu() >= SPECIAL_TOKENS
    order = draw.masked_fill(~ordinary, 1.0).argsort(dim=-1, stable=True)  # of equal draws, the same on every machine
    rank = torch.empty_like(order).scatter_(-1, order, torch.arange(order.shape[-1]).expand_as(order))
    hidden = ordinary & (rank < max(1, round(probability * windows.shape[-1])))
    return hidden, (rank + 0.5) / hidden.sum(dim=-1, keepdim=True)


CHOICES: Mapping[MaskCount, Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]] = {
    "independent": choose_independently, "exact": choose_exactly,
}
"""What chooses the hidden tokens."""


class MaskedLM(Objective):
    """Predict masked tokens; the head reads only their positions.

    Each training batch masks different tokens, by seed and batch number. An evaluation seeds the choice with each
    window's content: the same for every block, seed, batch size and number of devices.

    Args:
        seed: seeds the choice of the masked tokens in training.
        probability: share of the tokens that are masked.
        count: how many of a window are: a random number, or always the same.
        rule: what replaces them.
    """

    extra = 0
    reports_accuracy = True

    def __init__(
        self, *, seed: int, probability: float, count: MaskCount = "independent", rule: MaskRule = "80-10-10"
    ) -> None:
        self.seed, self.probability, self.choose, self.rule = seed, probability, CHOICES[count], rule

    def select(self, model: Transformer, windows: Tensor, *, step: int | None) -> tuple[Tensor, Tensor]:
        inputs, hidden = self.corrupt(windows, vocab_size=model.config.vocab_size, step=step)
        # Indices found on the CPU: indexing with a mask on a GPU would wait for the number of rows.
        rows = hidden.flatten().nonzero().squeeze(-1).to(windows.device, non_blocking=True)
        return model.hidden(inputs).flatten(0, 1).index_select(0, rows), windows.flatten().index_select(0, rows)

    def corrupt(self, windows: Tensor, *, vocab_size: int, step: int | None) -> tuple[Tensor, Tensor]:
        """The masked windows, (B, T) int64 on their device, and the mask, (B, T) bool on the CPU."""
        # Drawn on the CPU whatever the device, so that every machine masks the same tokens.
        if step is not None:
            return self._hide(windows, vocab_size, torch.Generator().manual_seed(self.seed * 1_000_003 + step))
        seeds = [zlib.crc32(window.numpy().tobytes()) for window in windows.cpu()]
        parts = [self._hide(windows[i : i + 1], vocab_size, torch.Generator().manual_seed(seed))
                 for i, seed in enumerate(seeds)]
        inputs, hidden = zip(*parts, strict=True)
        return torch.cat(inputs), torch.cat(hidden)

    def _hide(self, windows: Tensor, vocab_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        draw, fate = torch.rand(2, *windows.shape, generator=generator)
        others = torch.randint(SPECIAL_TOKENS, vocab_size, windows.shape, generator=generator)
        random, keep = SHARES[self.rule]
        hidden, fate = self.choose(windows, draw, fate, self.probability)
        hidden[0, 0] |= ~hidden.any()  # a loss over no token would be NaN
        replacement = torch.where(fate < random, others, MASK_ID).to(windows.device)
        replaced = (hidden & (fate < 1 - keep)).to(windows.device)
        return torch.where(replaced, replacement, windows), hidden


def build_objective(config: RunConfig) -> Objective:
    """The objective of a run's task."""
    if config.task == "clm":
        return CausalLM()
    optim = config.optim
    return MaskedLM(
        seed=config.seed, probability=optim.mask_probability, count=optim.mask_count, rule=optim.mask_rule
    )
