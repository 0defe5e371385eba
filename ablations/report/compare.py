"""Two studies compared, in words: what differs between them, and which rows are worse or better. Imports neither torch
nor lightning.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from ablations.analysis.changes import (
    BETTER,
    INCOMPARABLE,
    NOISE,
    SAME,
    SETTLED,
    TURNED,
    UNKNOWN,
    UNSETTLED,
    WORSE,
    compare,
    differences,
    verdict_changes,
)
from ablations.analysis.tables import each, read
from ablations.engine.lookup import find_study
from ablations.report.formats import markdown
from ablations.report.tables import comparison_as_text, rich_table, verdicts_as_text
from lit_simplified.files import write_text


def compare_studies(before: str, after: str, *, folder: Path | None, console: Console) -> pd.DataFrame:
    """Compare two studies; print what differs between them and which rows are worse or better.

    Args:
        before: the name of a study under `results/`, the path of its folder or journal, or a database URL. A storage
            with several studies needs `#STUDY` behind it.
        after: likewise.
        folder: where `comparison.csv` and `comparison.md` are written. None: nowhere.
        console: where to print.

    Raises:
        StudyError: there is no such study, or several.
    """
    records = tuple(read(find_study(given)) for given in (before, after))
    table, changed = compare(*records), differences(*records)
    conditions, outcomes = condition_lines(changed), outcome_lines(table)
    names = (f"{before} ({records[0].name})", f"{after} ({records[1].name})")
    shown = comparison_as_text(table[table.n_seeds > 0]).drop(columns=["speed", "why"], errors="ignore")
    for line in conditions:
        console.print(line, highlight=False, markup=False)
    console.print(rich_table(shown, title=f"{names[1]} against {names[0]}: loss in nats, 95 %"))
    for line in outcomes:
        console.print(line, highlight=False, markup=False)
    claims = verdict_changes(*records)
    if len(claims):
        console.print(rich_table(verdicts_as_text(claims), title="claims that both have"))
        console.print(turned_line(claims), highlight=False, markup=False)
    if folder is not None:
        write_text(folder / "comparison.csv", table.to_csv(index=False))
        document = comparison_document(table, claims, names=names, lines=[*conditions, *outcomes])
        write_text(folder / "comparison.md", document)
    return table


def comparison_document(
    table: pd.DataFrame, claims: pd.DataFrame, *, names: Sequence[str], lines: Sequence[str]
) -> str:
    """The comparison of two studies as Markdown."""
    said = [f"## Claims\n\n{turned_line(claims)}", markdown(verdicts_as_text(claims))] if len(claims) else []
    return "\n\n".join((
        f"# {names[1]} against {names[0]}", "\n".join(f"- {line}" for line in lines),
        "Difference in validation loss, after - before, in nats, over the cells that both studies have (same row, seed "
        "and tuned values), with 95 % t intervals over seeds; with one seed, the interval is made with the spread of "
        "the rows that have several. p is corrected over rows (Holm). Speed is relative to the baseline of the same "
        "study; it is better or worse if the two intervals do not overlap.",
        markdown(comparison_as_text(table)), *said,
    )) + "\n"


def turned_line(claims: pd.DataFrame) -> str:
    """How many verdicts changed, and how.

    Args:
        claims: of `verdict_changes`.
    """
    counts = claims.change.value_counts()
    return f"verdicts of {len(claims)} claims: " + ", ".join(
        f"{counts.get(change, 0)} {change}" for change in (TURNED, SETTLED, UNSETTLED, SAME))


def condition_lines(changed: Sequence[tuple[str, Any, Any]]) -> list[str]:
    """What differs between the studies' settings and machines, a line each."""
    if not changed:
        return ["Settings, corpus and machine are the same in both."]
    lines = [f"differs: {key}: {old!r} before, {new!r} after" for key, old, new in changed]
    doubtful = [key for key, *_ in changed if key in INCOMPARABLE]
    if doubtful:
        lines.append(f"Their losses do not measure the same thing, because {', '.join(doubtful)} differs.")
    return lines


def outcome_lines(table: pd.DataFrame) -> list[str]:
    """How many rows have each verdict, and what else changed, a line each."""
    counts = table.verdict.value_counts()
    words = (WORSE, BETTER, NOISE, UNKNOWN)
    lines = ["loss: " + ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in words)]
    for why, own in table[table.n_seeds == 0].groupby("why", sort=False):
        lines.append(f"{why}: {', '.join(row.label for row in each(own))}")
    lines += [f"{row.label}: {row.states}" for row in each(table[table.states != ""])]
    for row in each(table[table.speed_verdict.isin((WORSE, BETTER))]):
        lines.append(f"{row.label}: speed {row.speed_verdict}, {row.speed_before:.3f} -> {row.speed_after:.3f}")
    return lines
