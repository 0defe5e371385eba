"""A run's folder: finished runs are left alone, damaged checkpoints healed, and one process at a time trains a run."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from checkpoint_damage import count, flip

from lit_simplified import PRESETS, ConfigError, CurvePoint, ModelConfig, RunConfig, RunResult, fit
from lit_simplified.__main__ import main
from lit_simplified.config import DataConfig, OptimConfig, TrainerConfig, run_id
from lit_simplified.run_folder import OWNER, Owner

Finished = Callable[[RunConfig], RunResult]


class CrashError(Exception):
    """Stands for a crash in the middle of a run."""


@pytest.fixture
def config(corpus: DataConfig, tmp_path: Path) -> RunConfig:
    return RunConfig(
        model=ModelConfig(block=PRESETS["sas"], depth=1, width=16, heads=2, vocab_size=300, context=16),
        data=replace(corpus, val_windows=4, test_windows=4), optim=OptimConfig(steps=12, learning_rate=1e-2),
        trainer=TrainerConfig(
            accelerator="cpu", val_every=4, checkpoint_every=2, progress_bar=False, threads=1, tensorboard=False,
            inspect_every=0,
        ),
        out_dir=str(tmp_path / "runs"),
    )


def folder_of(config: RunConfig) -> Path:
    return Path(config.out_dir, run_id(config))


def copied(config: RunConfig, finished_run: Finished) -> RunResult:
    """A finished run of the test's own, without its training."""
    result = finished_run(config)
    shutil.copytree(result.run_dir, folder_of(config))
    return replace(result, run_dir=str(folder_of(config)))


def interrupt(config: RunConfig, *, at: int = 8) -> Path:
    """The checkpoints of a run that crashed at a validation."""
    def crash(point: CurvePoint) -> None:
        if point.step == at:
            raise CrashError

    with pytest.raises(CrashError):
        fit(config, on_validation=crash)
    return folder_of(config) / "checkpoints"


def outcome(result: RunResult) -> object:
    """What does not depend on the clock."""
    return [(p.step, p.train_loss, p.val_loss) for p in result.curve], result.test


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_left_alone(
    config: RunConfig, finished_run: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    first = copied(config, finished_run)
    folder = Path(first.run_dir)
    (folder / "notes.txt").write_text("mine")
    before = tree(folder.parent)
    seen: list[CurvePoint] = []
    assert fit(config, on_validation=seen.append) == fit(config, resume=False) == first
    assert not seen
    other = replace(config, trainer=replace(config.trainer, inspect_every=5))
    assert fit(other) == first
    assert "already finished with trainer.inspect_every=0; nothing is trained" in capsys.readouterr().err
    main(["fit", "--config", str(folder / "config.yaml"), "--out_dir", config.out_dir])
    printed = capsys.readouterr()
    assert "already finished; nothing" in printed.err
    assert f"validation loss {first.val_loss:.4f}" in printed.out
    assert tree(folder.parent) == before
    assert not (folder / OWNER).exists()


def test_redo_moves_a_run_aside(
    config: RunConfig, finished_run: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    first = copied(config, finished_run)
    folder = Path(first.run_dir)
    (folder / "notes.txt").write_text("mine")
    main(["fit", "--config", str(folder / "config.yaml"), "--out_dir", config.out_dir, "--redo", "true"])
    (folder / "result.json").unlink()  # an unfinished one, too
    assert outcome(fit(config, redo=True)) == outcome(first)
    aside = [folder.with_name(f"{folder.name}.old-{number}") for number in (1, 2)]
    assert (aside[0] / "notes.txt").read_text() == "mine"
    assert [(path / "result.json").exists() for path in (*aside, folder)] == [True, False, True]
    assert not list(folder.parent.glob(f"*/{OWNER}"))
    assert f"what was there is now {aside[1].name}" in capsys.readouterr().err


def test_a_recorded_result_is_that_which_was_returned(config: RunConfig) -> None:
    wild = replace(config, optim=replace(config.optim, learning_rate=1e4, clip=None, steps=200))
    first = fit(wild)
    again = fit(wild)
    assert again.state == first.state == "diverged"
    assert math.isnan(again.val_loss)
    assert math.isnan(again.val_perplexity)
    assert repr(asdict(again)) == repr(asdict(first))


def test_a_study_trains_a_finished_run_again_in_its_place(config: RunConfig, finished_run: Finished) -> None:
    first = copied(config, finished_run)
    seen: list[CurvePoint] = []
    assert outcome(fit(config, on_validation=seen.append, take_over=True)) == outcome(first)
    assert len(seen) == 3
    assert [path.name for path in Path(config.out_dir).iterdir()] == [run_id(config)]


@pytest.mark.parametrize("change", [
    {"data": {"recipe": "nowhere.yaml"}}, {"data": {"batch_size": 10**6}}, {"trainer": {"accelerator": "abacus"}},
    {"trainer": {"accelerator": "gpu"}}, {"trainer": {"options": {"wings": 2}}}, {"trainer": {"precision": "7-true"}},
])
def test_a_run_that_is_refused_leaves_no_folder_and_takes_none_away(
    config: RunConfig, change: dict[str, dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    [(part, fields)] = change.items()
    with pytest.raises(ConfigError) as refused:
        fit(replace(config, **{part: replace(getattr(config, part), **fields)}))
    assert "\n" not in str(refused.value)
    assert not Path(config.out_dir).exists()


@pytest.mark.parametrize(("damaged", "told"), [
    (["last.ckpt"], "continues from step 4 of 12"),
    (["last.ckpt", "previous.ckpt"], "begins anew, since no sound checkpoint is left"),
])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    config: RunConfig, finished_run: Finished, capsys: pytest.CaptureFixture[str], damaged: list[str], told: str
) -> None:
    """As does a study's, whatever is kept of it. The result is that of a run without damage."""
    checkpoints = interrupt(config)  # at 8, before the checkpoint of that step
    assert sorted(path.name for path in checkpoints.iterdir()) == ["last.ckpt", "previous.ckpt"]  # of 6 and of 4
    (checkpoints.parent / "notes.txt").write_text("mine")
    for name in damaged:
        (checkpoints / name).write_bytes(flip((checkpoints / name).read_bytes(), 9999))
    capsys.readouterr()
    assert outcome(fit(config, take_over=True)) == outcome(finished_run(config))
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "cannot be used" in line] == [
        f"{checkpoints / name} cannot be used, and is now {name}.damaged: its content is not what was written"
        for name in damaged
    ]
    assert f"{checkpoints.parent}: {told}" in lines
    left = ["last.ckpt", *(f"{name}.damaged" for name in damaged)]
    assert sorted(path.name for path in checkpoints.iterdir()) == sorted(left)
    assert (checkpoints.parent / "notes.txt").read_text() == "mine"


def test_a_damaged_result_is_made_again_from_the_checkpoint(config: RunConfig, finished_run: Finished) -> None:
    first = copied(config, finished_run)
    Path(first.run_dir, "result.json").write_text("{")
    assert outcome(fit(config)) == outcome(first) == outcome(fit(config))


@contextmanager
def child(run: Callable[[], object]) -> Iterator[int]:
    """A process that runs a function and exits with 3 if that ends in a ConfigError."""
    pid = os.fork()
    if pid == 0:
        status = 1
        with suppress(BaseException):
            try:
                run()
                status = 0
            except ConfigError as error:
                status = 3 if "has taken over" in str(error) else 4
        os._exit(status)
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def stopped(pid: int) -> bool:
    return os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])


