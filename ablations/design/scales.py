"""How large a study is: what one cell trains, which blocks and seeds, how long the speed pass takes.

Imports no torch, except `detect`.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from ablations.design import space
from lit_simplified.config import BlockConfig, ConfigError, RunConfig, Task, from_dict, to_dict
from lit_simplified.scales import RUNS

OWNED = ("task", "seed", "out_dir")
"""Fields of RunConfig that are not overridden, because cells and the command line decide them; as the block."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of a study."""

    template: RunConfig
    """What every cell trains; block, seed and learning rate are put in."""
    whole_grid: bool = True
    """Every block of the grid. False: the named blocks alone, those outside the grid included."""
    seeds: tuple[int, ...] = (0,)
    """Of every block. Paired: one seed gives every block the same data in the same order."""
    preset_seeds: tuple[int, ...] = ()
    """Further seeds of the named blocks."""
    speed_rounds: int = 9
    """Paired comparisons with Pre-LN per block. From nine on one outlier does not widen the interval of the median."""
    speed_burst: int = 1
    """Training steps per burst of the speed pass."""
    keep_checkpoints: str = "none"
    """Whose last checkpoints stay when their cells are finished: none, best (of every block), all, or a number."""

    def blocks(self) -> tuple[BlockConfig, ...]:
        """What is trained when no names are given."""
        task = self.template.task
        return space.grid(task) if self.whole_grid else space.named(task=task)


def _study(task: Task, name: str, **options: Any) -> Scale:
    """The study of a run: no bar, since it has its own table. Which checkpoints stay is the study's to say."""
    template = RUNS[task][name]
    quiet = replace(template.trainer, progress_bar=False, keep_checkpoint=False)
    return Scale(template=replace(template, trainer=quiet), **options)


def _studies(task: Task) -> Mapping[str, Scale]:
    return MappingProxyType({
        "smoke": _study(task, "smoke"),
        "small": _study(task, "small", preset_seeds=(1, 2)),
        "base": _study(task, "base", preset_seeds=(1, 2), speed_rounds=15, speed_burst=5),
        "paper": _study(
            task, "paper", whole_grid=False, keep_checkpoints="best", speed_rounds=15, speed_burst=5
        ),
    })


STUDIES: Mapping[Task, Mapping[str, Scale]] = MappingProxyType({task: _studies(task) for task in RUNS})
"""smoke: does all of it work? Minutes; the order of the blocks means nothing. small: two cores. base: one GPU.
paper: the paper's setting of the task, named blocks alone."""
SCALES = STUDIES["clm"]


def scale(name: str, *, task: Task = "clm") -> Scale:
    """The scale of this name for a task, or a `ConfigError` that lists the known ones."""
    if name not in SCALES:
        raise ConfigError("scale", name, f"choose one of auto, {', '.join(SCALES)}")
    return STUDIES[task][name]


def detect() -> str:
    """The name of the scale that this machine can carry: base with CUDA, else small. Imports torch."""
    import torch

    return "base" if torch.cuda.is_available() else "small"


def override(template: RunConfig, *, assignments: Sequence[str]) -> RunConfig:
    """The template with fields replaced by `path=value` strings, e.g. `optim.steps=5`; types are checked.

    Raises:
        ConfigError: an unknown field, a value of another type, or no `=`.
    """
    from jsonargparse import ArgumentParser

    for assignment in assignments:
        if "=" not in assignment:
            raise ConfigError("--set", assignment, "write FIELD=VALUE, e.g. optim.steps=5")
        if assignment.split("=")[0].split(".")[-1] in OWNED or assignment.startswith("model.block"):
            raise ConfigError("--set", assignment, "the study sets this: see --presets, --task, --seeds and --out")
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(RunConfig)
    parser.set_defaults(to_dict(template))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parsed = parser.parse_args([f"--{assignment}" for assignment in assignments])
    except argparse.ArgumentError as error:
        raise ConfigError("--set", list(assignments), f"{error}. The fields are those of RunConfig") from error
    return from_dict(RunConfig, parsed.as_dict())
