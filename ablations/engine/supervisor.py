"""The supervisor: starts the worker processes of a study, watches them, and restarts those that are killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from types import FrameType

import optuna
from optuna.exceptions import StorageInternalError
from rich.console import Console
from rich.live import Live

from ablations.engine.pace import Pace
from ablations.engine.queue import Queue
from ablations.engine.status import Status, line, render, status
from ablations.engine.storage import StudyError, patiently
from ablations.engine.worker import DISK_FULL, Fit, Job, work

REFRESH, PLAIN_EVERY = 1.0, 10.0
"""Seconds between looks at the study at least, and between plain lines."""
MAX_FAILED_STARTS = 3
"""Workers may die this often before they begin a cell; then the run ends with an error."""
_DISK_FULL = (
    "the disk of {folder} is full. What was recorded is safe, and unfinished cells are back in the queue. Free some "
    "space (--keep-checkpoints none keeps no checkpoints) and run the same command again"
)


def train(queue: Queue, jobs: Sequence[Job], *, fit: Fit | None, console: Console) -> None:
    """Run the workers until no cell is left, and restart those that are killed."""
    processes: dict[Job, BaseProcess] = {}
    failed_starts = 0
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
                    failed_starts = 0 if begun else failed_starts + bool(process.exitcode)
                    if failed_starts >= MAX_FAILED_STARTS:
                        raise StudyError(_failed_start(job))
                    if patiently(queue.is_any_left):
                        processes[job] = _start(job, fit=fit)
                if not processes and not patiently(queue.is_any_left):
                    break
        finally:
            _stop(list(processes.values()))
            with contextlib.suppress(OSError, StorageInternalError, StudyError):  # else the next start does it
                queue.reap(outcome="interrupted")


def _start(job: Job, *, fit: Fit | None) -> BaseProcess:
    """Start a worker that ignores Ctrl-C from its first moment on."""
    process = multiprocessing.get_context("spawn").Process(
        target=work, args=(job,), kwargs={"fit": fit}, name=job.name  # no daemon: data loaders have processes
    )
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _without_main(fit):
            process.start()
    finally:
        signal.signal(signal.SIGINT, before)
    return process


@contextlib.contextmanager
def _without_main(fit: Fit | None) -> Iterator[None]:
    """Start a process that does not run the program of this one again, as Python else does before anything of ours.

    A worker needs nothing of it; a script without `if __name__ == "__main__"` would begin its study once more in every
    worker, and one that was typed into Python's standard input cannot be run again. A stand-in for training that the
    program itself defines is found there alone.
    """
    program = sys.modules["__main__"]
    if fit is not None and fit.__module__ == "__main__":
        yield
        return
    spec, file = program.__spec__, program.__dict__.pop("__file__", None)
    program.__spec__ = None
    try:
        yield
    finally:
        program.__spec__ = spec
        if file is not None:
            program.__file__ = file


def _stop(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(5)
        process.kill()
        process.join()


def _failed_start(job: Job) -> str:
    tail = "\n".join(job.log.read_text(errors="replace").splitlines()[-15:]) if job.log.exists() else "(no log)"
    return f"the workers exit before they train anything. The end of {job.log}:\n{tail}"


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
    looking = Pace(least=REFRESH)
    if console.is_terminal:
        with Live(console=console, refresh_per_second=2, transient=True) as live:
            while True:
                now = patiently(lambda: looking(lambda: status(study)))
                live.update(render(now, title=study.study_name, failures=False))
                yield now
                time.sleep(looking.wait)
    printed, when = -1, 0.0
    while True:
        now = patiently(lambda: looking(lambda: status(study)))
        if now.done != printed and (time.monotonic() - when > PLAIN_EVERY or now.left == 0):
            print(line(now), flush=True)
            printed, when = now.done, time.monotonic()
        yield now
        time.sleep(looking.wait)
