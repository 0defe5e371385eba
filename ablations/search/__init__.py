"""`search`: tune named blocks with equal budgets, and compare them at their tuned settings.

`parameters` is the space, `policy` what TPE and the pruner do, `studies` the searches and the final runs on the study
engine, `results` and `verdicts` what came out (from the storage alone, without torch), `document` and `plots` the
files that are written.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rich.console import Console

from ablations.search.policy import PRUNERS
from lit_simplified.config import PRESETS

if TYPE_CHECKING:
    from ablations.search.studies import SearchPlan

COMPARED = ("pre_ln", "sas_p")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The flags of `search`."""
    command.add_argument("question", nargs="?", metavar="STUDY", default="", help="tune the rows of this study, each "
                         "with as many trials, in place of named blocks (its own tuned axes are left out)")
    command.add_argument("--presets", nargs="+", default=list(COMPARED), choices=list(PRESETS), metavar="NAME",
                         help="blocks to tune, each in a study of its own with as many trials; the first is what the "
                         f"others are compared with (default: {' '.join(COMPARED)}; known: {', '.join(PRESETS)})")
    command.add_argument("--blocks", action="store_true", help="one search over the switches of the grid too, which "
                         "starts at --presets")
    command.add_argument("--trials", type=_at_least_one, default=30, metavar="N",
                         help="trials per study, including those before an interruption (default: 30)")
    command.add_argument("--tune", nargs="+", default=[], metavar="NAME",
                         help="search only these parameters (default: all that a block has; --dry-run lists them)")
    command.add_argument("--pruner", default="hyperband", choices=PRUNERS,
                         help="stops unpromising runs early, from the first validation on (default: hyperband)")
    command.add_argument("--sampler-seed", type=int, default=0, metavar="SEED",
                         help="of the search; the runs themselves have seed 0 (default: 0)")
    command.add_argument("--final-seeds", type=_at_least_one, default=3, metavar="K",
                         help="fresh seeds, 1 to K, on which best and default settings of every block are trained in "
                         "full and compared (default: 3)")
    command.add_argument("--no-final", action="store_true", help="skip the final runs")
    command.add_argument("--workers", type=_at_least_one, metavar="N",
                         help="processes (default: one per GPU; two on a CPU). With one, a search can be repeated")
    command.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE",
                         help="change any field of the runs; ranges lie around the values, e.g. optim.steps=500")
    command.add_argument("--results", action="store_true", help="train nothing; print and write the results so far")
    command.add_argument("--dry-run", action="store_true", help="print search space and budget, and train nothing")


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a number of at least 1")
    return value


def search(given: argparse.Namespace, *, console: Console) -> int:
    """Search, compare and write what came out, as the flags say; return the exit status."""
    from ablations.search.document import show, write_all
    from ablations.search.results import read

    if not given.results:
        from ablations.search.studies import dry_run, search_all

        plan = plan_of(given)
        if given.dry_run:
            console.print(dry_run(plan), highlight=False, markup=False, soft_wrap=True)
            return 0
        search_all(plan, console=console)
    found = read(given.storage, name=given.study)
    written = write_all(found, folder=given.out)
    show(found, console=console)
    console.print(f"written: {given.out / 'search.md'} and {len(written) - 1} files beside it", highlight=False,
                  markup=False, soft_wrap=True)
    return 0


def plan_of(given: argparse.Namespace) -> SearchPlan:
    """What the flags ask for."""
    from dataclasses import replace

    from ablations.design.plan import plan_study
    from ablations.design.scales import override, scale
    from ablations.search.studies import SearchPlan
    from ablations.study import Options, study_of
    from lit_simplified.config import ConfigError

    chosen = scale(given.scale, task=given.task or "clm")
    if given.question and given.blocks:
        raise ConfigError("--blocks", given.question, "it searches the grid: leave the study out")
    template = override(chosen.template, assignments=given.set)
    question = None
    if given.question:
        config = study_of(Options(study=given.question, scale=given.scale, assignments=given.set))
        question = plan_study(replace(config, tune={}, screen=None, claims=()), scale=chosen)
        template = question.template
    return SearchPlan(
        name=given.study, storage=given.storage, folder=given.out, scale=replace(chosen, template=template),
        presets=tuple(dict.fromkeys(given.presets)), question=question, blocks=given.blocks, trials=given.trials,
        tune=tuple(given.tune), pruner=given.pruner, sampler_seed=given.sampler_seed, workers=given.workers,
        final_seeds=0 if given.no_final else given.final_seeds, command=getattr(given, "typed", ""),
    )
