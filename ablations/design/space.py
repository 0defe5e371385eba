"""The search space of blocks: one conditional definition, enumerated by the ablation and sampled by a search.

Imports neither torch nor optuna.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeVar

from lit_simplified.config import (
    PRE_LN,
    PRESETS,
    SETTINGS,
    SWITCHES,
    BlockConfig,
    Task,
    describe,
    digest,
    in_setting,
    plain,
    preset,
)

Choice = str | bool
Found = TypeVar("Found")


class Suggests(Protocol):
    """What `suggest_block` needs of an `optuna.Trial`."""

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any: ...


def suggest_block(trial: Suggests, *, task: Task = "clm") -> BlockConfig:
    """One block of the space, in the setting of a task. The only definition of the grid: a new switch is a line here.

    A parallel block has one skip, so it is asked once; value and projection move together.
    """
    layout = trial.suggest_categorical("layout", ("sequential", "parallel"))
    if layout == "parallel":
        attention_skip = mlp_skip = trial.suggest_categorical("skip", (True, False))
    else:
        attention_skip = trial.suggest_categorical("attention_skip", (True, False))
        mlp_skip = trial.suggest_categorical("mlp_skip", (True, False))
    attention = trial.suggest_categorical("attention", ("softmax", "shaped"))
    value = projection = trial.suggest_categorical("value_projection", ("linear", "identity"))
    norm = trial.suggest_categorical("norm", (in_setting(PRE_LN, task).norm, "none"))
    switches = {
        "layout": layout, "attention_skip": attention_skip, "mlp_skip": mlp_skip, "attention": attention,
        "value": value, "projection": projection, "norm": norm,
    }
    return BlockConfig(**{**SETTINGS[task], **switches})


class _Path:
    """A trial that follows given choices, then takes the first of each further question, and remembers both."""

    def __init__(self, given: Sequence[int]) -> None:
        self.given = given
        self.taken: list[int] = []
        self.sizes: list[int] = []
        self.params: dict[str, Choice] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any:
        index = self.given[len(self.taken)] if len(self.taken) < len(self.given) else 0
        self.taken.append(index)
        self.sizes.append(len(choices))
        self.params[name] = choices[index]
        return choices[index]


def enumerate_space(suggest: Callable[[Suggests], Found]) -> Iterator[tuple[dict[str, Choice], Found]]:
    """Every path through a define-by-run space of categorical choices, with its parameters; the last varies fastest."""
    given: list[int] | None = []
    while given is not None:
        path = _Path(given)
        found = suggest(path)
        yield path.params, found
        given = _next_path(path)


def _next_path(path: _Path) -> list[int] | None:
    for position in reversed(range(len(path.taken))):
        if path.taken[position] + 1 < path.sizes[position]:
            return [*path.taken[:position], path.taken[position] + 1]
    return None


def grid(task: Task = "clm") -> tuple[BlockConfig, ...]:
    """Every distinct block of the space: 48, of which 32 are sequential."""
    return tuple(_paths(task))


def grid_params(block: BlockConfig) -> dict[str, Choice] | None:
    """The answers that lead `suggest_block` to this block, or None for a block outside every task's grid."""
    return next((_paths(task)[block] for task in SETTINGS if block in _paths(task)), None)


@cache
def _paths(task: Task) -> dict[BlockConfig, dict[str, Choice]]:
    return {block: params for params, block in enumerate_space(lambda trial: suggest_block(trial, task=task))}


def space_digest(task: Task = "clm") -> str:
    """Stands for the whole grid; changes when a block is added, removed or redefined."""
    return digest_text(",".join(sorted(digest(block) for block in grid(task))))


def digest_text(text: str) -> str:
    """Eight hexadecimal digits that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def block_id(block: BlockConfig) -> str:
    """A name from the block's content: its switches, and a digest where another field is not that of the setting."""
    bare = plain(block)
    usual = bare == BlockConfig(**{name: getattr(bare, name) for name in SWITCHES})
    return describe(block) if usual else f"{describe(block)}-{digest(block)}"


@dataclass(frozen=True)
class Cell:
    """One training run of a study."""

    block: BlockConfig
    seed: int
    learning_rate: float

    @property
    def id(self) -> str:
        """Stable: the same content has the same id, in every process and every version of the space."""
        return f"{block_id(self.block)}-s{self.seed}-lr{self.learning_rate:g}"


def cells(
    blocks: Iterable[BlockConfig], *, seeds: Iterable[int], learning_rates: Iterable[float],
    more_seeds: Mapping[BlockConfig, Iterable[int]] | None = None,
) -> tuple[Cell, ...]:
    """Blocks x seeds x learning rates, each once; seed by seed, so that a study cut short still compares all blocks.

    Args:
        blocks: what is trained.
        seeds: for every block.
        learning_rates: for every block and seed.
        more_seeds: further seeds of some blocks.
    """
    blocks, rates = tuple(blocks), tuple(learning_rates)
    wanted = [Cell(block, seed, rate) for seed in seeds for rate in rates for block in blocks]
    for block, extra in (more_seeds or {}).items():
        wanted += [Cell(block, seed, rate) for seed in extra for rate in rates]
    return tuple(dict.fromkeys(sorted(wanted, key=lambda cell: cell.seed)))


def named(names: Iterable[str] = tuple(PRESETS), *, task: Task = "clm") -> tuple[BlockConfig, ...]:
    """The presets of these names in the setting of a task; raises `ConfigError` with the known names."""
    return tuple(preset(name, task=task) for name in names)

