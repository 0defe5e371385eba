"""The benchmark of the engine: what a cell costs beside its training, from hundreds of cells to ten thousand.

Training is replaced by a stand-in that returns at once, so that all that is left is the queue: enqueue, claim, finish,
reap, status. One worker tells what a claim and a finish take while the queue empties; many at once tell how many cells
a second go through, and that each went through once.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from ablations.bench.stand_in import POINTS, no_fit
from ablations.design.library import load_study
from ablations.design.plan import plan_study
from ablations.design.scales import scale
from ablations.engine.queue import Queue
from ablations.engine.redact import redact
from ablations.engine.run import StudyRun, queued_cell, spec_of
from ablations.engine.status import status
from ablations.engine.storage import create_study, is_url, keep_design, latest, open_study, ours, state_of
from ablations.engine.trials import read_trials
from ablations.engine.worker import Job, work
from ablations.timing.machine import describe_machine, versions
from lit_simplified.config import RunConfig, to_dict
from lit_simplified.files import write_text

ROWS: dict[str, list[Any]] = {
    "block": ["pre_ln", "parallel", "sas", "sas_p", "sas_p_no_norm"], "model.depth": [2, 3, 4, 5],
}
"""What the rows of the study differ in: as many as there are combinations."""
COSTS = {"cell_ms": "cell, ms", "reap_ms": "reap, ms", "is_any_left_ms": "is any left, ms"}
"""What is told of one worker, by title."""
PARTS = 10
"""In which the emptying of the queue is told: the median of each."""


def make_study(storage: str, folder: Path, *, cells: int) -> tuple[StudyRun, float]:
    """A study whose cells are queued; and the seconds that it took to queue them."""
    rows = math.prod(len(levels) for levels in ROWS.values())
    config = replace(load_study({"question": "What does the queue cost?", "compare": ROWS}),
                     seeds=tuple(range(math.ceil(cells / rows))))
    size = scale("smoke", task="clm")
    plan = plan_study(config, scale=size)
    run = StudyRun(study=f"bench-{cells}-{uuid.uuid4().hex[:6]}", storage=storage, folder=folder, scale=size, plan=plan)
    study = create_study(storage, name=run.study, spec=spec_of(run, corpus="none"))
    keep_design(study, plan.design)
    queued = [queued_cell(run, cell) for cell in run.cells][:cells]
    begin = time.perf_counter()
    Queue(study, storage=storage, folder=folder).enqueue(queued)
    return run, time.perf_counter() - begin


def one_worker(run: StudyRun, *, limit: float) -> dict[str, Any]:
    """Claim and finish cell after cell in a fresh process; medians in ms by how much of the queue is done."""
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_empty, args=(run, limit, writer))
    process.start()
    found: dict[str, Any] = reader.recv()
    process.join()
    return found


def _empty(run: StudyRun, limit: float, writer: Any) -> None:
    queue = Queue(open_study(run.storage, name=run.study, light=True), storage=run.storage, folder=run.folder)
    points = [asdict(point) for point in no_fit(RunConfig(), on_validation=print).curve]
    taken: list[tuple[float, float]] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < limit or len(taken) < 2:
        first = time.perf_counter()
        claim = queue.claim()
        second = time.perf_counter()
        if claim is None:
            break
        queue.finish(claim, state="complete", value=4.0, curve=points, result=to_dict(RunConfig().optim))
        taken.append((second - first, time.perf_counter() - second))
    per_part = max(1, math.ceil(len(taken) / PARTS))
    parts = [taken[i : i + per_part] for i in range(0, len(taken), per_part)]
    checks: dict[str, Callable[[], Any]] = {"reap": queue.reap, "is_any_left": queue.is_any_left,
                                            "unfinished": queue.unfinished, "status": lambda: status(queue.study)}
    writer.send({
        "cells": len(taken), "claim_ms": [1e3 * median(claim for claim, _ in part) for part in parts],
        "finish_ms": [1e3 * median(finish for _, finish in part) for part in parts],
        "cell_ms": 1e3 * median(sum(both) for both in taken),
        **{f"{name}_ms": 1e3 * _median_time(call) for name, call in checks.items()},
        "memory_mb": _peak_memory(),
    })


def _median_time(call: Callable[[], Any], *, times: int = 5) -> float:
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return median(taken)


def many_workers(run: StudyRun, *, workers: int) -> dict[str, Any]:
    """Let worker processes empty the queue; cells a second from the moment at which all are there."""
    context = multiprocessing.get_context("spawn")
    start, done = context.Barrier(workers + 1), context.Queue()
    jobs = [Job(study=run.study, storage=run.storage, folder=run.folder, name=f"worker-{index}", threads=1, gpu=None,
                log=run.folder / "logs" / f"worker-{index}.log", number=index) for index in range(workers)]
    processes = [context.Process(target=_work, args=(job, start, done)) for job in jobs]
    for process in processes:
        process.start()
    start.wait()
    begin = time.perf_counter()
    memory = [done.get() for _ in processes]
    seconds = time.perf_counter() - begin
    for process in processes:
        process.join()
    trials = ours(read_trials(open_study(run.storage, name=run.study)))
    states = Counter(state_of(trial) for trial in latest(trials).values())
    begun = Counter(len(trial.user_attrs["executions"]) for trial in trials)
    return {"seconds": seconds, "cells_per_second": len(trials) / seconds, "memory_mb": max(memory),
            "states": dict(states), "begun": {str(times): count for times, count in begun.items()}}


def _work(job: Job, start: Any, done: Any) -> None:
    start.wait()
    work(job, fit=no_fit)
    done.put(_peak_memory())


def _peak_memory() -> float:
    """Of this process in MB. The system's other figure (`ru_maxrss`) begins with that of who started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def status_command(run: StudyRun) -> float:
    """Seconds of `python -m ablations status`, as a user gives it."""
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "ablations", "status", "--study", run.study, "--storage", run.storage, "--out",
         str(run.folder)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def measure(storage: str, folder: Path, *, cells: int, workers: Sequence[int], limit: float) -> dict[str, Any]:
    """All that is measured at one size; each number of workers empties a queue of its own."""
    found: dict[str, Any] = {"storage": "postgresql" if is_url(storage) else "journal", "cells": cells}
    for number in workers:
        run, found["enqueue_s"] = make_study(_place(storage, folder), folder, cells=cells)
        if number == 1:
            found["one"] = one_worker(run, limit=limit)
            found["status_s"] = status_command(run)
        else:
            found[f"workers_{number}"] = many_workers(run, workers=number)
    return found


