"""What the fields of a configuration may hold, declared in their annotations and checked when it is built.

    depth: Annotated[int, Range(1, 10_000)]                 a whole number within limits
    learning_rate: Annotated[float, Range(above=0, most=1e3)]
    accelerator: Annotated[str, Words(("auto", "cpu"))]     one of some words
    question: Annotated[str, Text(blank=True, lines=True)]  text that may be empty; a bare `str` may not be

Types are exact: true is no number, and NaN is in no range. Scalars of numpy become Python's own, so that what is
written and hashed is the same for both. Imports nothing outside the standard library.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lit_simplified.config.errors import ConfigError
from lit_simplified.config.types import full_hints, options_of, remedy_of

DEEPEST, MOST_VALUES = 32, 100_000
"""Levels, here and in files, and values of a field that holds plain data."""
IMPORTS = "class_path"
"""The key by which tools for command lines import a class: never a field, and no argument of `lightning.Trainer`."""
Check = Callable[[Any], tuple[bool, Any]]
"""Whether a value fits, and the value as plain Python."""
_CHECKS: dict[type, tuple[tuple[str, Any, Check], ...]] = {}
"""By dataclass: name, type and check of every field, made once, as a study builds thousands of configurations."""


@dataclass(frozen=True)
class Range:
    """Numbers from `least`, or from above `above`, to `most`, or to below `below`."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    but: tuple[float, ...] = ()
    """Numbers in between that are left out."""

    def holds(self, value: Any) -> bool:
        """Whether a number is in it. Comparisons are exact for whole numbers of any size, and false for NaN."""
        return (
            (value >= self.least if self.least is not None else value > self.above)
            and (value <= self.most if self.most is not None else value < self.below)
            and value not in self.but
        )

    @property
    def words(self) -> str:
        """As the end of a sentence: `from 1 to 10000`."""
        strict = self.least is None
        low = f"above {self.above}, " if strict else f"from {self.least} "
        high = f"{'up ' * strict}to {self.most}" if self.most is not None else (
            f"{'' if strict else 'to '}below {self.below}")
        others = f", other than {', '.join(map(str, self.but))}" if self.but else ""
        return f"{low}{high}{others}"


@dataclass(frozen=True)
class Words:
    """Text that is one of some words, or has the form of one."""

    known: tuple[str, ...]
    other: str = ""
    """A regular expression for further ones; `form` says it in words."""
    form: str = ""

    def holds(self, value: str) -> bool:
        """Whether it is one of them."""
        return value in self.known or bool(self.other and re.fullmatch(self.other, value, flags=re.ASCII))

    @property
    def words(self) -> str:
        """For an error."""
        return f"one of {', '.join(self.known)}" + (f", or {self.form}" if self.form else "")


@dataclass(frozen=True)
class Text:
    """Text that can be stored, printed and, unless it has several lines, be part of a path."""

    blank: bool = False
    """Whether it may be empty."""
    lines: bool = False
    """Whether it may have line breaks and tabs."""
    most: int = 1000
    """Characters."""

    def holds(self, value: str) -> bool:
        """Whether it is such a text: of valid characters, and no control characters but those that break lines."""
        unfit = any((ord(letter) < 32 and not (self.lines and letter in "\n\r\t")) or "\ud800" <= letter <= "\udfff"
                    for letter in value)
        return len(value) <= self.most and not unfit and (self.blank or bool(value.strip()))

    @property
    def words(self) -> str:
        """For an error."""
        return f"{'text' if self.blank else 'text that is not empty'}, of printable characters, at most {self.most:,}"


def check_fields(config: Any, where: str = "") -> None:
    """Refuse a dataclass in which a field has another type or is out of its range; make numpy's scalars plain.

    Args:
        config: the dataclass, frozen or not; call it first in `__post_init__`.
        where: what errors put before the field's name, e.g. `optim`.

    Raises:
        ConfigError: names the field, its value and what it may hold.
    """
    for name, hint, check in _checks_of(type(config)):
        value = getattr(config, name)
        fits, plain = check(value)
        if not fits:
            raise _refusal(hint, value, where=f"{where}.{name}" if where else name)
        if plain is not value:
            object.__setattr__(config, name, plain)


def checked(hint: Any, value: Any, *, where: str) -> Any:
    """A value that fits a type, as plain Python.

    Raises:
        ConfigError: it does not fit; the message says what would.
    """
    fits, plain = _check_of(hint)(value)
    if not fits:
        raise _refusal(hint, value, where=where)
    return plain


def _refusal(hint: Any, value: Any, *, where: str) -> ConfigError:
    found = find_unplain(value, loose=not _has_dict(hint)) if isinstance(value, Mapping) else None
    if found is not None and any(typing.get_origin(option) in (dict, Mapping) for option in options_of(hint)):
        path, inner, remedy = found
        return ConfigError(f"{where}{path}", inner, remedy)
    if isinstance(value, str) and str in options_of(hint):  # it is text: say which will do
        return ConfigError(where, value, f"give {Text().words}")
    return ConfigError(where, value, remedy_of(hint))


