"""What a model that knows only how frequent each token is would lose: the plateau on which a run that learned nothing
ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

CHUNK = 1 << 22
"""Tokens that are counted at a time: of a memory map no more is read into memory."""


def unigram_losses(splits: Mapping[str, npt.NDArray[Any]], *, vocabulary: int) -> dict[str, float]:
    """Cross-entropy of each split under the token frequencies of the training split, in nats per token.

    One is added to each frequency, so that a token that training never saw has a probability.

    Args:
        splits: (N,) tokens of each; `train` is the one whose frequencies predict.
        vocabulary: V, how many tokens there are; a given tokenizer may have gaps, and so ids beyond.
    """
    size = max(vocabulary, *(1 + int(tokens.max(initial=0)) for tokens in splits.values()))
    counts = {split: count_tokens(tokens, size=size) for split, tokens in splits.items()}
    seen = counts["train"] + 1
    log_p = np.log(seen) - np.log(seen.sum())
    return {split: float(-(own @ log_p) / max(int(own.sum()), 1)) for split, own in counts.items()}


def count_tokens(tokens: npt.NDArray[Any], *, size: int) -> npt.NDArray[np.int64]:
    """(size,) how often each id stands in (N,) tokens."""
    counts = np.zeros(size, dtype=np.int64)
    for start in range(0, len(tokens), CHUNK):
        counts += np.bincount(tokens[start : start + CHUNK], minlength=size)
    return counts