def _place(storage: str, folder: Path) -> str:
    """A journal of its own for each study; a server holds them all."""
    return storage if is_url(storage) else str(folder / f"{uuid.uuid4().hex[:6]}.log")


def exponents(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Growth of the costs with the number of cells: the slope between the least and the largest, on log scales."""
    least, most = found[0], found[-1]
    if "one" not in least or most["cells"] <= least["cells"]:
        return {}
    span = math.log(most["cells"] / least["cells"])
    return {title: math.log(most["one"][name] / least["one"][name]) / span for name, title in COSTS.items()}


def table(found: Sequence[dict[str, Any]]) -> str:
    """The results, in Markdown; below each storage how its costs grow with the number of cells."""
    rows = []
    for storage, sizes in groupby(found, key=lambda at: at["storage"]):
        own = list(sizes)
        rows += [_line(at) for at in own]
        if powers := exponents(own):
            rows.append({"storage": storage, "cells": "grows with the power",
                         **{title: f"{power:.2f}" for title, power in powers.items()}})
    return str(pd.DataFrame(rows).fillna("").to_markdown(index=False, disable_numparse=True))


def _line(at: dict[str, Any]) -> dict[str, str]:
    one, many = at.get("one", {}), {key[8:]: value for key, value in at.items() if key.startswith("workers_")}
    memory = [value["memory_mb"] for value in (one, *many.values()) if value]
    return {
        "storage": at["storage"], "cells": f"{at['cells']:,}", "enqueue, s": f"{at['enqueue_s']:.2f}",
        **{title: f"{one[name]:.2f}" for name, title in COSTS.items() if one},
        "claim, first and last tenth, ms": f"{one['claim_ms'][0]:.1f}, {one['claim_ms'][-1]:.1f}" if one else "",
        "`status`, s": f"{at['status_s']:.2f}" if "status_s" in at else "",
        "worker, MB": f"{max(memory):.0f}" if memory else "",
        "cells a second": ", ".join(f"{value['cells_per_second']:.0f} ({key} workers)" for key, value in many.items()),
    }


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number from 1 on")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ablations.bench engine", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", nargs="+", default=["journal"], metavar="S",
                        help="journal (a file below --out), or postgresql://...: a database for the studies")
    parser.add_argument("--cells", type=_positive, nargs="+", default=[500, 2000, 10_000], metavar="N")
    parser.add_argument("--workers", type=_positive, nargs="+", default=[1, 16], metavar="N",
                        help="processes (default: 1 16)")
    parser.add_argument("--limit", type=float, default=300, metavar="SECONDS",
                        help="end the single worker after this time, however much is left (default: 300)")
    parser.add_argument("--out", type=Path, default=Path("results/bench-engine"), help="folder for engine.json")
    given = parser.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    for storage in given.storage:
        own = [measure(storage, given.out, cells=cells, workers=given.workers, limit=given.limit)
               for cells in given.cells]
        found += own
        print(f"{redact(storage)}\n{table(own)}", flush=True)
    about = {"machine": describe_machine(), "versions": versions(), "points": POINTS}
    write_text(given.out / "engine.json", json.dumps({**about, "found": found}, indent=1) + "\n")
    return 0
