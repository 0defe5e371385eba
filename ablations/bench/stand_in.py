"""What stands in for training where a study is tried without any, and without the seconds that importing it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lit_simplified.config import RunConfig

POINTS = 10
"""Of a learning curve."""


@dataclass(frozen=True)
class Point:
    """A `CurvePoint`."""

    step: int
    tokens: int
    seconds: float
    train_loss: float
    val_loss: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """A `RunResult`."""

    state: str = "complete"
    reason: str = ""
    run_dir: str = ""
    val_loss: float = 4.0
    val_perplexity: float = 54.6
    test: dict[str, float] = field(default_factory=lambda: {"loss": 4.0, "perplexity": 54.6, "accuracy": 0.2})
    curve: tuple[Point, ...] = ()
    steps: int = 100
    tokens: int = 100_000
    seconds: float = 10.0
    validation_seconds: float = 1.0
    inspection_seconds: float = 0.1
    tokens_per_second: float = 10_000.0
    parameters: int = 1_000_000
    peak_memory_mb: float = 100.0


def no_fit(config: RunConfig, *, on_validation: Callable[[Any], None]) -> Any:
    """The numbers of a run, at once."""
    points = tuple(Point(step, step * 1000, step / 10, 5.0 - step / 100, 5.0 - step / 100) for step in
                   range(10, 10 * POINTS + 1, 10))
    return Result(curve=points, val_loss=4.0 + config.seed % 7 / 100)
