"""The examples of a task: from the hub, from local files, or made here. What cannot be read whole is refused."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_simplified.config import ConfigError
from lit_simplified.datamodules.reading import LINES, PARQUET, TABLE, Unusable, given_path, read_rows
from lit_simplified.finetuning.config import FinetuneConfig
from lit_simplified.finetuning.tasks import TextTask

SUFFIXES = (*LINES, *PARQUET, *TABLE)
"""Of files with examples."""
LABEL = "label"
SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character, which JSON can spell and no tokenizer reads."""


@dataclass(frozen=True)
class Place:
    """Where a task's splits are."""

    digest: str
    """Stands for the content of the examples."""
    files: tuple[tuple[str, tuple[Path, ...]], ...] = ()
    """The files of each split. Empty: on the hub."""


@dataclass(frozen=True)
class Examples:
    """A split: N texts, or pairs of texts, and their labels."""

    texts: list[tuple[str, ...]]
    labels: list[int] | list[float]


@dataclass(frozen=True)
class TaskData:
    """The splits of a task."""

    splits: dict[str, Examples]
    classes: tuple[str, ...]
    """Names by number; empty for regression."""


def locate(task: TextTask, config: FinetuneConfig) -> Place:
    """Where a task's examples are; builds them if they come from this machine.

    Raises:
        ConfigError: `data_dir` lacks a split, or has it twice.
    """
    if config.data_dir is None and task.repository is not None:
        return Place(f"{task.repository}/{task.configuration}@{task.revision}")
    if task.repository is None:
        from lit_simplified.finetuning.docstrings import prepare_docstrings

        folder = prepare_docstrings(task.name, cache_dir=Path(config.cache_dir))
    else:
        folder = _folder(task, given_path(str(config.data_dir), field="data_dir"))
    files = tuple((split, _files(folder, split, task)) for split in task.splits)
    digest = hashlib.sha256()
    for split, paths in files:
        for path in paths:
            digest.update(f"{split}\0{path.suffix}\0".encode())
            _add(digest, path)
    return Place(digest.hexdigest(), files)


def _add(digest: Any, path: Path) -> None:
    """Continue a digest with a file."""
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise ConfigError("data_dir", str(path), f"cannot be read ({error}): give yourself the right to") from error


def load_examples(task: TextTask, place: Place, *, cache_dir: str, max_examples: int | None = None) -> TaskData:
    """The task's examples, in the order of their source.

    Args:
        task: what the columns mean.
        place: where they are.
        cache_dir: for what is downloaded.
        max_examples: training examples that are kept, chosen by a hash of their texts. None: all.

    Raises:
        ConfigError: what cannot be read, a missing column, a label that the task does not have.
    """
    splits: dict[str, Examples] = {}
    classes = task.classes
    for split in task.splits:
        texts, labels = _columns(task, split, _rows(task, place, split, cache_dir=cache_dir))
        if not task.regression and not classes:
            classes = tuple(sorted({_name(label) for label in labels}))
        splits[split] = Examples(texts, _labels(task, split, labels, classes))
    splits["train"] = _limited(splits["train"], max_examples)
    return TaskData(splits, () if task.regression else classes)


def _folder(task: TextTask, given: Path) -> Path:
    """The task's folder below `data_dir`: `glue/sst2`, `sst2`, or the folder itself."""
    for folder in (given / task.name, given / str(task.configuration)):
        if folder.is_dir():
            return folder
    return given


def _files(folder: Path, split: str, task: TextTask) -> tuple[Path, ...]:
    """`train.csv`, shards `train-00000-of-00002.parquet`, or a folder `train` of such; of one format."""
    patterns = (f"{split}.*", f"{split}-*-of-*", f"{split}/*")
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.suffix.lower() in SUFFIXES}
    found = {path for path in found if path.is_file()}
    if not found:
        wanted = ", ".join(f"{split}{suffix}" for suffix in SUFFIXES)
        raise ConfigError(
            "data_dir", str(folder),
            f"has no split {split!r} of {task.name}: put one of {wanted} there, with the columns "
            f"{', '.join((*task.columns, LABEL))}",
        )
    if len({path.suffix.lower() for path in found}) > 1:
        raise ConfigError(
            "data_dir", str(folder), f"has the split {split!r} more than once: keep one of "
            f"{', '.join(sorted(path.name for path in found))}",
        )
    return tuple(sorted(found))


