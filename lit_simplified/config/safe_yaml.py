"""The one reader of YAML: configurations, recipes and studies, of any content.

A file is refused, in a line that names the limit and what was found, if it is larger, deeper or longer than any of
these files is (a few lines of aliases can stand for billions of values), if a key stands twice, of which YAML would
silently keep the last, or if it has tags. It is never executed, and names no class to import.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lit_simplified.config.checks import DEEPEST, IMPORTS
from lit_simplified.config.errors import ConfigError

LARGEST = 2**20
"""Bytes."""
MOST_VALUES = 20_000
"""Values, keys, lists and mappings, where what an alias stands for counts again. A second or two of reading."""
LONGEST_NUMBER = 100
"""Characters, above which what looks like a number is text."""


class _Refused(yaml.YAMLError):
    """A file within YAML's rules and beyond ours."""


class _Loader(yaml.SafeLoader):
    """Refuses while it composes, before anything is made of what was read."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = self._values = 0
        self._sizes: dict[int, int] = {}
        """Of the nodes that are complete, by identity: how many values they stand for."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if getattr(event, "tag", None) not in (None, "!"):
            raise _Refused(f"the tag {event.tag!r}{_at(event)}: write values without tags")
        self._level += 1
        if self._level > DEEPEST:
            raise _Refused(f"more than {DEEPEST} levels of lists and mappings{_at(event)}: at most {DEEPEST} are read")
        before = self._values
        self._values += 1
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise _Refused(f"the alias {event.anchor!r} stands in what it names{_at(event)}: write it out")
            self._values = before + self._sizes[id(node)]
        self._sizes[id(node)] = self._values - before
        if self._values > MOST_VALUES:
            raise _Refused(f"more than {MOST_VALUES} values with what aliases stand for{_at(event)}: at most "
                           f"{MOST_VALUES} are read")
        self._level -= 1
        return node

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and len(value) > LONGEST_NUMBER:
            return self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _Refused(f"a key that is a list or a mapping{_at(key)}: a key is text")
            if (key.tag, key.value) in found:
                raise _Refused(f"the key {key.value!r} stands twice{_at(key)}: leave one out")
            if key.value == IMPORTS:
                raise _Refused(f"the key {IMPORTS!r}{_at(key)}: files hold plain data, and import no class: leave it "
                               "out")
            found.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)


def _at(place: Any) -> str:
    return f" in line {place.start_mark.line + 1}"


def parse_yaml(text: str, *, field: str, name: str = "") -> Any:
    """What a YAML text holds: null, text, numbers, lists and mappings.

    Args:
        text: of a file or a flag.
        field: what errors call it.
        name: what they show of it, e.g. the path. Empty: its beginning.

    Raises:
        ConfigError: no YAML, or above a limit.
    """
    shown = name or (text if len(text) < 100 else f"{text[:100]}...")
    size = len(text.encode("utf-8", errors="surrogatepass"))
    if size > LARGEST:
        raise ConfigError(field, shown, _too_large(f"{size} bytes"))
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the others for a number or date that is none
        told = " ".join(str(error).split())
        raise ConfigError(field, shown, f"is no YAML that can be read: {told}") from error
    finally:
        if loader is not None:
            loader.dispose()


def read_text(path: Path, *, field: str) -> str:
    """The text of a file, of which no more is read than may be used.

    Raises:
        ConfigError: no such file, or one that cannot be read, is too large, or no UTF-8.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(LARGEST + 1)
            size = path.stat().st_size
        if len(content) > LARGEST:
            raise ConfigError(field, str(path), _too_large(f"{size} bytes" if size > LARGEST else "without an end"))
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(field, str(path), f"is no text in UTF-8 (byte {error.start}): save it as such") from error
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(field, str(path), f"cannot be read: {getattr(error, 'strerror', error)}") from error


def read_yaml(path: Path, *, field: str) -> Any:
    """What a YAML file holds.

    Raises:
        ConfigError: as `read_text` and `parse_yaml`.
    """
    return parse_yaml(read_text(path, field=field), field=field, name=str(path))


def _too_large(found: str) -> str:
    return f"{found}: at most {LARGEST} bytes are read, and no such file is as large"
