"""`train_study`: queue the missing cells of a study and train them, each exactly once."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from filelock import Timeout
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial
from rich.console import Console

from ablations.design.axes import BLOCK_FIELDS
from ablations.design.cells import LEARNING_RATE, Cell, StudyPlan
from ablations.design.collapse import COLLAPSED, card_of, plateau_of
from ablations.design.config import StudyConfig, write_study
from ablations.design.design import StudyDesign
from ablations.design.scales import Scale
from ablations.design.selection import Outcome
from ablations.engine.checkpoints import Keep, prune
from ablations.engine.locks import RunLock
from ablations.engine.queue import Queue, QueuedCell
from ablations.engine.redact import redact
from ablations.engine.resources import threads_for, visible_gpus, workers_for
from ablations.engine.sources import sources_digest
from ablations.engine.storage import StudyError, create_study, keep_design, latest, now, ours, read_design, state_of
from ablations.engine.supervisor import train
from ablations.engine.trials import LIGHT, read_trials
from ablations.engine.worker import Fit, Job
from lit_simplified.config import RunConfig, own_files, to_dict
from lit_simplified.files import write_text

SPEC_VERSION = 3
"""Of the specification's form. That code trains to the same result is told by its digest (`sources`)."""
FREE = ("model.block", "data.cache_dir", "data.num_workers", LEARNING_RATE)
"""Fields that may differ between the cells of a study, or between the machines that train them."""
LEARNING_RATES = (1e-7, 1.0)
"""Those that Optuna can show."""
ENDED = ("complete", "diverged", "failed")
TRAINER = ("precision", "val_every", "compile", "devices", "num_nodes", "strategy", "options")
"""Of the trainer's fields those that a study is kept to: they decide what comes out. The others are a machine's."""


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """A study that is to be trained: what, where, by how many."""

    study: str
    """Its name in the storage."""
    storage: str
    folder: Path
    """The study's folder: runs, logs, summary."""
    scale: Scale
    plan: StudyPlan
    workers: int | None = None
    """Processes. None: one per GPU, else two where there are two cores."""
    keep: Keep | None = None
    """Whose last checkpoints stay. None: as the scale says."""
    command: str = ""
    """What was typed, to be kept with the study."""
    own: tuple[str, ...] = ()
    """Files with parts of the user's own that the workers may load."""
    config: StudyConfig | None = None
    """The study as a file, to be kept in its folder."""

    @property
    def template(self) -> RunConfig:
        """What every cell shares."""
        return self.plan.template

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All that the study asks for before it has a result."""
        return self.plan.cells()


def spec_of(run: StudyRun, *, corpus: str) -> dict[str, Any]:
    """What all cells of a study share. Rows, seeds and tuned values may be added later; this may not change."""
    config = to_dict(run.template)
    config["trainer"] = {name: config["trainer"][name] for name in TRAINER}
    axes = (*run.plan.design.axes, *run.plan.design.tuned)
    for path in (*FREE, *(path for axis in axes for path in axis.fields if not path.startswith(BLOCK_FIELDS))):
        section, _, name = path.rpartition(".")
        if section:
            config[section].pop(name, None)
    kept = {name: config[name] for name in ("task", "model", "data", "optim")}
    return {
        "version": SPEC_VERSION, "sources": sources_digest(), "scale": run.scale.name, "corpus": corpus, **kept,
        "trainer": config["trainer"],
    }


def queued_cell(run: StudyRun, cell: Cell) -> QueuedCell:
    """A cell as the queue holds it."""
    config = replace(cell.config, out_dir=str(run.folder / "runs"))
    row, design = run.plan.design.by_id[cell.row], run.plan.design
    titles = design.titles()
    levels = {titles[axis]: label for axis, label in row.levels.items()}
    params = {**levels, "seed": cell.seed, "learning_rate": config.optim.learning_rate}
    kinds: dict[str, BaseDistribution] = {
        **{title: CategoricalDistribution(design.axis(axis).labels) for axis, title in titles.items()
           if axis in row.levels},
        "seed": IntDistribution(0, 2**31 - 1),
        "learning_rate": FloatDistribution(*LEARNING_RATES, log=True),
    }
    shown = {name: kind for name, kind in kinds.items() if _contains(kind, params[name])}
    return QueuedCell(cell.id, to_dict(config), params, row=cell.row, tuned=dict(cell.tuned), stage=cell.stage,
                      distributions=shown)


def _contains(kind: BaseDistribution, value: Any) -> bool:
    """Whether Optuna can show a value."""
    if isinstance(kind, IntDistribution | FloatDistribution):
        return bool(kind.low <= value <= kind.high)
    return value in getattr(kind, "choices", ())


def train_study(
    run: StudyRun, *, fit: Fit | None = None, prepare: Callable[..., Any] | None = None, console: Console | None = None
) -> optuna.Study:
    """Train every missing cell of a study; return the study.

    Args:
        run: what to train.
        fit: stands in for `lit_simplified.fit`; must be importable by name in a worker process.
        prepare: stands in for `lit_simplified.datamodules.prepare`.
        console: where progress goes.

    Raises:
        StudyError: the study holds something else, or its workers cannot start.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the workers have ended and their cells are queued again.
    """
    console = console or Console()
    if run.own:
        _check_own(run)
    card = prepare_corpus(run.template, prepare=prepare, console=console)
    study = create_study(run.storage, name=run.study, spec=spec_of(run, corpus=card.get("corpus_digest", "")))
    study.set_user_attr("corpus", card)
    queue = Queue(study, storage=run.storage, folder=run.folder)
    with queue.gate:  # of two machines that add rows at once, neither overwrites the other's
        keep_design(study, run.plan.design)
    if run.config is not None:  # not before the study was accepted: of another one's, nothing is overwritten
        write_text(run.folder / "study.yaml", write_study(run.config))
    with exclusive(queue):
        queue.reap()
        _train_cells(run, queue, fit=fit, console=console)
        # Workers do it now and then; one that was killed behind the last cell did not.
        prune(study, keep=run.keep or run.scale.keep_checkpoints, folder=run.folder)
    return study


def _train_cells(run: StudyRun, queue: Queue, *, fit: Fit | None, console: Console) -> None:
    """Queue what is missing and train it, until what came out asks for nothing more.

    A cell that fails is not tried again by this run: it counts as ended, and the study goes on without it.
    """
    study, asked = queue.study, set[str]()
    accelerator = run.template.trainer.accelerator
    new = run.plan.cells(outcomes(study, given_up=asked))
    while True:
        queued = queue.enqueue([queued_cell(run, cell) for cell in new])
        asked.update(cell.id for cell in new)
        left = queue.unfinished()
        stage = f" ({new[-1].stage})" if new and (run.plan.screened or run.plan.design.selects) else ""
        console.print(f"study {run.study} in {redact(run.storage)}{stage}: {queued} cells queued, {left} to train",
                      highlight=False, markup=False)
        if left:
            note_command(study, run.command)
            gpus, workers = visible_gpus(accelerator), workers_for(accelerator, asked=run.workers)
            study.set_user_attr("workers_at_once", workers)
            train(queue, jobs_of(run, workers=workers, gpus=gpus), fit=fit, console=console)
        new = tuple(cell for cell in run.plan.cells(outcomes(study, given_up=asked)) if cell.id not in asked)
        if not new:
            return


def outcomes(
    study: optuna.Study, *, standing: Mapping[str, FrozenTrial] | None = None,
    given_up: Collection[str] | None = None,
) -> dict[str, Outcome]:
    """How the cells of a study have ended, by id.

    Args:
        study: the study.
        standing: the trial of each cell, where they have been read.
        given_up: failed cells that are not tried again, and so count as ended. None: all.
    """
    found = latest(ours(read_trials(study, how_ended(read_design(study))))) if standing is None else standing
    trials = {cell: trial for cell, trial in found.items()
              if state_of(trial) in ENDED and (state_of(trial) != "failed" or given_up is None or cell in given_up)}
    attrs = study.user_attrs
    losses = {cell: trial.value for cell, trial in trials.items() if trial.value is not None}
    plateau = plateau_of(card_of(read_design(study), attrs), losses.values(), scale=attrs["spec"].get("scale", ""))
    return {cell: Outcome(COLLAPSED if plateau.holds(losses.get(cell, -math.inf)) else state_of(trial),
                          losses.get(cell, math.nan), _test_loss(trial)) for cell, trial in trials.items()}


def how_ended(design: StudyDesign) -> tuple[str, ...]:
    """The attributes that `outcomes` reads: the whole result only where looks at a test loss need it."""
    tests = design.looks is not None and any(claim.quantity == "test_loss" for claim in design.claims)
    return (*LIGHT, "result") if tests else LIGHT


def _test_loss(trial: FrozenTrial) -> float:
    result = trial.user_attrs.get("result") or {}  # None: not read
    loss = (result.get("test") or {}).get("loss")
    return math.nan if loss is None else float(loss)


def _check_own(run: StudyRun) -> None:
    """Check parts of the user's own before anything is queued: a mistake in one would fail cell after cell."""
    from lit_simplified.blocks.check import check_own

    for config in run.plan.rows.values():
        if own_files(config):
            check_own(config.model)


