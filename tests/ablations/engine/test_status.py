"""What the commands say of a study, and with which exit status they end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import journal_damage as damage
import pytest
from rich.console import Console

import ablations.__main__ as command
from ablations.analysis.tables import read
from ablations.engine.lookup import check_name, place_of
from ablations.engine.queue import Queue, QueuedCell
from ablations.engine.status import line, render, status
from ablations.engine.storage import StudyError, open_study
from ablations.report.conditions import trials, worker_names
from ablations.report.formats import json_lines
from ablations.study import Options, study_of
from lit_simplified.config import ConfigError, RunConfig

REASON = "cannot open [/x/y.bin] " + "because of this " * 30 + "(out of memory: try a smaller data.batch_size)"
FLAGS = ["--study", "s", "--scale", "smoke", "--presets", "pre_ln", "sas_p", "--lr", "3e-3", "2e-2",
         "--select", "0"]


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of four cells: one failed, two diverged, one complete."""
    def fit(config: RunConfig, *, on_validation: Any) -> damage.Result:
        if config.model.block.attention == "shaped" and config.optim.learning_rate < 0.015:
            raise OSError(REASON)
        return train(config, on_validation=on_validation)

    train = damage.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(damage, "fit", fit)
        return damage.make(tmp_path_factory.mktemp("failed"), presets=("pre_ln", "sas_p"))


def test_a_reason_in_brackets_is_shown_whole(failed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["status", "--study", "s", "--out", str(failed.parent)]) == 0
    said = "".join(capsys.readouterr().out.split())
    assert "".join(REASON.split()) in said
    Console(width=80).print(render(status(open_study(str(failed), name="s")), title="[/foo]"))
    assert "[/foo]" in capsys.readouterr().out


def test_failed_cells_are_an_exit_status_of_one_and_diverged_ones_are_none(
    failed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "execute", lambda run, **options: None)
    monkeypatch.setattr(command, "_report", lambda given: 0)
    out = ["--out", str(failed.parent)]
    assert command.main(["run", *FLAGS, *out]) == 1
    said = capsys.readouterr().err
    assert f"1 of 4 cells failed. Why: python -m ablations status --study s --storage {failed}" in said
    assert command.main(["run", *FLAGS, *out, "--presets", "pre_ln"]) == 0


def test_a_dry_run_tells_how_many_cells_a_choice_is_followed_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_measured", lambda *given, **named: None)
    flags = [*FLAGS[:-2], "--seeds", "0", "1", "2", "--out", str(tmp_path), "--dry-run"]
    assert command.main(["run", *flags]) == 0
    said = capsys.readouterr().out
    assert said.count("-s1000-") == 2 * 2
    assert "... and then 6 cells" in said
    assert "10 cells of 2 rows" in said
    assert "10 to train" in said
    assert command.main(["run", *flags, "--select", "0"]) == 0
    assert "12 cells of 2 rows" in capsys.readouterr().out


def test_a_running_cell_whose_process_is_gone_is_called_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = damage.make(tmp_path, presets=("pre_ln",), rates=(3e-3,))
    queue = Queue(open_study(str(path), name="s"), storage=str(path), folder=tmp_path)
    queue.enqueue([QueuedCell(f"cell{number}", {"optim": {"steps": 9}}, {}) for number in range(2)])
    alive, gone = queue.claim(), queue.claim()
    assert alive is not None
    assert gone is not None
    gone.lock.release()  # what the end of its process does
    text = path.read_bytes()
    assert command.main(["status", "--study", "s", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "1 running, 1 lost, 2 left" in said
    assert "the next `run` gives the cell back" in said
    assert [part.split()[1] for part in said.splitlines() if part.startswith("cell1")] == ["lost:"]
    assert "lost" not in line(status(queue.study))
    assert path.read_bytes() == text


@pytest.mark.parametrize("name", ["../x", "a/b", "[/foo]", ".hidden", "-x", "", "x" * 151, "a\nb", "a.", " a"])
def test_a_name_that_cannot_be_that_of_a_folder_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StudyError, match="A name has letters, digits"):
        place_of(name)
    if name:
        for words in (["run", f"--study={name}", "--dry-run"], ["status", f"--study={name}"]):
            assert command.main(words) == 2
            assert "cannot be a study's name" in capsys.readouterr().err


def test_usual_names_are_welcome() -> None:
    for name in ("small-clm", "table1-small-mlm", "my study.2", "연구_1", "pre_ln+norm"):
        assert check_name(name) == name


@pytest.mark.parametrize("flags", [["--seeds", "-1"], ["--lr", "nan"], ["--lr", "inf"], ["--lr", "0"], ["--lr=-1e-3"]])
def test_numbers_without_sense_are_refused(flags: list[str]) -> None:
    for name in ("run", "table1"):
        with pytest.raises(SystemExit) as caught:
            command.main([name, "--scale", "smoke", "--dry-run", *flags])
        assert caught.value.code == 2
    with pytest.raises(ConfigError, match="--lr"):
        study_of(Options(learning_rates=[float("nan")]))


def test_files_to_be_shared_hide_the_hosts(failed: Path) -> None:
    record = read(open_study(str(failed), name="s"))
    worker = record.trials[0]["executions"][0]["worker"]
    host, _, process = worker.rpartition(":")
    assert worker_names(record) == {worker: f"host 1, process {process}"}
    text = json_lines(trials(record))
    assert host not in text
    assert f'"worker": "host 1, process {process}"' in text