def _checks_of(cls: Any) -> tuple[tuple[str, Any, Check], ...]:
    if cls not in _CHECKS:
        known = [(entry.name, full_hints(cls)[entry.name]) for entry in dataclasses.fields(cls)]
        _CHECKS[cls] = tuple((name, hint, _check_of(hint)) for name, hint in known)
    return _CHECKS[cls]


def _check_of(hint: Any) -> Check:
    """What checks values of a type."""
    options = [_check_option(option) for option in options_of(hint)]
    if len(options) == 1:
        return options[0]

    def check(value: Any) -> tuple[bool, Any]:
        for option in options:
            fits, plain = option(value)
            if fits:
                return True, plain
        return False, value

    return check


def _check_option(option: Any) -> Check:
    """The check of a type that is no union."""
    limits = [limit for limit in getattr(option, "__metadata__", ()) if isinstance(limit, Range | Words | Text)]
    option = getattr(option, "__origin__", option) if limits else option
    origin, parts = typing.get_origin(option), typing.get_args(option)
    if option in (int, float, bool, str):
        return _check_scalar(option, [Text()] if option is str and not limits else limits)
    if option is type(None):
        return lambda value: (value is None, value)
    if option is Any:
        return lambda value: (True, value)
    if origin is Literal:
        return _check_literal(parts)
    if origin is tuple:
        return _check_tuple(_check_of(parts[0]))
    if origin in (dict, Mapping):
        return _check_mapping(Mapping if origin is Mapping else dict)
    kind = typing.cast(type, option)  # a dataclass, or Path
    return lambda value: (isinstance(value, kind), value)


def _check_scalar(kind: Any, limits: list[Any]) -> Check:
    kinds = {int: (int,), float: (float, int)}.get(kind, (kind,))

    def check(value: Any) -> tuple[bool, Any]:
        plain = _own(value)
        return type(plain) in kinds and all(limit.holds(plain) for limit in limits), plain

    return check


def _check_literal(choices: tuple[Any, ...]) -> Check:
    def check(value: Any) -> tuple[bool, Any]:
        plain = _own(value)
        return any(type(plain) is type(choice) and plain == choice for choice in choices), plain

    return check


def _check_tuple(check_part: Check) -> Check:
    def check(value: Any) -> tuple[bool, Any]:
        if not isinstance(value, tuple):
            return False, value
        found = [check_part(part) for part in value]
        same = all(plain is part for (_, plain), part in zip(found, value, strict=True))
        return all(fits for fits, _ in found), value if same else tuple(plain for _, plain in found)

    return check


def _check_mapping(kind: type) -> Check:
    return lambda value: (isinstance(value, kind) and find_unplain(value, loose=kind is not dict) is None, value)


def _own(value: Any) -> Any:
    """A scalar of numpy, or of a subclass of Python's own types, as the type that is written to files."""
    if type(value) in (str, float, int, bool) or value is None:
        return value
    if any(base.__module__ == "numpy" and base.__name__ == "generic" for base in type(value).__mro__):
        return value.item()
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, float) else value


def _has_dict(hint: Any) -> bool:
    return any(typing.get_origin(option) is dict for option in options_of(hint))


def find_unplain(value: Any, *, loose: bool = False) -> tuple[str, Any, str] | None:
    """The first part of a value that is no plain data: where it is, what it is, and what to do; None without one.

    Plain data are null, true and false, finite numbers, text, lists, and mappings whose keys are text.

    Args:
        value: usually a mapping.
        loose: whether tuples may stand for lists, and other scalars for the text of a key.
    """
    whole, left = value, [("", value, 0)]
    for _ in range(MOST_VALUES):
        if not left:
            return None
        path, value, depth = left.pop()
        inner = _inner(value, loose=loose)
        if depth > DEEPEST:
            return path[:100], value, f"nested more than {DEEPEST} levels deep, or in itself: give fewer levels"
        if isinstance(inner, tuple):
            key, remedy = inner
            return path, key, remedy
        left += reversed([(f"{path}{name}", part, depth + 1) for name, part in inner])
    return "", whole, f"holds more than {MOST_VALUES} values, or itself: give fewer"


def _inner(value: Any, *, loose: bool) -> list[tuple[str, Any]] | tuple[Any, str]:
    """What a list or mapping holds, with its place in it; or what is wrong with a value, and what to do."""
    if isinstance(value, Mapping):
        for key in value:
            if not (loose or type(key) is str) or not _plain_scalar(key):
                return key, "a key is text: put it in quotes"
            if key == IMPORTS:
                return {key: value[key]}, f"plain data have no {IMPORTS}, and import nothing: leave it out"
        return [(f".{key}", part) for key, part in value.items()]
    if isinstance(value, list | tuple) if loose else isinstance(value, list):
        return [(f"[{index}]", part) for index, part in enumerate(value)]
    if _plain_scalar(value):
        return []
    return value, "give plain data: numbers that are finite, text, true, false, null, lists, mappings"


def _plain_scalar(value: Any) -> bool:
    if isinstance(value, str):
        return Text(blank=True, lines=True, most=100_000).holds(value)
    if isinstance(value, float):
        return abs(value) < float("inf")
    return value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) < 2**64)
