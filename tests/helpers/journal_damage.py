"""A journal, edits that damage it, and what the suite makes of it then.

As a program it prints counts: `PYTHONPATH=. python tests/helpers/journal_damage.py [EDITS] [--plain]`, the latter of
a journal without seals, as older versions wrote it.
"""

from __future__ import annotations

import json
import random
import re
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from ablations.analysis.tables import read
from ablations.engine.queue import Queue
from ablations.engine.run import jobs_of, queued_cell, spec_of
from ablations.engine.storage import StudyError, create_study, keep_design, latest, open_study, ours, state_of
from ablations.engine.worker import train_cell
from ablations.study import Options, plan_run
from lit_simplified.config import RunConfig, digest

SEAL = re.compile(rb',"seal":"[^"]*"')


@dataclass(frozen=True)
class Point:
    """As `CurvePoint`."""

    step: int
    val_loss: float


@dataclass(frozen=True)
class Result:
    """As `RunResult`, in short."""

    state: str
    reason: str
    val_loss: float
    curve: tuple[Point, ...]
    seconds: float
    parameters: int


def loss_of(config: RunConfig) -> float:
    """A loss that tells the configurations apart, whatever runs are called."""
    block = digest(config.model)
    return 1 + zlib.crc32(f"{block} {config.seed} {config.optim.learning_rate}".encode()) / 2**32


def fit(config: RunConfig, *, on_validation: Callable[[Point], None]) -> Result:
    """Stands in for training."""
    point = Point(step=20, val_loss=loss_of(config))
    on_validation(point)
    state = "diverged" if config.optim.learning_rate > 0.015 else "complete"
    return Result(state, "loss nan" if state == "diverged" else "", loss_of(config), (point,), 1.0, 7)


def make(folder: Path, *, rates: tuple[float, ...] = (3e-3, 2e-2), older: bool = False, **options: Any) -> Path:
    """The journal of a study whose cells are all finished.

    Args:
        folder: where it is made.
        rates: learning rates.
        older: let each worker declare the parameters of its cell, as older versions did.
        options: of the study.
    """
    run = plan_run(Options(name="s", out=folder, scale="smoke", learning_rates=rates, select=0, **options))
    study = create_study(run.storage, name="s", spec=spec_of(run, corpus="abc"))
    keep_design(study, run.plan.design)
    queue = Queue(study, storage=run.storage, folder=folder)
    cells = {cell.id: queued_cell(run, cell) for cell in run.cells}
    queue.enqueue([replace(cell, distributions={}) if older else cell for cell in cells.values()])
    [job] = jobs_of(run, workers=1, gpus=())
    while (claim := queue.claim()) is not None:
        for name, kind in cells[claim.cell].distributions.items() if older else ():
            declare(claim.trial, name, kind)
        train_cell(queue, claim, job=job, fit=fit)
    return Path(run.storage)


def declare(trial: optuna.Trial, name: str, kind: BaseDistribution) -> None:
    if isinstance(kind, CategoricalDistribution):
        trial.suggest_categorical(name, kind.choices)
    elif isinstance(kind, IntDistribution):
        trial.suggest_int(name, kind.low, kind.high)
    elif isinstance(kind, FloatDistribution):
        trial.suggest_float(name, kind.low, kind.high, log=kind.log)


def plain(text: bytes) -> bytes:
    """A journal as older versions wrote it: without seals, and results without signatures."""
    return re.sub(rb',"of":"[0-9a-f]{8}"', b"", SEAL.sub(b"", text))


def results(path: Path) -> dict[str, Any]:
    """What the suite reads of a study: of every finished cell state, loss and curve; and what the study fixes."""
    study = open_study(str(path), name="s")
    read(study)
    trials = latest(ours(study.get_trials(deepcopy=False)))
    found: dict[str, Any] = {name: study.user_attrs.get(name) for name in ("spec", "design")}
    for cell, trial in trials.items():
        state, attrs = state_of(trial), trial.user_attrs
        if state in ("complete", "diverged", "failed"):
            result = {name: value for name, value in attrs.get("result", {}).items() if name != "of"}
            found[cell] = (state, trial.value, attrs["config"], attrs.get("curve"), result, attrs.get("reason"))
    return found


def wrong(found: dict[str, Any], sound: dict[str, Any]) -> list[str]:
    """What differs from the sound journal; a cell that is to be trained again does not."""
    return [name for name, value in found.items() if value is not None and value != sound.get(name)]


# Edits. Each takes the lines of a journal and returns what stands in the file then.


def duplicate(lines: list[bytes], rng: random.Random) -> bytes:
    place, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines.insert(rng.choice((place, other)), lines[place])
    return b"".join(lines)


def delete(lines: list[bytes], rng: random.Random) -> bytes:
    del lines[rng.randrange(len(lines) - 1)]
    return b"".join(lines)


def swap_neighbours(lines: list[bytes], rng: random.Random) -> bytes:
    place = rng.randrange(len(lines) - 1)
    lines[place], lines[place + 1] = lines[place + 1], lines[place]
    return b"".join(lines)


