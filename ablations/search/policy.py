"""How a search decides: what is tried next (TPE), and which run is pruned (successive halving, Hyperband)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial

from ablations.design.space import suggest_block
from ablations.search.parameters import Parameter, configure, parameters
from lit_simplified.config import BlockConfig, RunConfig

PRUNERS = ("hyperband", "halving", "none")
REDUCTION = 3
"""Of the runs that reach a rung, one in so many goes on."""
RANDOM_TRIALS, FEWEST_RANDOM = 10, 4
"""Trials before TPE has enough to go by. Each bracket of Hyperband is a TPE of its own and gets its share."""
DEFAULT = "default"
"""Starts the cell ids of given starting points."""


class SeededTPE(BaseSampler):
    """TPE whose draws depend on a seed and the number of the trial, not on what this process did before.

    So workers need no seeds of their own, a search that goes on does not repeat its first draws, and while TPE still
    draws at random, searches with one seed try the same values of the parameters that they share.
    """

    def __init__(self, *, seed: int, random_trials: int) -> None:
        self.seed, self.random_trials = seed, random_trials
        self._tpe = self._make(0)

    def _make(self, number: int) -> TPESampler:
        seed = (1_000_003 * self.seed + number) % 2**32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # `group`, which conditional parameters need
            return TPESampler(
                seed=seed, n_startup_trials=self.random_trials, multivariate=True, group=True, constant_liar=True
            )

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._tpe = self._make(trial.number)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._tpe.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)


def spared(trial: FrozenTrial, *, steps: int) -> bool:
    """Whether a run is never pruned: the defaults, and one that has done all its steps already."""
    return str(trial.user_attrs.get("cell", "")).startswith(DEFAULT) or (trial.last_step or 0) >= steps


class Halving(SuccessiveHalvingPruner):
    """Asynchronous successive halving, which spares the defaults."""

    def __init__(self, *, first: int, steps: int) -> None:
        super().__init__(min_resource=first, reduction_factor=REDUCTION)
        self.steps = steps

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return super().prune(study, trial) and not spared(trial, steps=self.steps)  # asked first: it keeps the rungs


class Hyperband(HyperbandPruner):
    """Hyperband, which spares the defaults."""

    def __init__(self, *, first: int, steps: int) -> None:
        super().__init__(min_resource=first, max_resource=steps, reduction_factor=REDUCTION)
        self.steps = steps

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return super().prune(study, trial) and not spared(trial, steps=self.steps)


def rungs(pruner: str, *, first: int, steps: int) -> tuple[tuple[int, ...], ...]:
    """The steps at which a run may be pruned, by bracket; empty without pruning."""
    if pruner == "none":
        return ()
    levels = math.floor(math.log(steps / first, REDUCTION)) + 1  # as Optuna counts the brackets of Hyperband
    brackets = levels if pruner == "hyperband" else 1
    steps_of = [first * REDUCTION**level for level in range(levels)]
    return tuple(tuple(step for step in steps_of[bracket:] if step < steps) for bracket in range(brackets))


@dataclass(frozen=True, kw_only=True, eq=False)  # a job has to be hashable, and a RunConfig is not
class Tuning:
    """The search over one block, or over all blocks of the grid; goes to the worker processes (`worker.Search`)."""

    template: RunConfig
    block: BlockConfig | None
    """None: the switches of the grid are searched too."""
    budget: int
    """Trials."""
    pruner: str = "hyperband"
    seed: int = 0
    """Of the sampler."""
    tune: tuple[str, ...] = ()
    """Only these parameters. Empty: all that a block has."""

    @property
    def steps(self) -> int:
        """Of a run that is not pruned."""
        return self.template.optim.steps

    @property
    def first(self) -> int:
        """The step of the first validation."""
        return min(self.template.trainer.val_every, self.steps)

    @property
    def rungs(self) -> tuple[tuple[int, ...], ...]:
        """See `rungs`."""
        return rungs(self.pruner, first=self.first, steps=self.steps)

    def policy(self, worker: int) -> dict[str, Any]:
        """Sampler and pruner. The worker's number is not needed: draws depend on the trial's."""
        return {"sampler": self._sampler(), "pruner": self._pruner()}

    def _sampler(self) -> BaseSampler:
        brackets = max(1, len(self.rungs))
        return SeededTPE(seed=self.seed, random_trials=max(FEWEST_RANDOM, math.ceil(RANDOM_TRIALS / brackets)))

    def _pruner(self) -> BasePruner:
        kinds = {"hyperband": Hyperband, "halving": Halving}
        return kinds[self.pruner](first=self.first, steps=self.steps) if self.pruner in kinds else NopPruner()

    def sample(self, trial: optuna.Trial) -> RunConfig:
        """The run of a trial: its block, then the parameters that this block has."""
        block = suggest_block(trial, task=self.template.task) if self.block is None else self.block
        values = {parameter.name: parameter.suggest(trial) for parameter in self.parameters(block)}
        return configure(self.template, block, values)

    def parameters(self, block: BlockConfig) -> Sequence[Parameter]:
        """What is tuned of a block."""
        return parameters(self.template, block, tune=self.tune)

    def defaults(self, block: BlockConfig) -> dict[str, float]:
        """The parameters of the trial that tries a block as it is."""
        return {parameter.name: parameter.default for parameter in self.parameters(block)}
