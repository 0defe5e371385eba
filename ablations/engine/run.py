"""`run`: queue the missing cells, train them in worker processes, measure speed, write the summary."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
from filelock import Timeout
from optuna.exceptions import StorageInternalError
from rich.console import Console
from rich.live import Live

from ablations.design import space
from ablations.design.scales import Scale
from ablations.engine.checkpoints import Keep
from ablations.engine.locks import Occupied
from ablations.engine.queue import Queue, Task
from ablations.engine.status import Status, line, render, status
from ablations.engine.storage import StudyError, create_study, now, patiently, shown
from ablations.engine.worker import DISK_FULL, Fit, Job, work
from ablations.timing.machine import cores
from lit_simplified.config import RunConfig, preset_of, to_dict

SPEC_VERSION = 2
"""Raised when new code trains the same configuration to another result: cells of both must not share a study."""
MAX_CPU_WORKERS = 2
REFRESH, PLAIN_EVERY = 1.0, 10.0
"""Seconds between looks at the study, on a terminal and in plain lines."""
STARTS_IN_VAIN = 3
"""Workers may die this often without having begun a cell before the run is given up."""


_DISK_FULL = (
    "the disk of {folder} is full. What was recorded is safe, and the cells that were under way are in the queue: make "
    "room (checkpoints: --keep-checkpoints none) and give the same command again"
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a `run` is to do."""

    study: str
    storage: str
    folder: Path
    """The study's folder: runs, logs, summary."""
    scale_name: str
    scale: Scale
    cells: tuple[space.Cell, ...]
    workers: int | None = None
    """Processes. None: one per GPU, else two where there are two cores."""
    keep: Keep | None = None
    """Whose last checkpoints stay. None: as the scale says."""
    command: str = ""
    """What was typed, to be kept with the study."""

    @property
    def template(self) -> RunConfig:
        return self.scale.template


def plan_cells(
    scale: Scale, *, presets: Sequence[str] = (), seeds: Sequence[int] = (), learning_rates: Sequence[float] = ()
) -> tuple[space.Cell, ...]:
    """The cells of a study: those of its scale, or of the blocks, seeds and learning rates that are named instead."""
    blocks = space.named(presets, task=scale.template.task) if presets else scale.blocks()
    rates = learning_rates or (scale.template.optim.learning_rate,)
    named = [block for block in blocks if preset_of(block)]
    more = {} if seeds else dict.fromkeys(named, scale.preset_seeds)
    return space.cells(blocks, seeds=seeds or scale.seeds, learning_rates=rates, more_seeds=more)


def spec_of(plan: Plan, *, corpus: str) -> dict[str, Any]:
    """What all cells of a study share. Blocks, seeds and learning rates may be added later; this may not change."""
    config = to_dict(plan.template)
    for section, name in (
        ("model", "block"), ("data", "cache_dir"), ("data", "num_workers"), ("optim", "learning_rate"),
    ):
        del config[section][name]
    trainer = {name: config["trainer"][name] for name in ("precision", "val_every", "compile")}
    kept = {name: config[name] for name in ("task", "model", "data", "optim")}
    return {
        "version": SPEC_VERSION, "space": space.space_digest(plan.template.task), "scale": plan.scale_name,
        "corpus": corpus, **kept, "trainer": trainer,
    }


def task_of(plan: Plan, cell: space.Cell) -> Task:
    """A cell as the queue holds it."""
    template = plan.template
    config = replace(
        template,
        model=replace(template.model, block=cell.block),
        optim=replace(template.optim, learning_rate=cell.learning_rate),
        seed=cell.seed,
        out_dir=str(plan.folder / "runs"),
    )
    params = {**(space.grid_params(cell.block) or {}), "seed": cell.seed, "learning_rate": cell.learning_rate}
    return Task(cell.id, to_dict(config), params)


def run(
    plan: Plan, *, fit: Fit | None = None, prepare: Callable[..., Any] | None = None, console: Console | None = None
) -> optuna.Study:
    """Train every missing cell of the plan; return the study.

    Args:
        plan: what to train.
        fit: stands in for `lit_simplified.fit`; must be importable by name in a worker process.
        prepare: stands in for `lit_simplified.datamodules.prepare`.
        console: where progress goes.

    Raises:
        StudyError: the study holds something else, or its workers cannot start.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the workers have ended and their cells are queued again.
    """
    console = console or Console()
    card = prepare_corpus(plan, prepare=prepare, console=console)
    study = create_study(plan.storage, name=plan.study, spec=spec_of(plan, corpus=card.get("corpus_digest", "")))
    study.set_user_attr("corpus", card)
    queue = Queue(study, storage=plan.storage, folder=plan.folder)
    with alone(queue):
        queue.reap()
        queued = queue.enqueue([task_of(plan, cell) for cell in plan.cells])
        console.print(f"study {plan.study} in {shown(plan.storage)}: {queued} cells queued, {queue.unfinished()} to "
                      "train", highlight=False)
        if queue.unfinished():
            note_command(study, plan.command)
            gpus, workers = visible_gpus(plan.template.trainer.accelerator), workers_of(plan)
            study.set_user_attr("workers_at_once", workers)
            train(queue, jobs_of(plan, workers=workers, gpus=gpus), fit=fit, console=console)
    return study


