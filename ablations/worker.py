"""A worker: a process that imports once and trains cell after cell of a study, until none is left."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.space import grid_params, suggest_block
from ablations.storage import Claim, Queue, open_study
from lit_simplified.config import RunConfig, from_dict
from lit_simplified.files import finite

if TYPE_CHECKING:
    import optuna

    from lit_simplified.train import RunResult

Fit = Callable[..., "RunResult"]
POLL = 0.5
"""Seconds between looks at the queue while the last cells train elsewhere: should their process die, they are ours."""


@dataclass(frozen=True)
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


def work(job: Job, *, fit: Fit | None = None) -> None:
    """Train cells until none is left; the main function of a worker process.

    Args:
        job: the study, and this process's share of the machine.
        fit: trains a RunConfig. None: `lit_simplified.fit`.
    """
    _set_up_process(job)
    queue = Queue(open_study(job.storage, name=job.study), storage=job.storage, folder=job.folder)
    train = fit or _import_fit()
    while queue.unfinished():
        queue.reap()
        claim = queue.claim()
        if claim is None:
            time.sleep(POLL)
            continue
        train_cell(queue, claim, fit=train)


def train_cell(queue: Queue, claim: Claim, *, fit: Fit) -> None:
    """Train a claimed cell and record what came of it; whatever it raises is its result, not the study's end."""
    print(f"--- {claim.cell}", file=sys.stderr, flush=True)
    try:
        config = from_dict(RunConfig, claim.config)
        _declare(claim.trial, config)
        result = fit(config, on_validation=lambda point: claim.trial.report(point.val_loss, point.step))
    except Exception as error:  # MemoryError and torch.OutOfMemoryError among them
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}".strip(": ")
        queue.finish(claim, state="failed", reason=reason, traceback=traceback.format_exc())
    else:
        _record(queue, claim, result)
    finally:
        _free_memory()


def _declare(trial: optuna.Trial, config: RunConfig) -> None:
    """Give Optuna the parameters that the queue fixed, so that its dashboard shows them."""
    if grid_params(config.model.block) is not None and suggest_block(trial) != config.model.block:
        raise RuntimeError(f"trial {trial.number}: its parameters do not lead to its block; the queue is damaged")
    trial.suggest_int("seed", 0, 2**31 - 1)
    trial.suggest_float("learning_rate", 1e-7, 1.0, log=True)


def _record(queue: Queue, claim: Claim, result: RunResult) -> None:
    numbers: dict[str, Any] = finite(asdict(result))
    curve, state, reason = numbers.pop("curve"), numbers.pop("state"), numbers.pop("reason")
    value = result.val_loss if state == "complete" else None
    queue.finish(claim, state=state, value=value, reason=reason, curve=curve, result=numbers)


def _set_up_process(job: Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
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
    """Do not outlive a parent that was killed: the next `run` would share the machine with a ghost."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _import_fit() -> Fit:
    from lit_simplified import fit

    return fit


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
