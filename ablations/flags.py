"""The flags of `python -m ablations COMMAND`, with the help that explains them."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from ablations.analysis.margins import MARGIN
from ablations.analysis.power import MOST_SEEDS
from ablations.design.cells import MAX_CELLS
from ablations.design.scales import SCALES
from ablations.engine.checkpoints import keep_rule
from ablations.engine.lookup import RESULTS
from ablations.engine.storage import JOURNAL
from ablations.search import add_arguments as search_arguments
from ablations.study import GRID
from lit_simplified.config import PRESETS

COMMAND = "python -m ablations"
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
  {COMMAND} judge small-clm                        how sure is the answer, and what would make it sure
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
    _add_judge(commands)
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
    run.add_argument("--looks", nargs="+", type=_several, default=[], metavar="N", help="in place of --seeds: look at "
                     "the claims after so many seeds of each row, e.g. 3 5 8 12, and train no more of a row whose "
                     "claims are decided. All looks together err in at most 5 %% of studies")
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
    command.add_argument("--finetune-lr", type=_above_zero, metavar="LR",
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


JUDGE = f"""examples:
  {COMMAND} judge small-clm                        noise, what the seeds can show, what each claim still needs
  {COMMAND} judge small-clm --left sas_p --right pre_ln --margin 0.01
                                                        are these two level within 0.01 nats?
  {COMMAND} judge small-clm --left sas_p --right pre_ln --is better --json
  {COMMAND} judge --assume-sd 0.0115 --seeds 3 5 8      before any run: what would so many seeds show?
  {COMMAND} judge grid --assume-sd 0.0115               and how many does each claim of a study file need?

The noise floor is the standard deviation of a run around its row and its seed. Two rows are compared by seed, so their
difference has 1.4 times that. Seeds are those of each row that settle a claim with 80 % power, if the estimate is the
true difference. `level` is judged by a margin in nats, the others by an interval on one side of no difference.

Exit status: 0 all claims are settled as claimed; 1 one is settled against; 2 one is inconclusive and none against, or
there is no claim, or (nothing on stdout then) what was asked cannot be done. With --assume-sd 0."""


def _add_judge(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "how sure is the answer of a study, and how many seeds would make it sure"
    judge = commands.add_parser("judge", help=text, description=text[0].upper() + text[1:] + ".", epilog=JUDGE,
                                formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    judge.add_argument("question", nargs="?", metavar="STUDY", help="a recorded study: its name among the results, the "
                       "path of its folder or journal, or a database URL with #STUDY at its end (default: the one that "
                       "was written to last). With --assume-sd: a study of the suite, or the path of a study file")
    judge.add_argument("--left", metavar="ROW", help="with --right, in place of the claims: two rows, by label, id or "
                       "named block")
    judge.add_argument("--right", metavar="ROW")
    judge.add_argument("--is", dest="relation", choices=["level", "better", "worse"], help="what is asked of the two "
                       "(default: level)")
    judge.add_argument("--margin", type=_above_zero, metavar="NATS", help="within which rows are level, of claims "
                       f"without a margin of their own (default: {MARGIN})")
    judge.add_argument("--seeds", nargs="+", type=_several, default=[], metavar="N", help="numbers of seeds: what "
                       "would so many show? (default: those of the rows; with --assume-sd 3 5 8 12)")
    judge.add_argument("--assume-sd", type=_above_zero, metavar="NATS", help="plan, without a record: the standard "
                       "deviation of a run around its row and seed (named blocks at small: 0.0115)")
    judge.add_argument("--task", choices=["clm", "mlm"], help="of a plan (default: the study's own, else clm)")
    judge.add_argument("--json", action="store_true", help="for programs; docs/judge.md explains the keys")


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
                         help="how large: smoke (plumbing), small (two cores), medium (two cores, longer), base "
                         "(one GPU), paper (the paper's setting). auto: the study's own, else base with CUDA, else "
                         "small")
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
    command.add_argument("--lr", nargs="+", type=_above_zero, default=[], metavar="LR",
                         help="learning rates of every row (default: the study's). A row is judged at its best")
    command.add_argument("--select", type=_whole, metavar="N", help="seeds that choose the best of --lr, and of what a "
                         "study tunes, apart from those that judge (default: the study's, else 1). 0: all seeds train "
                         "at all values and choose, too, which flatters every row")
    command.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE",
                         help="change any field of every run, e.g. optim.steps=5 model.block.dropout=0.1")
    command.add_argument("--dry-run", action="store_true",
                         help="print the cells with their state and estimated time, and train nothing")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a number of at least 1")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: give a number from 0 on")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"{text}: give a number from 0 to {2**31 - 1}")
    return value


def _several(text: str) -> int:
    value = int(text)
    if not 2 <= value <= MOST_SEEDS:
        raise argparse.ArgumentTypeError(f"{text}: give a number of seeds from 2 to {MOST_SEEDS}")
    return value


def _above_zero(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: give a number above 0")
    return value