@contextlib.contextmanager
def alone(queue: Queue) -> Iterator[None]:
    """Let one `run` of a machine work on a study in a file; a second one, started by mistake, is told so.

    A study on a server is there to be joined, also by two tasks of a cluster that meet on one machine.

    Raises:
        StudyError: there is one already.
    """
    if queue.server is not None:
        yield
        return
    occupied = Occupied(queue.locks, queue.study.study_name)
    try:
        occupied.__enter__()
    except Timeout:
        raise StudyError(
            f"study={queue.study.study_name!r} is being trained on this machine already, by process {occupied.pid()}. "
            "Watch it with `python -m ablations status`. For more workers end it (Ctrl-C; nothing is lost) and give "
            "its command again with --workers N; for another study give --study NAME"
        ) from None
    try:
        yield
    finally:
        occupied.__exit__(None, None, None)


def note_command(study: optuna.Study, command: str) -> None:
    """Keep what was typed, without passwords, so that the study can be done again."""
    if command:
        time_ = now()
        study.set_user_attr(f"command:{time_}", {"command": command, "time": time_})


def prepare_corpus(plan: Plan, *, prepare: Callable[..., Any] | None, console: Console) -> dict[str, Any]:
    """The data card, printed; the corpus is packed once here, not by every worker."""
    from lit_simplified import datamodules

    vocabulary = plan.template.model.vocab_size
    if prepare is not None:
        card: dict[str, Any] = prepare(plan.template.data, vocab_size=vocabulary).card
        return card
    card = datamodules.prepare(plan.template.data, vocab_size=vocabulary).card
    console.print(datamodules.format_card(card), highlight=False, markup=False, soft_wrap=True)
    return card


def visible_gpus(accelerator: str) -> list[str]:
    """The GPUs this run may use, as CUDA_VISIBLE_DEVICES names them. Imports torch unless the accelerator is cpu."""
    if accelerator not in ("auto", "gpu", "cuda"):
        return []
    import torch

    if not torch.cuda.is_available():
        return []
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return listed.split(",") if listed else [str(index) for index in range(torch.cuda.device_count())]


def workers_of(plan: Plan) -> int:
    """Worker processes on this machine: as asked for, else one per GPU, else two where there are two cores."""
    return plan.workers or len(visible_gpus(plan.template.trainer.accelerator)) or min(MAX_CPU_WORKERS, cores())


def threads_for(workers: int) -> int:
    """CPU threads of each of so many workers."""
    return max(1, cores() // workers)


def jobs_of(plan: Plan, *, workers: int, gpus: Sequence[str]) -> list[Job]:
    """One job per worker; GPUs are dealt out in turn."""
    return [
        Job(
            study=plan.study, storage=plan.storage, folder=plan.folder, name=f"worker-{index}",
            threads=threads_for(workers), gpu=gpus[index % len(gpus)] if gpus else None,
            log=plan.folder / "logs" / f"worker-{index}.log", cache_dir=plan.template.data.cache_dir,
            keep=plan.keep or plan.scale.keep_checkpoints, number=index,
        )
        for index in range(workers)
    ]


def train(queue: Queue, jobs: Sequence[Job], *, fit: Fit | None, console: Console) -> None:
    """Run the workers until no cell is left, starting anew those that are killed."""
    processes: dict[Job, BaseProcess] = {}
    vain = 0
    with _interrupt_on_sigterm():
        try:
            processes.update({job: _start(job, fit=fit) for job in jobs})
            for _ in _watch(queue.study, console=console):
                for job, process in list(processes.items()):
                    if process.exitcode is None:
                        continue
                    del processes[job]
                    if process.exitcode == DISK_FULL:
                        raise StudyError(_DISK_FULL.format(folder=job.folder.absolute()))
                    patiently(queue.reap)
                    begun = patiently(partial(queue.has_begun, process.pid))
                    vain = 0 if begun else vain + bool(process.exitcode)
                    if vain >= STARTS_IN_VAIN:
                        raise StudyError(_last_words(job))
                    if patiently(queue.unfinished):
                        processes[job] = _start(job, fit=fit)
                if not processes and not patiently(queue.unfinished):
                    break
        finally:
            _stop(list(processes.values()))
            with contextlib.suppress(OSError, StorageInternalError):  # else the next start does it
                queue.reap(outcome="interrupted")


def _start(job: Job, *, fit: Fit | None) -> BaseProcess:
    """Start a worker that Ctrl-C does not reach, from its first moment on."""
    process = multiprocessing.get_context("spawn").Process(
        target=work, args=(job,), kwargs={"fit": fit}, name=job.name  # no daemon: data loaders have processes
    )
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)
    return process


def _stop(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(5)
        process.kill()
        process.join()


def _last_words(job: Job) -> str:
    tail = "\n".join(job.log.read_text(errors="replace").splitlines()[-15:]) if job.log.exists() else "(no log)"
    return f"the workers end before they train anything. The end of {job.log}:\n{tail}"


@contextlib.contextmanager
def _interrupt_on_sigterm() -> Iterator[None]:
    """Let `kill` end a run as cleanly as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _watch(study: optuna.Study, *, console: Console) -> Iterator[Status]:
    """The study's status, again and again, shown as a live table on a terminal and in plain lines elsewhere."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=2, transient=True) as live:
            while True:
                now = patiently(lambda: status(study))
                live.update(render(now, title=study.study_name, failures=False))
                yield now
                time.sleep(REFRESH)
    said, spoke = -1, 0.0
    while True:
        now = patiently(lambda: status(study))
        if now.done != said and (time.monotonic() - spoke > PLAIN_EVERY or now.left == 0):
            print(line(now), flush=True)
            said, spoke = now.done, time.monotonic()
        yield now
        time.sleep(REFRESH)