def swap(lines: list[bytes], rng: random.Random) -> bytes:
    one, other = rng.sample(range(len(lines)), 2)
    lines[one], lines[other] = lines[other], lines[one]
    return b"".join(lines)


def flip_a_bit(lines: list[bytes], rng: random.Random) -> bytes:
    text = bytearray(b"".join(lines))
    text[rng.randrange(len(text))] ^= 1 << rng.randrange(8)
    return bytes(text)


def change_a_number(lines: list[bytes], rng: random.Random) -> bytes:
    text = bytearray(b"".join(lines))
    place = rng.choice([found.start() for found in re.finditer(rb"\d", text)])
    text[place : place + 1] = b"%d" % ((text[place] - ord("0") + rng.randrange(1, 10)) % 10)
    return bytes(text)


def insert(lines: list[bytes], rng: random.Random) -> bytes:
    strange = (b"hello\n", b"\n", b"\x00\xff\xfe\n", b'{"a": 1}\n', b"[1, 2]\n", b"[" * 5000 + b"\n",
               b'{"op_code":4,"worker_id":"x"}\n', b'{"op_code":99,"worker_id":"x"}\n',
               SEAL.sub(b"", rng.choice(lines)))
    lines.insert(rng.randrange(len(lines)), rng.choice(strange))
    return b"".join(lines)


def truncate(lines: list[bytes], rng: random.Random) -> bytes:
    text = b"".join(lines)
    return text[: rng.randrange(1, len(text))]


def append_itself(lines: list[bytes], rng: random.Random) -> bytes:
    return b"".join(lines + lines[rng.choice((0, rng.randrange(len(lines)))) :])


def break_lines(lines: list[bytes], rng: random.Random) -> bytes:
    share = rng.choice((1.0, 0.1))
    return b"".join(line[:-1] + b"\r\n" if rng.random() < share else line for line in lines)


EDITS = (duplicate, delete, swap_neighbours, swap, flip_a_bit, change_a_number, insert, truncate, append_itself,
         break_lines)


def outcome(path: Path, sound: dict[str, Any]) -> str:
    """What comes of reading a journal: right, moved (a result on another cell), changed, refused, or another error."""
    try:
        found = results(path)
    except StudyError:
        return "refused"
    except Exception as error:
        return f"raw {type(error).__name__}"
    different = wrong(found, sound)
    losses = {cell: content[4].get("val_loss") for cell, content in sound.items() if isinstance(content, tuple)}
    moved = [name for name in different if name in losses and found[name][4].get("val_loss") != losses[name]
             and found[name][4].get("val_loss") in losses.values()]
    return f"moved {moved}" if moved else f"changed {different}" if different else "right"


def try_edit(
    edit: Callable[..., bytes], lines: list[bytes], *, folder: Path, sound: dict[str, Any], rng: random.Random
) -> tuple[str, str, int]:
    """What comes of a damaged journal, what of it after the repair, and how many cells are left then."""
    path = folder / "damaged" / "journal.log"
    path.parent.mkdir(exist_ok=True)
    for old in path.parent.glob("journal.log*"):
        old.unlink()
    path.write_bytes(edit(list(lines), rng))
    first = outcome(path, sound)
    try:
        from ablations.engine.repair import repair
    except ImportError:  # an older version
        return first, "", 0
    try:
        repair(path, name="s")
    except Exception as error:
        return first, f"raw {type(error).__name__}: {error}", 0
    second = outcome(path, sound)
    return first, second, len(results(path)) - 2 if second == "right" else 0


def survey(count: int, *, unsealed: bool = False, seed: int = 0, **options: Any) -> dict[str, Counter[str]]:
    """Count what comes of edits of each kind, in turn.

    Args:
        count: how many.
        unsealed: of a journal as older versions wrote it.
        seed: of the edits.
        options: of the study: the grid at two learning rates unless they say otherwise.
    """
    rng, found = random.Random(seed), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = make(folder / "sound", older=unsealed, **options)
        if unsealed:
            path.write_bytes(plain(path.read_bytes()))
        sound, lines = results(path), path.read_bytes().splitlines(keepends=True)
        for number in range(count):
            edit = EDITS[number % len(EDITS)]
            first, second, kept = try_edit(edit, lines, folder=folder, sound=sound, rng=rng)
            counts = found.setdefault(edit.__name__, Counter())
            counts.update({first.split(" [")[0]: 1, f"repaired: {second.split(' [')[0]}": 1})
            counts.update({"cells kept": kept, "cells": len(sound) - 2})
            if re.search("moved|changed|raw", first + second):
                print(f"{edit.__name__} {number}: {first}, {second}"[:300])
    return found


def main() -> None:
    count = int(next((text for text in sys.argv[1:] if text.isdigit()), 420))
    found = survey(count, unsealed="--plain" in sys.argv)
    for name, counts in found.items():
        print(f"{name}: {json.dumps(counts)}")
    print(json.dumps(sum(found.values(), Counter())))


if __name__ == "__main__":
    main()