def _rows(task: TextTask, place: Place, split: str, *, cache_dir: str) -> Iterable[Mapping[str, Any]]:
    if place.files:
        for path in dict(place.files)[split]:
            yield from _file_rows(task, path)
        return
    from datasets import load_dataset

    cache = str(given_path(cache_dir, field="cache_dir") / "hub")
    try:
        yield from load_dataset(
            task.repository, task.configuration, revision=task.revision, split=split, cache_dir=cache
        )
    except Exception as error:  # no network, unknown repository, damaged files, ...: raises whatever its readers do
        raise ConfigError(
            "task", task.name,
            f"{task.repository}, {task.configuration}, split {split!r} cannot be read at revision {task.revision!r} "
            f"({error}). Connect to the hub (and unset HF_HUB_OFFLINE), or give the files with --data-dir, or choose "
            "--task docstrings, which needs no network",
        ) from error


def _file_rows(task: TextTask, path: Path) -> Iterable[Mapping[str, Any]]:
    try:
        for number, row in enumerate(read_rows(path, columns=(*task.columns, LABEL))):
            if isinstance(row, Unusable):
                raise ValueError(f"row {number} is {row.reason}, {row.size:,} bytes: take it out")
            yield row
    except (OSError, ValueError) as error:
        raise ConfigError("data_dir", str(path), f"cannot be read: {error}") from error


def _columns(
    task: TextTask, split: str, rows: Iterable[Mapping[str, Any]]
) -> tuple[list[tuple[str, ...]], list[Any]]:
    texts: list[tuple[str, ...]] = []
    labels: list[Any] = []
    for row in rows:
        for column in (*task.columns, LABEL):
            if column not in row:
                columns = ", ".join(itertools.islice(row, 20))[:500]
                raise ConfigError(
                    f"{task.name}: {split}", column, f"no such column; there are {columns}: rename one of them"
                )
        # A missing text counts as an empty one; GLUE has a few.
        texts.append(tuple("" if row[column] is None else str(row[column]) for column in task.columns))
        if any(SURROGATE.search(text) for text in texts[-1]):
            remedy = "has half of a character (a surrogate): write the text whole, in UTF-8"
            raise ConfigError(f"{task.name}: {split}", f"row {len(labels)}", remedy)
        labels.append(row[LABEL])
    if not texts:
        raise ConfigError(f"{task.name}: {split}", 0, "has no examples")
    return texts, labels


def _labels(task: TextTask, split: str, labels: list[Any], classes: tuple[str, ...]) -> list[int] | list[float]:
    try:
        if task.label_range is not None:
            return [_number(label, *task.label_range) for label in labels]
        numbers = {name: number for number, name in enumerate(classes)}
        if task.classes:  # their numbers are labels, too
            numbers |= {str(number): number for number in range(len(classes))}
        return [numbers[_name(label)] for label in labels]
    except (KeyError, ValueError, TypeError) as error:
        meant = f"a number from {task.label_range[0]:g} to {task.label_range[1]:g}" if task.label_range else (
            f"one of {', '.join(classes)}" + (f", or 0 to {len(classes) - 1}" if task.classes else "")
        )
        label = error.args[0] if len(str(error.args[0])) < 80 else reprlib.repr(error.args[0])
        raise ConfigError(
            f"{task.name}: {split}", label, f"is not a label: give {meant}. (GLUE hides the labels of its test "
            "splits as -1: they cannot be scored here)",
        ) from error


def _name(label: Any) -> str:
    """true and 1.0 are the number 1."""
    whole = isinstance(label, bool) or (isinstance(label, float) and label.is_integer())
    return str(int(label) if whole else label)


def _number(label: Any, low: float, high: float) -> float:
    try:
        number = float(label)
    except (TypeError, ValueError):
        number = math.nan
    if not low <= number <= high:
        raise ValueError(label)
    return number


def _limited(examples: Examples, limit: int | None) -> Examples:
    if limit is None or limit >= len(examples.texts):
        return examples
    by_hash = sorted(range(len(examples.texts)), key=lambda i: (_hash(examples.texts[i]), i))
    kept = sorted(by_hash[:limit])
    labels: list[Any] = [examples.labels[i] for i in kept]
    return Examples([examples.texts[i] for i in kept], labels)


def _hash(texts: tuple[str, ...]) -> bytes:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).digest()
