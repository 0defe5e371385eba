"""The commands of `python -m ablations COMMAND`; `flags` has what they may be given."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.exceptions import StorageInternalError
from rich.console import Console
from rich.progress import track

from ablations.analysis.margins import MARGIN
from ablations.design.library import load_study, names
from ablations.design.plan import plan_study
from ablations.design.scales import detect, scale
from ablations.design.stages import steps_at
from ablations.engine.errors import FULL, UNUSABLE, MissingStudyError, StudyError
from ablations.engine.lookup import KINDS, RESULTS, check_name, newest, place_of
from ablations.engine.redact import redact, redact_command
from ablations.engine.status import clock
from ablations.engine.storage import (
    is_missing,
    is_url,
    journal_path,
    latest,
    open_study,
    ours,
    state_of,
    studies_called,
)
from ablations.engine.trials import read_trials
from ablations.flags import COMMAND, build_parser
from ablations.study import GRID, Options, execute, measure_speed, plan_run, stem_of
from lit_simplified.config import ConfigError, Task, allow

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from ablations.design.cells import Cell
    from ablations.design.selection import Outcome
    from ablations.engine.estimate import Estimate
    from ablations.engine.run import StudyRun

WIDTH = 160
PLANNED_SEEDS = (3, 5, 8, 12)
"""What a plan is about, without `--seeds`."""


def _console() -> Console:
    """A terminal as wide as it is; a file or a pipe wide enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    given = build_parser().parse_args(arguments)
    typed = given.typed = f"{COMMAND} {redact_command(sys.argv[1:] if arguments is None else arguments)}"
    try:
        if given.command not in ("compare", "judge", "studies", "run", "table1"):
            _locate(given)
        return COMMANDS[given.command](given)
    except (ConfigError, StudyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StorageInternalError as error:
        print(f"error: the database does not answer ({error.__cause__ or error}). What was recorded is safe; to go on "
              f"when it is back:\n  {typed}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno in UNUSABLE and error.filename is not None:
            print(f"error: {error.filename}: {error.strerror}. Give a folder that can be written with --out",
                  file=sys.stderr)
            return 2
        if error.errno not in FULL:
            raise
        print(f"error: no room is left on the disk ({error}). What was recorded is safe; make room, then:\n  {typed}",
              file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nInterrupted. Nothing that was finished is lost; to go on:\n  {typed}", file=sys.stderr)
        return 130


def _locate(given: argparse.Namespace) -> None:
    """Fill in study, folder and storage of a command that is about a study that is there, or about a search."""
    if given.command == "repair" and given.storage is not None:
        return
    starts = given.command == "search" and not given.results
    kind = given.command if given.command in KINDS else "run"
    if given.scale == "auto" and starts:
        given.scale = detect()
    if given.study is None and given.scale == "auto":
        if given.storage is not None:
            raise StudyError("--study: which one? Give its name, or the --scale it was run with")
        given.study = newest("any" if given.command in ("status", "repair") else kind)
    given.task = given.task or "clm"
    question = stem_of(getattr(given, "question", "").removesuffix(".yaml"))
    parts = ("" if kind == "run" else kind, question, given.scale, given.task)
    given.study = given.study or "-".join(filter(None, parts))
    place = place_of(given.study, storage=given.storage, out=given.out, starts=starts)
    given.out, given.storage = place.folder, place.storage


def _options(given: argparse.Namespace, **more: object) -> Options:
    """What the flags of a command that trains a study ask for."""
    return Options(**{
        "name": given.study, "scale": given.scale, "task": given.task, "seeds": given.seeds,
        "learning_rates": given.lr, "select": given.select, "presets": given.presets, "assignments": given.set,
        "storage": given.storage, "out": given.out, "workers": given.workers, "command": given.typed, **more,
    })


def _run(given: argparse.Namespace) -> int:
    if given.axis and given.question != GRID:
        raise ConfigError("--axis", given.axis, f"the study {given.question} has its own axes: give one or the other")
    run = plan_run(_options(
        given, study=given.question, axes=given.axis, around=given.around, design=given.design,
        keep=given.keep_checkpoints, max_cells=given.max_cells, looks=given.looks,
    ))
    console = _console()
    _print_design(run, console=console)
    if given.dry_run:
        return _dry_run(run, console=console)
    execute(run, speed=not given.no_speed, rounds=given.rounds, console=console)
    _print_written(run.folder, run.storage)
    _report(argparse.Namespace(storage=run.storage, study=run.study, out=run.folder))
    return _exit_status(run)


def _exit_status(run: StudyRun) -> int:
    """1 where cells of a run failed, which is then said; one that diverged has a result."""
    from ablations.engine.run import how_ended

    known, ended = _standing(run, how_ended(run.plan.design))
    cells = run.plan.cells(ended)
    failed = sum(cell.id in known and state_of(known[cell.id]) == "failed" for cell in cells)
    if failed:
        own = run.storage == place_of(run.study).storage
        where = shlex.join(["--study", run.study, *([] if own else ["--storage", redact(run.storage)])])
        print(f"{failed} of {len(cells)} cells failed. Why: {COMMAND} status {where}. The same command tries them "
              "again", file=sys.stderr)
    return 1 if failed else 0


def _print_design(run: StudyRun, *, console: Console) -> None:
    """The question, and what of it cannot be trained as asked."""
    for line in (run.plan.design.question, *run.plan.design.notes):
        if line:
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def _dry_run(run: StudyRun, *, console: Console) -> int:
    """List what would be trained, and how long it would take."""
    from ablations.engine.estimate import MEASURED, from_history
    from ablations.engine.resources import workers_for

    known, ended = _standing(run)
    cells, later = run.plan.cells(ended), run.plan.likely(ended)
    missing = [cell for cell in later if cell.id not in known or is_missing(known[cell.id])]
    workers = workers_for(run.template.trainer.accelerator, asked=run.workers)
    estimate = from_history(known.values(), design=run.plan.design)
    estimate = estimate or _measured(run, missing, workers=workers, console=console)
    wanted = set(missing)
    for cell in cells:
        state = "to train" if cell in wanted else state_of(known[cell.id])
        print(f"{cell.id}  {state}" + (f"  {clock(estimate.of(cell))}" if estimate and cell in wanted else ""))
    if len(later) > len(cells):
        most, until = ("up to ", ", until the claims are decided") if run.plan.design.looks else ("", "")
        print(f"... and then {most}{len(later) - len(cells)} cells, of the rows and at the tuned values that turn out "
              f"best{until}")
    print(f"{len(later)} cells of {len(run.plan.rows)} rows, {_steps(run, later)}, for study {run.study} in "
          f"{redact(run.storage)}; {len(missing)} to train")
    if estimate and missing:
        whole = run.template.data.val_windows is None and MEASURED in estimate.basis
        print(f"about {clock(estimate.total(missing, workers=workers))} with {workers} workers, without the speed pass"
              f"{' and the validations, which take the whole split' * whole} (from {estimate.basis})")
    return 0


def _steps(run: StudyRun, cells: Iterable[Cell]) -> str:
    """How many steps the cells have, by their stage where there are several."""
    stages = {cell.stage: cell.share for cell in cells}
    whole = run.template.optim.steps
    if set(stages.values()) == {1.0}:
        return f"{whole} steps each"
    return "steps: " + ", ".join(f"{steps_at(share, whole)} to {stage}" for stage, share in stages.items())


def _standing(
    run: StudyRun, keys: Collection[str] | None = None
) -> tuple[dict[str, FrozenTrial], dict[str, Outcome]]:
    """The cells that the study has already, with some attributes or all, and how they ended; none where it has not
    begun."""
    from ablations.engine.run import outcomes

    try:
        study = open_study(run.storage, name=run.study, light=keys is not None)
    except MissingStudyError:
        return {}, {}
    standing = latest(ours(read_trials(study, keys)))
    return standing, outcomes(study, standing=standing)


def _measured(run: StudyRun, cells: Sequence[Cell], *, workers: int, console: Console) -> Estimate | None:
    from ablations.engine.estimate import measure
    from ablations.engine.resources import threads_for

    try:
        return measure(
            {cell.row: run.plan.rows[cell.row] for cell in cells}, threads=threads_for(workers),
            progress=lambda rows: track(rows, "timing a few steps", console=console, transient=True,
                                        disable=not console.is_terminal),
        )
    except (RuntimeError, MemoryError, ValueError) as error:
        print(f"no estimate of the time: {error}")
        return None


def _studies(given: argparse.Namespace) -> int:
    """List the questions, each with its cells and the time that they would take here."""
    from rich.table import Table
    from rich.text import Text

    from ablations.engine.estimate import Yardstick

    yardstick = None if given.no_time else Yardstick()
    table = Table(box=None, pad_edge=False)
    for column in ("study", "question", "scale", "rows", "cells", "about"):
        table.add_column(column, justify="right" if column in ("rows", "cells", "about") else "left", overflow="fold")
    for name in names():
        run = plan_run(Options(study=name, scale=given.scale, task=given.task, max_cells=10**9))
        cells = run.plan.likely()
        time = "" if yardstick is None else clock(yardstick.total(cells, asked=run.workers))
        texts = name, run.plan.design.question, run.scale.name, str(len(run.plan.rows)), str(len(cells)), time
        table.add_row(*map(Text, texts))
    _console().print(table)
    print(f"{COMMAND} run NAME trains one; with --dry-run it lists the cells")
    return 0


def _speed(given: argparse.Namespace) -> int:
    for file in given.own:
        allow(file)
    measure_speed(
        open_study(given.storage, name=given.study), storage=given.storage, folder=given.out, rounds=given.rounds,
        redo=given.redo, console=_console(),
    )
    print(f"To see it: {COMMAND} summary --study {given.study}")
    return 0


def _status(given: argparse.Namespace) -> int:
    from ablations.engine.status import render, status

    for study in studies_called(given.storage, name=given.study):
        now = status(study, lost=_lost(study, storage=given.storage, folder=given.out))
        _console().print(render(now, title=f"study {study.study_name}"))
    return 0


def _lost(study: Study, *, storage: str, folder: Path) -> set[int]:
    """The running trials whose process is gone, as far as this machine can tell."""
    from ablations.engine.queue import Queue

    try:
        return Queue(study, storage=storage, folder=folder).lost()
    except OSError:  # a folder that may only be read has locks of nobody
        return set()


def _repair(given: argparse.Namespace) -> int:
    from ablations.engine.repair import repair

    if is_url(given.storage):
        raise StudyError(f"--storage={redact(given.storage)!r}: only a study's journal is repaired, not a database")
    path = journal_path(given.storage)
    done = repair(path, name=check_name(given.study) if given.study else "")
    if done.copy is None:
        print(f"{path}: {done.lines} lines, all sound. Nothing to repair")
        return 0
    print(f"repaired: {path}, now of {done.lines} lines; {done.missing} lines were missing, and {done.dropped} of the "
          f"damaged file are left out. A copy of that: {done.copy}")
    for name in done.studies:
        print(f"the name of a study was lost; it is now called {name}")
    if done.cells:
        print(f"{len(done.cells)} cells lost their record, and are trained again by the command that trained them: "
              f"{', '.join(done.cells)}")
    return 0


def _summary(given: argparse.Namespace) -> int:
    from ablations.report.summary import summarise

    summarise(open_study(given.storage, name=given.study), folder=given.out, console=_console())
    _print_written(given.out, given.storage)
    return 0


def _print_written(folder: Path, storage: str) -> None:
    where = redact(storage) if is_url(storage) else journal_path(storage)
    print(f"written: {folder / 'summary.md'} and the files beside it, from {where}")


def _report(given: argparse.Namespace) -> int:
    from ablations.report.html import write_report

    path = write_report(open_study(given.storage, name=given.study), folder=given.out)
    print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB); open it in a browser")
    return 0


def _compare(given: argparse.Namespace) -> int:
    from ablations.report.compare import compare_studies

    compare_studies(given.before, given.after, folder=given.out, console=_console())
    return 0


def _judge(given: argparse.Namespace) -> int:
    from ablations.report.judge import judge_study, judgement_json, print_judgement

    if given.assume_sd is not None:
        return _plan_seeds(given)
    if (given.left is None) != (given.right is None):
        raise ConfigError("--left" if given.left is None else "--right", None, "two rows are compared: give both")
    if given.relation is not None and given.left is None:
        raise ConfigError("--is", given.relation, "of which rows? Give --left and --right")
    study = given.question or newest()
    if study in names() or study.endswith(".yaml"):
        raise ConfigError("STUDY", study, "a question, without a record. Before any run add --assume-sd 0.0115; after "
                          f"one give the name of its folder in {RESULTS}")
    found = judge_study(study, left=given.left, right=given.right, relation=given.relation or "level",
                        margin=given.margin, seeds=given.seeds)
    if given.json:
        print(judgement_json(found))
    else:
        print_judgement(found, console=_console())
    return found.status


def _plan_seeds(given: argparse.Namespace) -> int:
    """What numbers of seeds would show, before any run."""
    from ablations.analysis.judge import plan_seeds
    from ablations.report.judge import plan_json, print_plan

    if given.left is not None or given.right is not None or given.relation is not None:
        raise ConfigError("--assume-sd", given.assume_sd, "a plan is about no recorded rows: leave out --left, --right "
                          "and --is")
    design = None
    if given.question is not None:
        config = load_study(given.question)
        task: Task = given.task or ("mlm" if config.task == "mlm" else "clm")
        design = plan_study(config, scale=scale(config.scale or "small", task=task)).design
    plan = plan_seeds(given.assume_sd, seeds=given.seeds or PLANNED_SEEDS, margin=given.margin or MARGIN, design=design)
    if given.json:
        print(plan_json(plan))
    else:
        print_plan(plan, console=_console())
    return 0


def _table1(given: argparse.Namespace) -> int:
    from ablations.table1 import PAPER, make, plan_of

    given.presets, given.seeds = given.presets or list(PAPER), given.seeds or [0, 1, 2]
    given.scale = detect() if given.scale == "auto" else given.scale
    given.study = given.study or f"table1-{given.scale}-{given.task}"
    study = {"question": "The paper's Table 1", "compare": {"block": given.presets}}
    run = plan_run(_options(given, study=study, presets=(), keep="all"))  # fine-tuning starts from the checkpoints
    given.out, console = run.folder, _console()
    if given.dry_run:
        return _dry_run(run, console=console)
    make(plan_of(given, run), console=console, progress=lambda blocks: track(
        blocks, "speed", console=console, disable=not console.is_terminal))
    return 0 if given.no_training else _exit_status(run)


def _search(given: argparse.Namespace) -> int:
    from ablations.search import search

    return search(given, console=_console())


COMMANDS = {
    "run": _run, "studies": _studies, "status": _status, "repair": _repair, "speed": _speed, "summary": _summary,
    "report": _report, "compare": _compare, "judge": _judge, "search": _search, "table1": _table1,
}


if __name__ == "__main__":
    sys.exit(main())
