"""The command line: `python -m ablations COMMAND`, of which `--help` lists them."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.exceptions import StorageInternalError
from rich.console import Console
from rich.progress import track

from ablations.design.scales import SCALES, Scale, detect, override, scale
from ablations.engine.checkpoints import FULL, keep_rule
from ablations.engine.queue import Queue
from ablations.engine.status import clock
from ablations.engine.storage import (
    JOURNAL,
    StudyError,
    is_missing,
    is_url,
    journal_path,
    latest,
    open_study,
    ours,
    shown,
    state_of,
    studies_called,
)
from ablations.search import add_arguments as search_arguments
from lit_simplified.config import PRESETS, ConfigError

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from ablations.design.space import Cell
    from ablations.engine.estimate import Estimate
    from ablations.engine.run import Plan

RESULTS = Path("results")
OWN_STUDIES = {"search": "search-", "table1": "table1-"}
"""How the studies of other commands than `run` begin their names."""
COMMAND = "python -m ablations"
WIDTH = 160
EPILOGUE = f"""examples:
  {COMMAND} run --scale smoke                      does everything work? about two minutes
  {COMMAND} run                                    the whole grid, at the scale this machine can carry
  {COMMAND} run --presets pre_ln sas --seeds 0 1 2 --lr 1e-3 3e-3 --study rates
  {COMMAND} run --scale base --set trainer.accelerator=cpu trainer.precision=32-true optim.steps=5 --dry-run
  {COMMAND} run --storage postgresql://me@server/db --study lab    on every machine that is to take part
  {COMMAND} status                                 how far is it, what failed and why (from another terminal)
  {COMMAND} summary --study small-clm              tables and plots, also of an unfinished study
  {COMMAND} report --study small-clm               one HTML file to send around
  {COMMAND} compare results/before results/after   which blocks moved, beyond noise or not
  {COMMAND} search --presets pre_ln sas_p          tune both with equal budgets and compare them

An interrupted run continues where it was when it is started again; finished cells are never trained twice. To start
over, give the study another name or delete its folder."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description="Train every combination of the switches of a transformer block, and compare them.",
        epilog=EPILOGUE, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = _command(commands, "run", "train the missing cells, measure speed, write the summary")
    _add_plan(run)
    run.add_argument("--no-speed", action="store_true", help="leave out the speed pass")
    run.add_argument("--keep-checkpoints", type=keep_rule, metavar="RULE",
                     help="whose last checkpoints stay when their cells are finished: none, best (the best cell of "
                     "every block), all, or a number of best cells (default: none; paper: best)")
    _command(commands, "status", "counts, who works on what, what failed and why, time to go")
    speed = _command(commands, "speed", "measure the blocks that the speed pass has not measured yet")
    speed.add_argument("--redo", action="store_true", help="measure all blocks anew")
    for command in (run, speed):
        _add_rounds(command)
    _command(commands, "summary", "tables, effects and plots, from the storage alone")
    _command(commands, "report", "one HTML file with everything, which opens without a network")
    _add_compare(commands)
    search_arguments(_command(commands, "search", "tune learning rate and more of named blocks, with equal budgets"))
    table1 = _command(commands, "table1", "the paper's Table 1 on this machine: score, parameters, speed and memory")
    _add_plan(table1)
    _add_rounds(table1)
    _add_table1(table1)
    return parser


def _add_rounds(command: argparse.ArgumentParser) -> None:
    command.add_argument("--rounds", type=_positive, metavar="N",
                         help="comparisons with Pre-LN per block (default: by scale)")


def _add_table1(command: argparse.ArgumentParser) -> None:
    """The flags of the table, beside those of a study."""
    command.add_argument("--finetune", default="docstrings", metavar="TASK",
                         help="docstrings (needs no network), glue/all, one of GLUE, or none (default: docstrings)")
    command.add_argument("--data-dir", metavar="DIR", help="local files of the task in place of the hub's")
    command.add_argument("--finetune-seeds", nargs="+", type=int, default=[0], metavar="SEED",
                         help="fine-tunings of every checkpoint (default: 0; there is one checkpoint per seed)")
    command.add_argument("--finetune-lr", type=float, metavar="LR",
                         help="default: the paper's 1.5e-4 at widths from 512 on, else 1e-3")
    command.add_argument("--finetune-epochs", type=int, default=5, metavar="N")
    command.add_argument("--no-training", action="store_true", help="parameters, speed and memory alone")
    command.set_defaults(task="mlm")


