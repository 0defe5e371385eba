"""From a corpus to flat files of tokens, cached by content, safe against other processes and against damage."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from lit_simplified.config import ConfigError, DataConfig
from lit_simplified.datamodules import tokenizer as tokenizers
from lit_simplified.datamodules.corpus import Corpus, collect
from lit_simplified.datamodules.reading import given_path
from lit_simplified.datamodules.recipe import SPLITS, Recipe, Split, load_recipe
from lit_simplified.datamodules.sources import list_files, roots
from lit_simplified.datamodules.tokenizer import TokenizerChoice, choose_tokenizer
from lit_simplified.datamodules.unigram import unigram_losses
from lit_simplified.files import write_atomically, write_text

log = logging.getLogger(__name__)

FORMAT = 1
"""Raised whenever the same recipe and text would give other files: older caches are then left aside."""
RACY_NS = 2_000_000_000
"""A file changed this recently may change again without new times: its fingerprint is not trusted later."""
CARD, TOKENIZER = "card.json", "tokenizer.json"
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a damaged JSON file of ours may raise."""


@dataclass(frozen=True, kw_only=True)
class PreparedCorpus:
    """A tokenizer and the tokens of each split, on disk and checked."""

    folder: Path
    card: dict[str, Any]
    """The data card: counts, bytes, tokens, unigram losses, what was dropped and why, digests."""

    @property
    def tokenizer_file(self) -> Path:
        return self.folder / TOKENIZER

    @property
    def card_file(self) -> Path:
        return self.folder / CARD

    def tokens(self, split: Split) -> np.memmap[Any, Any]:
        """(N,) uint16 or uint32, read-only: the documents of the split, by key, each closed by `<|end|>`."""
        return np.memmap(self.folder / f"{split}.bin", dtype=self.card["dtype"], mode="r")


def prepare(data: DataConfig, *, vocab_size: int) -> PreparedCorpus:
    """The packed corpus of `data.recipe`, built unless `data.cache_dir` holds it. Any number of processes may call it.

    Raises `ConfigError` for an unreadable recipe, an unusable tokenizer, a corpus with an empty split, and a cache that
    cannot be written.
    """
    from filelock import FileLock

    given_path(data.recipe, field="data.recipe")
    recipe = load_recipe(data.recipe)
    _refuse_surrogates(recipe)
    place = _Place(
        recipe=recipe, cache=given_path(data.cache_dir, field="data.cache_dir").absolute(), vocab_size=vocab_size,
        tokenizer=choose_tokenizer(data.tokenizer, vocab_size=vocab_size),
    )  # fmt: skip
    prepared = _known(place)
    if prepared is not None and _has_unigrams(prepared):
        return prepared
    try:
        place.cache.mkdir(parents=True, exist_ok=True)
        with FileLock(place.cache / f".{place.stem}.lock"):
            return _with_unigrams(_known(place) or _read_and_build(place))
    except OSError as error:
        if prepared is not None:  # an older cache that can only be read serves without unigram losses
            return prepared
        # of the cache: what goes wrong in a source is counted, or a ConfigError already
        remedy = f"cannot be used ({error}): give another folder, or make room in it"
        raise ConfigError("data.cache_dir", str(place.cache), remedy) from error


