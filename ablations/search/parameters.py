"""What a search tunes: the same parameters for every block, and the initial gains of those that have them.

Define by run: a parameter that a block lacks is not asked for. Imports neither torch nor optuna.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lit_simplified.config import BlockConfig, ConfigError, RunConfig


class Trial(Protocol):
    """What `Parameter.suggest` needs of an `optuna.Trial`."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = ...) -> float: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A number that is tuned: within a range, or one of some values."""

    name: str
    default: float
    low: float
    high: float
    log: bool = False
    values: tuple[float, ...] = ()
    """Not empty: one of these, and nothing between them."""

    def suggest(self, trial: Trial) -> float:
        """Ask a trial for a value."""
        if self.values:
            return float(trial.suggest_categorical(self.name, self.values))
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def describe(self) -> str:
        """The range in words, e.g. `0.001 .. 0.05 (log)`."""
        if self.values:
            return " | ".join(f"{value:g}" for value in self.values)
        return f"{self.low:.4g} .. {self.high:.4g}{' (log)' * self.log}"


def parameters(template: RunConfig, block: BlockConfig, *, tune: Sequence[str] = ()) -> tuple[Parameter, ...]:
    """The parameters of a block: those that all blocks share, then its own gains.

    Args:
        template: its values are the defaults, around which the ranges lie.
        block: the block.
        tune: only these. Empty: all.
    """
    found = (*_shared(template), *_gains(block, depth=template.model.depth))
    return tuple(parameter for parameter in found if not tune or parameter.name in tune)


def gains(template: RunConfig, block: BlockConfig, *, tune: Sequence[str] = ()) -> tuple[str, ...]:
    """The names of the parameters that a block has and Pre-LN lacks."""
    own = {parameter.name for parameter in _gains(block, depth=template.model.depth)}
    return tuple(parameter.name for parameter in parameters(template, block, tune=tune) if parameter.name in own)


def check_names(names: Sequence[str], *, template: RunConfig, blocks: Sequence[BlockConfig]) -> None:
    """Raise `ConfigError` for the name of a parameter that none of the blocks has."""
    known = dict.fromkeys(parameter.name for block in blocks for parameter in parameters(template, block))
    for name in names:
        if name not in known:
            raise ConfigError("--tune", name, f"none of these blocks has it: choose from {', '.join(known)}")


def _shared(template: RunConfig) -> list[Parameter]:
    """What is switched off in the template (0, or no clipping) stays off."""
    optim = template.optim
    found = [around("learning_rate", optim.learning_rate, down=10, up=5)]
    if optim.weight_decay:
        found.append(around("weight_decay", optim.weight_decay, down=100, up=10))
    found.append(Parameter(
        name="warmup", default=optim.warmup, low=min(0.02, optim.warmup), high=max(0.4, optim.warmup)
    ))
    choices = tuple(sorted({0.95, 0.98, 0.999, optim.beta2}))
    found.append(Parameter(name="beta2", default=optim.beta2, low=choices[0], high=choices[-1], values=choices))
    if optim.clip is not None:
        found.append(around("clip", optim.clip, down=5, up=5))
    return found


def _gains(block: BlockConfig, *, depth: int) -> list[Parameter]:
    """The initial gains that change the function of a block.

    Not alpha and the attention's gain: behind a norm only their ratio to the MLP's gain counts.
    """
    found: list[Parameter] = []
    mlp_gain = block.resolved_mlp_gain(depth)
    if mlp_gain:
        found.append(around("mlp_gain", mlp_gain, down=5, up=5))
    if block.identity_like:
        beta = block.resolved_beta
        found.append(around("beta", beta, down=5, up=5) if beta else Parameter(name="beta", default=0, low=0, high=1))
    return found


def around(name: str, default: float, *, down: float, up: float) -> Parameter:
    """A logarithmic range from `default / down` to `default * up`."""
    return Parameter(name=name, default=default, low=default / down, high=default * up, log=True)


def configure(template: RunConfig, block: BlockConfig, values: Mapping[str, float]) -> RunConfig:
    """The run of a block with these values; those left out stay at their defaults.

    In shaped attention gamma moves with beta, so that the block stays the identity at initialisation. A value that
    equals its default is not written, so that a block at its defaults is still the named one.
    """
    known = {parameter.name: parameter for parameter in parameters(template, block)}
    changed = {name: value for name, value in values.items() if value != known[name].default}
    own: dict[str, float] = {name: changed.pop(name) for name in ("mlp_gain", "beta") if name in changed}
    if "beta" in own and block.attention == "shaped":
        own["gamma"] = own["beta"] * block.gamma / block.resolved_beta
    return replace(
        template,
        model=replace(template.model, block=replace(block, **own)),  # type: ignore[arg-type]
        optim=replace(template.optim, **changed),  # type: ignore[arg-type]
    )