def _add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "two studies, before and after a change: which blocks moved, by how much, beyond noise or not"
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
    command.add_argument("--study", help="its name (default: SCALE-TASK, e.g. small-clm)")
    command.add_argument("--storage", metavar="S", help="a path (Optuna journal) or a database URL, e.g. "
                         f"postgresql://host/db (default: OUT/{JOURNAL})")
    command.add_argument("--out", type=Path, metavar="DIR", help="folder of logs, runs and summary "
                         f"(default: {RESULTS}/STUDY)")
    command.add_argument("--scale", default="auto", choices=["auto", *SCALES],
                         help="how large: smoke (plumbing), small (two cores), base (one GPU), paper (the paper's "
                         "setting). auto: base with CUDA, else small")
    command.add_argument("--task", default="clm", choices=["clm", "mlm"], help="causal or masked language modelling")
    return command


def _add_plan(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workers", type=_positive, metavar="N",
                         help="processes (default: one per GPU; two on a CPU). CPU cores are divided among them")
    command.add_argument("--presets", nargs="+", default=[], choices=list(PRESETS), metavar="NAME",
                         help=f"train these blocks in place of the scale's: {', '.join(PRESETS)}")
    command.add_argument("--seeds", nargs="+", type=int, default=[], metavar="SEED",
                         help="of every block (default: 0, and two more for the named blocks)")
    command.add_argument("--lr", nargs="+", type=float, default=[], metavar="LR",
                         help="learning rates of every block (default: the scale's). A block is judged at its best")
    command.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE",
                         help="change any field of the runs, e.g. optim.steps=5 trainer.accelerator=cpu")
    command.add_argument("--dry-run", action="store_true",
                         help="print the cells with their state and estimated time, and train nothing")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a number of at least 1")
    return value


