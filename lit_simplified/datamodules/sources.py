"""From a recipe to its raw documents: walks folders, reads files, streams rows; decides nothing about their quality."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import reprlib
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_simplified.config import ConfigError
from lit_simplified.datamodules.prose import passages
from lit_simplified.datamodules.reading import LINES, NOT_UTF8, PARQUET, Unusable, given_path, read_rows, read_texts
from lit_simplified.datamodules.recipe import SPLITS, HubSource, Recipe, Split


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text before filtering."""

    key: str
    """Unique in the corpus and equal on every machine; documents are packed in the order of their keys."""
    text: str
    size: int
    """Bytes."""
    split_key: str
    """What is hashed to choose the split: the path of a file, the text of a row."""
    flaw: str = ""
    """Why it has no text."""


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
    """Files left out by their names, per reason."""
    unreadable: list[str] = field(default_factory=list)
    """Files and folders that could not be read, with the reason; grows while documents are read."""

    def fingerprint(self) -> tuple[str, int]:
        """A digest of every file's path, size and times, and the latest time in ns; no file is opened."""
        digest, latest = hashlib.sha256(), 0
        for key, path in self.files.items():
            try:
                stat = path.stat()
            except OSError:  # gone by now, which reading it will say
                continue
            latest = max(latest, stat.st_mtime_ns, stat.st_ctime_ns)
            digest.update(f"{key}\0{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\n".encode())
        return digest.hexdigest(), latest

    def skip(self, path: str | Path, error: OSError) -> None:
        """Count a file or folder that cannot be read."""
        name = os.fsencode(path).decode("utf-8", "backslashreplace")
        self.unreadable.append(f"{name}: {error.strerror or error}")


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
    return [_root(recipe, path) for path in recipe.paths]


def _root(recipe: Recipe, name: str) -> Path:
    """A folder or file that the recipe names. Raises `ConfigError` for one that cannot be read."""
    where = f"{recipe.name}.yaml: paths"
    path = recipe.folder / given_path(name, field=where)
    try:
        path = path.resolve()
        if path.exists() and not (path.is_dir() or path.is_file()):
            raise ConfigError(where, str(path), "is neither a folder nor a file: write another path")
        os.scandir(path).close() if path.is_dir() else path.open("rb").close()
    except FileNotFoundError:
        remedy = "does not exist: create it or write another path (relative ones start at the recipe's folder)"
        raise ConfigError(where, str(path), remedy) from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise ConfigError(where, str(path), f"cannot be read ({error}): give yourself the right to") from error
    return path


def list_files(recipe: Recipe, *, count: bool = True) -> Listing:
    """Every file of the recipe's roots that its patterns let through.

    Without `count` folders that are left out as a whole are not entered: faster, same files, but `excluded` is short.
    """
    include, exclude = _matchers(recipe)
    whole_folders = [glob for rule in recipe.exclude for glob in rule.globs if glob.endswith("/**")]
    skip = _matcher(() if count else whole_folders)
    files: dict[str, Path] = {}
    listing = Listing(files={})
    places = roots(recipe)
    for position, root in enumerate(places):
        prefix = f"{position}/" if len(places) > 1 else ""  # keys stay unique when two folders hold equal names
        name = ""
        if recipe.kind == "prose":  # of two sources, with patterns and keys that tell them apart on every machine
            name, prefix = ("installed/" if position else "stdlib/"), ""
        for relative in _walk(root, name=name, skip=skip, skipped=listing.skip):
            if relative and not include.fullmatch(relative):
                continue
            if match := exclude.fullmatch(relative):
                listing.excluded[recipe.exclude[int(str(match.lastgroup)[1:])].reason] += 1
            elif not _is_utf8(relative):
                listing.excluded["a name that is not UTF-8"] += 1
            elif _is_file(path := root / relative.removeprefix(name), listing):
                files[prefix + (relative or root.name)] = path
    listing.files.update(sorted(files.items()))
    return listing


