"""The searches of a command, one Optuna study each, and the final runs: what is queued and trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from rich.console import Console

from ablations.design.cells import StudyPlan
from ablations.design.design import StudyDesign
from ablations.design.rows import safe
from ablations.design.scales import Scale
from ablations.design.space import grid, grid_params
from ablations.engine import resources, supervisor
from ablations.engine import run as engine
from ablations.engine.queue import Queue, QueuedCell
from ablations.engine.redact import redact
from ablations.engine.storage import create_study, flatten, latest, ours, state_of
from ablations.engine.trials import read_trials
from ablations.engine.worker import Fit, Search
from ablations.search.parameters import Parameter, check_names, configure, gains
from ablations.search.policy import DEFAULT, Tuning
from ablations.search.results import FINAL, FINALS, OVER_BLOCKS, Searched, cell_of, read_searches
from lit_simplified.config import BlockConfig, ModelConfig, RunConfig, from_dict, in_setting, preset, to_dict


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """What a `search` is to do."""

    name: str
    """Of the whole; its studies are NAME-PRESET and NAME-final."""
    storage: str
    folder: Path
    scale: Scale
    presets: tuple[str, ...] = ()
    """Named blocks that are tuned, each on its own."""
    question: StudyPlan | None = None
    """A study whose rows are tuned, in place of named blocks."""
    blocks: bool = False
    """One search over the switches too, which starts at the presets."""
    trials: int = 30
    pruner: str = "hyperband"
    tune: tuple[str, ...] = ()
    sampler_seed: int = 0
    final_seeds: int = 3
    """0: no final runs."""
    workers: int | None = None
    command: str = ""

    def __post_init__(self) -> None:
        blocks = [config.model.block for config in self.subjects.values()]
        check_names(self.tune, template=self.template, blocks=grid(self.template.task) if self.blocks else blocks)

    @property
    def template(self) -> RunConfig:
        return replace(self.scale.template, out_dir=str(self.folder / "runs"))

    @property
    def labels(self) -> tuple[str, ...]:
        """One per search."""
        return (OVER_BLOCKS,) if self.blocks else tuple(self.subjects)

    @property
    def subjects(self) -> dict[str, RunConfig]:
        """What is tuned, at its defaults: the named blocks, or the rows of the study, by label."""
        if self.question is not None:
            by_id, folder = self.question.design.by_id, str(self.folder / "runs")
            return {safe(by_id[row].label): replace(config, out_dir=folder)
                    for row, config in self.question.rows.items()}
        blocks = {name: preset(name, task=self.template.task) for name in self.presets}
        return {name: replace(self.template, model=replace(self.template.model, block=block))
                for name, block in blocks.items()}

    def tuning(self, label: str) -> Tuning:
        """The search of a label, as the workers need it."""
        template = self.template if label == OVER_BLOCKS else self.subjects[label]
        block = None if label == OVER_BLOCKS else template.model.block
        return Tuning(
            template=template, block=block, budget=self.trials, pruner=self.pruner, seed=self.sampler_seed,
            tune=self.tune,
        )

    def on_engine(self, study: str) -> engine.StudyRun:
        """A study of this search, as the engine knows it. Checkpoints serve to go on after a kill, and do not stay."""
        axes = self.question.design.axes if self.question is not None else ()
        rows = StudyPlan(design=StudyDesign(axes=axes), template=self.template, rows={}, seeds={})
        return engine.StudyRun(
            study=study, storage=self.storage, folder=self.folder, scale=self.scale, plan=rows, workers=self.workers,
            keep="none", command=self.command,
        )


def search_all(
    plan: SearchPlan, *, console: Console, fit: Fit | None = None, prepare: Callable[..., Any] | None = None
) -> None:
    """Run every search of the plan to its number of trials, then the final runs.

    Args:
        plan: what to do.
        console: where progress goes.
        fit: stands in for `lit_simplified.fit`; must be importable by name in a worker process.
        prepare: stands in for `lit_simplified.datamodules.prepare`.

    Raises:
        StudyError: a study of this name holds something else, or is being searched already.
        KeyboardInterrupt: Ctrl-C, after the workers have ended; what they did is in the queue again.
    """
    card = engine.prepare_corpus(plan.template, prepare=prepare, console=console)
    for label in plan.labels:
        tuning, name = plan.tuning(label), f"{plan.name}-{label}"
        spec = {**base_spec(plan, card), "search": search_spec(tuning, label)}
        study = create_study(plan.storage, name=name, spec=spec, **tuning.policy(0))
        study.set_user_attr("search", {"trials": plan.trials, "sampler_seed": plan.sampler_seed})
        if label in plan.subjects:
            study.set_user_attr(DEFAULT, to_dict(plan.subjects[label].model))
        _train(plan, study, tasks=[*given_points(plan, label), *failed_points(study)], search=tuning, card=card,
               fit=fit, console=console)
    if plan.final_seeds:
        _train_finals(plan, card=card, fit=fit, console=console)


def base_spec(plan: SearchPlan, card: dict[str, Any]) -> dict[str, Any]:
    """What all studies of a search share."""
    spec = engine.spec_of(plan.on_engine(plan.name), corpus=card.get("corpus_digest", ""))
    return {**spec, "optim": to_dict(plan.template.optim)}


def search_spec(tuning: Tuning, label: str) -> dict[str, Any]:
    """What may not change while a search goes on: what is searched, in which ranges, and how runs are pruned."""
    return {
        "label": label, "pruner": tuning.pruner, "steps": tuning.steps, "first": tuning.first,
        "space": {parameter.name: parameter.describe() for parameter in whole_space(tuning)},
        "own": [] if tuning.block is None else list(gains(tuning.template, tuning.block, tune=tuning.tune)),
    }


def whole_space(tuning: Tuning) -> tuple[Parameter, ...]:
    """Every parameter that may be asked for."""
    blocks = grid(tuning.template.task) if tuning.block is None else (tuning.block,)
    found = {parameter.name: parameter for block in blocks for parameter in tuning.parameters(block)}
    return tuple(found.values())


def given_points(plan: SearchPlan, label: str) -> list[QueuedCell]:
    """The blocks at their defaults, which are tried first, so that no search ends worse than they are."""
    tuning, switches = plan.tuning(label), label == OVER_BLOCKS
    subjects = plan.subjects if switches else {label: plan.subjects[label]}
    of_grid = {name: grid_params(config.model.block, task=config.task) for name, config in subjects.items()}
    tasks = []
    for name in [name for name in subjects if not switches or of_grid[name]][: plan.trials]:
        config = subjects[name]
        block = config.model.block
        params = {**((of_grid[name] or {}) if switches else {}), **tuning.defaults(block)}
        tasks.append(QueuedCell(f"{DEFAULT}-{name}", to_dict(configure(config, block, {})), params))
    return tasks


def failed_points(study: optuna.Study) -> list[QueuedCell]:
    """Trials that failed, to be tried again as they were."""
    standing = latest(ours(read_trials(study)))
    return [QueuedCell(cell, trial.user_attrs["config"], trial.params) for cell, trial in standing.items()
            if state_of(trial) == "failed" and not cell.startswith(DEFAULT)]


def _train(
    plan: SearchPlan, study: optuna.Study, *, tasks: Sequence[QueuedCell], card: dict[str, Any], fit: Fit | None,
    console: Console, search: Search | None = None,
) -> None:
    """Queue the tasks and train until nothing is left of them, and of a search's number of trials."""
    study.set_user_attr("corpus", card)
    name = study.study_name
    queue = Queue(study, storage=plan.storage, folder=plan.folder, budget=search.budget if search else 0)
    with engine.exclusive(queue):
        queue.reap()
        queue.enqueue(tasks)
        left = queue.unfinished()
        console.print(f"study {name} in {redact(plan.storage)}: {left} to train"
                      f"{f' of {search.budget} trials' if search else ''}", highlight=False, markup=False,
                      soft_wrap=True)
        if not left:
            return
        engine.note_command(study, plan.command)
        as_plan = plan.on_engine(name)
        accelerator = plan.template.trainer.accelerator
        gpus, workers = resources.visible_gpus(accelerator), resources.workers_for(accelerator, asked=plan.workers)
        study.set_user_attr("workers_at_once", workers)
        jobs = engine.jobs_of(as_plan, workers=workers, gpus=gpus)
        supervisor.train(queue, [replace(job, search=search) for job in jobs], fit=fit, console=console)


