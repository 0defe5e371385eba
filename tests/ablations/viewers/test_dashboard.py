"""`make dashboard`: Optuna's pages on the right journal, through the lock of the study's workers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ablations.engine.lookup import journal_of
from ablations.engine.storage import StudyError, create_study, open_study
from ablations.viewers.dashboard import main


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("new", "old")):
        journal = tmp_path / "results" / name / "journal.log"
        create_study(str(journal), name=name, spec={"version": 1})
        os.utime(journal, (time.time() - 100 * age,) * 2)
    return tmp_path / "results"


def test_the_journal_that_was_written_to_last_is_shown_or_the_one_that_is_named(results: Path) -> None:
    assert journal_of(None) == Path("results/new/journal.log")
    assert journal_of("old") == Path("results/old/journal.log")
    with pytest.raises(StudyError, match=r"--study='other'.*There are: new, old"):
        journal_of("other")


def test_nothing_to_show_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2
    assert "There are: none" in capsys.readouterr().err
    assert main(["--storage", "nowhere/journal.log"]) == 2
    assert "no journal there" in capsys.readouterr().err
    assert not Path("nowhere").exists()


def test_only_this_machine_is_served_unless_asked(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[dict[str, Any]] = []
    stand_in = SimpleNamespace(run_server=lambda storage, **address: served.append(address))
    monkeypatch.setitem(sys.modules, "optuna_dashboard", stand_in)
    assert main([]) == 0
    assert main(["--host", "0.0.0.0", "--port", "8081"]) == 0
    assert served == [{"host": "localhost", "port": 8080}, {"host": "0.0.0.0", "port": 8081}]


def test_the_pages_are_served_and_leave_the_journal_alone(results: Path) -> None:
    pytest.importorskip("optuna_dashboard")
    journal = results / "new" / "journal.log"
    before = journal.read_bytes()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "ablations.viewers.dashboard", "--port", str(port)], stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        shown = json.loads(fetch(f"http://localhost:{port}/api/studies"))
        assert [study["study_name"] for study in shown["study_summaries"]] == ["new"]
        assert journal.read_bytes() == before
        open_study(str(journal), name="new").set_user_attr("still", "writable")
    finally:
        process.kill()
        process.wait()


def fetch(address: str, *, seconds: float = 60) -> bytes:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                content: bytes = answer.read()
                return content
        except OSError:
            assert time.monotonic() < deadline, "no answer"
            time.sleep(0.2)
