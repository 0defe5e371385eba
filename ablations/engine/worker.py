"""A worker: a process that imports once and trains cell after cell of a study, until none is left."""

from __future__ import annotations

import errno
import faulthandler
import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError

from ablations.engine import optuna_private as private
from ablations.engine.checkpoints import Keep, is_full, note_cell, prune
from ablations.engine.errors import LockedError
from ablations.engine.identity import SIGNATURE, signature
from ablations.engine.pace import Pace
from ablations.engine.queue import Claim, Queue
from ablations.engine.storage import now, open_study, patiently
from ablations.timing.machine import describe_machine, versions
from lit_simplified.config import RunConfig, allow, digest_text, from_record, to_dict
from lit_simplified.files import finite

if TYPE_CHECKING:
    from lit_simplified.train import RunResult

Fit = Callable[..., "RunResult"]
SIGN = 10.0
"""Seconds between notes of when this worker was last seen."""
POLL = 0.5
"""Seconds between looks at the queue while other processes train the last cells, which are ours if those die."""
DISK_FULL = 74
"""Exit status of a worker that could not write."""
MEMORY_REMEDY = "out of memory: try a smaller data.batch_size with more optim.accumulate, or fewer --workers"


class Search(Protocol):
    """A search as a worker needs it: what to try next, and when to give up a run."""

    @property
    def budget(self) -> int:
        """Trials in all."""

    def policy(self, worker: int) -> dict[str, Any]:
        """Sampler and pruner of the study, for the worker of this number."""

    def sample(self, trial: optuna.Trial) -> RunConfig:
        """The run of a trial."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker process needs to know."""

    study: str
    storage: str
    folder: Path
    name: str
    threads: int
    """CPU threads of torch."""
    gpu: str | None
    """The one GPU that it sees, in the syntax of CUDA_VISIBLE_DEVICES. None: leave the environment as it is."""
    log: Path
    cache_dir: str = "data/cache"
    """Where this machine keeps corpora."""
    keep: Keep = "none"
    """Whose last checkpoints stay."""
    search: Search | None = None
    """None: train what is queued, as it is."""
    number: int = 0
    """Counts the workers of a machine."""
    own: tuple[str, ...] = ()
    """The files of parts of your own that the user's command named, and whose code may run (`own_files`)."""


def work(job: Job, *, fit: Fit | None = None) -> None:
    """Train cells until none is left; the main function of a worker process.

    Args:
        job: the study, and this process's share of the machine.
        fit: trains a RunConfig. None: `lit_simplified.fit`.
    """
    start = now()
    _set_up_process(job)
    for file in job.own:
        allow(file)
    policy = job.search.policy(job.number) if job.search else {}
    study = patiently(lambda: open_study(job.storage, name=job.study, light=job.search is None, **policy))
    queue = Queue(study, storage=job.storage, folder=job.folder, budget=job.search.budget if job.search else 0)
    train = fit or _import_fit()
    try:
        _train_all(queue, job, fit=train, start=start)
    except OSError as error:
        if not is_full(error, folder=job.folder):
            raise
        _note_error()
        os._exit(DISK_FULL)  # at once: what is left to be written to the log would fail, and hide the status


def _train_all(queue: Queue, job: Job, *, fit: Fit, start: str) -> None:
    """Train cells until none is left, or this process is unsound."""
    def sign() -> None:
        _sign(queue, job, start=start)

    def clear() -> None:
        prune(queue.study, keep=job.keep, folder=job.folder)

    tasks: dict[Callable[[], Any], Pace] = {sign: Pace(least=SIGN), clear: Pace(), queue.reap: Pace(least=1.0)}
    sound = True
    while sound:
        for task, pace in tasks.items():
            if pace.is_due:
                patiently(partial(pace, task))
        claim = patiently(queue.claim)
        if claim is None:
            if not patiently(queue.is_any_left):
                break
            time.sleep(POLL)
            continue
        sound = train_cell(queue, claim, job=job, fit=fit)
    for task in (clear, sign):
        patiently(task)


