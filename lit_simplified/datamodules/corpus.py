"""From raw documents to a corpus: filters, near-duplicates, splits, digest, and the counts of what was dropped."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_simplified.datamodules.reading import BINARY, LARGEST, TOO_LARGE
from lit_simplified.datamodules.recipe import SPLITS, Filters, Recipe, Shares, Split
from lit_simplified.datamodules.sources import Document, Listing, Source, list_files, open_sources

HASHES, BAND = 64, 4
"""Minhashes per document, and how many must agree in a row for two documents to be compared at all."""

Progress = Callable[[int], None]
"""Called with the number of bytes just processed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A kept document's place in the spool."""

    key: str
    split: Split
    offset: int
    size: int
    sha256: bytes


@dataclass(kw_only=True)
class Corpus:
    """The kept documents, spooled to one file, because a corpus may be larger than memory."""

    spool: Path
    entries: list[Entry] = field(default_factory=list)
    excluded: Counter[str] = field(default_factory=Counter)
    """Files left out by their names, per reason."""
    unreadable: list[str] = field(default_factory=list)
    """Files and folders that could not be read, with the reason."""
    dropped: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    """Documents and bytes dropped after reading, per reason."""
    not_read: bool = False
    """Whether a limit ended a source before its end."""

    def __enter__(self) -> Corpus:
        self._file = self.spool.open("w+b")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self.spool.unlink(missing_ok=True)

    def add(self, document: Document, split: Split) -> None:
        content = document.text.encode()
        sha256, offset = hashlib.sha256(content).digest(), self._file.tell()
        self._file.write(content)
        entry = Entry(key=document.key, split=split, offset=offset, size=len(content), sha256=sha256)
        self.entries.append(entry)

    def drop(self, document: Document, reason: str) -> None:
        self.dropped[reason][0] += 1
        self.dropped[reason][1] += document.size

    def of(self, split: Split) -> list[Entry]:
        """The entries of a split, by key."""
        return sorted((e for e in self.entries if e.split == split), key=lambda entry: entry.key)

    def texts(self, split: Split) -> Iterator[str]:
        """The documents of a split, by key."""
        for entry in self.of(split):
            self._file.seek(entry.offset)
            yield self._file.read(entry.size).decode()

    @property
    def digest(self) -> str:
        """SHA-256 over key, split and content of every kept document; what else decides it is in the recipe."""
        digest = hashlib.sha256()
        for entry in sorted(self.entries, key=lambda entry: entry.key):
            digest.update(f"{entry.key}\0{entry.split}\0".encode() + entry.sha256)
        return digest.hexdigest()

    def counts(self) -> dict[str, Any]:
        """The part of the data card that is known before tokens are."""
        kept = {s: {"documents": len(self.of(s)), "bytes": sum(e.size for e in self.of(s))} for s in SPLITS}
        dropped = {reason: {"documents": n, "bytes": size} for reason, (n, size) in sorted(self.dropped.items())}
        return {
            "documents": {
                "kept": len(self.entries), "dropped_after_reading": dropped,
                "left_out_by_pattern": dict(sorted(self.excluded.items())), "ended_by_limit": self.not_read,
                "unreadable": {"count": len(self.unreadable), "first": next(iter(self.unreadable), None)},
            },
            "splits": kept,
        }


def collect(
    recipe: Recipe, corpus: Corpus, *, cache_dir: Path, listing: Listing | None = None, progress: Progress | None = None
) -> Corpus:
    """Fill an open corpus with the recipe's documents. The result depends on their content and keys alone.

    Raises `ConfigError` for a source that cannot be read.
    """
    listing = listing or list_files(recipe)
    corpus.excluded, corpus.unreadable = listing.excluded, listing.unreadable
    duplicates = NearDuplicates(recipe.filters.near_duplicates) if recipe.filters.near_duplicates else None
    for source in open_sources(recipe, listing, cache_dir=cache_dir):
        for document in _judge(source, corpus, recipe=recipe, duplicates=duplicates):
            if progress is not None:
                progress(document.size)
    return corpus


