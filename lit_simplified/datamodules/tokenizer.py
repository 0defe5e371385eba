"""Tokenizers, all with the end of a document, padding and the mask at 0, 1 and 2.

Byte-level BPE: every text has tokens and comes back exactly; the same documents give the same file. WordPiece, as in
BERT: lower case, accents and spacing lost, rare characters unknown, and every training gives another file. Or a file,
whose special tokens change places with whatever has these ids.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from lit_simplified.config import ConfigError
from lit_simplified.datamodules.reading import given_path

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END, PAD, MASK = "<|end|>", "<|pad|>", "<|mask|>"
SPECIAL_TOKENS = (END, PAD, MASK)
"""Ids 0, 1, 2: between documents; padding; what hides a token from a masked language model."""
END_ID = 0
NAMES = {END: (END, "<|endoftext|>", "</s>", "<eos>", "[SEP]"), PAD: (PAD, "<pad>", "[PAD]"),
         MASK: (MASK, "<mask>", "[MASK]")}
"""What the special tokens may be called in a file, the first that is there counts."""
UNKNOWN = "<|unk|>"
"""Id 3 of WordPiece; byte-level BPE knows every text."""
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)
LONGEST_PIECE = 1024
"""Bytes (WordPiece: characters) that training learns from as one piece, a word or a run of signs: a longer one is cut.
Its time grows with the square of a piece; the longest of the standard library has 80 bytes. Encoding is linear."""
LONGEST_PART = 1 << 18
"""Characters that are read at once, about: a text that is read whole takes 300 times its bytes in memory."""
LONGEST_WORD = 256
"""Characters up to which a file's WordPiece may look at a word; its time grows with their cube. BERT's has 100."""
LARGEST_FILE = 64 << 20
"""Bytes of a tokenizer.json."""


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens. Texts must come in a fixed order for a fixed result.

    Raises `ConfigError` for a vocabulary that cannot hold the bytes and the special tokens.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        remedy = f"give at least {SMALLEST_VOCABULARY}: the bytes and the special tokens"
        raise ConfigError("model.vocab_size", vocab_size, remedy)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    _train(tokenizer, texts, trainer)
    return tokenizer


def train_wordpiece(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """BERT's uncased tokenizer, of at most `vocab_size` tokens. Two trainings on the same texts differ.

    Raises `ConfigError` for a vocabulary that cannot hold the characters of the texts.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL_TOKENS, UNKNOWN], show_progress=False,
        limit_alphabet=min(1000, max(64, vocab_size // 8)),  # each may be in there twice, inside of words too
    )  # fmt: skip
    _train(tokenizer, texts, trainer)
    if (size := tokenizer.get_vocab_size()) > vocab_size:
        raise ConfigError("model.vocab_size", vocab_size, f"give at least {size}: special tokens and characters")
    return tokenizer


def _train(tokenizer: Tokenizer, texts: Iterable[str], trainer: Any) -> None:
    """Train on pieces of at most `LONGEST_PIECE`; the limit is not part of what is saved."""
    from tokenizers import pre_tokenizers

    whole = tokenizer.pre_tokenizer
    limit = pre_tokenizers.FixedLength(length=LONGEST_PIECE)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([whole, limit])
    tokenizer.train_from_iterator((part for text in texts for part in _parts(text)), trainer)
    tokenizer.pre_tokenizer = whole


def _parts(text: str) -> Iterator[str]:
    """A text, a long one in parts that end where a word does: no piece is another, but of a word of a quarter million
    characters."""
    start = 0
    while len(text) - start > 2 * LONGEST_PART:
        match = WORD_END.search(text, start + LONGEST_PART, start + 2 * LONGEST_PART)
        end = match.start() if match else start + 2 * LONGEST_PART
        yield text[start:end]
        start = end
    yield text[start:]


WORD_END = re.compile(r"(?<=\S)(?=[ \n])")


@dataclass(frozen=True, kw_only=True)
class TokenizerChoice:
    """The tokenizer that `data.tokenizer` names."""

    kind: Literal["bpe", "wordpiece", "file"]
    content: bytes = b""
    """Of the file, with its special tokens in our places."""

    @property
    def key(self) -> str:
        """What stands for it in the name of a packed corpus: nothing for bpe, which the corpus decides alone."""
        if self.kind == "file":
            return hashlib.sha256(self.content).hexdigest()
        return "" if self.kind == "bpe" else self.kind


def choose_tokenizer(name: str, *, vocab_size: int) -> TokenizerChoice:
    """The meaning of `data.tokenizer`: bpe, wordpiece, or a path. Raises `ConfigError` for an unusable file."""
    if name == "bpe":
        return TokenizerChoice(kind="bpe")
    if name == "wordpiece":
        return TokenizerChoice(kind="wordpiece")
    path = given_path(name, field="data.tokenizer")
    if not path.is_file():
        raise ConfigError("data.tokenizer", name, "choose bpe or wordpiece, or give the path of a tokenizer.json")
    tokenizer, content = load_tokenizer(path, field="data.tokenizer"), path.read_bytes()
    if not _has_our_order(tokenizer):
        content = specials_first(content, path=path)
        tokenizer = type(tokenizer).from_buffer(content)
    _check_size(tokenizer, path, vocab_size=vocab_size)
    return TokenizerChoice(kind="file", content=content)


def check_tokenizer(path: Path, *, vocab_size: int) -> None:
    """Raise `ConfigError` for a file of ours that is no longer a tokenizer, lacks the special tokens, or has too many
    tokens."""
    tokenizer = load_tokenizer(path, field="data.tokenizer")
    if not _has_our_order(tokenizer):
        raise ConfigError("data.tokenizer", str(path), f"must have {', '.join(SPECIAL_TOKENS)} at the ids 0, 1, 2")
    _check_size(tokenizer, path, vocab_size=vocab_size)


def _has_our_order(tokenizer: Tokenizer) -> bool:
    return [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2]


def _check_size(tokenizer: Tokenizer, path: Path, *, vocab_size: int) -> None:
    if (needed := max(tokenizer.get_vocab().values()) + 1) > vocab_size:
        raise ConfigError("model.vocab_size", vocab_size, f"give at least {needed}, the vocabulary of {path}")


def specials_first(content: bytes, *, path: Path) -> bytes:
    """A tokenizer.json whose special tokens, wherever they are, change places with what has the ids 0, 1 and 2.

    Its texts have the same tokens, under other ids. Padding and mask are added at the end first where it has none.

    Raises:
        ConfigError: no token that ends a document, or a vocabulary whose order means something (Unigram).
    """
    values = json.loads(content)
    model, added = values["model"], values.get("added_tokens") or []
    if not isinstance(model["vocab"], dict):
        raise ConfigError("data.tokenizer", str(path), f"a tokenizer of the kind {model.get('type')} must have "
                          f"{', '.join(SPECIAL_TOKENS)} at the ids 0, 1, 2: train it so, or choose BPE or WordPiece")
    ids = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
    for place, token in enumerate(SPECIAL_TOKENS):
        name = next((name for name in NAMES[token] if name in ids), token)
        if name not in ids and token == END:
            raise ConfigError("data.tokenizer", str(path), "has no token that ends a document: add a special token "
                              f"with one of the names {', '.join(NAMES[END])}")
        if name not in ids:
            ids[name] = max(ids.values()) + 1
            added.append({"content": name, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False})
        other = next((other for other, number in ids.items() if number == place), name)
        ids[other], ids[name] = ids[name], place
    model["vocab"] = dict(sorted(ids.items(), key=lambda item: item[1]))
    values["added_tokens"] = sorted(({**token, "id": ids[token["content"]]} for token in added),
                                    key=lambda token: token["id"])
    values["post_processor"] = None  # it may hold ids, and would add tokens that we add ourselves
    return json.dumps(values).encode()


def load_tokenizer(path: str | Path, *, field: str = "tokenizer") -> Tokenizer:
    """The tokenizer saved at a path, ready for text in which the special tokens' names mean nothing special.

    Raises `ConfigError`, which calls the file by `field`, for one that is none, or that long words would hold up.
    """
    from tokenizers import Tokenizer

    try:
        if (size := Path(path).stat().st_size) > LARGEST_FILE:
            raise ValueError(f"it has {size:,} bytes, and may have {LARGEST_FILE:,}")
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.encode("\U0001f600")  # raises if there is no token for what it does not know
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(field, str(path), f"is not a tokenizer.json of `tokenizers`: {error}") from error
    if (longest := getattr(tokenizer.model, "max_input_chars_per_word", 0)) > LONGEST_WORD:
        raise ConfigError(field, str(path), f"give it a max_input_chars_per_word of {LONGEST_WORD}, not {longest}")
    # Not saved in the file: a document that spells out <|end|> is text like any other.
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()  # may be saved in the file of another tool's tokenizer
    tokenizer.no_padding()
    return tokenizer


def encode(
    texts: Iterable[str], *, tokenizer: Tokenizer, chunk: int = 1 << 20
) -> Iterator[tuple[int, npt.NDArray[np.uint32]]]:
    """Tokens of chunks of documents, each document closed by END, with the bytes a chunk had.

    A chunk has at least `chunk` characters, enough to keep all cores busy.
    """
    # Where a word ends, a piece does: so it is with our own, but a file may read across spaces.
    own = type(tokenizer.pre_tokenizer).__name__ in ("ByteLevel", "BertPreTokenizer")
    for parts in _chunks(map(_parts if own else lambda text: iter([text]), texts), chunk):
        yield sum(len(part.encode()) for part, _ in parts), _tokens(parts, tokenizer)


def _tokens(parts: list[tuple[str, bool]], tokenizer: Tokenizer) -> npt.NDArray[np.uint32]:
    encodings = tokenizer.encode_batch_fast([part for part, _ in parts], add_special_tokens=False)
    closed = zip(encodings, (last for _, last in parts), strict=True)
    ids = chain.from_iterable((*encoding.ids, 0) if last else encoding.ids for encoding, last in closed)
    return np.fromiter(ids, dtype=np.uint32)


def _chunks(texts: Iterable[Iterator[str]], characters: int) -> Iterator[list[tuple[str, bool]]]:
    """Parts of texts, together some characters; and whether each is the last of its text."""
    held: list[tuple[str, bool]] = []
    size = 0
    for parts in texts:
        part = next(parts)
        for following in chain(parts, [None]):
            held.append((part, following is None))
            size += len(part)
            if size >= characters:
                yield held
                held, size = [], 0
            part = following or ""
    if held:
        yield held