def _is_utf8(name: str) -> bool:
    """False for a name of other bytes, which Python reads as surrogates: no key could be made of it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_file(path: Path, listing: Listing) -> bool:
    """Not a broken link, a socket, ..., nor in a folder that lets nobody in."""
    try:
        return path.is_file()
    except OSError as error:
        listing.skip(path, error)
        return False


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
    documents = itertools.chain.from_iterable(_read(recipe, key, path, listing) for key, path in files)
    texts = _prose(documents) if recipe.kind == "prose" else documents
    return [Source(documents=texts, max_documents=recipe.max_documents, max_bytes=recipe.max_bytes)]


def _walk(
    root: Path, *, name: str, skip: re.Pattern[str], skipped: Callable[[str, OSError], None]
) -> Iterator[str]:
    """Paths below a folder, with `/`, after a name for it; the empty path when the root is itself a file.

    `skipped` hears of folders that cannot be read.
    """
    if root.is_file():
        yield ""
        return
    for folder, folders, names in os.walk(root, onerror=lambda error: skipped(error.filename, error)):
        relative = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = name if relative == "." else f"{name}{relative}/"
        folders[:] = [name for name in folders if name != "__pycache__" and not skip.fullmatch(f"{prefix}{name}/")]
        yield from (prefix + file for file in names)


def _glob_to_regex(glob: str) -> str:
    """`**/` is any number of folders, `**` anything; `*`, `?`, `[ab]` and `[!ab]` stay within a name."""
    glob = re.sub(r"(\*\*/)+", "**/", glob)  # the same, and the matcher would try every way to share folders out
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^]/]+\])", glob)
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    classes = {part: part.replace("[!", "[^/", 1) for part in parts if part.startswith("[") and part.endswith("]")}
    return "".join(meaning.get(part) or classes.get(part) or re.escape(part) for part in parts)


def _matcher(globs: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(_glob_to_regex, globs)) or r"(?!)", re.DOTALL)


def _matchers(recipe: Recipe) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What is included, and what is excluded: there the name of the group that matched is the number of the rule."""
    rules = [(f"exclude[{i}]: globs", rule.globs) for i, rule in enumerate(recipe.exclude)]
    for where, globs in [("include", recipe.include), *rules]:
        for glob in globs:
            try:
                _matcher([glob])
            except re.error as error:
                remedy = f"is not a pattern ({error}): in [] write single characters, or ranges in order, as [a-z]"
                raise ConfigError(f"{recipe.name}.yaml: {where}", glob, remedy) from None
    groups = (f"(?P<r{i}>{'|'.join(map(_glob_to_regex, globs))})" for i, (_, globs) in enumerate(rules))
    return _matcher(recipe.include), re.compile("|".join(groups) or r"(?!)", re.DOTALL)


def _read(recipe: Recipe, key: str, path: Path, listing: Listing) -> Iterator[Document]:
    """The documents of a file; none of one that cannot be opened, which the listing then counts."""
    where = f"{recipe.name}.yaml"
    try:
        if path.suffix.lower() in LINES + PARQUET:
            rows = read_rows(path, columns=[recipe.text_field])
            texts = _texts(rows, column=recipe.text_field, prefix=key, where=where)
            yield from _row_documents(texts, prefix=key)
        else:
            yield from _text_documents(recipe, key, path)
    except ConfigError:
        raise
    except OSError as error:
        listing.skip(path, error)
    except ValueError as error:
        kind = "parquet" if path.suffix.lower() in PARQUET else "json"
        remedy = f"cannot be read as {kind}: {error}. Mend the file, or leave it out by `exclude`"
        raise ConfigError(f"{where}: paths", str(path), remedy) from error


def _text_documents(recipe: Recipe, key: str, path: Path) -> Iterator[Document]:
    for number, text in enumerate(read_texts(path, unit=recipe.text_unit)):
        if recipe.text_unit != "document":
            yield _row(f"{key}#{number:09d}", text)
        elif isinstance(text, Unusable):
            yield Document(key=key, text="", size=text.size, split_key=key, flaw=text.reason)
        else:
            yield Document(key=key, text=text, size=len(text.encode()), split_key=key)


def _prose(modules: Iterable[Document]) -> Iterator[Document]:
    """The English of modules: one document each, and one for each topic of pydoc. No paragraph comes twice."""
    seen: set[bytes] = set()
    for module in modules:
        if module.flaw:
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


def _row(key: str, text: str | Unusable) -> Document:
    if isinstance(text, Unusable):
        return Document(key=key, text="", size=text.size, split_key=key, flaw=text.reason)
    # By text, so that a row keeps its split when others are inserted before it or the file is cut into shards.
    try:
        return Document(key=key, text=text, size=len(text.encode()), split_key=text)
    except UnicodeEncodeError:  # a lone surrogate, which JSON can hold
        return Document(key=key, text="", size=len(text), split_key=key, flaw=NOT_UTF8)


def _texts(
    rows: Iterable[Mapping[str, Any] | Unusable], *, column: str, prefix: str, where: str
) -> Iterator[str | Unusable]:
    """The texts of rows, checked; an empty one in the place of no rows, so that it can be counted."""
    number = -1
    for number, row in enumerate(rows):
        if isinstance(row, Unusable):
            yield row
            continue
        if column not in row:
            columns = ", ".join(itertools.islice(row, 20))
            raise ConfigError(f"{where}: text_field", column, f"{prefix} has the columns {columns[:500]}")
        if not isinstance(row[column], str):
            remedy = f"row {number} of {prefix} is not text: {reprlib.repr(row[column])}"
            raise ConfigError(f"{where}: text_field", column, remedy)
        yield row[column]
    if number < 0:
        yield ""


def _row_documents(texts: Iterator[str | Unusable], *, prefix: str, together: int = 1) -> Iterator[Document]:
    """Every text, or so many of them together, as a document."""
    for number in itertools.count(step=together):
        rows = list(itertools.islice(texts, together))
        if not rows:
            return
        whole = (row for row in rows if isinstance(row, str))
        text = rows[0] if together == 1 else "".join(row if row.endswith("\n") else f"{row}\n" for row in whole)
        yield _row(f"{prefix}#{number:09d}", text)


def _local(recipe: Recipe, source: HubSource) -> Path | None:
    path = recipe.folder / given_path(source.repository, field=f"{recipe.name}.yaml: sources: repository")
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
    except Exception as error:  # no network, unknown repository, damaged files, ...: raises whatever its readers do
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