def _train_finals(plan: SearchPlan, *, card: dict[str, Any], fit: Fit | None, console: Console) -> None:
    """Best and default settings of every search of this name, in full, on seeds that no search has seen."""
    shared = base_spec(plan, card)
    searches = [found for found in read_searches(plan.storage, name=plan.name) if found.best is not None
                and flatten({**found.spec, "search": None}) == flatten({**shared, "search": None})]
    tasks, cells = final_tasks(searches, seeds=range(1, plan.final_seeds + 1))
    if not tasks:
        console.print("no final runs: no search has a complete trial", highlight=False)
        return
    study = create_study(plan.storage, name=f"{plan.name}-{FINAL}", spec={**shared, "finals_of": plan.name})
    study.set_user_attr(FINALS, cells)
    _train(plan, study, tasks=tasks, card=card, fit=fit, console=console)


def final_tasks(searches: Sequence[Searched], *, seeds: Sequence[int]) -> tuple[list[QueuedCell], dict[str, Any]]:
    """The final runs, seed by seed, and which cells stand for what: by label, settings and seed."""
    tasks: dict[str, QueuedCell] = {}
    cells: dict[str, Any] = {}
    for seed in seeds:
        for found in searches:
            for settings, config in (("tuned", found.best), ("default", default_of(found))):
                assert config is not None
                seeded = replace(config, seed=seed)
                cell = cell_of(found.label, seeded)
                levels = grid_params(seeded.model.block, task=seeded.task) or {}
                params = {**levels, "seed": seed, "learning_rate": seeded.optim.learning_rate}
                tasks[cell] = QueuedCell(cell, to_dict(seeded), params)
                cells.setdefault(found.label, {}).setdefault(settings, {})[str(seed)] = cell
    return list(tasks.values()), cells