def _refuse_surrogates(recipe: Recipe) -> None:
    """YAML can spell halves of characters, which can neither be printed nor written."""
    for name, value in dataclasses.asdict(recipe).items():
        try:
            json.dumps(value, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            remedy = f"has half of a character ({error.reason}): write it whole, in UTF-8"
            raise ConfigError(f"{recipe.name}.yaml: {name}", value, remedy) from None


def count_windows(tokens: int, *, context: int, extra: int) -> int:
    """Windows of `context + extra` tokens at a stride of `context`."""
    return max(0, (tokens - extra) // context)


def format_card(card: dict[str, Any]) -> str:
    """The data card as lines of text."""
    documents = card["documents"]
    lines = [
        f"corpus {card['recipe']} ({card['kind']}): {card['description']}",
        f"  source      {', '.join(card['sources'])}; Python {card['python']}",
        f"  digest      {card['corpus_digest']}",
        f"  vocabulary  {card['vocabulary']} tokens, {card['bytes_per_token']:.2f} bytes per token",
        f"  tokenizer   {card.get('tokenizer', 'bpe')}, SHA-256 {card['files'][TOKENIZER]['sha256']}",
        f"  {'split':<12}{'documents':>10}{'bytes':>15}{'tokens':>15}{'unigram loss':>15}",
    ]
    if card["distributions"]:
        lines.insert(2, f"  holds       {len(card['distributions'])} distributions, listed in the data card")
    for name, split in {**card["splits"], "total": card["total"]}.items():
        unigram = f"{split['unigram_loss']:>15.4f}" if "unigram_loss" in split else ""
        lines.append(f"  {name:<12}{split['documents']:>10,}{split['bytes']:>15,}{split['tokens']:>15,}{unigram}")
    for reason, count in documents["left_out_by_pattern"].items():
        lines.append(f"  left out  {count:>8,} files: {reason}")
    for reason, count in documents["dropped_after_reading"].items():
        lines.append(f"  dropped   {count['documents']:>8,} documents, {count['bytes']:,} bytes: {reason}")
    if documents["ended_by_limit"]:
        lines.append("  a limit of the recipe (max_documents, max_bytes) was reached: the source has more")
    unreadable = documents.get("unreadable", {"count": 0})  # older cards lack it
    if unreadable["count"]:
        lines.append(f"  unreadable{unreadable['count']:>8,} files and folders, the first {unreadable['first']}")
    return "\n".join([*lines, f"  data card   {card['card']}"])


@dataclass(frozen=True, kw_only=True)
class _Place:
    """What was requested, and where it is kept."""

    recipe: Recipe
    cache: Path
    vocab_size: int
    tokenizer: TokenizerChoice

    @property
    def stem(self) -> str:
        return f"{self.recipe.name}-v{self.vocab_size}"

    def record(self, fingerprint: str) -> Path:
        """Where the corpus digest of a fingerprint is kept."""
        name = hashlib.sha256(f"{FORMAT}\0{self.recipe.digest}\0{fingerprint}".encode()).hexdigest()[:24]
        return self.cache / "digests" / f"{self.recipe.name}-{name}.json"

    def folder(self, corpus_digest: str) -> Path:
        decisive = [str(FORMAT), self.recipe.digest, corpus_digest, str(self.vocab_size)]
        decisive += [self.tokenizer.key] if self.tokenizer.key else []
        key = hashlib.sha256("\0".join(decisive).encode()).hexdigest()[:12]
        return self.cache / f"{self.stem}-{key}"

    def wordpiece(self, corpus_digest: str) -> Path:
        """Where the one WordPiece of a corpus is kept: another training would give another."""
        return self.cache / "tokenizers" / f"wordpiece-v{self.vocab_size}-{corpus_digest[:24]}.json"


def _known(place: _Place) -> PreparedCorpus | None:
    """The prepared corpus of these files, if they are unchanged since they were read; reads none of them."""
    record = place.record(list_files(place.recipe, count=False).fingerprint()[0])
    try:
        folder = place.folder(json.loads(record.read_text())["corpus_digest"])
    except DAMAGE:
        return None
    return _open(folder)


def _read_and_build(place: _Place) -> PreparedCorpus:
    """Read the corpus, and build what the cache lacks. The caller holds the lock."""
    recipe, cache = place.recipe, place.cache
    for leftover in cache.glob(f".building-{place.stem}-*"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a process that was killed: we hold its lock
    started, listing = time.time_ns(), list_files(recipe)
    fingerprint, latest = listing.fingerprint()
    with (
        tempfile.TemporaryDirectory(dir=cache, prefix=f".building-{place.stem}-") as scratch,
        Corpus(spool=Path(scratch, "spool")) as corpus,
    ):
        with _progress(f"reading {recipe.name}") as advance:
            collect(recipe, corpus, cache_dir=cache / "hub", listing=listing, progress=advance)
        digest = corpus.digest
        prepared = _open(place.folder(digest), report=True)
        if prepared is None:
            _refuse_empty_splits(recipe, corpus)
            _build(place, corpus, Path(scratch, "new"), digest=digest)
            prepared = _open(place.folder(digest))
        elif prepared.card["documents"] != (now := corpus.counts()["documents"]):  # dropped is more, or less
            _write_card(prepared.folder, {**_without_path(prepared.card), "documents": now})
            prepared = _open(prepared.folder)
    if prepared is None:
        raise ConfigError("data.cache_dir", str(cache), "what was just written reads back differently: check the disk")
    if latest < started - RACY_NS:
        _write_json(place.record(fingerprint), {"corpus_digest": digest})
    return prepared


def _has_unigrams(prepared: PreparedCorpus) -> bool:
    return all("unigram_loss" in prepared.card["splits"][split] for split in SPLITS)


def _with_unigrams(prepared: PreparedCorpus) -> PreparedCorpus:
    """The corpus with the unigram loss of each split in its card, which older cards lack. The caller holds the lock."""
    if _has_unigrams(prepared):
        return prepared
    tokens = {str(split): prepared.tokens(split) for split in SPLITS}
    losses = unigram_losses(tokens, vocabulary=prepared.card["vocabulary"])
    for split in SPLITS:
        prepared.card["splits"][split]["unigram_loss"] = losses[split]
    _write_card(prepared.folder, _without_path(prepared.card))
    return prepared


def _refuse_empty_splits(recipe: Recipe, corpus: Corpus) -> None:
    counts = corpus.counts()
    for split in SPLITS:
        if counts["splits"][split]["documents"] == 0:
            kept = {name: part["documents"] for name, part in counts["splits"].items()}
            dropped = {**counts["documents"]["left_out_by_pattern"], **{k: n for k, (n, _) in corpus.dropped.items()}}
            dropped |= {f"unreadable, as {corpus.unreadable[0]}": len(corpus.unreadable)} if corpus.unreadable else {}
            raise ConfigError(
                "data.recipe", recipe.name,
                f"the corpus is too small: the {split} split has no document (kept: {kept}; left out: {dropped or 0}). "
                "Add text, loosen `include`, `exclude` or `filters`, or cut files into more documents by `text_unit`",
            )


def _build(place: _Place, corpus: Corpus, new: Path, *, digest: str) -> None:
    """Write tokenizer, tokens and card into `new`, then move it to its folder in one step."""
    new.mkdir()
    counts, recipe = corpus.counts(), place.recipe
    _write_tokenizer(place, corpus, new / TOKENIZER, digest=digest)
    tokenizer = tokenizers.load_tokenizer(new / TOKENIZER)
    dtype = "uint16" if place.vocab_size <= 65_535 else "uint32"
    with _progress(f"tokenizing {recipe.name}", sum(part["bytes"] for part in counts["splits"].values())) as advance:
        for split in SPLITS:
            counts["splits"][split]["tokens"] = _pack(
                corpus, split, tokenizer=tokenizer, file=new / f"{split}.bin", dtype=dtype, advance=advance
            )
    card = _card(recipe, counts, files=new, digest=digest) | {"distributions": _distributions(recipe, corpus)}
    card |= {"tokenizer": place.tokenizer.kind, "dtype": dtype}
    card |= {"vocabulary": tokenizer.get_vocab_size(), "vocabulary_asked_for": place.vocab_size}
    _write_card(new, card)
    _move(new, place.folder(digest))


def _write_tokenizer(place: _Place, corpus: Corpus, file: Path, *, digest: str) -> None:
    """Put the tokenizer that is asked for into a file: trained, or as it was kept or given."""
    if place.tokenizer.kind == "file":
        file.write_bytes(place.tokenizer.content)
    elif place.tokenizer.kind == "wordpiece":
        shutil.copyfile(_kept_wordpiece(place, corpus, digest=digest), file)
    else:
        with _progress(f"training a tokenizer on {place.recipe.name}", _train_bytes(corpus)) as advance:
            texts = _with_progress(corpus.texts("train"), advance)
            tokenizers.train_tokenizer(texts, vocab_size=place.vocab_size).save(str(file))


def _kept_wordpiece(place: _Place, corpus: Corpus, *, digest: str) -> Path:
    """The file of a corpus's WordPiece, trained if there is none; one that is there is never replaced."""
    from filelock import FileLock

    file = place.wordpiece(digest)
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.parent / f".{file.stem}.lock"):  # another recipe may give the same corpus
        if not file.exists():
            with _progress(f"training WordPiece on {place.recipe.name}", _train_bytes(corpus)) as advance:
                texts = _with_progress(corpus.texts("train"), advance)
                trained = tokenizers.train_wordpiece(texts, vocab_size=place.vocab_size)
            write_atomically(file, lambda path: trained.save(str(path)))
    try:
        tokenizers.check_tokenizer(file, vocab_size=place.vocab_size)
    except ConfigError as error:
        remedy = f"{error}. Restore the file, or delete it: a newly trained one differs, and so do results on it"
        raise ConfigError("data.cache_dir", str(place.cache), remedy) from error
    return file


def _train_bytes(corpus: Corpus) -> int:
    return sum(entry.size for entry in corpus.of("train"))


def _card(recipe: Recipe, counts: dict[str, Any], *, files: Path, digest: str) -> dict[str, Any]:
    """The data card of a corpus whose files are written."""
    total = {key: sum(part[key] for part in counts["splits"].values()) for key in ("documents", "bytes", "tokens")}
    return {
        "format": FORMAT, "recipe": recipe.name, "kind": recipe.kind, "description": recipe.description,
        "sources": [source.repository for source in recipe.sources] or [str(root) for root in roots(recipe)],
        "python": platform.python_version(), "recipe_digest": recipe.digest, "corpus_digest": digest,
        **counts,
        "total": total, "bytes_per_token": total["bytes"] / total["tokens"],
        "tokenizers": metadata.version("tokenizers"),
        "files": {path.name: _checksum(path) for path in sorted(files.iterdir())},
    }  # fmt: skip


def _distributions(recipe: Recipe, corpus: Corpus) -> list[str]:
    """The distributions, with versions, that the documents come from (for `installed`: all that could be)."""
    names = {distribution.name for distribution in metadata.distributions()} if recipe.kind == "installed" else set()
    if recipe.kind == "prose":
        places = {tuple(entry.key.split("/")[:2]) for entry in corpus.entries}
        of_package = metadata.packages_distributions()
        names = {name for place, package in places if place == "installed" for name in of_package.get(package, ())}
    return sorted(f"{name}=={metadata.version(name)}" for name in names)


def _pack(
    corpus: Corpus, split: Split, *, tokenizer: Any, file: Path, dtype: str, advance: Callable[[int], None]
) -> int:
    """Write a split's tokens; return their number."""
    written = 0
    with file.open("wb") as stream:
        for size, ids in tokenizers.encode(corpus.texts(split), tokenizer=tokenizer):
            ids.astype(dtype).tofile(stream)
            written += len(ids)
            advance(size)
    return written


def _move(new: Path, folder: Path) -> None:
    if folder.exists():  # damaged: whoever has it open keeps the old files
        os.replace(folder, new.parent / "damaged")
    os.replace(new, folder)


def _open(folder: Path, *, report: bool = False) -> PreparedCorpus | None:
    """The corpus in a folder, if it is there and intact; `report` warns about a damaged one."""
    if not folder.exists():
        return None
    try:
        card = json.loads((folder / CARD).read_text())
        claimed = card.pop("card_sha256")
        if claimed != _card_sha256(card):
            raise ValueError(f"{CARD} was altered")
        needed = {TOKENIZER, *(f"{split}.bin" for split in SPLITS)}
        if card["dtype"] not in ("uint16", "uint32") or not needed <= set(card["files"]):
            raise ValueError(f"{CARD} is of something else")
        for name, checksum in card["files"].items():
            if (folder / name).stat().st_size != checksum["bytes"] or _checksum(folder / name) != checksum:
                raise ValueError(f"{name} was truncated or altered")
    except DAMAGE as error:
        if report:
            log.warning("The cached corpus in %s is damaged (%s): rebuilding it.", folder, error)
        return None
    return PreparedCorpus(folder=folder, card={**card, "card": str(folder / CARD)})


def _checksum(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _card_sha256(card: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()


def _without_path(card: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in card.items() if name != "card"}


def _write_card(folder: Path, card: dict[str, Any]) -> None:
    _write_json(folder / CARD, {**card, "card_sha256": _card_sha256(card)})


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False))


@contextlib.contextmanager
def _progress(title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar of bytes on the terminal, gone when the work is done."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda size: progress.advance(task, size)


def _with_progress(texts: Iterator[str], advance: Callable[[int], None]) -> Iterator[str]:
    for text in texts:
        advance(len(text))
        yield text
