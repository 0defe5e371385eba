"""A whole study as a Python call: `run_study`, as `python -m ablations run` does, and its results as pandas frames."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.design.axes import BLOCK
from ablations.design.cells import LEARNING_RATE, MAX_CELLS
from ablations.design.config import StudyConfig
from ablations.design.library import load_study
from ablations.design.plan import axes_by_flag, plan_study, with_blocks
from ablations.design.scales import detect, scale
from ablations.design.stopping import Looks
from ablations.engine.lookup import place_of
from lit_simplified.config import ConfigError, RunConfig, Task, own_files, parse_assignments

if TYPE_CHECKING:
    import optuna
    import pandas as pd
    from rich.console import Console

    from ablations.analysis.findings import Findings
    from ablations.engine.run import StudyRun

GRID = "grid"
"""The study of `run` without a name."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked of a run: a study, and what the flags change of it."""

    study: str | Path | Mapping[str, Any] | StudyConfig = GRID
    """A study of the suite by name, a file, or the keys of one."""
    axes: Sequence[str] = ()
    """`FIELD=A,B` texts that make a study in place of a file."""
    around: str = ""
    """The named block that such a study changes."""
    design: str = ""
    """Its design, or that of the file replaced: full, one_at_a_time, path or fraction."""
    name: str | None = None
    """Of the study in its storage. None: made from study, scale and task."""
    scale: str = "auto"
    task: Task | None = None
    seeds: Sequence[int] = ()
    looks: Sequence[int] = ()
    """Numbers of seeds after which the claims are looked at, in place of `seeds`."""
    learning_rates: Sequence[float] = ()
    select: int | None = None
    """Seeds that choose the tuned values. None: the study's own number."""
    presets: Sequence[str] = ()
    assignments: Sequence[str] = ()
    """`FIELD=VALUE` texts for every run."""
    storage: str | None = None
    out: Path | None = None
    workers: int | None = None
    keep: str | None = None
    max_cells: int = MAX_CELLS
    command: str = ""


def plan_run(options: Options) -> StudyRun:
    """The study that the options ask for, checked; nothing is trained.

    Raises:
        ConfigError: a mistake in the study or in an option, with the remedy.
    """
    from ablations.engine.run import StudyRun

    config = study_of(options)
    chosen = config.scale
    task: Task = options.task or ("mlm" if config.task == "mlm" else "clm")
    size = scale(chosen, task=task)
    plan = plan_study(config, scale=size, partial=bool(options.presets))
    plan.check_size(options.max_cells)
    name = options.name or default_name(config, scale=chosen, task=task)
    place = place_of(name, storage=options.storage, out=options.out, starts=True)
    own = tuple(dict.fromkeys(file for row in plan.rows.values() for file in own_files(row)))
    return StudyRun(
        study=name, storage=place.storage, folder=place.folder, scale=size, plan=plan, workers=options.workers,
        keep=options.keep, command=options.command, config=config, own=own,
    )


def study_of(options: Options) -> StudyConfig:
    """The study as its scale and the options change it, with the scale filled in."""
    if options.axes:
        config = _from_flags(options)
    else:
        if options.around:
            raise ConfigError("--around", options.around, "it needs an axis: --axis FIELD=LEVEL,LEVEL")
        config = load_study(options.study)
        config = replace(config, design=options.design) if options.design else config
    chosen = options.scale if options.scale != "auto" else config.scale or detect()
    config = replace(config.at_scale(chosen), scale=chosen)  # before the flags, which have the last word
    if options.presets:
        config = with_blocks(config, options.presets)
    if options.learning_rates:
        if LEARNING_RATE in config.compare:
            raise ConfigError("--lr", list(options.learning_rates), "the study compares learning rates: set its axis")
        if not all(0 < rate < math.inf for rate in options.learning_rates):
            raise ConfigError("--lr", list(options.learning_rates), "give finite numbers above 0")
        config = replace(config, tune={**config.tune, LEARNING_RATE: list(options.learning_rates)},
                         screen=config.screen and config.screen.at_all(LEARNING_RATE))
    if options.select is not None:
        config = replace(config, select=replace(config.select, seeds=options.select))
    if options.seeds:
        if min(options.seeds) < 0 or len(set(options.seeds)) < len(options.seeds):
            raise ConfigError("--seeds", list(options.seeds), "give different numbers from 0 on")
        config = replace(config, seeds=tuple(options.seeds))
    if options.looks:
        config = replace(config, seeds=_looks(options, config))
    if options.assignments:
        given = parse_assignments(RunConfig, options.assignments, where="--set")
        for path in given:
            if path in ("seed", "task", "out_dir"):
                raise ConfigError("--set", path, "the study sets this: see --seeds, --task and --out")
        config = replace(config, set={**config.set, **given})
    return config


def _looks(options: Options, config: StudyConfig) -> Looks:
    """Those of the flag, with the spending of the study."""
    if options.seeds:
        raise ConfigError("--looks", list(options.looks), "give --seeds or --looks, not both")
    try:
        own = config.seeds if isinstance(config.seeds, Looks) else Looks()
        return replace(own, seeds=tuple(options.looks))
    except ConfigError as error:
        raise ConfigError("--looks", list(options.looks), error.remedy) from None


def _from_flags(options: Options) -> StudyConfig:
    axes = dict(axes_by_flag(options.axes))
    if len(axes) < len(options.axes):
        raise ConfigError("--axis", list(options.axes), "an axis is given twice: write all its levels in one")
    around = {BLOCK: options.around} if options.around else {}
    verb = "does" if len(axes) == 1 else "do"
    what = f"What {verb} {' and '.join(axes)} do{f' around {options.around}' if options.around else ''}?"
    return load_study({
        "question": what, "compare": axes, "baseline": around, "design": options.design or "full",
    })


