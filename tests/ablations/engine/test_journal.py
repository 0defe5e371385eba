"""The journal: only a journal is ever written to, no damage goes unnoticed, and what is sound survives a repair."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import journal_damage as damage
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from ablations.__main__ import main
from ablations.analysis.tables import read
from ablations.engine.journal import LAST_OPERATION, AtomicJournal, lock_of
from ablations.engine.queue import Queue, QueuedCell
from ablations.engine.repair import repair
from ablations.engine.storage import StudyError, create_study, open_storage, open_study
from ablations.study import Options, plan_run

Lines = list[bytes]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The journal of a study of six finished cells."""
    return damage.make(tmp_path_factory.mktemp("sound"), presets=("pre_ln", "sas", "sas_p"))


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as an older version would have made it, but for the seals."""
    return damage.make(tmp_path_factory.mktemp("older"), older=True, presets=("pre_ln", "sas", "sas_p"))


def copy(sound: Path, folder: Path, change: Callable[[Lines], bytes] = b"".join) -> Path:
    path = folder / "journal.log"
    path.write_bytes(change(sound.read_bytes().splitlines(keepends=True)))
    return path


# What is no journal.

FOREIGN = {
    "JSON without a line break": b'{"a": [1, 2]}', "binary": random.Random(0).randbytes(299_000),
    "text": b"notes\nmore\n",
    "JSON lines": b'{"op": 1}\n{"op": 2}\n', "one brace": b"{", "a blank line": b"\n",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.dat"
    path.write_bytes(content)
    for attempt in (
        lambda: create_study(str(path), name="s", spec={}), lambda: open_study(str(path), name="s"),
        lambda: repair(path), lambda: AtomicJournal(path, lock=lock_of(path)).append_logs([{"op_code": 0}]),
    ):
        with pytest.raises(StudyError, match=r"mine\.dat.*not the journal of a study"):
            attempt()
    assert path.read_bytes() == content


def test_what_is_no_file_is_refused_and_an_empty_file_begun(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder" / "journal.log").mkdir(parents=True)
    (tmp_path / "file").touch()
    places = {"pipe": "a pipe", "folder": "a folder", "/dev/null": "a device", "file/journal.log": "cannot be opened"}
    for place, what in places.items():
        with pytest.raises(StudyError, match=what):
            create_study(str(tmp_path / place), name="s", spec={})
    create_study(str(tmp_path / "file"), name="s", spec={})
    assert open_study(str(tmp_path / "file"), name="s").study_name == "s"


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: AtomicJournal) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(AtomicJournal, "_read", refuse)
    with pytest.raises(StudyError, match=r"cannot be opened .Permission denied.*readable"):
        create_study(str(tmp_path / "journal.log"), name="s", spec={})


# What is damaged.


def number_of(lines: Lines, mark: bytes, occurrence: int = 0) -> int:
    return [number for number, line in enumerate(lines) if mark in line][occurrence]


def without(mark: bytes, occurrence: int = 0) -> Callable[[Lines], bytes]:
    return lambda lines: b"".join(lines[: (at := number_of(lines, mark, occurrence))] + lines[at + 1 :])


def flipped(mark: bytes, occurrence: int = 0) -> Callable[[Lines], bytes]:
    def change(lines: Lines) -> bytes:
        at = number_of(lines, mark, occurrence)
        return b"".join(lines).replace(lines[at], lines[at].replace(mark, mark.swapcase(), 1))

    return change


def swapped(lines: Lines) -> bytes:
    one, other = number_of(lines, b'"op_code":4', 1), number_of(lines, b'"op_code":4', 2)
    lines[one], lines[other] = lines[other], lines[one]
    return b"".join(lines)


def merged(lines: Lines) -> bytes:
    at = number_of(lines, b'"result"')
    return b"".join([*lines[:at], lines[at][:-1], *lines[at + 1 :]])


DAMAGE: dict[str, tuple[Callable[[Lines], bytes], int]] = {
    # an edit, and how many of the six cells are left after the repair
    "a trial doubled": (lambda lines: b"".join([*lines[:6], lines[5], *lines[6:]]), 6),
    "a trial lost": (without(b'"op_code":4', 1), 5),
    "a result lost": (without(b'"result"', 2), 5),
    "a start lost": (without(b'"user_attr":{"locks"', 2), 6),
    "the study lost": (without(b'"op_code":0'), 6),
    "two trials swapped": (swapped, 6),
    "a result changed": (flipped(b'"result"', 1), 5),
    "a seal changed": (flipped(b',"seal"', 30), 5),
    "the first line changed": (flipped(b'"op_code"'), 6),
    "two lines in one": (merged, 6),
    "a foreign line": (lambda lines: b"".join([*lines[:20], b"\xff{\n", *lines[20:]]), 6),
    "a line of an older version": (lambda lines: b"".join([*lines, damage.plain(lines[9])]), 6),
    "twice the same": (lambda lines: b"".join(lines + lines), 6),
    "other line breaks": (lambda lines: b"".join(lines).replace(b"\n", b"\r\n"), 6),
    "half of another copy": (lambda lines: b"".join(lines[:40]) + b"".join(lines[50:]).replace(b"\n", b"\0\n"), 0),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_refused_with_its_line_and_repaired_without_moving_anything(
    case: str, sound: Path, tmp_path: Path
) -> None:
    change, left = DAMAGE[case]
    path, expected = copy(sound, tmp_path, change), damage.results(sound)
    text = path.read_bytes()
    for attempt in (lambda: open_study(str(path), name="s"), lambda: create_study(str(path), name="s", spec={})):
        with pytest.raises(StudyError, match=r"journal.log, line \d+: .*python -m ablations repair --storage"):
            attempt()
    assert path.read_bytes() == text
    assert main(["repair", "--storage", str(path), "--study", "s"]) == 0
    assert (tmp_path / "journal.log.damaged-1").read_bytes() == text
    found = damage.results(path)
    assert damage.wrong(found, expected) == []
    assert len(found) - 2 >= left, sorted(set(expected) - set(found))
    assert repair(path).copy is None
    create_study(str(path), name="s", spec=expected["spec"]).set_user_attr("more", 1)  # what is added fits
    assert damage.wrong(damage.results(path), expected) == []


def test_the_error_names_the_line(sound: Path, tmp_path: Path) -> None:
    path = copy(sound, tmp_path, lambda lines: b"".join([*lines[:8], *lines[9:]]))
    with pytest.raises(StudyError, match="line 9: it is line 10 of this journal"):
        open_study(str(path), name="s")


def test_a_dry_run_of_a_damaged_journal_does_not_take_it_for_a_new_study(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy(sound, tmp_path, lambda lines: b"".join([*lines[:8], *lines[9:]]))
    dry = ["run", "--dry-run", "--scale", "smoke", "--presets", "pre_ln", "--study", "s", "--out", str(tmp_path)]
    assert main(dry) == 2
    assert "line 9: it is line 10 of this journal" in capsys.readouterr().err
    (tmp_path / "journal.log").unlink()
    assert main(dry) == 0
    assert "1 to train" in capsys.readouterr().out


def test_a_cell_that_lost_its_record_is_trained_again(sound: Path, tmp_path: Path) -> None:
    path = copy(sound, tmp_path, without(b'"op_code":4', 1))
    repaired = repair(path)
    assert repaired.missing == 1
    run = plan_run(Options(name="s", out=tmp_path, scale="smoke", learning_rates=(3e-3, 2e-2), select=0,
                           presets=("pre_ln", "sas", "sas_p")))
    cells = {cell.id for cell in run.cells}
    lost = cells - set(damage.results(path))
    assert len(lost) == 1
    queue = Queue(open_study(str(path), name="s"), storage=str(path), folder=tmp_path)
    assert queue.enqueue([QueuedCell(cell, {}, {}) for cell in sorted(cells)]) == 1


def test_a_study_at_work_is_not_repaired(sound: Path, tmp_path: Path) -> None:
    path = copy(sound, tmp_path)
    queue = Queue(open_study(str(path), name="s"), storage=str(path), folder=tmp_path)
    queue.enqueue([QueuedCell("new", {}, {})])
    claim = queue.claim()
    with path.open("ab") as file:
        file.write(b"\xff\n")
    text = path.read_bytes()
    with pytest.raises(StudyError, match="a process is at work"):
        repair(path)
    assert path.read_bytes() == text
    assert claim is not None


# Older versions, and Optuna itself.


def test_a_journal_of_an_older_version_is_read_and_continued(sound: Path, tmp_path: Path) -> None:
    path = copy(sound, tmp_path, lambda lines: damage.plain(b"".join(lines)))
    assert damage.results(path) == damage.results(sound)
    old = path.read_bytes()
    study = create_study(str(path), name="s", spec=damage.results(sound)["spec"])
    study.set_user_attr("more", 1)
    assert path.read_bytes().startswith(old)
    assert damage.results(path) == damage.results(sound)
    assert repair(path).copy is None
    path.write_bytes(path.read_bytes().replace(b'"seed":0', b'"seed":1', 1))  # in the part without seals
    with pytest.raises(StudyError, match="does not continue what stands before it"):
        open_study(str(path), name="s")


@pytest.mark.parametrize("change", [
    lambda lines: b"".join([*lines[:2], b"[1]\n", *lines[2:]]), without(b'"op_code":4', 1), swapped,
    lambda lines: b"".join([*lines[:6], lines[5], *lines[6:]]),
    lambda lines: b"".join([*lines[:9], b'{"op_code":4,"worker_id":"x"}\n', *lines[9:]]),
    lambda lines: b"".join(lines).replace(b'"config":', b'"Config":', 1),
])  # fmt: skip
def test_without_seals_no_result_is_taken_for_anothers(
    change: Callable[[Lines], bytes], older: Path, tmp_path: Path
) -> None:
    path = copy(older, tmp_path, lambda lines: change([damage.plain(line) for line in lines]))
    with pytest.raises(StudyError, match=r"damaged.*python -m ablations repair"):
        open_study(str(path), name="s")
    repair(path)
    assert damage.wrong(damage.results(path), damage.results(older)) == []


def test_a_line_without_seal_that_says_it_is_of_another_kind_ends_in_no_raw_error(older: Path, tmp_path: Path) -> None:
    lines = [damage.plain(line) for line in older.read_bytes().splitlines(keepends=True)]
    kinds = {line[: line.index(b",")]: number for number, line in enumerate(lines)}  # the last of each
    expected, seen = damage.results(older), set()
    for start, number in kinds.items():
        for code in range(LAST_OPERATION + 2):
            def edit(all_: Lines, rng: Any, at: int = number, said: bytes = start, code: int = code) -> bytes:
                all_[at] = all_[at].replace(said, b'{"op_code":%d' % code, 1)
                return b"".join(all_)

            first, second, _ = damage.try_edit(edit, lines, folder=tmp_path, sound=expected, rng=random.Random(0))
            seen |= {first.split()[0], second.split()[0]}
    assert {"right", "refused"} <= seen <= {"right", "refused", "changed"}


def test_a_result_says_whose_it_is(sound: Path, tmp_path: Path) -> None:
    """Whatever happened to the lines: here all of them fit one another again, around an exchanged result."""
    path = copy(sound, tmp_path)
    logs = [json.loads(line) for line in path.read_bytes().splitlines()]
    one, other = [log for log in logs if "result" in log.get("user_attr", {})][:2]
    one["user_attr"], other["user_attr"] = other["user_attr"], one["user_attr"]
    path.unlink()
    AtomicJournal(path, lock=lock_of(path)).path.touch()
    AtomicJournal(path, lock=lock_of(path)).append_logs(logs)
    with pytest.raises(StudyError, match="result is that of another cell"):
        read(open_study(str(path), name="s"))
    assert len(repair(path).cells) == 2


def test_optuna_reads_a_sealed_journal_as_it_would_without(sound: Path, tmp_path: Path) -> None:
    def trials(text: bytes) -> Any:
        path = tmp_path / "copy.log"
        path.write_bytes(text)
        return optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(path)))).trials

    text = sound.read_bytes()
    assert all(b',"seal":"' in line for line in text.splitlines())
    assert trials(text) == trials(re.sub(rb',"seal":"[^"]*"', b"", text))


def test_only_new_lines_are_read_and_a_writer_sees_those_of_others(sound: Path, tmp_path: Path) -> None:
    path = copy(sound, tmp_path)
    backend = AtomicJournal(path, lock=lock_of(path))
    read = list(backend.read_logs(0))
    before = backend.position.offset
    open_study(str(path), name="s").set_user_attr("more", "x")
    assert [log["user_attr"] for log in backend.read_logs(len(read))] == [{"more": "x"}]
    backend.append_logs([{"op_code": 2, "worker_id": "w", "study_id": 0, "user_attr": {"a": n}} for n in range(2)])
    assert [log["user_attr"] for log in backend.read_logs(len(read) + 1)] == [{"a": 0}, {"a": 1}]
    assert backend.position.offset == path.stat().st_size > before
    another = AtomicJournal(path, lock=lock_of(path))
    assert list(another.read_logs(len(read))) == list(backend.read_logs(len(read)))
    with path.open("ab") as file:
        file.write(b'{"op_code":2,"worker_id":"w","stu')  # of a killed writer, longer than what is read at once
        file.write(b"x" * 9000)
    assert list(backend.read_logs(len(read) + 3)) == []
    backend.append_logs([{"op_code": 2, "worker_id": "w", "study_id": 0, "user_attr": {"b": 1}}])
    assert [log["user_attr"] for log in backend.read_logs(len(read) + 3)] == [{"b": 1}]
    assert open_storage(str(path)).get_all_studies()[0].user_attrs["b"] == 1


def test_files_of_a_study_are_as_private_as_the_user_wants(sound: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        path = damage.make(tmp_path / "private", presets=("pre_ln",), rates=(3e-3,))
        with path.open("ab") as file:
            file.write(b"\xff\n")
        repair(path)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o077 for file in path.parent.rglob("*") if file.is_file()} == {0}


@pytest.mark.slow
@pytest.mark.parametrize("unsealed", [False, True])
def test_of_420_random_edits_none_moves_a_result_or_ends_in_a_raw_error(unsealed: bool) -> None:
    few = ("pre_ln", "parallel", "sas", "sas_p", "v_skipinit", "naive_skipless")  # the program takes the whole grid
    counts = sum(damage.survey(420, unsealed=unsealed, presets=few).values(), damage.Counter())
    print(dict(counts))
    assert not [name for name in counts if re.search("moved|raw" if unsealed else "moved|changed|raw", name)]
