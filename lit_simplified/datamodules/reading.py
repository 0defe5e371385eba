"""Files that somebody else wrote, read piece by piece: texts, lines, paragraphs, rows. What is too large or no text is
said, and never held in memory. JSON is read by the standard library, which refuses deep nesting where others crash."""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lit_simplified.config import ConfigError

LARGEST = 4 << 20
"""Bytes of a document, a line or a row; the tokenizer needs up to 200 bytes of memory for each of them."""
LARGEST_ARRAY = 32 << 20
"""Bytes of a JSON file that is one array: unlike lines, it is read whole."""
HEAD = 1 << 16
"""Bytes that are looked at to tell a binary file."""
BLOCK = 1 << 20

TOO_LARGE = f"larger than {LARGEST >> 20} MiB"
BINARY = "binary (it has NUL bytes)"
NOT_UTF8 = "not UTF-8"
LINES, PARQUET, TABLE = (".jsonl", ".ndjson", ".json"), (".parquet",), (".csv", ".tsv")
"""Suffixes of files that have rows."""

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Unusable:
    """A text, a line or a row that is not given out."""

    reason: str
    size: int
    """Bytes."""


def given_path(name: str, *, field: str) -> Path:
    """A path that a user wrote, with `~` for a home.

    Args:
        name: the path; it may not exist.
        field: what the error calls it.

    Raises:
        ConfigError: a name that no file can have, the home of nobody, a folder on the way that may not be entered.
    """
    try:
        name.encode()
        path = Path(name).expanduser()
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL byte, a surrogate. RuntimeError: ~nobody
        raise ConfigError(field, name, f"is not a usable path ({error}): give another") from error
    return path


def decoded(content: bytes) -> str | Unusable:
    """The text in some bytes."""
    if b"\0" in content:
        return Unusable(reason=BINARY, size=len(content))
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return Unusable(reason=NOT_UTF8, size=len(content))


def read_texts(path: Path, *, unit: str = "document") -> Iterator[str | Unusable]:
    """The texts of a file: all of it, or each paragraph or line that is not blank. Raises `OSError`.

    A blank file has one text, so that it can be counted.
    """
    with path.open("rb") as stream:
        if b"\0" in stream.read(HEAD):
            yield Unusable(reason=BINARY, size=_size(stream))
            return
        stream.seek(0)
        if unit == "document":
            content = stream.read(LARGEST + 1)
            yield decoded(content) if len(content) <= LARGEST else Unusable(reason=TOO_LARGE, size=_size(stream))
            return
        blank = True
        for part in paragraphs(stream) if unit == "paragraph" else lines(stream):
            text = part if isinstance(part, Unusable) else decoded(part)
            if isinstance(text, Unusable) or text.strip():
                blank = False
                yield text
        if blank:
            yield ""


def lines(stream: BinaryIO) -> Iterator[bytes | Unusable]:
    r"""Each line, without the `\n` or `\r\n` at its end."""
    while line := stream.readline(LARGEST + 1):
        if line.endswith(b"\n"):
            yield line[:-1].removesuffix(b"\r")
        elif len(line) <= LARGEST:
            yield line
        else:
            size = len(line)
            while not line.endswith(b"\n") and (line := stream.readline(BLOCK)):
                size += len(line)
            yield Unusable(reason=TOO_LARGE, size=size)


def paragraphs(stream: BinaryIO) -> Iterator[bytes | Unusable]:
    r"""What blank lines separate: the parts of the file between matches of `\n[ \t\r]*\n`."""
    held: list[bytes] = []
    size, at_start = 0, True  # of the paragraph, and of a line
    while line := stream.readline(LARGEST + 1):
        if size and at_start and line.endswith(b"\n") and not line.strip(b" \t\r\n"):
            yield _paragraph(held, size - 1)
            held, size = [], 0
            continue
        size, at_start = size + len(line), line.endswith(b"\n")
        if size <= LARGEST:
            held.append(line)
        else:
            held.clear()
    if size:
        yield _paragraph(held, size)


def _paragraph(held: list[bytes], size: int) -> bytes | Unusable:
    return b"".join(held)[:size] if held else Unusable(reason=TOO_LARGE, size=size)