def _console() -> Console:
    """A terminal as wide as it is; a file or a pipe wide enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    given = build_parser().parse_args(arguments)
    typed = given.typed = shown(f"{COMMAND} {shlex.join(sys.argv[1:] if arguments is None else arguments)}")
    try:
        if given.command == "compare":
            return _compare(given)
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
        if error.errno not in FULL:
            raise
        print(f"error: no room is left on the disk ({error}). What was recorded is safe; make room, then:\n  {typed}",
              file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nInterrupted. Nothing that was finished is lost; to go on:\n  {typed}", file=sys.stderr)
        return 130


def _locate(given: argparse.Namespace) -> None:
    """Fill in scale, study, folder and storage."""
    starts = given.command in ("run", "table1") or (given.command == "search" and not given.results)
    if given.study is None and given.scale == "auto" and not starts:
        given.study = _newest_study(given)
    if given.scale == "auto" and starts:
        given.scale = detect()
    given.study = given.study or f"{OWN_STUDIES.get(given.command, '')}{given.scale}-{given.task}"
    home = RESULTS / given.study
    given.out = given.out or home
    # Only `run` and `search` start a journal in --out; for the others it may be where the tables are to go.
    with_journal = starts or (given.out / JOURNAL).exists()
    given.storage = given.storage or str((given.out if with_journal else home) / JOURNAL)


def _newest_study(given: argparse.Namespace) -> str:
    """The name of the study that was written to last: what someone who gives no name means."""
    if given.storage is None:
        own = OWN_STUDIES.get(given.command)
        found = [path for path in RESULTS.glob(f"*-{given.task}/{JOURNAL}") if given.command == "status"
                 or path.parent.name.startswith(own or tuple(OWN_STUDIES.values())) == (own is not None)]
        journals = sorted(found, key=lambda path: path.stat().st_mtime)
        if journals:
            return journals[-1].parent.name
    raise StudyError("--study: which one? Give its name, or the --scale it was run with")


def _plan(given: argparse.Namespace, *, keep: str | None) -> Plan:
    from ablations.engine.run import Plan, plan_cells

    chosen: Scale = scale(given.scale, task=given.task)
    template = override(chosen.template, assignments=given.set)
    chosen = replace(chosen, template=template)
    cells = plan_cells(chosen, presets=given.presets, seeds=given.seeds, learning_rates=given.lr)
    return Plan(
        study=given.study, storage=given.storage, folder=given.out, scale_name=given.scale, scale=chosen, cells=cells,
        workers=given.workers, keep=keep, command=given.typed,
    )


def _run(given: argparse.Namespace) -> int:
    plan, console = _plan(given, keep=given.keep_checkpoints), _console()
    if given.dry_run:
        return _dry_run(plan, console=console)
    from ablations.engine.run import run

    study = run(plan, console=console)
    if not given.no_speed:
        _measure(study, given, console=console)
    _summarise(study, given, console=console)
    return _report(given)


def _dry_run(plan: Plan, *, console: Console) -> int:
    """List what would be trained, and how long it would take."""
    from ablations.engine.estimate import from_history
    from ablations.engine.run import workers_of

    known = _standing(plan)
    missing = [cell for cell in plan.cells if cell.id not in known or is_missing(known[cell.id])]
    workers = workers_of(plan)
    estimate = from_history(known.values()) or _measured(plan, missing, workers=workers, console=console)
    for cell in plan.cells:
        state = state_of(known[cell.id]) if cell not in missing else "to train"
        print(f"{cell.id}  {state}" + (f"  {clock(estimate.of(cell.block))}" if estimate and cell in missing else ""))
    print(f"{len(plan.cells)} cells of {len({cell.block for cell in plan.cells})} blocks, "
          f"{plan.template.optim.steps} steps each, for study {plan.study} in {shown(plan.storage)}; "
          f"{len(missing)} to train")
    if estimate and missing:
        print(f"about {clock(estimate.total(missing, workers=workers))} with {workers} workers, without the speed pass "
              f"(from {estimate.basis})")
    return 0


def _standing(plan: Plan) -> dict[str, FrozenTrial]:
    """The cells that the study has already; none where it has not begun."""
    try:
        return latest(ours(open_study(plan.storage, name=plan.study).get_trials(deepcopy=False)))
    except StudyError:
        return {}


def _measured(plan: Plan, cells: Sequence[Cell], *, workers: int, console: Console) -> Estimate | None:
    from ablations.engine.estimate import measure
    from ablations.engine.run import threads_for

    try:
        return measure(
            plan.template, list({cell.block: None for cell in cells}), threads=threads_for(workers),
            progress=lambda blocks: track(blocks, "timing a few steps", console=console, transient=True,
                                          disable=not console.is_terminal),
        )
    except (RuntimeError, MemoryError, ValueError) as error:
        print(f"no estimate of the time: {error}")
        return None


def _speed(given: argparse.Namespace) -> int:
    _measure(open_study(given.storage, name=given.study), given, console=_console())
    print(f"To see it: {COMMAND} summary --study {given.study}")
    return 0


def _measure(study: optuna.Study, given: argparse.Namespace, *, console: Console) -> None:
    from ablations.engine.run import threads_for
    from ablations.engine.speed import speed_pass

    spec = study.user_attrs["spec"]
    chosen = scale(spec["scale"], task=spec["task"])
    queue = Queue(study, storage=given.storage, folder=given.out)
    workers = study.user_attrs["workers_at_once"]
    rounds = given.rounds or chosen.speed_rounds
    console.print(f"speed pass, {rounds} rounds for each block that is not measured yet; run nothing else meanwhile")
    speed_pass(
        queue, rounds=rounds, burst=chosen.speed_burst, threads=threads_for(workers),
        redo=getattr(given, "redo", False),
        progress=lambda blocks: track(blocks, "speed pass", console=console, disable=not console.is_terminal),
    )


def _status(given: argparse.Namespace) -> int:
    from ablations.engine.status import render, status

    for name in studies_called(given.storage, name=given.study):
        _console().print(render(status(open_study(given.storage, name=name)), title=f"study {name}"))
    return 0


def _summary(given: argparse.Namespace) -> int:
    _summarise(open_study(given.storage, name=given.study), given, console=_console())
    return 0


def _summarise(study: optuna.Study, given: argparse.Namespace, *, console: Console) -> None:
    from ablations.report.summary import summarise

    summarise(study, folder=given.out, console=console)
    where = shown(given.storage) if is_url(given.storage) else journal_path(given.storage)
    print(f"written: {given.out / 'summary.md'} and the files beside it, from {where}")


def _report(given: argparse.Namespace) -> int:
    from ablations.report.html import write_report

    path = write_report(open_study(given.storage, name=given.study), folder=given.out)
    print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB); open it in a browser")
    return 0


def _compare(given: argparse.Namespace) -> int:
    from ablations.analysis.changes import compare_studies

    compare_studies(given.before, given.after, folder=given.out, console=_console())
    return 0


def _table1(given: argparse.Namespace) -> int:
    from ablations.table1 import PAPER, make, plan_of

    given.presets, given.seeds = given.presets or list(PAPER), given.seeds or [0, 1, 2]
    plan, console = _plan(given, keep="all"), _console()  # fine-tuning starts from the checkpoints
    if given.dry_run:
        return _dry_run(plan, console=console)
    make(plan_of(given, plan), console=console, progress=lambda blocks: track(
        blocks, "speed", console=console, disable=not console.is_terminal))
    return 0


def _search(given: argparse.Namespace) -> int:
    from ablations.search import search

    return search(given, console=_console())


COMMANDS = {
    "run": _run, "status": _status, "speed": _speed, "summary": _summary, "report": _report, "search": _search,
    "table1": _table1,
}


if __name__ == "__main__":
    sys.exit(main())
