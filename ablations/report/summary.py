"""`summary`: tables, effects, claims, plots and a document from the storage alone. Imports neither torch nor lightning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna
import pandas as pd
from rich.console import Console

from ablations.analysis.budgets import MORE_TOKENS, turned
from ablations.analysis.curves import long_curves
from ablations.analysis.findings import Findings, find
from ablations.analysis.rates import edge_warnings
from ablations.analysis.tables import LEARNING_RATE
from ablations.analysis.worker_time import worker_time_sentence
from ablations.report import conditions, guide
from ablations.report.columns import axis_columns, baseline_label, has_sizes
from ablations.report.formats import json_lines, markdown, moment, records, to_json
from ablations.report.limits import MOST_LINES, first_of
from ablations.report.plots import draw_all, named_files
from ablations.report.tables import (
    along,
    axis_matrix,
    budgets_as_text,
    claims_as_text,
    effects_as_text,
    pairs_as_text,
    rich_table,
    rows_as_text,
    screening_as_text,
    sensitivity_as_text,
    some_do_not_train,
    training_as_text,
    tuned_matrix,
)
from lit_simplified.files import write_text

DISPENSABLE = ("sd", "bits/byte", "MiB", "tokens/s", "params", "speed")
"""Columns that a narrow terminal does without, one after the other, after those of the axes; the files hold all."""


def summarise(study: optuna.Study, *, folder: Path, console: Console | None = None) -> tuple[Findings, list[Path]]:
    """Print the tables of a study and write all its files.

    summary.csv and summary.json (a row per row of the study), training.csv, effects.csv, pairwise.csv, claims.csv,
    curves.csv, trials.jsonl (a line per trial), where there is something to say screening.csv, budgets.csv, tuned.csv
    and .md (learning_rates.* where that is what was tuned), by_axis.csv and left_out.csv, PNG plots, and summary.md,
    which holds everything.

    Returns:
        What was computed, and the paths of the files.
    """
    found = find(study)
    texts = dict(_files(found))
    for name, text in texts.items():
        write_text(folder / name, text)
    plots = draw_all(found, folder=folder)
    write_text(folder / "summary.md", compose(found, plots=plots))
    _print(console or Console(), found)
    return found, [*(folder / name for name in texts), *plots, folder / "summary.md"]


def _files(found: Findings) -> Iterator[tuple[str, str]]:
    """The tables, by the names of their files."""
    yield "summary.csv", found.rows.to_csv(index=False)
    yield "summary.json", to_json(records(found.rows), indent=1) + "\n"
    yield "training.csv", found.training.to_csv(index=False)
    yield "effects.csv", found.effects.to_csv(index=False)
    yield "pairwise.csv", found.pairs.to_csv(index=False)
    yield "claims.csv", found.claims.to_csv(index=False)
    yield "curves.csv", long_curves(found.record).to_csv(index=False)
    if found.record.design.tuned:
        yield f"{tuned_stem(found)}.csv", _tuned_values(found).to_csv(index=False)
        yield f"{tuned_stem(found)}.md", markdown(_matrix(found)) + "\n"
    for name, table in (("screening.csv", found.screening), ("budgets.csv", found.budgets),
                        ("by_axis.csv", found.by_axis), ("left_out.csv", found.left_out)):
        if not table.empty:
            yield name, table.to_csv(index=False)
    yield "trials.jsonl", json_lines(conditions.trials(found.record))


def tuned_stem(found: Findings) -> str:
    """What the files about the tuned values are called."""
    return "learning_rates" if [axis.name for axis in found.record.design.tuned] == [LEARNING_RATE] else "tuned"


def _tuned_values(found: Findings) -> pd.DataFrame:
    """Loss by row and tuned values, with what the sensitivity of the row is."""
    if found.sensitivity.empty:
        return found.tuned
    more = [name for name in found.sensitivity.columns if name == "row" or name not in found.tuned.columns]
    return found.tuned.merge(found.sensitivity[more], on="row", how="left")


def _matrix(found: Findings) -> pd.DataFrame:
    axes = found.record.design.tuned
    title = {"learning_rate": "lr"}.get(axes[0].title, axes[0].title) if len(axes) == 1 else ""
    return tuned_matrix(found.tuned, title=title)


def compose(found: Findings, *, plots: Sequence[Path]) -> str:
    """The document."""
    named = [path for path in plots if path.name in named_files(found)]
    others = [path for path in plots if path not in named]
    parts = [
        *_head(found), *(["## Figures", *map(_image, named)] if named else []), *_claims(found), *_conditions(found),
        *_rows(found), *_budgets(found), *_screening(found), *_tuned(found), *_axes(found), *_training(found),
        *_effects(found), *_pairs(found),
        *(["## Plots", *map(_image, others)] if others else []),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _image(path: Path) -> str:
    return f"![{path.stem.replace('_', ' ')}]({path.name})"


def _head(found: Findings) -> list[str]:
    """Name, question, and what is to be known before any number is read."""
    record = found.record
    groups = conditions.aliases(found.effects)
    return [
        f"# Study {record.name}", f"**{_line(record.design.question)}**" if record.design.question else "",
        f"**{guide.SMOKE_WARNING}**" if record.only_plumbing else "", conditions.unfinished(record),
        _facts(conditions.asked(record)),
        *(["Notes on the design:", _bullets(record.design.notes)] if record.design.notes else []),
        *([guide.ALIASES, _bullets(f"`{group}`" for group in groups)] if groups else []),
    ]


def _line(text: str) -> str:
    return " ".join(str(text).split())


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    return _bullets(f"{term}: {text}" for term, text in facts)


def _bullets(lines: Sequence[str] | Iterator[str]) -> str:
    return "\n".join(f"- {_line(line)}" for line in lines)


def _conditions(found: Findings) -> list[str]:
    facts = conditions.fixed(found.record)
    machines = [("machine", text) for text in conditions.machines(found.record)]
    return [
        "## What is fixed", "The same for every row: data and, for each seed, their order; steps, batch, optimiser and "
        "schedule, vocabulary, initialisation rules, except where an axis changes them.", _facts([*facts, *machines]),
    ]


def _rows(found: Findings) -> list[str]:
    if found.rows.empty:
        return ["## Rows", "No training run has finished yet."]
    baseline = f"`{baseline_label(found.record)}`"
    sizes = guide.OTHER_SIZES if has_sizes(found.record) else ""
    masked = guide.MASKED if found.record.attrs.get("spec", {}).get("task") == "mlm" else ""
    return ["## Rows", guide.ROWS.format(baseline=baseline, masked=masked, sizes=sizes.format(baseline=baseline)),
            *(f"**{sentence}**" for sentence in conditions.speed_withheld(found.rows)),
            markdown(rows_as_text(found.rows, columns=axis_columns(found.record)))]


def _budgets(found: Findings) -> list[str]:
    if found.budgets.empty:
        return []
    said = guide.BUDGETS.format(baseline=f"`{baseline_label(found.record)}`", times=MORE_TOKENS)
    order = turned(found.budgets)
    head = f"Order that turned with the tokens ({len(order)} pairs):"
    return ["## Loss against tokens", said, markdown(budgets_as_text(found.budgets)),
            *([head, _bullets(order[:MOST_LINES])] if order else [])]


def _screening(found: Findings) -> list[str]:
    if found.screening.empty:
        return []
    return ["## Screening", f"{conditions.screening(found.record)}. {guide.SCREENED}",
            markdown(screening_as_text(found.screening, columns=axis_columns(found.record)))]


def _tuned(found: Findings) -> list[str]:
    if not found.is_tuned:
        return []
    title = "Learning rates" if tuned_stem(found) == "learning_rates" else "Tuned values"
    sensitive = [] if found.sensitivity.empty else [guide.SENSITIVITY, markdown(sensitivity_as_text(found.sensitivity))]
    return [f"## {title}", guide.TUNED, markdown(_matrix(found)),
            *(f"**Warning:** {warning}" for warning in edge_warnings(found.sensitivity)), *sensitive]


def _axes(found: Findings) -> list[str]:
    """Loss along each compared axis of numbers; that along a tuned one has a table of its own."""
    tuned = {axis.name for axis in found.record.design.tuned}
    lines = [along(found.by_axis, name) for name in found.by_axis.axis.unique() if name not in tuned]
    tables = [markdown(axis_matrix(own)) for own in lines if 0 < own.line.nunique() <= MOST_LINES]
    return ["## Along the axes", "Validation loss with its 95 % interval over the seeds.", *tables] if tables else []


def _training(found: Findings) -> list[str]:
    """Which levels of the axes do not train; nothing where all do."""
    if not some_do_not_train(found.training):
        return []
    return ["## Which rows train", guide.TRAINING, markdown(training_as_text(found.training))]


def _effects(found: Findings) -> list[str]:
    effects, lines = found.effects, conditions.basis(found.quality)
    if effects.empty:
        return ["## Effects", _bullets(lines) or guide.EMPTY_EFFECTS, *conditions.left_out(found.left_out)]
    parts = ["## Effects"]
    steps = guide.PATH if found.record.design.kind == "path" else guide.STEPS
    for kinds, text in ((("step",), steps), (("main", "interaction"), guide.EFFECTS), (("simple",), guide.SIMPLE)):
        own = effects[effects.kind.isin(kinds)]
        if len(own):
            parts += [text, conditions.interval_basis(own), markdown(effects_as_text(own, *kinds))]
    return [*parts, *conditions.left_out(found.left_out), "What they rest on:" if lines else "", _bullets(lines)]


def _claims(found: Findings) -> list[str]:
    if found.claims.empty:
        return []
    source = found.record.design.source
    dates = "; ".join(sorted(set(filter(None, map(moment, found.claims.registered)))))
    return ["## Claims", f"Source: {_line(source)}." if source else "", f"Written down: {dates}." if dates else "",
            f"{guide.CLAIMS} {conditions.margin_worth(found)}", markdown(claims_as_text(found.claims))]


def _pairs(found: Findings) -> list[str]:
    if found.pairs.empty:
        return []
    shown = found.pairs.head(MOST_LINES)
    more = first_of(len(shown), len(found.pairs), noun="pairs", file="pairwise.csv")
    some = conditions.pairs_left_out(found.record)
    return ["## Rows in pairs", guide.PAIRS, some, markdown(pairs_as_text(shown)), more]


def _print(console: Console, found: Findings) -> None:
    """What fits a terminal of 110 columns; the rest is in the files."""
    record = found.record
    for line in (record.design.question, *record.design.notes):
        _say(console, line)
    if not found.claims.empty:
        shown = claims_as_text(found.claims)[["claim", "found", "seeds", "verdict"]]
        _print_first(console, shown, title="claims, at this size (reasons: summary.md)", file="claims.csv")
    _print_rows(console, found)
    if len(found.budgets):
        title = "loss against tokens [difference to the baseline], place"
        _print_first(console, budgets_as_text(found.budgets), title=title, file="budgets.csv")
    if len(found.screening):
        shown = screening_as_text(found.screening)
        _print_first(console, shown, title=f"screening: {conditions.screening(record)}", file="screening.csv")
    if found.is_tuned:
        what = "learning rate" if tuned_stem(found) == "learning_rates" else "tuned values"
        _print_first(console, _matrix(found), title=f"validation loss by {what}", file=f"{tuned_stem(found)}.csv")
        for warning in edge_warnings(found.sensitivity):
            console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)
    if some_do_not_train(found.training):
        _print_first(console, training_as_text(found.training), title="which rows train", file="training.csv")
    _print_effects(console, found)
    for line in (*conditions.left_out(found.left_out), conditions.unfinished(record), worker_time_sentence(record)):
        _say(console, line)


def _say(console: Console, line: str) -> None:
    if line:
        console.print(line, highlight=False, markup=False)


def _print_rows(console: Console, found: Findings) -> None:
    """The table of rows, with as many columns as fit."""
    if found.rows.empty:
        stage = "tuned values are being chosen: " if len(found.record.choosing) else \
            "rows are being screened: " if len(found.record.screening) else ""
        console.print(f"{stage}no training run that judges has finished yet" if stage else
                      "no training run has finished yet")
        return
    columns, title = axis_columns(found.record), f"study {found.record.name}"
    table = rows_as_text(found.rows.head(MOST_LINES), columns=columns)
    unlimited = console.options.update(max_width=10_000)
    for names in ([column.title for column in columns], *([name] for name in DISPENSABLE)):
        if console.measure(rich_table(table, title=title), options=unlimited).maximum <= console.width:
            break
        table = table.drop(columns=names, errors="ignore")
    console.print(rich_table(table, title=title))
    _say(console, first_of(len(table), len(found.rows), noun="rows", file="summary.csv"))
    for sentence in conditions.speed_withheld(found.rows):
        _say(console, sentence)


def _print_first(console: Console, table: pd.DataFrame, *, title: str, file: str) -> None:
    """The first lines of a table, and how many there are."""
    console.print(rich_table(table.head(MOST_LINES), title=title))
    _say(console, first_of(MOST_LINES, len(table), noun="lines", file=file))


def _print_effects(console: Console, found: Findings) -> None:
    effects = found.effects
    titles = {("step",): "steps, with 95 % intervals; p corrected (Holm), * below 0.05", ("main", "interaction"):
              "effects, largest first, with 95 % intervals; p corrected (Holm), * below 0.05"}
    for kinds, title in titles.items():
        if effects.kind.isin(kinds).any():
            every = effects_as_text(effects, *kinds)
            told_apart = not every.effect.duplicated().any()
            _print_first(console, every.drop(columns=["change"] * told_apart), title=title, file="effects.csv")
    simple = effects[(effects.kind == "simple") & (effects.measure == "loss")]
    if len(simple):
        _print_first(console, effects_as_text(simple, "simple"), title="simple effects on loss, in nats",
                     file="effects.csv")
    for line in conditions.basis(found.quality):
        _say(console, line)
