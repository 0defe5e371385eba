"""From a recipe to its raw documents: walks folders, reads files, streams rows; decides nothing about their quality."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_simplified.config import ConfigError
from lit_simplified.datamodules.prose import passages
from lit_simplified.datamodules.recipe import SPLITS, Exclusion, HubSource, Recipe, Split

ROWS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet"}
"""Suffixes of files whose rows are documents, and the builder of `datasets` that reads them."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text before filtering."""

    key: str
    """Unique in the corpus and equal on every machine; documents are packed in the order of their keys."""
    text: str | None
    """None when the bytes are not UTF-8."""
    size: int
    """Bytes."""
    split_key: str
    """What is hashed to choose the split: the path of a file, the text of a row."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Documents that share their limits and the splits they are spread over."""

    documents: Iterator[Document]
    splits: tuple[Split, ...] = SPLITS
    max_documents: int | None = None
    max_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files of a corpus, before any is read."""

    files: dict[str, Path]
    """Key to path, sorted by key."""
    excluded: Counter[str] = field(default_factory=Counter)
    """Files left out by pattern, per reason."""

    def fingerprint(self) -> tuple[str, int]:
        """A digest of every file's path, size and times, and the latest time in ns; no file is opened."""
        digest, latest = hashlib.sha256(), 0
        for key, path in self.files.items():
            stat = path.stat()
            latest = max(latest, stat.st_mtime_ns, stat.st_ctime_ns)
            digest.update(f"{key}\0{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\n".encode())
        return digest.hexdigest(), latest


def roots(recipe: Recipe) -> list[Path]:
    """The folders and files a recipe reads on this machine. Raises `ConfigError` for one that is not there."""
    library = [Path(sysconfig.get_path("stdlib"))]
    if recipe.kind == "stdlib":
        return library
    paths = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")]
    installed = list(dict.fromkeys(path for path in paths if path.is_dir()))
    if recipe.kind == "installed":
        return installed
    if recipe.kind == "prose":
        return library + installed
    if recipe.kind == "hub":
        return [path for source in recipe.sources if (path := _local(recipe, source)) is not None]
    found = [recipe.folder / Path(path).expanduser() for path in recipe.paths]
    for path in found:
        if not path.exists():
            raise ConfigError(
                f"{recipe.name}.yaml: paths", str(path.resolve()),
                "does not exist: create it or write another path (relative ones start at the recipe's folder)",
            )
    return [path.resolve() for path in found]


def list_files(recipe: Recipe, *, count: bool = True) -> Listing:
    """Every file of the recipe's roots that its patterns let through.

    Without `count` folders that are left out as a whole are not entered: faster, same files, but `excluded` is short.
    """
    include, exclude = _matcher(recipe.include), _exclusion_matcher(recipe.exclude)
    whole_folders = [glob for rule in recipe.exclude for glob in rule.globs if glob.endswith("/**")]
    skip = _matcher(() if count else whole_folders)
    files: dict[str, Path] = {}
    excluded: Counter[str] = Counter()
    places = roots(recipe)
    for position, root in enumerate(places):
        prefix = f"{position}/" if len(places) > 1 else ""  # keys stay unique when two folders hold equal names
        name = ""
        if recipe.kind == "prose":  # of two sources, with patterns and keys that tell them apart on every machine
            name, prefix = ("installed/" if position else "stdlib/"), ""
        for relative in _walk(root, name=name, skip=skip):
            if relative and not include.fullmatch(relative):
                continue
            if match := exclude.fullmatch(relative):
                excluded[recipe.exclude[int(str(match.lastgroup)[1:])].reason] += 1
            elif (path := root / relative.removeprefix(name)).is_file():  # not a broken link, a socket, ...
                files[prefix + (relative or root.name)] = path
    return Listing(files=dict(sorted(files.items())), excluded=excluded)


