"""Continue a text with a trained causal model.

Shapes: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lit_simplified.config import ConfigError
from lit_simplified.datamodules import load_tokenizer
from lit_simplified.model import Transformer
from lit_simplified.module import LitTransformer


def generate(
    checkpoint: Path, *, prompt: str, tokens: int, temperature: float = 0.8, top_k: int = 50, seed: int = 0
) -> str:
    """The prompt and its continuation.

    Args:
        checkpoint: a run's folder, or a checkpoint file in its `checkpoints/`.
        prompt: the text to continue; if empty, a new document is begun.
        tokens: number of tokens to add.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draws come from this many likeliest tokens.
        seed: seeds the draws.

    Raises:
        ConfigError: no checkpoint or tokenizer there, or a model that is not causal.
    """
    file = checkpoint / "checkpoints" / "last.ckpt" if checkpoint.is_dir() else checkpoint
    tokenizer_file = file.parent.parent / "tokenizer.json"
    for name, path in (("checkpoint", file), ("tokenizer", tokenizer_file)):
        if not path.is_file():
            raise ConfigError(name, str(path), "no such file: give the folder of a run that `fit` has finished")
    module = LitTransformer.load_from_checkpoint(file, map_location="cpu", weights_only=True)
    if not module.config.model.causal:
        raise ConfigError("checkpoint", str(checkpoint), "a masked model does not continue texts: use task=clm")
    tokenizer = load_tokenizer(tokenizer_file)
    start = torch.tensor([tokenizer.encode(prompt).ids or [0]])
    generator = torch.Generator().manual_seed(seed)
    ids = extend(
        module.model.eval(), start, tokens=tokens, temperature=temperature, top_k=top_k, generator=generator
    )
    return tokenizer.decode(ids[0].tolist(), skip_special_tokens=False)


@torch.inference_mode()
def extend(
    model: Transformer, ids: Tensor, *, tokens: int, temperature: float, top_k: int, generator: torch.Generator
) -> Tensor:
    """Append tokens one by one, each read off the last `context` tokens.  (1, T) -> (1, T + tokens)"""
    for _ in range(tokens):
        logits = model(ids[:, -model.config.context :])[:, -1]  # (1, V)
        if temperature == 0:
            following = logits.argmax(-1, keepdim=True)
        else:
            values, candidates = (logits / temperature).topk(min(top_k, logits.shape[-1]))
            choice = torch.multinomial(values.softmax(-1), 1, generator=generator)
            following = candidates.gather(-1, choice)
        ids = torch.cat((ids, following), dim=-1)
    return ids
