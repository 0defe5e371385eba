"""Decoding: tokens per second of `generate.extend`, with its cache against without, and between blocks.

`lit_simplified.generate` needs the tokenizers, which a bare machine lacks: it is imported when it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ablations.bench.subjects import Parts, Subject
from lit_simplified.config import RunConfig
from lit_simplified.model import Transformer
from lit_simplified.objectives import build_objective


@dataclass(frozen=True, kw_only=True)
class Decoding(Subject):
    """Our model, continuing one random prompt of half a context by the other half, greedily. It is never trained."""

    @property
    def batch_shape(self) -> tuple[int, int]:
        return 1, self.tokens

    @property
    def tokens(self) -> int:
        """Tokens that are added; and those of the prompt."""
        return max(1, self.run.model.context // 2)


def assemble_decoding(run: RunConfig, *, cached: bool) -> Parts:
    """Our model and its continuation of a prompt.  (1, T) -> (1, T + T)"""
    from lit_simplified.generate import extend

    model, objective = Transformer(run.model), build_objective(run)

    def forward(prompt: Tensor) -> Tensor:
        return extend(
            model, prompt, tokens=prompt.shape[1], temperature=0, top_k=1, cached=cached,
            generator=torch.Generator(device=prompt.device),
        )

    return Parts(model, lambda batch: objective.loss(model, batch), forward)


def missing() -> str:
    """Why decoding cannot be measured here, or nothing."""
    try:
        import lit_simplified.generate  # noqa: F401
    except ImportError as error:
        return f"lit_simplified.generate needs {error.name}; to measure it: python -m pip install {error.name}"
    return ""


def decoding(name: str, run: RunConfig, *, cached: bool) -> Decoding:
    """A block's decoding, with the cache of `extend` or reading the whole window for each token."""
    return Decoding(
        name=name if cached else f"{name} uncached", run=run, assemble=partial(assemble_decoding, cached=cached)
    )
