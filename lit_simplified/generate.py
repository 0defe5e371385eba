"""Continue a text with a trained causal model.

Shapes: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_simplified.blocks.kv_cache import KVCache
from lit_simplified.checkpoint import checkpoint_file, load_model, tokenizer_file
from lit_simplified.config import ConfigError
from lit_simplified.datamodules import load_tokenizer
from lit_simplified.model import Transformer


def generate(checkpoint: Path, *, prompt: str, tokens: int, **options: Any) -> str:
    """The prompt and its continuation, whole. Arguments and errors are those of `stream`."""
    return "".join(stream(checkpoint, prompt=prompt, tokens=tokens, **options))


def stream(
    checkpoint: Path, *, prompt: str, tokens: int, temperature: float = 0.8, top_k: int = 50, seed: int = 0
) -> Iterator[str]:
    """The prompt, then its continuation, piece by piece as it is drawn. An incomplete last character is left out.

    Args:
        checkpoint: a run's folder, or a checkpoint file in its `checkpoints/`.
        prompt: the text to continue; if empty, a new document starts.
        tokens: number of tokens to add.
        temperature: divides the logits; 0 takes the argmax.
        top_k: sample from the k most likely tokens.
        seed: seeds the draws.

    Raises:
        ConfigError: no checkpoint or tokenizer there, a part of your own whose file was not named (`checkpoint`), a
            model that is not causal, a prompt with half a character, or a number out of range.
    """
    from tokenizers.decoders import DecodeStream

    for name, value, fits in (("tokens", tokens, tokens >= 0), ("top_k", top_k, top_k >= 1),
                              ("temperature", temperature, 0 <= temperature < math.inf)):
        if not fits:
            raise ConfigError(name, value, f"give a number from {1 if name == 'top_k' else 0} on")
    file = checkpoint_file(checkpoint)
    tokenizer, model = load_tokenizer(tokenizer_file(file)), load_model(file)
    if not model.config.causal:
        raise ConfigError("checkpoint", str(checkpoint), "a masked model does not continue texts: use task=clm")
    decoder = DecodeStream(skip_special_tokens=False)
    try:
        start = torch.tensor([tokenizer.encode(prompt).ids or [0]])
    except (TypeError, UnicodeEncodeError):
        raise ConfigError("prompt", prompt, "has half of a character (a surrogate): write it in UTF-8") from None
    generator = torch.Generator().manual_seed(seed)
    drawn = draw(model, start, tokens=tokens, temperature=temperature, top_k=top_k, generator=generator)
    for ids in chain([start], drawn):
        yield "".join(decoder.step(tokenizer, token) or "" for token in ids[0].tolist())


def extend(model: Transformer, ids: Tensor, *, tokens: int, **options: Any) -> Tensor:
    """Append tokens one by one.  (B, T) -> (B, T + tokens). Arguments are those of `draw`."""
    return torch.cat((ids, *draw(model, ids, tokens=tokens, **options)), dim=-1)


@torch.inference_mode()
def draw(
    model: Transformer, ids: Tensor, *, tokens: int, temperature: float, top_k: int, generator: torch.Generator,
    cached: bool = True,
) -> Iterator[Tensor]:
    """The tokens that continue each sequence, one by one.  (B, T) -> `tokens` times (B, 1)

    A token is drawn after reading the text from `window_start` on. What the cache holds is not read again: O(T) per
    token. Positions are absolute, so a window that moves is read anew; therefore it moves by half a context at a time.

    Args:
        cached: False reads the whole window for each token: the same tokens, O(T^2) each. So it is, with a warning, for
            a model with a part of your own that takes no cache.
    """
    if cached and not model.takes_cache:
        warnings.warn("a part of your own takes no cache: the whole text is read again for each token. A mixing that "
                      "has `cached` spares that", stacklevel=2)
        cached = False
    first, context = ids.shape[1], model.config.context
    text = torch.cat((ids, ids.new_empty(len(ids), tokens)), dim=-1)  # (B, T + tokens)
    kv_cache, start, read = None, 0, 0
    for length in range(first, first + tokens):
        begin = window_start(length, context=context)
        if kv_cache is None or begin != start:
            start = read = begin
            kv_cache = KVCache(context) if cached else None
        logits = model.head(model.hidden(text[:, read:length], kv_cache=kv_cache)[:, -1])  # (B, V)
        read = length
        following = choose(logits, temperature=temperature, top_k=top_k, generator=generator)
        text[:, length : length + 1] = following
        yield following


def window_start(length: int, *, context: int) -> int:
    """Where the window begins from which a text of this length is continued.

    It holds the whole text if that fits, then always more than half a context: its start is a multiple of that half.
    """
    half = max(1, context // 2)
    return max(0, -(-(length - context) // half) * half)


def choose(logits: Tensor, *, temperature: float, top_k: int, generator: torch.Generator) -> Tensor:
    """A sample from the `top_k` most likely tokens of each sequence.  (B, V) -> (B, 1)"""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    values, candidates = (logits / temperature).topk(min(top_k, logits.shape[-1]))
    return candidates.gather(-1, torch.multinomial(values.softmax(-1), 1, generator=generator))