def open_sources(recipe: Recipe, listing: Listing, *, cache_dir: Path) -> list[Source]:
    """The recipe's documents, in a fixed order, not yet read. `cache_dir` is for what `datasets` keeps."""
    if recipe.kind == "hub":
        return [
            Source(
                documents=_hub_documents(recipe, position, cache_dir=cache_dir), splits=source.splits,
                max_documents=source.max_documents, max_bytes=source.max_bytes,
            )
            for position, source in enumerate(recipe.sources)
        ]
    files = listing.files.items()
    if recipe.max_documents or recipe.max_bytes:
        # A limit must not favour the beginning of the alphabet.
        files = sorted(files, key=lambda item: hashlib.sha256(f"order:{item[0]}".encode()).digest())  # type: ignore[assignment]
    documents = itertools.chain.from_iterable(_read(recipe, key, path, cache_dir) for key, path in files)
    texts = _prose(documents) if recipe.kind == "prose" else documents
    return [Source(documents=texts, max_documents=recipe.max_documents, max_bytes=recipe.max_bytes)]


def _walk(root: Path, *, name: str, skip: re.Pattern[str]) -> Iterator[str]:
    """Paths below a folder, with `/`, after a name for it; the empty path when the root is itself a file."""
    if root.is_file():
        yield ""
    for folder, folders, names in os.walk(root):
        relative = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = name if relative == "." else f"{name}{relative}/"
        folders[:] = [name for name in folders if name != "__pycache__" and not skip.fullmatch(f"{prefix}{name}/")]
        yield from (prefix + file for file in names)


