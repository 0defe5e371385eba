"""How large a study is: what one cell trains, which seeds, how long the speed pass takes. `detect` imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from ablations.design.axes import BLOCK_FIELDS
from lit_simplified.config import PRESETS, ConfigError, RunConfig, Task, parse_assignments, set_fields
from lit_simplified.scales import RUNS


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of a study."""

    name: str = ""
    template: RunConfig
    """What every cell trains; block, seed and tuned values are put in."""
    presets: tuple[str, ...] = ()
    """The named blocks that stand for the switches of a study at this size. Empty: all its combinations."""
    seeds: tuple[int, ...] = (0,)
    """Of every row. Paired: one seed gives every row the same data in the same order."""
    named_seeds: tuple[int, ...] = ()
    """Further seeds of the rows that are named blocks, in a study that does not say its seeds."""
    speed_rounds: int = 9
    """Paired comparisons per row. From nine on one outlier does not widen the interval of the median."""
    speed_burst: int = 1
    """Training steps per burst of the speed pass."""
    keep_checkpoints: str = "none"
    """Whose last checkpoints stay when their cells are finished: none, best (of every row), all, or a number."""


def _study(task: Task, name: str, **options: Any) -> Scale:
    """The study of a run: no bar, since it has its own table. Which checkpoints stay is the study's to say."""
    template = RUNS[task][name]
    quiet = replace(template.trainer, progress_bar=False, keep_checkpoint=False)
    return Scale(name=name, template=replace(template, trainer=quiet), **options)


def _studies(task: Task) -> Mapping[str, Scale]:
    return MappingProxyType({
        "smoke": _study(task, "smoke"),
        "small": _study(task, "small", named_seeds=(1, 2)),
        "medium": _study(task, "medium", named_seeds=(1, 2)),
        "base": _study(task, "base", named_seeds=(1, 2), speed_rounds=15, speed_burst=5),
        "paper": _study(
            task, "paper", presets=tuple(PRESETS), keep_checkpoints="best", speed_rounds=15, speed_burst=5
        ),
    })


PLUMBING = "smoke"
"""The scale that only shows that everything works: it trains too little for a loss to mean anything."""

SET_BY = {"seed": "--final-seeds", "task": "--task", "out_dir": "--out"}
"""Fields of its runs that a search sets itself, and the flags that say how."""

STUDIES: Mapping[Task, Mapping[str, Scale]] = MappingProxyType({task: _studies(task) for task in RUNS})
"""smoke: does all of it work? Minutes; the order of the rows means nothing. small: two cores. medium: the same model,
longer. base: one GPU. paper: the paper's setting of the task, named blocks alone."""
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
    """The template of a search with fields replaced by `path=value` strings, e.g. `optim.steps=5`.

    Raises:
        ConfigError: an unknown field, one that the search sets, a value of another type, or no `=`.
    """
    values = parse_assignments(RunConfig, assignments, where="--set")
    for path in values:
        flag = "--presets" if path.startswith(BLOCK_FIELDS) else SET_BY.get(path)
        if flag is not None:
            raise ConfigError("--set", path, f"the search sets this field itself: see {flag}")
    return set_fields(template, values)
