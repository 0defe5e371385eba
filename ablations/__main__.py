"""The command line: `python -m ablations COMMAND`, of which `--help` lists them."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.exceptions import StorageInternalError
from rich.console import Console
from rich.progress import track

from ablations.design.library import names
from ablations.design.plan import MAX_CELLS
from ablations.design.scales import SCALES, detect
from ablations.engine.checkpoints import keep_rule
from ablations.engine.errors import FULL, UNUSABLE, MissingStudyError, StudyError
from ablations.engine.lookup import KINDS, RESULTS, check_name, newest, place_of
from ablations.engine.redact import redact, redact_command
from ablations.engine.status import clock
from ablations.engine.storage import (
    JOURNAL,
    is_missing,
    is_url,
    journal_path,
    latest,
    open_study,
    ours,
    state_of,
    studies_called,
)
from ablations.engine.trials import LIGHT, read_trials
from ablations.search import add_arguments as search_arguments
from ablations.study import GRID, Options, execute, measure_speed, plan_run, stem_of
from lit_simplified.config import PRESETS, ConfigError, allow

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from ablations.design.plan import Cell
    from ablations.engine.estimate import Estimate
    from ablations.engine.run import StudyRun

COMMAND = "python -m ablations"
WIDTH = 160
EPILOGUE = f"""examples:
  {COMMAND} studies                                what questions come with the suite
  {COMMAND} run --scale smoke                      does everything work? about two minutes
  {COMMAND} run                                    the whole grid, at the scale this machine can carry
  {COMMAND} run he2024/fig06-depth                 a question of the paper
  {COMMAND} run mine.yaml --dry-run                a question of your own: what would be trained, and for how long
  {COMMAND} run --axis model.block.norm=rms,layer,none --axis model.depth=2,4 --around sas_p
  {COMMAND} run --axis model.block.activation=relu,gelu --around pre_ln --lr 3e-3 1e-2 --seeds 0 1 2
  {COMMAND} run --axis block=pre_ln,sas_p --design path
  {COMMAND} run --scale base --set trainer.accelerator=cpu trainer.precision=32-true optim.steps=5 --dry-run
  {COMMAND} run --storage postgresql://me@server/db --study lab    on every machine that is to take part
  {COMMAND} status                                 how far is it, what failed and why (from another terminal)
  {COMMAND} summary --study small-clm              tables and plots, also of an unfinished study
  {COMMAND} report --study small-clm               one HTML file to send around
  {COMMAND} compare results/before results/after   which rows changed, beyond noise or not
  {COMMAND} search --presets pre_ln sas_p          tune both with equal budgets and compare them

An interrupted run continues where it was when it is started again; finished cells are never trained twice. To start
over, give the study another name or delete its folder.