def _glob_to_regex(glob: str) -> str:
    """`**/` is any number of folders, `**` anything; `*`, `?`, `[ab]` and `[!ab]` stay within a name."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^]/]+\])", glob)
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    classes = {part: part.replace("[!", "[^/", 1) for part in parts if part.startswith("[") and part.endswith("]")}
    return "".join(meaning.get(part) or classes.get(part) or re.escape(part) for part in parts)


def _matcher(globs: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(_glob_to_regex, globs)) or r"(?!)", re.DOTALL)


def _exclusion_matcher(rules: Sequence[Exclusion]) -> re.Pattern[str]:
    """One expression for all rules; the name of the group that matched is the number of the rule."""
    groups = (f"(?P<r{i}>{'|'.join(map(_glob_to_regex, rule.globs))})" for i, rule in enumerate(rules))
    return re.compile("|".join(groups) or r"(?!)", re.DOTALL)


def _read(recipe: Recipe, key: str, path: Path, cache_dir: Path) -> Iterator[Document]:
    if builder := ROWS.get(path.suffix.lower()):
        where = f"{recipe.name}.yaml"
        try:
            stream = _load(str(cache_dir), builder, data_files=[str(path)], split="train")
            yield from _row_documents(_texts(stream, column=recipe.text_field, prefix=key, where=where), prefix=key)
        except ConfigError:
            raise
        except (OSError, ValueError) as error:
            raise ConfigError(f"{where}: paths", str(path), f"cannot be read as {builder}: {error}") from error
        return
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        yield Document(key=key, text=None, size=len(content), split_key=key)
        return
    if recipe.text_unit == "document":
        yield Document(key=key, text=text, size=len(content), split_key=key)
        return
    separator = r"\n[ \t\r]*\n" if recipe.text_unit == "paragraph" else r"\r?\n"
    for number, part in enumerate(part for part in re.split(separator, text) if part.strip()):
        yield _row(f"{key}#{number:09d}", part)


def _prose(modules: Iterable[Document]) -> Iterator[Document]:
    """The English of modules: one document each, and one for each topic of pydoc. No paragraph comes twice."""
    seen: set[bytes] = set()
    for module in modules:
        if module.text is None:
            yield module
            continue
        parts: dict[str, list[str]] = {module.key: []}
        for passage in passages(module.text, path=module.key):
            key = f"{module.key}#{passage.name}" if passage.kind == "topic" else module.key
            parts.setdefault(key, []).extend(_unseen(passage.text.split("\n\n"), seen))
        for key, paragraphs in parts.items():
            text = "\n\n".join(paragraphs)
            yield Document(key=key, text=text, size=len(text.encode()), split_key=key)


def _unseen(paragraphs: Iterable[str], seen: set[bytes]) -> Iterator[str]:
    """Paragraphs that were not seen before, but for their case, numbers and punctuation."""
    for paragraph in paragraphs:
        letters = "".join(filter(str.isalpha, paragraph)).casefold()
        digest = hashlib.blake2b(letters.encode(), digest_size=12).digest()
        if digest not in seen:
            seen.add(digest)
            yield paragraph


def _row(key: str, text: str) -> Document:
    # By text, so that a row keeps its split when others are inserted before it or the file is cut into shards.
    try:
        return Document(key=key, text=text, size=len(text.encode()), split_key=text)
    except UnicodeEncodeError:  # a lone surrogate, which JSON can hold
        return Document(key=key, text=None, size=len(text), split_key=key)


def _texts(stream: Any, *, column: str, prefix: str, where: str) -> Iterator[str]:
    """The texts of rows, checked."""
    for number, row in enumerate(stream):
        if column not in row:
            raise ConfigError(f"{where}: text_field", column, f"{prefix} has the columns {', '.join(row)}")
        if not isinstance(row[column], str):
            raise ConfigError(f"{where}: text_field", column, f"row {number} of {prefix} is not text: {row[column]!r}")
        yield row[column]


def _row_documents(texts: Iterator[str], *, prefix: str, together: int = 1) -> Iterator[Document]:
    """Every text, or so many of them together, as a document."""
    for number in itertools.count(step=together):
        rows = list(itertools.islice(texts, together))
        if not rows:
            return
        text = rows[0] if together == 1 else "".join(row if row.endswith("\n") else f"{row}\n" for row in rows)
        yield _row(f"{prefix}#{number:09d}", text)


def _local(recipe: Recipe, source: HubSource) -> Path | None:
    path = recipe.folder / Path(source.repository).expanduser()
    return path.resolve() if path.is_dir() else None


def _hub_documents(recipe: Recipe, position: int, *, cache_dir: Path) -> Iterator[Document]:
    source, where = recipe.sources[position], f"{recipe.name}.yaml: sources[{position}]"
    repository = str(_local(recipe, source) or source.repository)
    try:
        options = {"revision": source.revision, "split": source.hub_split}
        if source.config is not None:
            options["name"] = source.config
        stream = _load(str(cache_dir), repository, **options)
        # The key leaves the name of the repository out: a local copy of it gives the same corpus.
        texts = _texts(stream, column=recipe.text_field, prefix=f"{position}", where=where)
        yield from _row_documents(texts, prefix=f"{position}", together=source.rows_per_document)
    except ConfigError:
        raise
    except (OSError, ValueError) as error:  # no network, offline mode, unknown repository, revision or split
        remedy = "Connect to the hub (and unset HF_HUB_OFFLINE)"
        if "zstd" in str(error):
            remedy = "It is compressed: pip install zstandard"
        raise ConfigError(
            f"{where}.repository", source.repository,
            f"cannot be read at revision {source.revision!r}, configuration {source.config or 'default'!r}, split "
            f"{source.hub_split!r} ({error}). {remedy}, or use a corpus that is on this machine: data.recipe=prose, "
            "data.recipe=stdlib, data.recipe=installed, or a folder of yours by a copy of data/folder.yaml",
        ) from error


def _load(cache_dir: str, path: str, **options: Any) -> Any:
    """The one call of `datasets`: streamed, so that nothing is copied and a limit ends the download."""
    from datasets import load_dataset  # takes a second to import

    return load_dataset(path, streaming=True, cache_dir=cache_dir, **options)
