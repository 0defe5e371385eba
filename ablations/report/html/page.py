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

from ablations.analysis import claims
from ablations.analysis import pairs as presets
from ablations.analysis.rates import edge_warnings
from ablations.analysis.tables import each, label
from ablations.engine.storage import now
from ablations.report.html import findings, provenance
from ablations.report.html.figures import javascript, plots, series_of
from ablations.report.html.ranking import COLUMNS, Row, configs, ranking
from ablations.report.preamble import SMOKE_WARNING, left_out
from ablations.report.summary import Findings, find
from ablations.report.tables import between, number
from lit_simplified.config import SWITCHES
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
    record, blocks = found.record, found.blocks
    executions = provenance.executions(study)
    rows = ranking(record, blocks, known=configs(study))
    return {
        "head": provenance.head(record, executions), "written": provenance.moment(now()), "left_out": left_out(record),
        "warning": SMOKE_WARNING.strip("*") if record.attrs.get("spec", {}).get("scale") == "smoke" else "",
        "facts": provenance.facts(record), "highlights": highlights(blocks, found.claims), "columns": COLUMNS,
        "rows": rows, "filters": filters(rows), "plots": plots(record, blocks), "series": series_of(blocks),
        "edges": edge_warnings(found.sensitivity), **_findings(found),
        "problems": provenance.problems(study), "stopped": provenance.stopped(executions),
        "commands": provenance.commands(record), "exact": bool(record.attrs.get("commands")),
        "machines": provenance.machines(record), "workers": provenance.workers(record),
        "grid": provenance.grid_note(record), "attributes": list(provenance.attributes(record)),
    }


def _findings(found: Findings) -> dict[str, Any]:
    names, matrices = findings.matrices(found.pairs)
    return {
        "effects": findings.effect_tables(found.effects), "fits": findings.fits(found.quality),
        "notes": list(dict.fromkeys(fit.note for fit in found.quality if fit.note)),
        "claims": findings.claims(found.claims), "counts": findings.counts(found.claims),
        "margin": f"{claims.MARGIN:.0%}", "not_covered": claims.not_covered(found.record, found.blocks), "names": names,
        "matrices": matrices,
    }


def filters(rows: list[Row]) -> dict[str, list[str]]:
    """The values of each switch, and the states, that can be chosen from."""
    values = {name: sorted({row.switches[name] for row in rows}) for name in SWITCHES}
    return {name: found for name, found in {**values, "state": sorted({row.state for row in rows})}.items()
            if len(found) > 1}


def highlights(blocks: pd.DataFrame, verdicts: pd.DataFrame) -> list[tuple[str, str, str]]:
    """The first things to know: a title, a value, a note for each."""
    complete = blocks.dropna(subset="val_loss_mean")
    found = [_loss(title, row) for title, row in _first_and_baseline(complete)]
    measured = complete.dropna(subset="speed_ratio")
    if len(measured):
        fastest = next(each(measured.loc[[measured.speed_ratio.idxmax()]]))
        speed = between(fastest.speed_ratio, fastest.speed_ratio_low, fastest.speed_ratio_high)
        found.append(("fastest training step", speed, f"times Pre-LN: {label(fastest)}"))
    if len(verdicts):
        told = findings.counts(verdicts)
        found.append(("claims of the paper", f"{told['holds']} of {len(verdicts)} hold",
                      f"{told['does not hold']} do not, {told['cannot be told']} cannot be told"))
    return found


def _first_and_baseline(complete: pd.DataFrame) -> list[tuple[str, Any]]:
    found = [("lowest validation loss", next(each(complete)))] if len(complete) else []
    baseline = complete[complete.preset == presets.BASELINE]
    return [*found, ("Pre-LN", next(each(baseline)))] if len(baseline) else found


def _loss(title: str, row: Any) -> tuple[str, str, str]:
    seeds = f"{row.n_seeds} seed{'s' * (row.n_seeds != 1)}"
    interval = findings.interval(row.val_loss_low, row.val_loss_high, "{:.3f}")
    name = label(row) if title != "Pre-LN" else "validation loss"
    return title, number(row.val_loss_mean, "{:.4f}"), ", ".join(filter(None, (name, interval, seeds)))
