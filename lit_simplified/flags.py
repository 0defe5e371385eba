"""The flags of a command: typed with dashes or underscores, one spelling in the help, the nearest one in errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from lit_simplified.config import ConfigError


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
            description=description, usage=usage, print_config="--print-config",
            epilog="\n".join(["Examples:" if len(examples) > 1 else "Example:", *(f"  {line}" for line in examples)]),
        )

    def flags(self) -> list[str]:
        """Every flag in the spelling of the help."""
        self._spell_with_dashes()
        return [flag for action in self._actions for flag in action.option_strings]

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
        super().__init__(formatter_class=HelpFormatter, **options)  # that of all commands
        self.parsers = {name: parser for name, (parser, _) in commands.items()}
        subcommands = self.add_subcommands(required=True, dest="command")
        for name, (parser, text) in commands.items():
            subcommands.add_subcommand(name, parser, help=text)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *others: Any, **options: Any
    ) -> Any:
        """As of any parser, with flags in either spelling.

        Raises:
            ConfigError: an unknown flag, with the nearest one.
        """
        if args and args[0] in self.parsers:
            args = [args[0], *known_flags(args[1:], self.parsers[args[0]].flags(), command=args[0])]
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