@contextlib.contextmanager
def exclusive(queue: Queue) -> Iterator[None]:
    """Let one `run` per machine train a study in a file, and refuse a second one.

    A study on a server may be joined, also by two cluster jobs that land on one machine.

    Raises:
        StudyError: one is running.
    """
    if queue.server is not None:
        yield
        return
    lock = RunLock(queue.locks, queue.study.study_name)
    try:
        lock.__enter__()
    except Timeout:
        raise StudyError(
            f"study={queue.study.study_name!r} is already being trained on this machine, by process {lock.pid()}. "
            "Watch it with `python -m ablations status`. For more workers, stop it (Ctrl-C; nothing is lost) and run "
            "its command again with --workers N; for another study, give --study NAME"
        ) from None
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def note_command(study: optuna.Study, command: str) -> None:
    """Keep the command as it was typed, without passwords, so that the study can be repeated."""
    if command:
        time_ = now()
        study.set_user_attr(f"command:{time_}", {"command": command, "time": time_})


def prepare_corpus(
    template: RunConfig, *, prepare: Callable[..., Any] | None, console: Console
) -> dict[str, Any]:
    """The data card, printed; the corpus is packed once here, not by every worker."""
    from lit_simplified import datamodules

    vocabulary = template.model.vocab_size
    if prepare is not None:
        card: dict[str, Any] = prepare(template.data, vocab_size=vocabulary).card
        return card
    card = datamodules.prepare(template.data, vocab_size=vocabulary).card
    console.print(datamodules.format_card(card), highlight=False, markup=False, soft_wrap=True)
    return card


def jobs_of(run: StudyRun, *, workers: int, gpus: Sequence[str]) -> list[Job]:
    """One job per worker; GPUs are dealt out in turn."""
    return [
        Job(
            study=run.study, storage=run.storage, folder=run.folder, name=f"worker-{index}",
            threads=threads_for(workers), gpu=gpus[index % len(gpus)] if gpus else None,
            log=run.folder / "logs" / f"worker-{index}.log", cache_dir=run.template.data.cache_dir,
            keep=run.keep or run.scale.keep_checkpoints, number=index, own=run.own,
        )
        for index in range(workers)
    ]
