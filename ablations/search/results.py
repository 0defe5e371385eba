"""What searches found: trials, best settings, importances, final runs. From the storage alone, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial

from ablations.engine.redact import redact
from ablations.engine.storage import StudyError, latest, open_storage, open_study, ours, state_of
from ablations.engine.trials import read_trials
from ablations.search.policy import DEFAULT
from lit_simplified.config import RunConfig, digest, digest_text, from_dict

OVER_BLOCKS = "blocks"
"""Label of the search over the switches; the others are presets."""
FINAL = "final"
"""What the final study is called behind the search's name."""
FINALS = "finals"
"""Attribute of the final study: which cell is which label's, settings' and seed's."""
COLUMNS = ("search", "trial", "cell", "state", "default", "loss", "steps", "seconds")
"""Of the table of trials; the parameters follow."""
FEWEST, FEW = 4, 25
"""Complete trials below which there are no importances, and below which they are only a hint."""
EDGE = 0.05
"""A best value within this share of its range from an end lies at the edge."""


@dataclass(frozen=True)
class Searched:
    """One search, as far as it got."""

    label: str
    """A preset, or `blocks`."""
    study: optuna.Study
    spec: dict[str, Any]
    trials: pd.DataFrame
    """A row per trial, in the order in which they began. The loss of a pruned one is its last."""
    best: RunConfig | None
    """The run with the lowest loss among the complete ones."""
    best_trial: FrozenTrial | None

    @property
    def over_blocks(self) -> bool:
        """Whether the switches were searched, too."""
        return self.label == OVER_BLOCKS

    @property
    def space(self) -> dict[str, str]:
        """The ranges, by parameter, in words."""
        return dict(self.spec["search"]["space"])

    @property
    def best_loss(self) -> float:
        return math.nan if self.best_trial is None else float(self.best_trial.value or math.nan)

    @property
    def best_values(self) -> dict[str, Any]:
        return {} if self.best_trial is None else dict(self.best_trial.params)

    @property
    def best_row(self) -> pd.Series:
        """The best trial's row; there must be one."""
        assert self.best_trial is not None
        return self.trials[self.trials.cell == self.best_trial.user_attrs["cell"]].iloc[0]

    @property
    def default_loss(self) -> float:
        """Of the first given starting point."""
        given = self.trials[self.trials.default & (self.trials.state == "complete")]
        return math.nan if given.empty else float(given.loss.iloc[0])

    @property
    def steps(self) -> int:
        """Optimiser steps that all trials took together; those of killed attempts are not counted."""
        return int(self.trials.steps.sum())

    def count(self, state: str) -> int:
        """Trials of a state."""
        return int((self.trials.state == state).sum())


@dataclass(frozen=True)
class Importance:
    """How much of the loss's variance over the complete trials each parameter explains (fANOVA)."""

    shares: Mapping[str, float]
    trials: int
    """Complete trials that it rests on."""
    reason: str = ""
    """Why there is none."""


@dataclass(frozen=True)
class Found:
    """Everything that is known of the searches of a name."""

    name: str
    searches: tuple[Searched, ...]
    importances: Mapping[str, Importance]
    """By label."""
    finals: pd.DataFrame
    """A row per final run: label, settings (tuned, default), seed, state, loss."""


def read(storage: str, *, name: str) -> Found:
    """Read the searches of a name and their final runs."""
    searches = read_searches(storage, name=name)
    importances = {found.label: importance(found.study) for found in searches}
    return Found(name, tuple(searches), importances, read_finals(storage, name=name))


def read_searches(storage: str, *, name: str) -> list[Searched]:
    """The searches of a name, in the order in which they were started.

    Raises:
        StudyError: there is none.
    """
    names = [study.study_name for study in open_storage(storage, create=False).get_all_studies()]
    found = []
    for study_name in names:
        if study_name.startswith(f"{name}-"):
            study = open_study(storage, name=study_name)
            spec = study.user_attrs.get("spec", {})
            if study_name == f"{name}-{spec.get('search', {}).get('label')}":
                found.append(_searched(study, spec))
    if not found:
        raise StudyError(f"study={name!r}: no search of this name in {redact(storage)}. Studies there: "
                         f"{', '.join(names) or 'none'}. Give one with --study, without the name of its block")
    return found


