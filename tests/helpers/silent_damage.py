"""What could damage results without a word, tried and counted.

    PYTHONPATH=.:tests/ablations/engine .venv/bin/python tests/helpers/silent_damage.py

Prints a line for each kind: how often it was tried, and how often it did harm. Bit flips of checkpoints and edits of
journals have programs of their own beside this one, which it calls (`--flips N --edits N`).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import checkpoint_damage
import journal_damage
import postgres
import yaml
from test_journal import FOREIGN
from test_redact import SECRETS

from ablations.engine.redact import redact
from ablations.engine.storage import StudyError, create_study
from lit_simplified.config import to_dict

STARTS, FITS = 40, 4
BOUND = 20.0
"""Seconds after which whoever waits for a stopped process counts as stalled; it is told to wait for five."""


def mixed(storage: str) -> tuple[int, int]:
    """Two starts at once of a study with different settings: how often both were accepted."""
    context = multiprocessing.get_context("spawn")
    barrier, told = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_start, args=(storage, depth, barrier, told)) for depth in (1, 2)]
    for process in processes:
        process.start()
    accepted = Counter(name for _ in processes for name in told.get())
    for process in processes:
        process.join()
    return STARTS, sum(count > 1 for count in accepted.values())


def _start(storage: str, depth: int, barrier: Any, told: Any) -> None:
    accepted = []
    for attempt in range(STARTS):
        barrier.wait()
        try:
            create_study(storage, name=f"s{attempt}", spec={"version": 1, "model": {"depth": depth}})
            accepted.append(f"s{attempt}")
        except StudyError:
            pass
    told.put(accepted)


def foreign(folder: Path) -> tuple[int, int]:
    """Files that are no journal, given as the storage of a run: how many were touched."""
    touched = 0
    for number, content in enumerate(FOREIGN.values()):
        path = folder / f"mine-{number}.dat"
        path.write_bytes(content)
        _ablations(["run", "--scale", "smoke", "--storage", str(path), "--out", str(folder / "out"), "--no-speed"])
        touched += path.read_bytes() != content
    return len(FOREIGN), touched


def leaks() -> tuple[int, int]:
    """Forms of a password: how many a redacted text still shows."""
    return len(SECRETS), sum(bool(re.search("SECRET|SEC|RET|p@", redact(storage))) for storage in SECRETS)


def doubles(folder: Path) -> tuple[int, int]:
    """Two equal trainings at once: how often either ended in a traceback, or none was finished."""
    config, harmed = to_dict(checkpoint_damage.tiny(folder)), 0
    for number in range(FITS):
        config |= {"out_dir": str(folder / f"runs-{number}")}
        (folder / "run.yaml").write_text(yaml.safe_dump(config))
        words = [sys.executable, "-m", "lit_simplified", "fit", "--config", str(folder / "run.yaml")]
        both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
        said = [process.communicate()[0] for process in both]
        harmed += any(b"Traceback" in text for text in said) or all(process.returncode for process in both)
    return FITS, harmed


def stalls(folder: Path) -> tuple[int, int]:
    """Locks that are held for moments, in the hand of a stopped process: how many stalled others beyond the bound."""
    create_study(str(folder / "journal.log"), name="s", spec={"version": 1})
    locks = [folder / "locks" / "s.gate", folder / "journal.log.lock"]
    return len(locks), sum(_stalls(folder, lock) for lock in locks)


def _stalls(folder: Path, lock: Path) -> bool:
    hold = ("import sys, time; from filelock import FileLock; lock = FileLock(sys.argv[1], is_singleton=False); "
            "lock.acquire(); print(1, flush=True); time.sleep(600)")
    wait = ("import sys; import ablations.engine.locks as locks; locks.acquire.__kwdefaults__['patience'] = 5; "
            "locks.FileGate.__init__.__kwdefaults__['patience'] = 5; "
            "from ablations.engine.storage import create_study; "
            "create_study(sys.argv[1], name='s', spec={'version': 1}).set_user_attr('x', 1)")
    lock.parent.mkdir(exist_ok=True)
    holder = subprocess.Popen([sys.executable, "-c", hold, str(lock)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        os.kill(holder.pid, signal.SIGSTOP)
        subprocess.run([sys.executable, "-c", wait, str(folder / "journal.log")], timeout=BOUND,
                       capture_output=True, check=False)
    except subprocess.TimeoutExpired:
        return True
    finally:
        holder.kill()
        holder.wait()
    return False


def _ablations(words: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "ablations", *words], capture_output=True, check=False, timeout=300)


def kinds(folder: Path, *, flips: int, edits: int, stack: ExitStack) -> Iterator[tuple[str, tuple[int, int]]]:
    """Every kind with what came of it, as soon as that is known."""
    yield "foreign files touched", foreign(folder)
    yield "password forms leaked", leaks()
    yield "unlike starts accepted, journal", mixed(str(folder / "mixed.log"))
    try:
        yield "unlike starts accepted, PostgreSQL", mixed(stack.enter_context(postgres.server()).create_database())
    except postgres.NoServerError as error:
        print(f"no PostgreSQL: {error}")
    yield "stalled by a stopped process", stalls(folder)
    yield "equal trainings at once harmed", doubles(folder)
    for reader, outcomes in checkpoint_damage.count(flips).items():
        yield f"bit flips unnoticed by {reader}", (flips, outcomes["silent"] + outcomes["crashed"])
    for kind, outcomes in journal_damage.survey(edits).items():
        print(f"journal edits, {kind}: {dict(outcomes)}")


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=400)
    parser.add_argument("--edits", type=int, default=420)
    given = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        for kind, (tried, harmed) in kinds(Path(name), flips=given.flips, edits=given.edits, stack=stack):
            print(f"{kind:<40}{harmed:>5} of {tried:<5}{time.monotonic() - begin:>6.0f} s", flush=True)


if __name__ == "__main__":
    main()
