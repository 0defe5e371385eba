"""What a corpus is made of: the schema of the recipes in `data/`, read strictly."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from lit_simplified.config import ConfigError

Kind = Literal["stdlib", "installed", "prose", "files", "hub"]
Unit = Literal["document", "paragraph", "line"]
Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
RECIPES = Path(__file__).resolve().parents[2] / "data"
"""The folder of the recipes that are known by name."""


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """Files that are left out before they are read."""

    globs: tuple[str, ...]
    """Patterns on the path relative to the corpus root, with `/`: `*` stays in a folder, `**` crosses folders."""
    reason: str
    """Shown in the data card beside the number of files."""


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Documents that are dropped after they were read; None switches a filter off."""

    min_characters: int | None = None
    max_characters: int | None = None
    max_line_characters: int | None = None
    max_digit_share: float | None = None
    """Largest share of the characters that may be decimal digits (tables)."""
    near_duplicates: float | None = None
    """Estimated Jaccard similarity of the sets of lines from which the later of two documents is dropped."""


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Parts of a hundred; a document falls into a part by the hash of its path (files) or its text (rows)."""

    train: int = 80
    validation: int = 10
    test: int = 10


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
    rows_per_document: int = 1
    """Rows in a row that make one document, each on a line: for datasets whose rows are sentences or lines."""
    splits: tuple[Split, ...] = SPLITS
    """The parts its documents go to, in the proportion of the recipe's `shares`."""
    max_documents: int | None = None
    """Documents kept at most, in the order of the stream."""
    max_bytes: int | None = None
    """UTF-8 bytes of text kept at most."""


LATER_FIELDS = {"config": None, "rows_per_document": 1}
"""Fields of a hub source that older recipes did not have, and their defaults."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A corpus: where its documents are, which are left out, and how they are split."""

    kind: Kind
    """stdlib, installed: source of the running interpreter. prose: the English in both, with patterns on
    `stdlib/<path>` and `installed/<path>`. files: local files. hub: Hugging Face datasets."""
    description: str = ""
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
    max_documents: int | None = None
    """Not hub: documents kept at most; files are then taken in an order fixed by a hash, not by the alphabet."""
    max_bytes: int | None = None
    """Not hub: UTF-8 bytes of text kept at most, as `max_documents`."""
    filters: Filters = field(default_factory=Filters)
    shares: Shares = field(default_factory=Shares)
    name: str = ""
    """Stem of the recipe's file; not written in it."""
    folder: Path = Path(".")
    """Folder of the recipe's file; not written in it."""

    def __post_init__(self) -> None:
        if self.kind == "files" and not self.paths:
            raise ConfigError("recipe.paths", self.paths, "kind 'files' needs at least one folder or file")
        if self.kind == "hub" and not self.sources:
            raise ConfigError("recipe.sources", self.sources, "kind 'hub' needs at least one repository")
        for source in self.sources:
            if source.rows_per_document < 1:
                raise ConfigError("recipe.sources: rows_per_document", source.rows_per_document, "give 1 or more")
        shares = dataclasses.asdict(self.shares)
        if sum(shares.values()) != 100 or min(shares.values()) < 1:
            raise ConfigError("recipe.shares", shares, "give three whole numbers above 0 that sum to 100")
        for name, value in dataclasses.asdict(self.filters).items():
            if value is not None and not (value > 0 and (value <= 1 or name.endswith("characters"))):
                raise ConfigError(f"recipe.filters.{name}", value, "give a count above 0, or a share from 0 to 1")
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
    if not path.is_file():
        path = Path(name_or_path).expanduser()
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise ConfigError("data.recipe", name_or_path, f"choose one of {known}, or give the path of a recipe file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError("data.recipe", str(path), f"not valid YAML: {error}") from error
    for computed in ("name", "folder"):
        if isinstance(values, dict) and computed in values:
            raise ConfigError(f"{path.name}: {computed}", values[computed], "is taken from the file; remove it")
    recipe = _parse(Recipe, values, path.name)
    return dataclasses.replace(recipe, name=path.stem, folder=path.resolve().parent)


Parsed = TypeVar("Parsed")


def _parse(cls: type[Parsed], values: object, where: str) -> Parsed:
    """A dataclass from plain YAML values: unknown, missing and mistyped keys raise."""
    hints = typing.get_type_hints(cls)
    if not isinstance(values, Mapping):
        raise ConfigError(where, values, f"must be a mapping with some of the keys {', '.join(hints)}")
    for key in values:
        if key not in hints:
            raise ConfigError(f"{where}: {key}", values[key], f"unknown key; the keys are {', '.join(hints)}")
    for item in dataclasses.fields(cls):  # type: ignore[arg-type]
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and item.name not in values:
            raise ConfigError(f"{where}: {item.name}", None, "is missing")
    return cls(**{key: _convert(hints[key], value, f"{where}: {key}") for key, value in values.items()})


def _convert(hint: Any, value: object, where: str) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _parse(typing.cast(type, hint), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(where, value, "must be a list: - one entry per line")
        return tuple(_convert(options[0], entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if origin is Literal:
        if value not in options:
            raise ConfigError(where, value, f"choose one of {', '.join(options)}")
        return value
    allowed = options if origin is types.UnionType else (hint,)
    if float in allowed:
        allowed = (*allowed, int)
    if not isinstance(value, tuple(allowed)) or isinstance(value, bool):
        names = " or ".join(option.__name__.replace("NoneType", "null") for option in allowed)
        raise ConfigError(where, value, f"must be {names}")
    return value