Exit status: 0; 1 where cells failed (one that diverged has a result); 2 where what was asked cannot be done; 130 after
Ctrl-C."""
DESIGNS = ("full", "one_at_a_time", "path", "fraction")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description="Ask which parts of a transformer block are needed: train every row of a study, "
        "measure its speed, and judge its claims.",
        epilog=EPILOGUE, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(_command(commands, "run", "train the missing cells of a study, measure speed, write summary and report"))
    _add_studies(commands)
    _command(commands, "status", "counts, who works on what, what failed and why, time to go")
    _command(commands, "repair", "make a sound journal out of a damaged one, and keep a copy of that")
    speed = _command(commands, "speed", "measure the rows that the speed pass has not measured yet")
    speed.add_argument("--redo", action="store_true", help="measure all rows anew")
    speed.add_argument("--own", nargs="+", default=[], metavar="FILE.py", help="Python files with parts of your own "
                       "whose code may run: what a study has recorded does not run it by itself")
    _add_rounds(speed)
    _command(commands, "summary", "tables, effects and plots, from the storage alone")
    _command(commands, "report", "one HTML file with everything, which opens without a network")
    _add_compare(commands)
    search_arguments(_command(commands, "search", "tune learning rate and more of named blocks, with equal budgets"))
    table1 = _command(commands, "table1", "the paper's Table 1 on this machine: score, parameters, speed and memory")
    _add_plan(table1)
    _add_rounds(table1)
    _add_table1(table1)
    return parser


def _add_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("question", nargs="?", metavar="STUDY", default=GRID, help="a study of the suite by name "
                     f"(see `studies`), or the path of a study file (default: {GRID})")
    run.add_argument("--axis", nargs="+", action="extend", default=[], metavar="FIELD=LEVELS",
                     help="in place of a study: what is compared, e.g. model.block.norm=rms,layer model.depth=2,4. "
                     "Every combination is trained, unless --design says otherwise")
    run.add_argument("--around", default="", choices=list(PRESETS), metavar="PRESET",
                     help="the named block that --axis changes (default: pre_ln)")
    run.add_argument("--design", default="", choices=DESIGNS, metavar="DESIGN",
                     help="full: every combination. one_at_a_time: the block and each change on its own. path: from "
                     "the first levels to the last, step by step. fraction: a share of the combinations")
    run.add_argument("--max-cells", type=_positive, default=MAX_CELLS, metavar="N",
                     help=f"refuse a study of more training runs (default: {MAX_CELLS})")
    _add_plan(run)
    _add_rounds(run)
    run.add_argument("--no-speed", action="store_true", help="leave out the speed pass")
    run.add_argument("--keep-checkpoints", type=keep_rule, metavar="RULE",
                     help="whose last checkpoints stay when their cells are finished: none, best (the best cell of "
                     "every row), all, or a number of best cells (default: none; paper: best)")


def _add_studies(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "the studies of the suite: question, cells and estimated time"
    studies = commands.add_parser("studies", help=text, description=text[0].upper() + text[1:] + ".")
    studies.add_argument("--scale", default="auto", choices=["auto", *SCALES], help="of the cells (default: auto)")
    studies.add_argument("--task", default=None, choices=["clm", "mlm"], help="default: the study's own")
    studies.add_argument("--no-time", action="store_true", help="leave out the estimate, for which a few steps are run")


def _add_rounds(command: argparse.ArgumentParser) -> None:
    command.add_argument("--rounds", type=_positive, metavar="N",
                         help="comparisons with the baseline per row (default: by scale)")


def _add_table1(command: argparse.ArgumentParser) -> None:
    """The flags of the table, beside those of a study."""
    command.add_argument("--finetune", default="docstrings", metavar="TASK",
                         help="docstrings (needs no network), glue/all, one of GLUE, or none (default: docstrings)")
    command.add_argument("--data-dir", metavar="DIR", help="local files of the task in place of the hub's")
    command.add_argument("--finetune-seeds", nargs="+", type=_seed, default=[0], metavar="SEED",
                         help="fine-tunings of every checkpoint (default: 0; there is one checkpoint per seed)")
    command.add_argument("--finetune-lr", type=_rate, metavar="LR",
                         help="default: the paper's 1.5e-4 at widths from 512 on, else 1e-3")
    command.add_argument("--finetune-epochs", type=int, default=5, metavar="N")
    command.add_argument("--no-training", action="store_true", help="parameters, speed and memory alone")
    command.set_defaults(task="mlm")


def _add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "two studies, before and after a change: which rows changed, by how much, beyond noise or not"
    compare = commands.add_parser("compare", help=text, description=text[0].upper() + text[1:] + ".")
    where = "a study's name, the path of its folder or journal, or a database URL with #STUDY at its end"
    compare.add_argument("before", metavar="BEFORE", help=where)
    compare.add_argument("after", metavar="AFTER", help="likewise")
    compare.add_argument("--out", type=Path, metavar="DIR", help="write comparison.csv and .md there")


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    """A subcommand with the flags that say which study is meant."""
    command = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )
    command.add_argument("--study", metavar="NAME", help="its name among the results (default: STUDY-SCALE-TASK, of "
                         "the grid SCALE-TASK; where nothing is trained, the one that was written to last)")
    command.add_argument("--storage", metavar="S", help="a path (Optuna journal) or a database URL, e.g. "
                         f"postgresql://host/db (default: OUT/{JOURNAL})")
    command.add_argument("--out", type=Path, metavar="DIR", help="folder of logs, runs and summary "
                         f"(default: {RESULTS}/NAME)")
    command.add_argument("--scale", default="auto", choices=["auto", *SCALES],
                         help="how large: smoke (plumbing), small (two cores), base (one GPU), paper (the paper's "
                         "setting). auto: the study's own, else base with CUDA, else small")
    command.add_argument("--task", default=None, choices=["clm", "mlm"],
                         help="causal or masked language modelling (default: the study's own, else clm)")
    return command


def _add_plan(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workers", type=_positive, metavar="N",
                         help="processes (default: one per GPU; two on a CPU). CPU cores are divided among them")
    command.add_argument("--presets", nargs="+", default=[], choices=list(PRESETS), metavar="NAME",
                         help=f"compare these blocks in place of the study's: {', '.join(PRESETS)}")
    command.add_argument("--seeds", nargs="+", type=_seed, default=[], metavar="SEED",
                         help="of every row (default: the study's, else 0, and two more for the named blocks)")
    command.add_argument("--lr", nargs="+", type=_rate, default=[], metavar="LR",
                         help="learning rates of every row (default: the study's). A row is judged at its best")
    command.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE",
                         help="change any field of every run, e.g. optim.steps=5 model.block.dropout=0.1")
    command.add_argument("--dry-run", action="store_true",
                         help="print the cells with their state and estimated time, and train nothing")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a number of at least 1")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"{text}: give a number from 0 to {2**31 - 1}")
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: give a number above 0")
    return value


def _console() -> Console:
    """A terminal as wide as it is; a file or a pipe wide enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    given = build_parser().parse_args(arguments)
    typed = given.typed = f"{COMMAND} {redact_command(sys.argv[1:] if arguments is None else arguments)}"
    try:
        if given.command not in ("compare", "studies", "run", "table1"):
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
        "learning_rates": given.lr, "presets": given.presets, "assignments": given.set, "storage": given.storage,
        "out": given.out, "workers": given.workers, "command": given.typed, **more,
    })


