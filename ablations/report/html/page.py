"""The page of a report: everything a study holds, in one HTML file that opens without a network."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ablations.analysis.budgets import MORE_TOKENS, turned
from ablations.analysis.findings import Findings, find
from ablations.analysis.rates import edge_warnings
from ablations.analysis.tables import each
from ablations.engine.storage import now, trained_rows
from ablations.report import conditions, guide
from ablations.report.columns import axis_columns, baseline_label, has_sizes, speeds
from ablations.report.formats import moment
from ablations.report.html import findings, provenance
from ablations.report.html.plots import Plot, javascript, named_first, plots, series_of
from ablations.report.html.ranking import columns_of, filters_of, left_out, ranking
from ablations.report.limits import MOST_LINES, first_of
from ablations.report.tables import WITHHELD, between, budgets_as_text, number, screening_as_text, some_do_not_train
from lit_simplified.files import write_text

NAME = "report.html"


def write_report(study: optuna.Study, *, folder: Path) -> Path:
    """Write `report.html`, of a finished study or of one under way, and return its path."""
    path = folder / NAME
    write_text(path, render(study))
    return path


def render(study: optuna.Study) -> str:
    """The page as text. Whatever a user wrote (names, reasons, paths) is escaped wherever it stands."""
    package = files("ablations.report.html")
    environment = Environment(
        loader=PackageLoader("ablations.report.html", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {}  # Bokeh reads its models in the order in which they were written
    scripts = [*javascript(), (package / "script.js").read_text(encoding="utf-8")]
    # `Markup` leaves style and scripts as they are: ours and Bokeh's, in which no such element ends.
    return environment.get_template("template.html").render(
        **content(study), scripts=[Markup(script) for script in scripts], policy=_policy(scripts),
        style=Markup((package / "style.css").read_text(encoding="utf-8")),
    )


def _policy(scripts: list[str]) -> str:
    """What the page may do, for the browser to enforce: run these scripts, and load nothing from anywhere."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
            "font-src data:; base-uri 'none'; form-action 'none'")


def content(study: optuna.Study) -> dict[str, Any]:
    """All that the template shows."""
    found = find(study)
    record, executions = found.record, provenance.executions(study)
    axes = axis_columns(record)
    rows = ranking(record, found.rows, axes=axes, known=trained_rows(study))
    problems, stopped = provenance.problems(study), provenance.stopped(record, executions)
    workers = provenance.workers(record)
    return {
        "head": provenance.head(record, executions), "written": moment(now()), "design": record.design,
        "warning": guide.SMOKE_WARNING if record.only_plumbing else "",
        "asked": conditions.asked(record), "facts": conditions.fixed(record),
        "unfinished": conditions.unfinished(record), "baseline": baseline_label(record),
        "sizes": has_sizes(record),
        "highlights": highlights(found), "columns": columns_of(record, axes), "rows": rows,
        "rows_left_out": left_out(rows, record),
        "budgets": findings.texts(budgets_as_text(found.budgets)),
        "budgets_guide": guide.BUDGETS.format(baseline=baseline_label(record), times=MORE_TOKENS),
        "turned": turned(found.budgets)[:MOST_LINES],
        "screening": findings.texts(screening_as_text(found.screening.head(MOST_LINES))),
        "screened": conditions.screening(record),
        "more_screening": first_of(MOST_LINES, len(found.screening), noun="rows", file="screening.csv"),
        "filters": filters_of(axes, rows), "edges": edge_warnings(found.sensitivity), **_plots(found),
        **_findings(found), "problems": problems[:MOST_LINES], "stopped": stopped[:MOST_LINES],
        "more_problems": first_of(MOST_LINES, len(problems), noun="cells", file="trials.jsonl"),
        "more_stopped": first_of(MOST_LINES, len(stopped), noun="executions", file="trials.jsonl"),
        "commands": provenance.commands(record), "exact": bool(record.attrs.get("commands")),
        "machines": provenance.machines(record), "workers": workers[:MOST_LINES],
        "more_workers": first_of(MOST_LINES, len(workers), noun="processes", file="the study's storage"),
        "file_note": provenance.file_note(record), "attributes": list(provenance.attributes(record)),
    }