def train_cell(queue: Queue, claim: Claim, *, job: Job, fit: Fit) -> bool:
    """Train a claimed cell and record what came of it; whatever it raises is its result, not the study's end.

    Returns:
        Whether this process may train another: an error of the device or of memory leaves it unsound.

    Raises:
        OSError: the disk is full. The cell stays in the queue.
    """
    print(f"--- {claim.cell}", file=sys.stderr, flush=True)
    curve: list[dict[str, Any]] = []
    try:
        with queue.heartbeats(claim):
            config = localise(patiently(lambda: _config(claim, job)), job)
            result = fit(config, on_validation=lambda point: _report(claim, point, curve=curve, job=job))
    except optuna.TrialPruned as pruned:
        queue.finish(claim, state="pruned", reason=str(pruned), curve=curve)
    except UpdateFinishedTrialError:
        print(f"{claim.cell}: its heartbeats stopped, and it was given to another worker", file=sys.stderr, flush=True)
    except Exception as error:  # MemoryError and torch.OutOfMemoryError among them
        _note_error()
        if is_full(error, folder=job.folder):
            raise OSError(errno.ENOSPC, f"the disk is full: {error}") from error
        queue.finish(claim, state="failed", reason=reason_of(error), traceback=traceback.format_exc())
        return not _spoils_process(error)
    else:
        _record(queue, claim, result, config=claim.config if job.search is None else claim.trial.user_attrs["config"])
    finally:
        _free_memory()
    return True


def _config(claim: Claim, job: Job) -> RunConfig:
    """The run of a cell: as it was queued, or sampled now and kept."""
    if job.search is None:
        return from_record(RunConfig, claim.config)
    config = job.search.sample(claim.trial)
    claim.trial.set_user_attr("config", to_dict(config))
    return config


def localise(config: RunConfig, job: Job) -> RunConfig:
    """The run with the folders of this machine, which may not be those of the machine that queued it."""
    return replace(
        config, out_dir=str(job.folder / "runs"), data=replace(config.data, cache_dir=job.cache_dir),
        trainer=replace(config.trainer, keep_checkpoint=job.keep != "none"),
    )


def _report(claim: Claim, point: Any, *, curve: list[dict[str, Any]], job: Job) -> None:
    """Report a point of the curve to the study; in a search, end a run that the pruner stops."""
    curve.append(asdict(point))
    # A database that is away for a moment, or a lock that is not let go: the whole curve is kept at the end.
    with suppress(StorageInternalError, LockedError):
        if job.search is None:
            storage = private.storage_of(claim.study)
            storage.set_trial_intermediate_value(claim.trial_id, point.step, float(point.val_loss))
            return
        claim.trial.report(point.val_loss, point.step)
        if claim.trial.should_prune():
            raise optuna.TrialPruned(f"pruned at step {point.step}, loss {point.val_loss:.4f}")


def _record(queue: Queue, claim: Claim, result: RunResult, *, config: dict[str, Any]) -> None:
    numbers: dict[str, Any] = finite(asdict(result))
    note_cell(numbers.get("run_dir", ""), claim.cell)
    curve, state, reason = numbers.pop("curve"), numbers.pop("state"), numbers.pop("reason")
    value = result.val_loss if state == "complete" else None
    numbers[SIGNATURE] = signature(claim.cell, config)
    queue.finish(claim, state=state, value=value, reason=reason, curve=curve, result=numbers)


def reason_of(error: BaseException) -> str:
    """An error as a study keeps it, with the remedy where there is a usual one."""
    text = f"{type(error).__name__}: {error}".strip(": ")
    return f"{text[:2000]} ({MEMORY_REMEDY})" if is_out_of_memory(error) else text[:2000]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the GPU or of the machine."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _spoils_process(error: BaseException) -> bool:
    """Whether the next cell would fail too: a CUDA error persists, and memory may be fragmented."""
    return is_out_of_memory(error) or "cuda error" in str(error).lower()


def _sign(queue: Queue, job: Job, *, start: str) -> None:
    """Record this worker: from when to when it ran, and on which machine."""
    machine = {**describe_machine(), "threads": job.threads, "versions": versions()}
    name = digest_text(json.dumps(machine, sort_keys=True))
    queue.study.set_user_attr(f"machine:{name}", machine)
    queue.study.set_user_attr(
        f"worker:{queue.worker(os.getpid())}", {"start": start, "end": now(), "machine": name, "name": job.name}
    )


def _set_up_process(job: Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent stops this process
    job.log.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):  # of the process, not of Python: libraries in C write there too
        os.dup2(log, descriptor)
    faulthandler.enable()
    # Before torch is imported: it reads them once.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(job.threads)
    if job.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = job.gpu
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit with a parent that was killed: else the next `run` would share the machine with an orphan."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _note_error() -> None:
    with suppress(OSError):  # the log may be on the full disk
        traceback.print_exc()


def _import_fit() -> Fit:
    from lit_simplified import fit

    return partial(fit, take_over=True)  # the queue decides whose a cell is


def _free_memory() -> None:
    torch = sys.modules.get("torch")
    if torch is None:
        return
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