def stop_at(step: int) -> Callable[[CurvePoint], None]:
    def stop(point: CurvePoint) -> None:
        if point.step == step:
            os.kill(os.getpid(), signal.SIGSTOP)

    return stop


def test_a_second_training_is_refused_until_the_first_is_gone(
    config: RunConfig, finished_run: Finished, one_thread: None
) -> None:
    whole = finished_run(config)
    with child(lambda: fit(config, on_validation=stop_at(8))) as pid:
        assert stopped(pid)
        before = tree(folder_of(config))
        for options in ({}, {"redo": True}, {"resume": False}):
            with pytest.raises(ConfigError, match=rf"out_dir=.*process {pid} on .* is training {run_id(config)} there"):
                fit(config, **options)
        assert tree(folder_of(config)) == before
    assert outcome(fit(config)) == outcome(whole)  # killed: its lock went with it


def test_a_worker_takes_over_from_a_process_that_was_given_up(
    config: RunConfig, finished_run: Finished, one_thread: None
) -> None:
    """That one then goes on, and finds the run another's before it writes anything."""
    whole = finished_run(config)
    with child(lambda: fit(config, on_validation=stop_at(4), take_over=True)) as zombie:
        assert stopped(zombie)
        ended: list[int] = []

        def wake(point: CurvePoint) -> None:
            if point.step == 4:
                os.kill(zombie, signal.SIGCONT)
                ended.append(os.waitstatus_to_exitcode(os.waitpid(zombie, 0)[1]))
                with pytest.raises(ConfigError, match=rf"process {os.getpid()} on .* is training"):
                    Owner(folder_of(config))

        result = fit(config, on_validation=wake, take_over=True)
    assert ended == [3]
    assert outcome(result) == outcome(whole)
    assert [path.name for path in (folder_of(config) / "checkpoints").iterdir()] == ["last.ckpt"]


def test_the_newest_owner_writes_and_lets_go(tmp_path: Path) -> None:
    with Owner(tmp_path / "run") as first:
        first.check()
        with Owner(tmp_path / "run", take_over=True) as second:
            second.check()
            with pytest.raises(ConfigError, match=rf"process {os.getpid()} on .* has taken over run"):
                first.check()
            with pytest.raises(ConfigError, match="is training run there"):
                Owner(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())
    with Owner(tmp_path / "run") as third:
        (tmp_path / "run" / OWNER).write_text("{")
        with pytest.raises(ConfigError, match="another process has taken over"):
            third.check()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_the_token_alone_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with Owner(tmp_path) as first, Owner(tmp_path) as second:
        second.check()
        with pytest.raises(ConfigError, match="has taken over"):
            first.check()


@pytest.mark.slow
def test_no_bit_of_a_checkpoint_changes_unnoticed() -> None:
    began = time.monotonic()
    for reader, outcomes in count(100, seed=1).items():
        assert outcomes == {"refused": 100}, reader
    assert time.monotonic() - began < 600


def test_a_folder_that_cannot_be_made_is_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"out_dir='.*file': cannot be used .Not a directory"):
        Owner(tmp_path / "file" / "run")
