"""The types of a configuration's fields: what a dotted path names, and values from text or YAML checked against it."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from lit_simplified.config.errors import ConfigError

_HINTS: dict[Any, dict[str, Any]] = {}
_FULL_HINTS: dict[Any, dict[str, Any]] = {}


def hints(cls: Any) -> dict[str, Any]:
    """The fields' types, looked up once: it takes milliseconds, and a study reads its cells again and again."""
    if cls not in _HINTS:
        _HINTS[cls] = typing.get_type_hints(cls)
    return _HINTS[cls]


def full_hints(cls: Any) -> dict[str, Any]:
    """The fields' types with what their annotations declare of them (`checks`)."""
    if cls not in _FULL_HINTS:
        _FULL_HINTS[cls] = typing.get_type_hints(cls, include_extras=True)
    return _FULL_HINTS[cls]


def options_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union; a type that is none is its only one."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def choices_of(hint: Any) -> tuple[Any, ...]:
    """The values that the `Literal`s of a type allow; empty for a type without one."""
    return tuple(c for option in options_of(hint) if typing.get_origin(option) is Literal
                 for c in typing.get_args(option))


def paths(cls: Any, *, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field below a dataclass that holds a value, by its dotted path, with its type."""
    for name, hint in hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from paths(hint, prefix=f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


def hint_of(cls: Any, path: str, *, where: str = "", group: bool = False) -> Any:
    """The type of the field that a dotted path names.

    Args:
        cls: the dataclass that the path starts from.
        path: e.g. `model.block.norm`.
        where: what the error calls the path; empty: the path itself.
        group: whether the path may name a group of fields, too.

    Raises:
        ConfigError: no such field; the message lists those there are.
    """
    at = cls
    for name in path.split("."):
        known = hints(at) if dataclasses.is_dataclass(at) else {}
        if name not in known:
            below = path.rpartition(name)[0].rstrip(".") if name else ""
            there = f"the fields of {below}" if below else "the fields"
            remedy = f"{there} are {', '.join(known)}" if known else f"{below} has no fields of its own"
            raise ConfigError(where or path, path, f"no such field: {remedy}")
        at = known[name]
    if dataclasses.is_dataclass(at) and not group:
        raise ConfigError(where or path, path, f"it holds several fields: choose one of {', '.join(hints(at))}")
    return at


def coerce(hint: Any, value: Any, *, where: str) -> Any:
    """A value of a type, from what stands in a YAML file or on a command line.

    Args:
        hint: the type.
        value: what was written. Text is read as a number or a truth value where the type asks for one.
        where: what the error calls the field.

    Raises:
        ConfigError: a value that the type does not allow, with what it does.
    """
    for option in options_of(hint):
        fits, found = _coerce(option, value)
        if fits:
            return found
    raise ConfigError(where, value, remedy_of(hint))


def _coerce(option: Any, value: Any) -> tuple[bool, Any]:
    """Whether a value fits a type that is no union, and the value as that type."""
    if option is type(None):
        return value is None or value == "null", None
    if typing.get_origin(option) is Literal:
        found = [choice for choice in typing.get_args(option) if value == choice or str(choice).lower() == value]
        return bool(found) and isinstance(value, bool) <= isinstance(found[0], bool), found[0] if found else None
    if option is bool:
        known = {True: True, False: False, "true": True, "false": False}
        fits = isinstance(value, bool | str) and value in known
        return fits, known[value] if fits else None
    if option in (int, float):
        return _number(option, value)
    if option is str:
        return isinstance(value, str), value
    if typing.get_origin(option) is dict or option is dict:
        return _mapping(value)
    return (True, value) if option is Any else (False, None)


def _number(kind: type[int] | type[float], value: Any) -> tuple[bool, Any]:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False, None
    if kind is int and isinstance(value, float):
        return False, None
    try:
        found = kind(value)
    except (ValueError, OverflowError):
        return False, None
    return isinstance(found, int) or math.isfinite(found), found


def _mapping(value: Any) -> tuple[bool, Any]:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        # For a mapping on a command line alone; else this package needs the standard library only.
        from lit_simplified.config.safe_yaml import parse_yaml

        try:
            value = parse_yaml(value, field="mapping")
        except ConfigError:
            return False, None
    return isinstance(value, dict), value


def remedy_of(hint: Any) -> str:
    """What to do about a value that does not fit a type."""
    words = describe_type(hint)
    return f"choose {words}" if words.startswith("one of") else f"give {words}"


def describe_type(hint: Any) -> str:
    """A type in words: `a number`, `a whole number from 1 to 8`, `one of rms, layer, none`."""
    return ", or ".join(dict.fromkeys(map(_describe_option, options_of(hint))))


def _describe_option(option: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    origin, limits = typing.get_origin(option), [limit.words for limit in getattr(option, "__metadata__", ())]
    if origin is typing.Annotated:
        kind = typing.get_args(option)[0]
        return " ".join(limits if kind is str else [words[kind], *limits])
    if origin is Literal:
        choices = [str(choice).lower() for choice in typing.get_args(option)]
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    if origin is tuple:
        return f"a tuple, of each {describe_type(typing.get_args(option)[0])}"
    if dataclasses.is_dataclass(option):
        return f"a {option.__name__}"  # type: ignore[union-attr]  # a class, not an instance
    return words.get(option, "a mapping")