def _run(given: argparse.Namespace) -> int:
    if given.axis and given.question != GRID:
        raise ConfigError("--axis", given.axis, f"the study {given.question} has its own axes: give one or the other")
    run = plan_run(_options(
        given, study=given.question, axes=given.axis, around=given.around, design=given.design,
        keep=given.keep_checkpoints, max_cells=given.max_cells,
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
    known, cells = _standing(run, LIGHT), run.cells
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
    from ablations.engine.estimate import from_history
    from ablations.engine.resources import workers_for

    known, cells = _standing(run), run.cells
    missing = [cell for cell in cells if cell.id not in known or is_missing(known[cell.id])]
    workers = workers_for(run.template.trainer.accelerator, asked=run.workers)
    estimate = from_history(known.values()) or _measured(run, missing, workers=workers, console=console)
    wanted = set(missing)
    for cell in cells:
        state = "to train" if cell in wanted else state_of(known[cell.id])
        print(f"{cell.id}  {state}" + (f"  {clock(estimate.of(cell.row))}" if estimate and cell in wanted else ""))
    print(f"{len(cells)} cells of {len(run.plan.rows)} rows, {run.template.optim.steps} steps each, for study "
          f"{run.study} in {redact(run.storage)}; {len(missing)} to train")
    if estimate and missing:
        print(f"about {clock(estimate.total(missing, workers=workers))} with {workers} workers, without the speed pass "
              f"(from {estimate.basis})")
    return 0


def _standing(run: StudyRun, keys: Collection[str] | None = None) -> dict[str, FrozenTrial]:
    """The cells that the study has already, with some attributes or all; none where it has not begun."""
    try:
        return latest(ours(read_trials(open_study(run.storage, name=run.study, light=keys is not None), keys)))
    except MissingStudyError:
        return {}


def _measured(run: StudyRun, cells: Sequence[Cell], *, workers: int, console: Console) -> Estimate | None:
    from ablations.engine.estimate import measure
    from ablations.engine.resources import threads_for

    try:
        return measure(
            {cell.row: cell.config for cell in cells}, threads=threads_for(workers),
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
        cells = run.cells
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
    "report": _report, "compare": _compare, "search": _search, "table1": _table1,
}


if __name__ == "__main__":
    sys.exit(main())