def _searched(study: optuna.Study, spec: dict[str, Any]) -> Searched:
    standing = list(latest(ours(read_trials(study))).values())
    label = spec["search"]["label"]
    rows = [_row(trial, label=label, position=position) for position, trial in enumerate(standing)]
    complete = [trial for trial in standing if state_of(trial) == "complete" and trial.value is not None]
    best = min(complete, key=lambda trial: float(trial.value or math.inf), default=None)
    names = dict.fromkeys(name for trial in standing for name in trial.params)
    return Searched(
        label=label, study=study, spec=spec, best_trial=best,
        trials=pd.DataFrame(rows, columns=[*COLUMNS, *names]).astype({"default": bool, "loss": float, "steps": int}),
        best=None if best is None else from_dict(RunConfig, best.user_attrs["config"]),
    )


def _row(trial: FrozenTrial, *, label: str, position: int) -> dict[str, Any]:
    attrs, state = trial.user_attrs, state_of(trial)
    last = (attrs.get("curve") or [{}])[-1]
    result = attrs.get("result", {})
    loss = trial.value if state == "complete" else last.get("val_loss") if state == "pruned" else None
    return {
        "search": label, "trial": position, "cell": attrs["cell"], "state": state,
        "default": attrs["cell"].startswith(DEFAULT), "loss": loss,
        "steps": result.get("steps", last.get("step", 0)), "seconds": result.get("seconds", last.get("seconds")),
        **trial.params,
    }


def importance(study: optuna.Study) -> Importance:
    """fANOVA, not Optuna's default, which asks what distinguishes the best few trials and gives other answers."""
    complete = [trial for trial in read_trials(study) if trial.state == optuna.trial.TrialState.COMPLETE]
    if len(complete) < FEWEST:
        return Importance({}, len(complete), f"fewer than {FEWEST} complete trials")
    try:
        shares = optuna.importance.get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    except (RuntimeError, ValueError) as error:  # no variance, no parameter in common
        return Importance({}, len(complete), str(error))
    return Importance(shares, len(complete))


def cell_of(label: str, config: RunConfig) -> str:
    """The id of a final run, from its content: settings that turn out to be the defaults are trained once."""
    content = digest_text(digest(config.model) + digest(config.optim))
    return f"{label}-{content}-s{config.seed}"


def read_finals(storage: str, *, name: str) -> pd.DataFrame:
    """The final runs of a search; an empty table before them."""
    columns = ["label", "settings", "seed", "cell", "state", "loss"]
    try:
        study = open_study(storage, name=f"{name}-{FINAL}")
    except StudyError:
        return pd.DataFrame(columns=columns)
    standing = latest(ours(read_trials(study)))
    rows = []
    for label, settings in study.user_attrs.get(FINALS, {}).items():
        for which, cells in settings.items():
            for seed, cell in cells.items():
                trial = standing.get(cell)
                state = "missing" if trial is None else state_of(trial)
                loss = trial.value if trial is not None and state == "complete" else None
                rows.append((label, which, int(seed), cell, state, loss))
    return pd.DataFrame(rows, columns=columns).astype({"loss": float})


def improvements(found: Searched) -> pd.DataFrame:
    """The complete trials that were better than all before them."""
    complete = found.trials[found.trials.state == "complete"]
    return complete[complete.loss < complete.loss.cummin().shift(fill_value=math.inf)]


def edges(found: Searched) -> tuple[str, ...]:
    """Parameters whose best value lies at an end of its range: the range may be too narrow."""
    trial = found.best_trial
    if trial is None:
        return ()
    return tuple(name for name, kind in trial.distributions.items() if _at_edge(trial.params[name], kind))


def _at_edge(value: Any, kind: BaseDistribution) -> bool:
    if not isinstance(kind, FloatDistribution):
        return False
    low, high, at = (math.log(x) if kind.log else x for x in (kind.low, kind.high, float(value)))
    return not EDGE <= (at - low) / (high - low) <= 1 - EDGE
