"""Configurations to and from plain dicts, and with single fields changed by their dotted paths."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from lit_simplified.config.errors import ConfigError
from lit_simplified.config.own import recorded
from lit_simplified.config.presets import bundle
from lit_simplified.config.schema import RunConfig
from lit_simplified.config.types import coerce, hint_of, hints

Config = TypeVar("Config")
BUNDLE = "settings"
"""What names a bundle of fields where fields of a run are given."""


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested plain dicts (JSON, YAML, checkpoints)."""
    return dataclasses.asdict(config)


def from_dict(cls: type[Config], values: Mapping[str, Any], *, where: str = "") -> Config:
    """Rebuild a configuration; missing fields take their defaults.

    Args:
        cls: its dataclass.
        values: by field; those of a dataclass within it as a mapping.
        where: what an error calls it. Empty: by the name of the class.

    Raises:
        ConfigError: no mapping, an unknown field, one that has no default and is missing, or a value it may not have.
    """
    known = hints(cls)
    fields = f"the fields are {', '.join(known)}"
    if not isinstance(values, Mapping):
        raise ConfigError(where or cls.__name__, values, f"give a mapping: {fields}")
    for name in values:
        if name not in known:
            raise ConfigError(f"{cls.__name__}.{name}", values[name], fields)
    for entry in dataclasses.fields(cls):  # type: ignore[arg-type]  # a dataclass
        if entry.default is entry.default_factory is dataclasses.MISSING and entry.name not in values:
            raise ConfigError(f"{cls.__name__}.{entry.name}", None, "is missing, and has no default")
    return cls(**{name: from_dict(known[name], value, where=name) if dataclasses.is_dataclass(known[name]) else value
                  for name, value in values.items()})


def from_record(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """`from_dict` for what a checkpoint or a study holds, which names no file of parts of your own."""
    with recorded():
        return from_dict(cls, values)


def get_field(config: Any, path: str) -> Any:
    """The value of the field that a dotted path names."""
    for name in path.split("."):
        config = getattr(config, name)
    return config


def set_fields(config: Config, values: Mapping[str, Any]) -> Config:
    """A configuration with fields changed together, so that what they only allow in common is checked in common.

    Args:
        config: a dataclass.
        values: by dotted path, of the fields' own types (see `checked_fields`).
    """
    nested: dict[str, Any] = {}
    for path, value in values.items():
        name, _, rest = path.partition(".")
        if rest:
            nested.setdefault(name, {})[rest] = value
        else:
            nested[name] = value
    changed = {name: set_fields(getattr(config, name), value)
               if dataclasses.is_dataclass(getattr(config, name)) and isinstance(value, dict) else value
               for name, value in nested.items()}
    return replace(config, **changed)  # type: ignore[type-var]


def checked_fields(cls: type, values: Mapping[str, Any], *, where: str = "") -> dict[str, Any]:
    """Values from text or YAML as the types of their fields, by dotted path.

    Of a run, `settings` stands for the fields of a bundle, over which fields that are written out go.

    Raises:
        ConfigError: an unknown field or bundle, or a value of another type.
    """
    left, before = dict(values), f"{where}: " if where else ""
    bundled = bundle(left.pop(BUNDLE), where=f"{before}{BUNDLE}") if cls is RunConfig and BUNDLE in left else {}
    return {**bundled, **{path: coerce(hint_of(cls, path, where=where), value, where=f"{before}{path}")
                          for path, value in left.items()}}


def parse_assignments(cls: type, assignments: Iterable[str], *, where: str) -> dict[str, Any]:
    """`FIELD=VALUE` texts as values by dotted path, e.g. `optim.steps=5`.

    Raises:
        ConfigError: no `=`, an unknown field, or a value of another type.
    """
    found: dict[str, Any] = {}
    for assignment in assignments:
        path, sign, text = assignment.partition("=")
        if not sign:
            raise ConfigError(where, assignment, "write FIELD=VALUE, e.g. optim.steps=5")
        found[path.strip()] = text.strip()
    return checked_fields(cls, found, where=where)
