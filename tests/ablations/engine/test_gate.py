"""Locks that are held for moments: whoever is stopped with one in hand is named, and stalls nobody for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from test_storage import SPEC, make_queue, queued

import ablations.engine.locks
from ablations.engine.locks import FileGate
from ablations.engine.storage import StudyError, create_study, mutex
from ablations.engine.trials_database import DatabaseTrials

HOLD = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1], is_singleton=False)
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_a_stopped_holder_of_a_file_is_named_and_waited_for_with_a_bound(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "s.gate")], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, holder.pid, os.WSTOPPED)
        gate = FileGate(tmp_path / "s.gate", what="the queue of study 's'", patience=0.2)
        with pytest.raises(StudyError, match=rf"queue of study 's' has been locked for 0 s by process {holder.pid} "
                                             r"\(stopped: .*kill -CONT.*nothing is lost"), gate:
            pass
    finally:
        holder.kill()
        holder.wait()
    with gate, gate:  # it went with its holder; and who has it may enter again
        pass


def test_a_gate_lets_one_in_at_a_time(shared_storage: str, tmp_path: Path) -> None:
    queue, inside, most = make_queue(shared_storage, tmp_path), [0], [0]

    def enter() -> None:
        for _ in range(20):
            with mutex(queue.study, folder=queue.locks, name="gate"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.001)
                inside[0] -= 1

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_whoever_is_stopped_while_it_claims_stalls_nobody_on_a_server(postgres: str, tmp_path: Path) -> None:
    """Its row is passed over, and the server ends its session after a while."""
    here, there = make_queue(postgres, tmp_path), make_queue(postgres, tmp_path / "there")
    here.enqueue(queued(3))
    claims = []

    def begin(number: int, attrs: Any) -> dict[str, Any]:
        claims.append(here.claim())  # while the other is half-way
        assert here.reap() == 0
        return there._begun(number, attrs)

    taken = there.trials.take(begin, foreign=False)
    assert taken is not None
    assert taken.user_attrs["cell"] == "cell0"
    assert claims[0] is not None
    assert claims[0].cell == "cell1"
    here.finish(claims[0], state="complete", value=1.0)
    assert isinstance(here.trials, DatabaseTrials)
    with here.trials.engine.connect() as connection:
        bound = connection.execute(sqlalchemy.text("SHOW idle_in_transaction_session_timeout")).scalar()
    assert bound == "1min"


def test_a_gate_in_a_database_is_bounded_too(postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = make_queue(postgres, tmp_path)
    gates = [mutex(queue.study, folder=queue.locks, name="gate") for _ in range(2)]
    monkeypatch.setattr(ablations.engine.locks, "GATE_PATIENCE", 0.5)
    monkeypatch.setattr(ablations.engine.locks, "IDLE_PATIENCE", 60)
    says = rf"s\.gate has been locked .* by process \S+:{os.getpid()} \(from"
    with gates[0], pytest.raises(StudyError, match=says), \
            gates[1]:
        pass
    monkeypatch.setattr(ablations.engine.locks, "IDLE_PATIENCE", 1)
    monkeypatch.setattr(ablations.engine.locks, "GATE_PATIENCE", 20)
    with gates[0], gates[1]:  # the server ended the session of the first, which said nothing for a second
        pass


@pytest.mark.parametrize("shared_storage", ["journal", "postgres"], indirect=True)
def test_of_two_starts_at_once_with_different_settings_one_is_refused(shared_storage: str) -> None:
    for attempt in range(10):
        name, outcomes = f"s{attempt}", []
        ready = threading.Barrier(2)

        def start(depth: int, name: str = name, outcomes: list[str] = outcomes, ready: Any = ready) -> None:
            ready.wait()
            try:
                create_study(shared_storage, name=name, spec={**SPEC, "model": {"depth": depth}})
                outcomes.append("accepted")
            except StudyError:
                outcomes.append("refused")

        threads = [threading.Thread(target=start, args=(depth,)) for depth in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["accepted", "refused"]
