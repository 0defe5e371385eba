"""Studies that two hosts train together while processes are killed and stopped, and their server goes away.

`SURVIVAL_ROUNDS=12 pytest -s -k hosts` does twelve rounds with random seeds and prints what each came to.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import pytest
from optuna.exceptions import StorageInternalError
from postgres import Server
from test_run import alive
from test_survival import CELLS, ROUNDS, check_executions, entries, find_workers, run_apart, stepping_fit

from ablations.engine.storage import StudyError, latest, open_storage, open_study, ours, state_of
from lit_simplified.config import RunConfig

BEAT = 1
"""Seconds between heartbeats. Who has been silent for four is suspected, and given up after two more of watching."""
STOPPED = 8.0
"""Seconds for which a process is stopped: beyond that."""


def beat_often() -> None:
    """Let this process open servers with such heartbeats."""
    open_storage.__kwdefaults__["heartbeat"] = BEAT


if parent_process() is not None:  # a worker, which imports this module for its stand-in
    beat_often()


def slow_fit(config: RunConfig, *, on_validation: Any) -> Any:
    """As `stepping_fit`; of this module, so that a worker imports it."""
    return stepping_fit(config, on_validation=on_validation)


def run_here(folder: str, storage: str) -> None:
    """A host's command."""
    beat_often()
    run_apart(folder, storage, slow_fit)


def can_rename() -> bool:
    """Whether a process can be given a host name of its own here."""
    program = shutil.which("unshare")
    return program is not None and subprocess.run([program, "--uts", "true"], capture_output=True).returncode == 0


@dataclass
class Host:
    """A machine with a name and a folder; two may share the folder, as on a cluster's file system."""

    name: str
    folder: Path
    storage: str
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    def start(self) -> None:
        """Give the command."""
        code = f"import test_hosts; test_hosts.run_here({str(self.folder)!r}, {self.storage!r})"
        words = ["unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"', self.name, sys.executable, "-c", code]
        paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with (self.folder / f"{self.name}.txt").open("ab") as said:
            self.process = subprocess.Popen(words, stdout=said, stderr=said, env={**os.environ, **paths})
        self.starts += 1

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None


@dataclass
class Chaos:
    """What is done to the hosts, by chance."""

    hosts: list[Host]
    dice: random.Random
    server: Server | None
    deeds: Counter[str] = field(default_factory=Counter)
    stopped: list[threading.Timer] = field(default_factory=list)

    def act(self) -> None:
        """Kill or stop a process, or the server."""
        kinds = ["worker", "training", "training", "command", "stop", "stop", *(["server"] if self.server else [])]
        kind = self.dice.choice(kinds)
        if kind == "server":
            self.deeds[kind] += self._restart_server()
            return
        victims = list(self._victims(kind))
        if not victims:
            return
        pid = self.dice.choice(victims)
        self.deeds[kind] += 1
        with suppress(ProcessLookupError):
            if kind == "stop":
                os.kill(pid, signal.SIGSTOP)
                self.stopped.append(threading.Timer(STOPPED, _go_on, [pid]))
                self.stopped[-1].start()
            else:
                os.kill(pid, signal.SIGKILL)

    def _victims(self, kind: str) -> Iterator[int]:
        for host in self.hosts:
            workers, training = find_workers(host.folder)
            if kind == "command":
                yield from [host.process.pid] if host.process is not None and host.is_running else []
            else:
                yield from training if kind in ("training", "stop") else workers

    def _restart_server(self) -> int:
        """At most twice in a round: each costs seconds."""
        if self.server is None or self.deeds["server"] >= 2:
            return 0
        self.server.stop(mode="immediate")
        time.sleep(self.dice.uniform(0.5, 2.0))
        self.server.start()
        return 1

    def end(self) -> None:
        """Let all go on."""
        for timer in self.stopped:
            timer.join()


def _go_on(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def states(storage: str) -> Counter[str]:
    """The states of the cells; nothing while there is no study, or no server."""
    with suppress(StudyError, StorageInternalError):
        return Counter(state_of(trial) for trial in latest(ours(open_study(storage, name="s").get_trials())).values())
    return Counter()


@pytest.mark.slow
@pytest.mark.skipif(not can_rename(), reason="no process can be given a host name of its own here (unshare --uts)")
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_two_hosts_lose_and_double_nothing(
    shared_storage: str, tmp_path: Path, seed: int, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue("postgres_server") if "://" in shared_storage else None
    shared = seed % 2 == 0
    folders = [tmp_path, tmp_path] if shared else [tmp_path / "one", tmp_path / "two"]
    hosts = [Host(name, folder, shared_storage) for name, folder in zip(("one", "two"), folders, strict=True)]
    for host in hosts:
        host.folder.mkdir(exist_ok=True)
    chaos = Chaos(hosts, random.Random(seed), server)
    begin = time.monotonic()
    while (now := states(shared_storage)) != {"complete": CELLS}:
        said = "\n".join((host.folder / f"{host.name}.txt").read_text()[-1500:] for host in hosts if host.starts)
        assert time.monotonic() - begin < 280, (now, said)
        for host in hosts:
            if not host.is_running:
                host.start()
        time.sleep(chaos.dice.uniform(0.3, 1.5))
        if sum(len(entries(folder / "begun.jsonl")) for folder in set(folders)) > 4:
            chaos.act()
    chaos.end()
    for host in hosts:
        assert host.process is not None
        host.process.wait(60)
    check_round(shared_storage, tmp_path, sorted(set(folders)))
    print(f"\n{shared_storage.split(':')[0][-11:]} seed {seed}, {'one folder' if shared else 'two folders'}: "
          f"{dict(chaos.deeds)}, {sum(host.starts for host in hosts)} starts, {time.monotonic() - begin:.0f} s")


def check_round(storage: str, together: Path, folders: list[Path]) -> None:
    """Each cell is complete once, by the log of executions and by what training itself noted."""
    for name in ("begun.jsonl", "ended.jsonl"):
        noted = [line for folder in folders for line in
                 ((folder / name).read_text().splitlines() if (folder / name).exists() else [])]
        (together / name).write_text("".join(f"{line}\n" for line in noted))
    trials = ours(open_study(storage, name="s").get_trials())
    complete = Counter(trial.user_attrs["cell"] for trial in trials if state_of(trial) == "complete")
    assert len(complete) == CELLS
    assert set(complete.values()) == {1}
    for trial in latest(trials).values():
        check_executions(together, trial)
    workers = [entry["pid"] for folder in folders for entry in entries(folder / "workers.jsonl")]
    assert not [pid for pid in workers if alive(pid)]
