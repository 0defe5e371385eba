"""The table of switches: every position of every switch, and what it is called wherever it is named.

Checks, names of runs, the default grid, effects, diagrams, TensorBoard's board, the filters of a report and the tests
of all blocks read it. A new position is a line here, its part under `blocks/`, and the line in the factory that builds
the part. Where a part of your own may stand (`own`), the switch makes a position of it. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

from lit_simplified.config.own import Spec, parse

LETTERS = 8
"""Of a class's name that there is room for in the small box of a diagram."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """One choice that a switch offers."""

    name: str | bool
    """Its value in a configuration."""
    words: str
    """What people call it, e.g. `RMSNorm`."""
    short: str = ""
    """In names of runs. Empty: the name."""
    symbol: str = ""
    """In the small box of a diagram. Empty: the words."""
    formula: str = ""
    """What the part computes, where the words do not say it."""
    absent: bool = False
    """Whether the part is not built at all."""
    grid: bool = False
    """Whether the default grid has it."""

    def __str__(self) -> str:
        return str(self.name).lower() if isinstance(self.name, bool) else self.name


@dataclass(frozen=True, kw_only=True)
class Switch:
    """A field of `BlockConfig` that chooses a part of the block."""

    name: str
    title: str
    """What is switched, in words."""
    positions: tuple[Position, ...]
    """The first is Pre-LN's."""
    own: bool = False
    """Whether FILE.py:CLASS, a part of your own, may stand for a position."""

    @property
    def names(self) -> tuple[str | bool, ...]:
        """The values that the field can have."""
        return tuple(position.name for position in self.positions)

    @property
    def grid(self) -> tuple[str | bool, ...]:
        """Those that the default grid has."""
        return tuple(position.name for position in self.positions if position.grid)

    @property
    def choices(self) -> str:
        """All that may stand in the field, for an error."""
        return ", ".join(map(str, self.positions)) + (", or FILE.py:CLASS of your own" if self.own else "")

    def __getitem__(self, name: str | bool) -> Position:
        """The position of a name, or of a part of your own; a `KeyError` lists those there are."""
        for position in self.positions:
            if position.name == name:
                return position
        spec = parse(name) if self.own else None
        if spec is not None:
            return own_position(spec)
        raise KeyError(f"{self.name}={name!r}: the positions are {', '.join(map(str, self.names))}")


def own_position(spec: Spec) -> Position:
    """A part of your own as a position."""
    symbol = spec.name if len(spec.name) <= LETTERS else f"{spec.name[: LETTERS - 1]}…"
    return Position(name=str(spec), words=spec.name, short=spec.short, symbol=symbol)


def _matrix(name: str, title: str, letter: str) -> Switch:
    return Switch(name=name, title=title, positions=(
        Position(name="linear", words="a trained matrix", short="L", symbol=letter, formula=f"W{letter}", grid=True),
        Position(name="identity", words="none", short="I", symbol=letter, formula="I + ΔW", absent=True, grid=True),
        Position(name="residual", words="a scaled update of a fixed matrix", short="R", symbol=f"{letter}′",
                 formula="a·W₀ + b·ΔW"),
    ))


_TABLE = (
    Switch(name="layout", title="order of the sub-blocks", positions=(
        Position(name="sequential", words="attention, then MLP", short="seq", grid=True),
        Position(name="parallel", words="attention beside MLP", short="par", grid=True),
    )),
    Switch(name="attention_skip", title="skip connection of the attention", positions=(
        Position(name=True, words="with", grid=True), Position(name=False, words="without", absent=True, grid=True),
    )),
    Switch(name="mlp_skip", title="skip connection of the MLP", positions=(
        Position(name=True, words="with", grid=True), Position(name=False, words="without", absent=True, grid=True),
    )),
    Switch(name="attention", title="mixing of the tokens", own=True, positions=(
        Position(name="softmax", words="softmax attention", symbol="A", formula="A", grid=True),
        Position(name="skipinit", words="skipinit attention", symbol="I+A", formula="αI + βA"),
        Position(name="shaped", words="shaped attention", symbol="I+A−C", formula="αI + βA − γC", grid=True),
    )),
    _matrix("value", "value matrix", "V"),
    _matrix("projection", "projection matrix", "P"),
    Switch(name="norm", title="normalisation of each sub-block's input", own=True, positions=(
        Position(name="rms", words="RMSNorm", symbol="RMS", grid=True),
        Position(name="layer", words="LayerNorm", symbol="LN"),
        Position(name="none", words="no norm", absent=True, grid=True),
    )),
)

SWITCHES: Mapping[str, Switch] = MappingProxyType({switch.name: switch for switch in _TABLE})
"""The fields of `BlockConfig` that decide which parts a block has, in the order of every table."""

ACTIVATION = Switch(name="activation", title="non-linearity of the MLP", own=True, positions=(
    Position(name="relu", words="ReLU"), Position(name="leaky_relu", words="leaky ReLU"),
    Position(name="gelu", words="GELU"),
))
"""Not in the names of runs, in which a block stands for its setting, too."""

CHOICES: Mapping[str, Switch] = MappingProxyType({**SWITCHES, ACTIVATION.name: ACTIVATION})
"""Every field of `BlockConfig` whose positions are in this table."""

if TYPE_CHECKING:
    Layout: TypeAlias = str
    Attention: TypeAlias = str
    Matrix: TypeAlias = str
    Norm: TypeAlias = str
    Activation: TypeAlias = str
else:  # for the help of the command line, which lists the positions; text may name a part of your own
    Attention, Norm, Activation = (Literal[CHOICES[name].names] | str for name in ("attention", "norm", "activation"))
    Layout, Matrix = (Literal[SWITCHES[name].names] for name in ("layout", "value"))
