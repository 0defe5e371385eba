"""The flags of a command: typed with dashes or underscores, one spelling in the help, the nearest one in errors."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, get_loader, set_loader, set_parsing_settings

from lit_simplified.config import ConfigError
from lit_simplified.config.safe_yaml import parse_yaml, read_text

MODE = "checked yaml"
"""Of a parser that reads no YAML beyond the limits of our files, and imports nothing that a value names."""
_load = get_loader("yaml")


def _load_checked(text: str) -> Any:
    parse_yaml(text, field="value")
    return _load(text)


set_loader(MODE, _load_checked, exceptions=(yaml.YAMLError, ValueError))
set_parsing_settings(import_path_denylist=["*"])


class HelpFormatter(DefaultHelpFormatter):
    """Wraps descriptions, but keeps indented lines, which are commands to copy."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = (line if line.startswith("  ") else super(HelpFormatter, self)._fill_text(line, width, indent)
                 for line in text.splitlines())
        return "\n".join(lines)


class CommandParser(ArgumentParser):
    """The parser of one command. In its help, flags of several words have dashes; dotted ones, which are keys of a YAML
    file too, keep the underscores of their fields.

    Args:
        description: what the command does.
        usage: how it is called, in a line.
        examples: commands to copy.
    """

    def __init__(self, *, description: str, usage: str, examples: Sequence[str]) -> None:
        super().__init__(
            description=description, usage=usage, print_config="--print-config", parser_mode=MODE,
            epilog="\n".join(["Examples:" if len(examples) > 1 else "Example:", *(f"  {line}" for line in examples)]),
        )

    def flags(self) -> list[str]:
        """Every flag in the spelling of the help."""
        self._spell_with_dashes()
        return [flag for action in self._actions for flag in action.option_strings]

    def file_flags(self) -> list[str]:
        """Those that take the file of a group of fields, e.g. `--trainer FILE`."""
        return [flag for action in self._actions if action.metavar == "CONFIG" for flag in action.option_strings]

    def format_help(self, *arguments: Any) -> str:
        self._spell_with_dashes()
        return super().format_help(*arguments)

    def _spell_with_dashes(self) -> None:
        # Not when a flag is added: those of a dataclass are spelled as its fields.
        for action in self._actions:
            action.option_strings = [_spelling(flag) for flag in action.option_strings]
            self._option_string_actions |= dict.fromkeys(action.option_strings, action)


class CommandsParser(ArgumentParser):
    """The parser of all commands.

    Args:
        commands: their parsers and their help, by name.
    """

    def __init__(self, *, commands: Mapping[str, tuple[CommandParser, str]], **options: Any) -> None:
        super().__init__(formatter_class=HelpFormatter, parser_mode=MODE, **options)  # that of all commands
        self.parsers = {name: parser for name, (parser, _) in commands.items()}
        subcommands = self.add_subcommands(required=True, dest="command")
        for name, (parser, text) in commands.items():
            subcommands.add_subcommand(name, parser, help=text)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *others: Any, **options: Any
    ) -> Any:
        """As of any parser, with flags in either spelling.

        Raises:
            ConfigError: an unknown flag, with the nearest one, or a file that cannot be read.
        """
        if args and args[0] in self.parsers:
            parser = self.parsers[args[0]]
            known = known_flags(args[1:], parser.flags(), command=args[0])
            args = [args[0], *with_files_read(known, parser.file_flags())]
        return super().parse_args(args, *others, **options)


def _spelling(flag: str) -> str:
    return flag if "." in flag else flag.replace("_", "-")


def known_flags(arguments: Sequence[str], flags: Iterable[str], *, command: str) -> list[str]:
    """Arguments with each flag as the parser knows it, whether it has dashes or underscores; values stay.

    Args:
        arguments: what was typed after the command.
        flags: those of the command.
        command: its name, for the error.

    Raises:
        ConfigError: a flag that the command does not have.
    """
    by_key = {_key(flag): flag for flag in flags}
    found, only_values = list[str](), False
    for argument in arguments:
        only_values |= argument == "--"
        if only_values or not argument.startswith("--"):
            found.append(argument)
            continue
        name, sign, value = argument.partition("=")
        found.append(_known_flag(name, by_key, command=command) + sign + value)
    return found


def with_files_read(arguments: Sequence[str], flags: Iterable[str]) -> list[str]:
    """Arguments with the text of a file in place of its name, so that the parser opens no file that we would refuse.

    Args:
        arguments: what was typed after the command.
        flags: those that take a file, or a mapping of fields.

    Raises:
        ConfigError: a file that cannot be read, or what is no mapping of fields in YAML.
    """
    found, left, flags = list[str](), iter(arguments), set(flags)
    for argument in left:
        flag, sign, value = argument.partition("=")
        if flag in flags:
            argument = f"{flag}={_mapping_in(value if sign else next(left, ''), field=flag.lstrip('-'))}"
        found.append(argument)
    return found


def _mapping_in(value: str, *, field: str) -> str:
    """The text of a mapping, which is the value or in the file of that name."""
    try:
        is_path = os.path.exists(value)  # also what is no file, and says so
    except (UnicodeEncodeError, ValueError):  # half of a character, a NUL byte
        is_path = False
    text = read_text(Path(value), field=field) if is_path else value
    content = parse_yaml(text, field=field, name=value if is_path else "")
    if not isinstance(content, dict) or not content:
        what = "holds no mapping of fields" if is_path else "neither a file nor a mapping of fields"
        raise ConfigError(field, value, f"{what}: give the path of a file with FIELD: VALUE on each line")
    for key in content:
        if not isinstance(key, str):
            raise ConfigError(field, value, f"the key {key!r} names no field: give text")
    return text


def _known_flag(name: str, by_key: Mapping[str, str], *, command: str) -> str:
    key = _key(name)
    if key in by_key:
        return by_key[key]
    # Of a mapping and a list: `--trainer.options.profiler simple`, `--seeds+ 3`.
    owner = next((flag for flag in by_key.values() if name.startswith((f"{flag}.", f"{flag}+"))
                  and not any(other.startswith(f"{flag}.") for other in by_key.values())), None)
    if owner is not None:
        return name
    same_field = [flag for known, flag in by_key.items() if known.endswith(f".{key.lstrip('_')}")]
    nearest = same_field or difflib.get_close_matches(key, list(by_key), n=1, cutoff=0.0)
    raise ConfigError("flag", name, f"{command} has no such flag. Did you mean {by_key.get(nearest[0], nearest[0])}? "
                      f"All flags: python -m lit_simplified {command} --help")


def _key(flag: str) -> str:
    """Equal for all spellings of a flag."""
    return flag.replace("-", "_")
