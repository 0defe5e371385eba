"""What a corpus is made of: the schema of the recipes in `data/`, read strictly."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from lit_simplified.config import ConfigError
from lit_simplified.config.checks import Range, Text, check_fields, checked
from lit_simplified.config.safe_yaml import read_yaml
from lit_simplified.config.types import full_hints

Kind = Literal["stdlib", "installed", "prose", "files", "hub"]
Unit = Literal["document", "paragraph", "line"]
Split = Literal["train", "validation", "test"]

Amount: TypeAlias = Annotated[int, Range(1, 2**63 - 1)]
Part: TypeAlias = Annotated[float, Range(above=0, most=1)]
Percent: TypeAlias = Annotated[int, Range(1, 98)]
Prose: TypeAlias = Annotated[str, Text(blank=True, lines=True, most=100_000)]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
RECIPES = Path(__file__).resolve().parents[2] / "data"
"""The folder of the recipes that are known by name."""


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """Files that are left out before they are read."""

    globs: tuple[str, ...]
    """Patterns on the path relative to the corpus root, with `/`: `*` stays in a folder, `**` crosses folders."""
    reason: Prose
    """Shown in the data card beside the number of files."""

    def __post_init__(self) -> None:
        check_fields(self, "recipe.exclude")


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Documents that are dropped after they were read; None switches a filter off."""

    min_characters: Amount | None = None
    max_characters: Amount | None = None
    max_line_characters: Amount | None = None
    max_digit_share: Part | None = None
    """Largest share of the characters that may be decimal digits (tables)."""
    near_duplicates: Part | None = None
    """Estimated Jaccard similarity of the sets of lines from which the later of two documents is dropped."""

    def __post_init__(self) -> None:
        check_fields(self, "recipe.filters")


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Parts of a hundred; a document falls into a part by the hash of its path (files) or its text (rows)."""

    train: Percent = 80
    validation: Percent = 10
    test: Percent = 10

    def __post_init__(self) -> None:
        check_fields(self, "recipe.shares")
        if sum(shares := (self.train, self.validation, self.test)) != 100:
            raise ConfigError("recipe.shares", shares, "give three whole numbers above 0 that sum to 100")


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """One split of a dataset on the Hugging Face hub."""

    repository: str
    """`owner/name`, or a local folder in the same format."""
    revision: str
    """Commit hash, tag or branch. Only a hash is a fixed corpus."""
    config: str | None = None
    """Name of the dataset's configuration (subset), where it has several."""
    hub_split: str = "train"
    rows_per_document: Amount = 1
    """Rows in a row that make one document, each on a line: for datasets whose rows are sentences or lines."""
    splits: tuple[Split, ...] = SPLITS
    """The parts its documents go to, in the proportion of the recipe's `shares`."""
    max_documents: Amount | None = None
    """Documents kept at most, in the order of the stream."""
    max_bytes: Amount | None = None
    """UTF-8 bytes of text kept at most."""

    def __post_init__(self) -> None:
        check_fields(self, "recipe.sources")


LATER_FIELDS = {"config": None, "rows_per_document": 1}
"""Fields of a hub source that older recipes did not have, and their defaults."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A corpus: where its documents are, which are left out, and how they are split."""

    kind: Kind
    """stdlib, installed: source of the running interpreter. prose: the English in both, with patterns on
    `stdlib/<path>` and `installed/<path>`. files: local files. hub: Hugging Face datasets."""
    description: Prose = ""
    paths: tuple[str, ...] = ()
    """files: folders and files; relative paths start at the folder of the recipe."""
    include: tuple[str, ...] = ("**/*",)
    """Patterns of the files that belong to the corpus."""
    exclude: tuple[Exclusion, ...] = ()
    text_unit: Unit = "document"
    """What is one document of a plain text file: the file, each paragraph (between blank lines) or each line."""
    text_field: str = "text"
    """Column of JSONL and parquet files, and of hub datasets."""
    sources: tuple[HubSource, ...] = ()
    """hub: in order of precedence; of two near-duplicates the one met first is kept."""
    max_documents: Amount | None = None
    """Not hub: documents kept at most; files are then taken in an order fixed by a hash, not by the alphabet."""
    max_bytes: Amount | None = None
    """Not hub: UTF-8 bytes of text kept at most, as `max_documents`."""
    filters: Filters = field(default_factory=Filters)
    shares: Shares = field(default_factory=Shares)
    name: Prose = ""
    """Stem of the recipe's file; not written in it."""
    folder: Path = Path(".")
    """Folder of the recipe's file; not written in it."""

    def __post_init__(self) -> None:
        check_fields(self, "recipe")
        if self.kind == "files" and not self.paths:
            raise ConfigError("recipe.paths", self.paths, "kind 'files' needs at least one folder or file")
        if self.kind == "hub" and not self.sources:
            raise ConfigError("recipe.sources", self.sources, "kind 'hub' needs at least one repository")
        if fed := {split for source in self.sources for split in source.splits}:
            for split in SPLITS:
                if split not in fed:
                    raise ConfigError("recipe.sources", sorted(fed), f"no source has {split!r} among its `splits`")

    @property
    def digest(self) -> str:
        """Sixty-four hexadecimal digits that stand for everything in the recipe that decides the corpus."""
        values = dataclasses.asdict(self)
        for unimportant in ("description", "name", "folder"):
            del values[unimportant]
        for source in values["sources"]:
            for name, default in LATER_FIELDS.items():
                if source[name] == default:  # as before there was such a field: corpora that were built stay known
                    del source[name]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def load_recipe(name_or_path: str) -> Recipe:
    """The recipe `data/<name>.yaml` of this project, or the one at a path. Raises `ConfigError`."""
    path = RECIPES / f"{name_or_path}.yaml"
    if not os.path.isfile(path):  # unlike that of a `Path`, false for whatever cannot be the name of a file
        path = Path(os.path.expanduser(name_or_path))
    if not os.path.isfile(path):
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise ConfigError("data.recipe", name_or_path, f"choose one of {known}, or give the path of a recipe file")
    values = read_yaml(path, field="data.recipe")
    for computed in ("name", "folder"):
        if isinstance(values, dict) and computed in values:
            raise ConfigError(f"{path.name}: {computed}", values[computed], "is taken from the file; remove it")
    recipe = _parse(Recipe, values, path.name)
    return dataclasses.replace(recipe, name=path.stem, folder=path.resolve().parent)


Parsed = TypeVar("Parsed")


def _parse(cls: type[Parsed], values: object, where: str) -> Parsed:
    """A dataclass from plain YAML values: unknown, missing and mistyped keys raise."""
    hints = full_hints(cls)
    if not isinstance(values, Mapping):
        raise ConfigError(where, values, f"must be a mapping with some of the keys {', '.join(hints)}")
    for key in values:
        if key not in hints:
            raise ConfigError(f"{where}: {key}", values[key], f"unknown key; the keys are {', '.join(hints)}")
    for item in dataclasses.fields(cls):  # type: ignore[arg-type]  # a dataclass
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and item.name not in values:
            raise ConfigError(f"{where}: {item.name}", None, "is missing")
    return cls(**{key: _convert(hints[key], value, f"{where}: {key}") for key, value in values.items()})


def _convert(hint: Any, value: object, where: str) -> Any:
    """A list as a tuple, a mapping as its dataclass, and any other value as it is, checked."""
    if dataclasses.is_dataclass(hint):
        return _parse(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ConfigError(where, value, "must be a list: - one entry per line")
        return tuple(_convert(typing.get_args(hint)[0], entry, f"{where}[{i}]") for i, entry in enumerate(value))
    return checked(hint, value, where=where)
