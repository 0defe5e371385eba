"""Byte-level BPE: every text has tokens and comes back exactly; the same documents give the same file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lit_simplified.config import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END, PAD, MASK = "<|end|>", "<|pad|>", "<|mask|>"
SPECIAL_TOKENS = (END, PAD, MASK)
"""Ids 0, 1, 2: between documents; padding; what hides a token from a masked language model."""
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens. Texts must come in a fixed order for a fixed result.

    Raises `ConfigError` for a vocabulary that cannot hold the bytes and the special tokens.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ConfigError("model.vocab_size", vocab_size, f"give at least {SMALLEST_VOCABULARY}: bytes and special")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer saved at a path, ready for text in which the special tokens' names mean nothing special."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    # Not saved in the file: a document that spells out <|end|> is text like any other.
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode(
    texts: Iterable[str], *, tokenizer: Tokenizer, chunk: int = 1 << 20
) -> Iterator[tuple[int, npt.NDArray[np.uint32]]]:
    """Tokens of chunks of documents, each document closed by END, with the bytes a chunk had.

    A chunk has at least `chunk` characters, enough to keep all cores busy.
    """
    for documents in _chunks(texts, chunk):
        encodings = tokenizer.encode_batch_fast(documents, add_special_tokens=False)
        ids = chain.from_iterable((*encoding.ids, 0) for encoding in encodings)
        yield sum(len(document.encode()) for document in documents), np.fromiter(ids, dtype=np.uint32)


def _chunks(texts: Iterable[str], characters: int) -> Iterator[list[str]]:
    documents: list[str] = []
    size = 0
    for text in texts:
        documents.append(text)
        size += len(text)
        if size >= characters:
            yield documents
            documents, size = [], 0
    if documents:
        yield documents