def _judge(
    source: Source, corpus: Corpus, *, recipe: Recipe, duplicates: NearDuplicates | None
) -> Iterator[Document]:
    """Add each document of a source to the corpus or to what it dropped, until a limit is reached."""
    documents, size = 0, 0
    for document in source.documents:
        yield document
        reason = reason_to_drop(document, recipe.filters)
        if reason is None and duplicates and duplicates.seen(document.text):
            reason = f"near-duplicate (similarity of lines {recipe.filters.near_duplicates} or more)"
        if reason is not None:
            corpus.drop(document, reason)
            continue
        over = source.max_bytes is not None and size + document.size > source.max_bytes
        if over or documents == source.max_documents:
            corpus.not_read = True
            return
        documents, size = documents + 1, size + document.size
        corpus.add(document, choose_split(document.split_key, recipe.shares, splits=source.splits))


def reason_to_drop(document: Document, filters: Filters) -> str | None:
    """The first filter that a document fails, in words, or None."""
    text = document.text
    if document.flaw:
        return document.flaw
    if document.size > LARGEST:
        return TOO_LARGE
    if "\0" in text:
        return BINARY
    if not text.strip():
        return "empty"
    if filters.min_characters and len(text) < filters.min_characters:
        return f"fewer than {filters.min_characters} characters"
    if filters.max_characters and len(text) > filters.max_characters:
        return f"more than {filters.max_characters} characters"
    if filters.max_line_characters and max(map(len, text.splitlines())) > filters.max_line_characters:
        return f"a line of more than {filters.max_line_characters} characters"
    if filters.max_digit_share and len(re.findall("[0-9]", text)) > filters.max_digit_share * len(text):
        return f"more than {filters.max_digit_share:.0%} digits"
    return None


def choose_split(key: str, shares: Shares, *, splits: Sequence[Split] = SPLITS) -> Split:
    """The split of a document among `splits`, by a hash: the same on any machine, whatever else is in the corpus."""
    weights = [getattr(shares, split) for split in splits]
    draw = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % sum(weights)
    return splits[int(np.searchsorted(np.cumsum(weights), draw, side="right"))]


class NearDuplicates:
    """Remembers documents by minhashes of their sets of lines, so that each is compared with a few, not with all."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        random = np.random.Generator(np.random.PCG64(0))
        self._multiply = random.integers(1, 2**64, size=(HASHES, 1), dtype=np.uint64) | np.uint64(1)
        self._add = random.integers(0, 2**64, size=(HASHES, 1), dtype=np.uint64)
        self._signatures: list[npt.NDArray[np.uint32]] = []
        self._buckets: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)

    def seen(self, text: str) -> bool:
        """Whether a document like this was seen before; if not, it is remembered."""
        signature = self.signature(text)
        bands = [(i, signature[i : i + BAND].tobytes()) for i in range(0, HASHES, BAND)]
        candidates = {number for band in bands for number in self._buckets.get(band, ())}
        # The share of equal minhashes estimates the Jaccard similarity of the two sets.
        if any(np.mean(self._signatures[number] == signature) >= self.threshold for number in candidates):
            return True
        for band in bands:
            self._buckets[band].append(len(self._signatures))
        self._signatures.append(signature)
        return False

    def signature(self, text: str) -> npt.NDArray[np.uint32]:
        """(HASHES,) smallest values of as many random hash functions over the distinct lines, without their spacing."""
        lines = {" ".join(line.split()) for line in text.splitlines()} - {""}
        values = np.array([zlib.crc32(line.encode()) for line in lines], dtype=np.uint64)
        smallest = np.full(HASHES, np.iinfo(np.uint32).max, dtype=np.uint32)
        for start in range(0, len(values), 4096):  # a book has a hundred thousand lines: bound the matrix
            hashed = (self._multiply * values[None, start : start + 4096] + self._add) >> np.uint64(32)
            smallest = np.minimum(smallest, hashed.min(axis=1).astype(np.uint32))
        return smallest
