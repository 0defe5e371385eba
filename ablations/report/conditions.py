"""What a study asks and under which conditions it was run, in words: question, design, what is fixed, what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from ablations.analysis.effects import FitQuality
from ablations.analysis.findings import Findings
from ablations.analysis.margins import MARGIN
from ablations.analysis.pairs import paired_rows
from ablations.analysis.tables import FINISHED, LEARNING_RATE, StudyRecord, each
from ablations.analysis.worker_time import worker_time_sentence
from ablations.design.collapse import COLLAPSED, DISTANCE
from ablations.design.design import StudyDesign
from ablations.design.stages import steps_at
from ablations.report.columns import baseline_label
from ablations.report.formats import is_missing, moment
from ablations.report.guide import BASIS, TRAINED
from lit_simplified.config import PRE_LN, SHARED, SWITCHES, BlockConfig, Task, in_setting, to_dict

DESIGNS: Mapping[str, str] = {
    "full": "every combination that can be built", "one_at_a_time": "one change at a time",
    "path": "a path, one step after the other", "fraction": "a fraction of the combinations",
    "rows": "rows chosen by hand",
}
MOST_LEVELS = 8
"""Levels of an axis that are listed."""
MOST_NAMED = 20
"""Rows left out for one reason that are named; all are in left_out.csv."""


def asked(record: StudyRecord) -> list[tuple[str, str]]:
    """What the study asks, as terms and texts: source, file, design, axes, baseline, claims."""
    design = record.design
    claims = f"{len(design.claims)}, {_registered(design)}" if design.claims else ""
    found = [
        ("source", design.source), ("study file", design.name and f"{design.name} (kept as study.yaml)"),
        ("design", f"{DESIGNS.get(design.kind, design.kind)}: {counted(len(design.rows), 'row')}"),
        *((f"axis {title}", _levels(design, name)) for name, title in design.titles().items()),
        ("baseline", baseline_label(record)), ("claims", claims),
    ]
    return [(term, text) for term, text in found if text]


def _levels(design: StudyDesign, name: str) -> str:
    axis = design.axis(name)
    labels = ", ".join(axis.labels[:MOST_LEVELS]) + ", ..." * (len(axis.labels) > MOST_LEVELS)
    tuned = "; tuned: each row is shown at its best" if axis in design.tuned else ""
    return f"{labels}{tuned}" + (f" ({name})" if name != design.titles()[name] else "")


def _registered(design: StudyDesign) -> str:
    times = sorted({moment(claim.registered) for claim in design.claims if claim.registered})
    return f"written down {'; '.join(times[:3])}" if times else "not dated"


def counted(number: int, noun: str) -> str:
    """1 row, 2 rows."""
    return f"{number} {noun}{'s' * (number != 1)}"


def fixed(record: StudyRecord) -> list[tuple[str, str]]:
    """What all training runs share, seeds and tuned values, as terms and texts."""
    spec, corpus = record.attrs.get("spec", {}), record.attrs.get("corpus", {})
    python = f"Python {corpus['python']}" if "python" in corpus else ""
    found = [
        ("scale and task", f"{spec.get('scale')}, {spec.get('task')}"),
        ("model", _items(spec.get("model", {}))), ("blocks, apart from their switches", _items(_shared(record))),
        ("training", _items({**spec.get("optim", {}), **spec.get("trainer", {})})),
        ("data", _items(spec.get("data", {}))), ("validation", _validation(record)),
        ("corpus digest", ", ".join(filter(None, (str(spec.get("corpus") or ""), python)))),
        ("screening", screening(record)), ("seeds", _seeds(record)), *_tuned(record), *_extended(record),
        ("speed pass", _speed_pass(record)),
        ("training runs", states(record)), ("collapsed", collapse(record)),
        ("workers", worker_time_sentence(record).removeprefix("workers: ")),
    ]
    return [(term, text) for term, text in found if text]


def _shared(record: StudyRecord) -> dict[str, Any]:
    """Fields of the block that all rows have alike: those that a task sets, and others that are not at their
    defaults."""
    task: Task = "mlm" if record.attrs.get("spec", {}).get("task") == "mlm" else "clm"
    blocks = record.blocks or (in_setting(BlockConfig(), task),)
    names = [name for name in to_dict(PRE_LN) if name not in SWITCHES]
    found = {name: {getattr(block, name) for block in blocks} for name in names}
    return {name: values.pop() for name, values in found.items()
            if len(values) == 1 and (name in SHARED or values != {getattr(PRE_LN, name)})}


def _items(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _validation(record: StudyRecord) -> str:
    """Which share of the validation split every loss is taken on; empty where that is unknown, or differs by row."""
    spec = record.attrs.get("spec", {})
    context, limit = spec.get("model", {}).get("context"), spec.get("data", {}).get("val_windows")
    tokens = record.card.get("splits", {}).get("validation", {}).get("tokens")
    if not context or not tokens or "val_windows" not in spec.get("data", {}):
        return ""
    there = (tokens - (spec.get("task") != "mlm")) // context
    used = min(there, limit or there)
    if used == there:
        return f"all {there:,} windows of the split"
    return (f"{used:,} of the {there:,} windows of the split ({used / there:.0%}), the same for every run; how far "
            "their loss is from that of the whole split is in no interval")


def _speed_pass(record: StudyRecord) -> str:
    known = record.attrs.get("speed_conditions", {})
    return _items({**known, "measured": moment(known.get("measured"))}) if known else "not run yet"


def _tuned(record: StudyRecord) -> Iterator[tuple[str, str]]:
    """The learning rate, unless it is an axis of the study, which stands among the axes."""
    names = {axis.name for axis in (*record.design.axes, *record.design.tuned)}
    if LEARNING_RATE not in names:
        yield "learning rate", ", ".join(f"{rate:g}" for rate in sorted(record.cells.learning_rate.unique()))
    if any(len(axis.levels) > 1 for axis in record.design.tuned):
        own, share = ", ".join(map(str, record.design.selects)), record.design.select_share
        short = f", in runs of {share:.3g} of the steps" if share != 1 else ""
        yield "tuned values", (f"chosen on seed {own}, which judges nothing{short}" if own else
                               "chosen on the seeds that judge, which flatters every row")


def screening(record: StudyRecord) -> str:
    """How rows were screened, in a sentence; empty where none was."""
    screen, cells = record.design.screen, record.screening
    if screen is None or cells.empty:
        return ""
    steps = record.attrs.get("spec", {}).get("optim", {}).get("steps")
    count = f" ({steps_at(screen.share, steps):,})" if steps else ""
    rates = ", ".join(dict.fromkeys(cells.tuned.sort_values()))
    tuned = f" at {rates}, each shown at its best" if cells.tuned.nunique() > 1 else ""
    return (f"{counted(cells.row.nunique(), 'row')}, trained for {screen.share:.3g} of the steps{count} on seed "
            f"{', '.join(map(str, cells.seed.unique()))}{tuned}")


def _extended(record: StudyRecord) -> Iterator[tuple[str, str]]:
    extend, cells = record.design.extend, record.extended
    if extend is not None and len(cells):
        seeds = ", ".join(map(str, cells.seed.unique()))
        yield "extended", (f"{counted(cells.row.nunique(), 'row')} of claims, to {extend.times:g} times the steps at "
                           f"the chosen tuned values, on seed {seeds}")


def _seeds(record: StudyRecord) -> str:
    """Which seeds, and for how many rows each."""
    counts = record.cells.groupby("seed").row.nunique()
    looks = "" if record.design.looks is None else f"; looks after {record.design.looks.words}"
    return ", ".join(f"{seed} ({counted(count, 'row')})" for seed, count in counts.items()) + looks


def machines(record: StudyRecord) -> list[str]:
    """The machines that took part, a line each."""
    return [_machine(machine) for machine in record.attrs.get("machines", [])]


def _machine(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ""
    shares = "".join(f", {machine[name]} {name}" for name in ("workers", "threads") if name in machine)
    return f"{machine['cpu']} ({machine['cores']} cores), {machine['system']}{gpu}{shares}; {versions}"


def worker_names(record: StudyRecord) -> dict[str, str]:
    """Names of worker processes with a number in place of that of the host, by their own names: results are shared."""
    begun = [execution for trial in record.trials for execution in trial["executions"]]
    known = [execution["worker"] for execution in sorted(begun, key=lambda execution: str(execution["start"]))]
    hosts: dict[str, int] = {}
    found: dict[str, str] = {}
    for name in map(str, [*known, *(record.attrs.get("workers") or {})]):
        host, _, process = name.rpartition(":")
        found[name] = f"host {hosts.setdefault(host, len(hosts) + 1)}, process {process}"
    return found


def speed_withheld(rows: pd.DataFrame) -> list[str]:
    """Why speeds are withheld, a sentence for each size of rows; nothing where they are not."""
    return [f"{reason[0].upper()}{reason[1:]}. Its ratios and verdicts are withheld."
            for reason in dict.fromkeys(filter(None, rows.speed_withheld))]


def trials(record: StudyRecord) -> list[dict[str, Any]]:
    """The lines of `trials.jsonl`, which is shared as the report is."""
    names = worker_names(record)
    return [{**trial, "executions": [{**execution, "worker": names[str(execution["worker"])]}
                                     for execution in trial["executions"]]} for trial in record.trials]


def states(record: StudyRecord) -> str:
    """How many cells are in each state."""
    return ", ".join(f"{count} {state}" for state, count in record.every.state.value_counts().items())


def collapse(record: StudyRecord) -> str:
    """Which runs are called collapsed, or why none is."""
    plateau = record.plateau
    return plateau.note or (f"a run whose validation loss ends less than {DISTANCE:g} nats below that of token "
                            f"frequencies alone ({plateau.loss:.3f} nats), or above it")


def margin_worth(found: Findings) -> str:
    """What the margin of losses is in bits per byte and in compute, in a sentence; empty where neither is known."""
    worth = found.worth
    bits = "" if math.isnan(worth.bits_per_byte) else f"{worth.bits_per_byte:.4f} bits per byte"
    compute = "" if math.isnan(worth.per_percent) else (
        f"{worth.per_percent:.4f} nats are what 1 % more tokens gained the baseline over the last half of its curve" + (
            f", so that {MARGIN:g} nats are worth {worth.percent:.2g} % of compute" if worth.per_percent > 0 else ""))
    parts = [f"{MARGIN:g} nats are {bits}" if bits else "", compute]
    return "; ".join(filter(None, parts)) + "." if any(parts) else ""


def pairs_left_out(record: StudyRecord) -> str:
    """A sentence where not all highlighted rows are set against each other."""
    shown, there = len(paired_rows(record.design)), len(record.design.highlighted)
    return f"{shown:,} of the {there:,} named rows are set against each other." if shown < there else ""


def unfinished(record: StudyRecord) -> str:
    """A sentence where cells are still to come."""
    missing = int((~record.every.state.isin(FINISHED)).sum())
    return f"{counted(missing, 'training run')} not finished yet: these results are interim." if missing else ""


def left_out(table: pd.DataFrame) -> list[str]:
    """Rows that the effects do without, by name and reason, a sentence for each measure and reason."""
    lines = []
    for (measure, reason), own in table.groupby(["measure", "reason"], sort=False):
        names = "; ".join(map(str, own.label[:MOST_NAMED])) + "; ..." * (len(own) > MOST_NAMED)
        lines.append(f"Left out of the effects on {measure}, {counted(len(own), 'row')}: {names}. Reason: {reason}.")
    if any(state in str(row.reason) for row in each(table) for state in (COLLAPSED, "diverged")):
        lines.append(TRAINED)
    return lines


def aliases(effects: pd.DataFrame) -> list[str]:
    """The groups of effects that a design cannot separate, each once."""
    return list(dict.fromkeys(str(row.alias) for row in each(effects) if row.alias and not is_missing(row.alias)))


def interval_basis(effects: pd.DataFrame) -> str:
    """Where the intervals of some effects come from, in a sentence."""
    sentences = []
    for measure, own in effects[effects.estimate.notna()].groupby("measure", sort=False):
        sources = [BASIS[str(source)] for source in dict.fromkeys(own.basis) if source in BASIS]
        without = (own.basis == "none").all()
        sentences += [f"The intervals of {measure} come from {' or '.join(sources)}."] if sources else []
        sentences += [f"The effects on {measure} have no intervals."] if without else []
    return " ".join(sentences)


def basis(qualities: Sequence[FitQuality]) -> list[str]:
    """What the effects rest on: a sentence per model, or one of why there is none."""
    lines = (_basis(quality) if quality.residual_degrees or not quality.note else quality.note
             for quality in qualities)
    return list(dict.fromkeys(lines))


def _basis(quality: FitQuality) -> str:
    unit = "nats" if quality.measure == "loss" else "of the logarithm"
    words = [f"{quality.measure.capitalize()}, {quality.design}: {counted(quality.n_rows, 'row')}, "
             f"{quality.n_left_out} left out"]
    if quality.measure == "loss" and quality.seeds:
        words += [f"seed{'s' * (len(quality.seeds) != 1)} {', '.join(map(str, quality.seeds))}"]
    if not math.isnan(quality.r_squared):
        words += [f"R² {quality.r_squared:.2f}"]
    if quality.residual_degrees:
        words += [f"residual sd {quality.residual_sd:.3f} {unit} ({quality.residual_degrees} degrees of freedom)"]
    if not math.isnan(quality.seed_sd):
        words += [f"training noise alone: sd {quality.seed_sd:.3f} per cell"]
    return "; ".join(words) + f". {quality.note}".rstrip()