def read_rows(path: Path, *, columns: Sequence[str]) -> Iterator[Row | Unusable]:
    """The rows of a file by its suffix, with at least these columns where it has them.

    Raises `OSError` for a file that cannot be opened, `ValueError` for content of another kind.
    """
    suffix = path.suffix.lower()
    with path.open("rb") as stream:
        if suffix in PARQUET:
            yield from _parquet_rows(stream, columns)
        elif suffix in TABLE:
            yield from _table_rows(stream, tabs=suffix == ".tsv")
        else:
            yield from _json_rows(stream)


def _json_rows(stream: BinaryIO) -> Iterator[Row | Unusable]:
    head = stream.read(HEAD)
    if b"\0" in head:
        yield Unusable(reason=BINARY, size=_size(stream))
        return
    stream.seek(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)
    if head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        yield from _array_rows(stream)
        return
    for number, line in enumerate(lines(stream), 1):
        text = line if isinstance(line, Unusable) else decoded(line)
        if isinstance(text, Unusable):
            yield text
        elif text.strip():
            yield _row(text, where=f"line {number}")[0]


def _array_rows(stream: BinaryIO) -> Iterator[Row | Unusable]:
    """The objects of an array, one by one: all at once take twenty times the memory of their text."""
    if _size(stream) > LARGEST_ARRAY:
        raise ValueError(f"one array may have {LARGEST_ARRAY >> 20} MiB: write one object a line, without the array")
    text = decoded(stream.read(LARGEST_ARRAY))
    if isinstance(text, Unusable):
        yield text
        return
    place, number = text.index("[") + 1, 0
    while not ARRAY_END.match(text, place):
        begin = SPACE.match(text, place)
        assert begin is not None  # it matches nothing, too
        row, end = _row(text, where=f"entry {number}", start=begin.end())
        yield row
        number += 1
        if not (between := BETWEEN.match(text, end)):
            raise ValueError(f"the array ends after entry {number - 1} without a ]")
        place = between.end()


SPACE, BETWEEN, ARRAY_END = (re.compile(pattern) for pattern in (r"\s*", r"\s*(?:,|(?=\]))", r"\s*\]"))
DECODER = json.JSONDecoder()


def _row(text: str, *, where: str, start: int | None = None) -> tuple[Row, int]:
    """The object in a text, and where it ends; without `start` it is all of the text."""
    try:
        row, end = (json.loads(text), len(text)) if start is None else DECODER.raw_decode(text, start)
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply: drop what is not text") from None
    except ValueError as error:
        remedy = "write one object a line, or one array of objects"
        raise ValueError(f"{where} is not JSON ({error}): {remedy}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where} is {reprlib.repr(row)}, and not an object with columns")
    return row, end


def _table_rows(stream: BinaryIO, *, tabs: bool) -> Iterator[Row]:
    """The rows of a table with a header, all as text. In a TSV file a quotation mark is a character like any other."""
    quoting: Any = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    reader = csv.DictReader(_table_lines(stream), delimiter="\t" if tabs else ",", quoting=quoting, strict=True)
    try:
        for row in reader:
            if None in row:
                raise ValueError(f"line {reader.line_num} has more fields than the header")
            yield row
    except csv.Error as error:
        raise ValueError(f"after line {reader.line_num}: {error}") from error


def _table_lines(stream: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: stream.readline(LARGEST + 1), b""), 1):
        text = decoded(line) if len(line) <= LARGEST else Unusable(reason=TOO_LARGE, size=len(line))
        if isinstance(text, Unusable):
            raise ValueError(f"line {number} is {text.reason}")
        yield text.removeprefix("\ufeff") if number == 1 else text


def _parquet_rows(stream: BinaryIO, columns: Sequence[str]) -> Iterator[Row | Unusable]:
    import pyarrow  # type: ignore[import-untyped]  # takes a while to import
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(stream)
        names = file.schema_arrow.names
        if not set(columns) <= set(names):
            yield dict.fromkeys(names)  # for the caller to say what there is
            return
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            # Of all columns: to ask for the size of one ends the process if the file is damaged there.
            size = group.total_byte_size // max(1, group.num_rows)
            if size > 64 * LARGEST:  # on average; to look at each, all would have to be in memory
                yield from [Unusable(reason=TOO_LARGE, size=size)] * group.num_rows
                continue
            together = max(1, min(64, LARGEST // max(1, size)))
            for batch in file.iter_batches(together, row_groups=[number], columns=list(columns)):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, OverflowError) as error:
        raise ValueError(str(error)) from error


def _size(stream: BinaryIO) -> int:
    return os.fstat(stream.fileno()).st_size