def _plots(found: Findings) -> dict[str, Any]:
    """The plots, sorted into the sections in which they stand: those that the study's file names come first."""
    every, items = plots(found)
    named = named_first(every, found.record.design.figures)
    others = [plot for plot in every if plot not in named]

    def of(*kinds: str) -> list[Plot]:
        return [plot for plot in others if plot.kind in kinds]

    return {
        "items": items, "named": named, "along": of("loss_by_axis"), "effect_plots": of("effects"),
        "curves": of("loss_by_step", "loss_by_time", "loss_by_speed"), "series": series_of(found),
        "measured": any(plot.kind == "loss_by_speed" for plot in every),
        "speed_withheld": conditions.speed_withheld(found.rows),
    }


def _findings(found: Findings) -> dict[str, Any]:
    names, matrices = findings.matrices(found.pairs)
    effects, more = findings.first_effects(findings.effect_tables(found.effects))
    return {
        "training": list(each(found.training)) if some_do_not_train(found.training) else [],
        "effects": effects, "more_effects": more, "fits": findings.fits(found.quality),
        "fit_notes": list(dict.fromkeys(fit.note for fit in found.quality if fit.note)),
        "left_out": conditions.left_out(found.left_out), "sources": conditions.interval_basis(found.effects),
        "aliases": conditions.aliases(found.effects),
        "claims": findings.claims(found.claims), "margin": conditions.margin_worth(found),
        "counts": findings.counts(found.claims), "names": names,
        "matrices": matrices, "guide": guide,
        "more_pairs": f"{conditions.pairs_left_out(found.record)} {findings.pairs_left_out(found.pairs)}".strip(),
    }


def highlights(found: Findings) -> list[tuple[str, str, str]]:
    """The first things to know, those that stand before those that may turn: a title, a value, a note for each."""
    complete, shown = found.rows.dropna(subset="val_loss_mean"), _verdicts(found.claims)
    if len(complete):
        best = next(each(complete))
        shown.append(_loss("lowest validation loss", best, name=f"{best.label}{_lowest_elsewhere(found, best.label)}"))
    baseline = complete[complete.row == found.record.design.baseline]
    if len(baseline):
        shown.append(_loss(f"baseline: {baseline_label(found.record)}", next(each(baseline)), name="validation loss"))
    measured, _ = speeds(found.record, complete)
    if len(measured):
        fastest, sizes = next(each(measured.loc[[measured.pace.idxmax()]])), has_sizes(found.record)
        speed = between(fastest.pace, fastest.pace_low, fastest.pace_high, "{:,.0f}" if sizes else "{:.3f}")
        unit = "tokens per second" if sizes else f"times {baseline_label(found.record)}"
        shown.append(("fastest training", speed, f"{unit}: {fastest.label}"))
    shown += [("training speed", WITHHELD, sentence) for sentence in conditions.speed_withheld(found.rows)]
    return shown


def _lowest_elsewhere(found: Findings, label: str) -> str:
    """Which other rows have the lowest loss at other budgets."""
    others = found.budgets[(found.budgets.place == 1) & (found.budgets.share != 1) & (found.budgets.label != label)]
    return "".join(f"; at {row.share:g} times the steps {row.label}" for row in each(others))


def _verdicts(claims: pd.DataFrame) -> list[tuple[str, str, str]]:
    if claims.empty:
        return []
    counts = findings.counts(claims)
    return [("claims", f"{counts['holds']} of {len(claims)} hold",
             f"{counts['does not hold']} do not, {counts['inconclusive']} inconclusive")]


def _loss(title: str, row: Any, *, name: str) -> tuple[str, str, str]:
    interval = findings.interval(row.val_loss_low, row.val_loss_high, "{:.3f}")
    note = ", ".join(filter(None, (name, interval, conditions.counted(row.n_seeds, "seed"))))
    return title, number(row.val_loss_mean, "{:.4f}"), note