def default_name(config: StudyConfig, *, scale: str, task: str) -> str:
    """Of the study in its storage: the file's name or the axes', the scale and the task; of the grid the last two."""
    titles = [axis.rpartition(".")[2] for axis in config.compare]
    around = [str(config.baseline[BLOCK])] if BLOCK in config.baseline and BLOCK not in config.compare else []
    stem = stem_of(config.name or "-".join([*around, *titles]) or config.kind)
    return "-".join(filter(None, ("" if stem == GRID else stem, scale, task)))


def stem_of(text: str) -> str:
    """The name of a study file, or a list of axes, as part of the name of a folder."""
    return re.sub(r"[^A-Za-z0-9_.+]+", "-", text).strip("-.")


@dataclass(frozen=True)
class StudyResults:
    """What came out of a study, as far as it got: pandas frames, whose columns `docs/frames.md` explains."""

    study: optuna.Study
    folder: Path
    found: Findings = field(repr=False)

    @property
    def rows(self) -> pd.DataFrame:
        """A row per row of the study, best loss first: `summary.csv`."""
        return self.found.rows

    @property
    def screening(self) -> pd.DataFrame:
        """Every row as it was screened, and whether it went on; empty where none was: `screening.csv`."""
        return self.found.screening

    @property
    def budgets(self) -> pd.DataFrame:
        """Loss of the judged rows at every budget of a stage: `budgets.csv`."""
        return self.found.budgets

    @property
    def cells(self) -> pd.DataFrame:
        """A row per training run that judges; `choosing` has those that chose the tuned values."""
        return self.found.record.cells

    @property
    def choosing(self) -> pd.DataFrame:
        """A row per training run that chose tuned values, on seeds that judge nothing; the columns of `cells`."""
        return self.found.record.choosing

    @property
    def curves(self) -> pd.DataFrame:
        """Learning curves in long form: cell, row, label, seed, step, tokens, seconds, train_loss, val_loss."""
        from ablations.analysis.curves import long_curves

        return long_curves(self.found.record)

    @property
    def effects(self) -> pd.DataFrame:
        """Effects of the axes on loss and speed: `effects.csv`."""
        return self.found.effects

    @property
    def claims(self) -> pd.DataFrame:
        """Every claim with its verdict: `claims.csv`."""
        return self.found.claims


def run_study(
    study: str | Path | Mapping[str, Any] | StudyConfig = GRID, *, speed: bool = True, console: Console | None = None,
    fit: Callable[..., Any] | None = None, prepare: Callable[..., Any] | None = None, **options: Any,
) -> StudyResults:
    """Train a study, measure its speed, write its summary; return its results. What is finished is not repeated.

    Args:
        study: a study of the suite by name (`grid`), the path of a file, or a mapping with the keys of one.
        speed: whether to measure training speed and memory.
        console: where progress goes.
        fit: stands in for `lit_simplified.fit`.
        prepare: stands in for `lit_simplified.datamodules.prepare`.
        options: fields of `Options`: scale, task, seeds, workers, name, out, ...

    Raises:
        ConfigError: a mistake in the study or in an option.
        StudyError: the study holds something else, or its workers cannot start.
    """
    return execute(plan_run(Options(study=study, **options)), speed=speed, console=console, fit=fit, prepare=prepare)


def execute(
    run: StudyRun, *, speed: bool = True, rounds: int | None = None, console: Console | None = None,
    fit: Callable[..., Any] | None = None, prepare: Callable[..., Any] | None = None,
) -> StudyResults:
    """As `run_study`, of a study that is planned already."""
    from ablations.engine.run import train_study
    from ablations.report.summary import summarise

    study = train_study(run, fit=fit, prepare=prepare, console=console)
    if speed:
        measure_speed(study, storage=run.storage, folder=run.folder, rounds=rounds, console=console)
    found, _ = summarise(study, folder=run.folder, console=console)
    return StudyResults(study, run.folder, found)


def measure_speed(
    study: optuna.Study, *, storage: str, folder: Path, rounds: int | None = None, redo: bool = False,
    console: Console | None = None,
) -> None:
    """The speed pass of a study, over the rows that it has not measured yet."""
    from rich.console import Console as Terminal
    from rich.progress import track

    from ablations.engine.queue import Queue
    from ablations.engine.resources import threads_for
    from ablations.engine.speed import speed_pass

    console = console or Terminal()
    spec = study.user_attrs["spec"]
    size = scale(spec["scale"], task=spec["task"])
    rounds = rounds or size.speed_rounds
    console.print(f"speed pass, {rounds} rounds for each row that is not measured yet; run nothing else meanwhile")

    def progress(rows: Iterable[Any]) -> Iterable[Any]:
        return track(rows, "speed pass", console=console, disable=not console.is_terminal)

    speed_pass(
        Queue(study, storage=storage, folder=folder), rounds=rounds, burst=size.speed_burst,
        threads=threads_for(study.user_attrs["workers_at_once"]), redo=redo, progress=progress,
    )


def results(study: str) -> StudyResults:
    """The results of a study by its name, path or URL, without training anything.

    Raises:
        StudyError: there is no such study.
    """
    from ablations.analysis.findings import find
    from ablations.engine.lookup import find_study

    opened = find_study(study)
    return StudyResults(opened, place_of(opened.study_name).folder, find(opened))