def default_of(found: Searched) -> RunConfig:
    """The best block of a search at its default settings."""
    assert found.best is not None
    optim = {**found.spec["optim"]}
    best, kept = found.best, found.study.user_attrs.get(DEFAULT)
    if kept is not None and not found.over_blocks:
        model = from_dict(ModelConfig, kept)
    else:  # a block that the search found
        block = in_setting(BlockConfig(**best.model.block.switches), best.task)  # type: ignore[arg-type]
        model = replace(best.model, block=block)
    return replace(best, model=model, optim=type(best.optim)(**optim))


def dry_run(plan: SearchPlan) -> str:
    """Space and budget in words."""
    lines = []
    for label in plan.labels:
        tuning = plan.tuning(label)
        lines.append(f"study {plan.name}-{label}: {plan.trials} trials of up to {tuning.steps} steps, "
                     f"{_ends(tuning)}; {len(whole_space(tuning))} parameters"
                     + (" and the switches of the grid" if tuning.block is None else ""))
        lines += [f"  {parameter.name:14} {parameter.describe():24} default {parameter.default:g}"
                  for parameter in whole_space(tuning)]
    most = len(plan.labels) * plan.trials * plan.template.optim.steps
    lines.append(f"at most {most:,} steps in {len(plan.labels) * plan.trials} trials, in {redact(plan.storage)}")
    if plan.final_seeds:
        final = 2 * len(plan.labels) * plan.final_seeds
        lines.append(f"then {final} final runs of {plan.template.optim.steps} steps: best and default settings on "
                     f"seeds 1 to {plan.final_seeds}")
    return "\n".join(lines)


def _ends(tuning: Tuning) -> str:
    steps = sorted({step for bracket in tuning.rungs for step in bracket})
    return f"pruned at {', '.join(map(str, steps))} ({tuning.pruner})" if steps else "no pruning"
