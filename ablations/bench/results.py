"""The result: a table for the terminal, CSV, JSON and Markdown, written anew after every comparison."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ablations.bench.measure import COLUMNS, Measurement
from lit_simplified.files import finite, write_text

Cells = Mapping[str, Callable[[Measurement], str]]


@dataclass(kw_only=True)
class BenchRecord:
    """All that a run of the benchmark leaves; `write` after every row, so that a crash loses one comparison."""

    folder: Path
    about: dict[str, Any]
    """Machine, versions, date, command and conditions."""
    rows: list[Measurement] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    """What was not measured: key and reason."""

    def write(self) -> None:
        """`bench.csv`, `bench.json` and `bench.md`, each whole."""
        value = {
            **self.about, "derived": derived(self.rows), "skipped": self.skipped,
            "rows": [asdict(row) for row in self.rows],
        }
        write_text(self.folder / "bench.json", json.dumps(finite(value), indent=1, allow_nan=False) + "\n")
        write_text(self.folder / "bench.csv", to_csv(self.rows))
        write_text(self.folder / "bench.md", self.markdown())

    def markdown(self) -> str:
        """Conditions, a table per group, and what was left out."""
        parts = [f"# Benchmark, {self.about.get('preset', '')}", conditions(self.about)]
        for group, rows in by_group(self.rows).items():
            parts += [f"## {group}", _markdown_table(table_cells(rows))]
        notes = (*findings(self.rows), *(f"{s['key']}: skipped, {s['reason']}" for s in self.skipped))
        parts.append("\n".join(f"- {note}" for note in notes))
        return "\n\n".join(parts) + "\n"


def to_csv(rows: Sequence[Measurement]) -> str:
    """A line per row; what was not measured is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in asdict(row).items()} for row in rows)
    return text.getvalue()


def by_group(rows: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    """Rows by their group, in order."""
    groups: dict[str, list[Measurement]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return groups


def derived(rows: Sequence[Measurement]) -> dict[str, dict[str, float]]:
    """Peak memory at the longest T over that at the shortest, at the same tokens per step, by subject of `length`."""
    memory: dict[str, dict[int, float]] = {}
    for row in rows:
        if row.group == "length" and not row.compiled:
            for name, value in ((row.name, row.memory_mib), (row.baseline, row.baseline_memory_mib)):
                if value is not None:
                    memory.setdefault(name, {})[row.context] = value
    return {"memory_ratio_longest_to_shortest": {
        f"{name}, T {max(by_length)} to {min(by_length)}": by_length[max(by_length)] / by_length[min(by_length)]
        for name, by_length in memory.items() if len(by_length) > 1
    }}


def findings(rows: Sequence[Measurement]) -> list[str]:
    """What follows from several rows of a group, in words."""
    return [
        f"peak memory of {what}: {ratio:.2f} times as much"
        for what, ratio in derived(rows)["memory_ratio_longest_to_shortest"].items()
    ]


def conditions(about: Mapping[str, Any]) -> str:
    """Machine, conditions and versions in lines."""
    machine, versions = about.get("machine", {}), about.get("versions", {})
    how = ", ".join(f"{key} {value}" for key, value in about.get("conditions", {}).items())
    return "\n".join((
        f"{machine.get('cpu', '')}, {machine.get('cores', '?')} cores, {machine.get('gpu') or 'no GPU'}; "
        f"{about.get('date', '')}",
        f"`{about.get('command', '')}`; {how}", ", ".join(f"{name} {version}" for name, version in versions.items()),
    ))


def _spread(row: Measurement, mode: str) -> str:
    ratio, low, high = (getattr(row, f"{mode}_{part}") for part in ("ratio", "low", "high"))
    return "" if ratio is None else f"{ratio:.2f} [{low:.2f}, {high:.2f}]"


def _number(value: float | None, style: str = ",.0f") -> str:
    return "" if value is None else format(value, style)


CELLS: Cells = {
    "name": lambda row: row.name + (f", {row.compiled} compiled" if row.compiled else ""),
    "against": lambda row: row.baseline + (", own process" if row.own_process else ""),
    "T": lambda row: str(row.context),
    "rounds": lambda row: str(row.rounds),
    "train": lambda row: _spread(row, "train"),
    "inference": lambda row: _spread(row, "inference"),
    "tokens/s": lambda row: _number(row.train_tokens_per_second),
    "tokens/s inf.": lambda row: _number(row.inference_tokens_per_second),
    "ms": lambda row: _number(row.train_ms, ",.1f"),
    "GFLOP": lambda row: _number(row.flops and row.flops / 1e9, ",.1f"),
    "FLOP ratio": lambda row: _number(row.flop_ratio, ".3f"),
    "reached": lambda row: _number(row.flop_share, ".2f"),
    "MFU": lambda row: "" if row.mfu is None else f"{row.mfu:.2f} [{row.mfu_low:.2f}, {row.mfu_high:.2f}]",
    "MiB": lambda row: _number(row.memory_mib, ",.0f"),
    "MiB against": lambda row: _number(row.baseline_memory_mib, ",.0f"),
    "M param.": lambda row: _number(row.parameters and row.parameters / 1e6, ",.3f"),
    "M param. against": lambda row: _number(row.baseline_parameters and row.baseline_parameters / 1e6, ",.3f"),
    "note": lambda row: row.error or row.note,
}
"""Columns of the tables that people read; `train` and `inference` are ratios of speed, above 1: faster."""
WORDS = ("name", "against", "note")
"""Columns that are set to the left."""


def table_cells(rows: Sequence[Measurement]) -> list[list[str]]:
    """Header and cells; a column that is empty in all rows is left out."""
    columns = [[head, *(cell(row) for row in rows)] for head, cell in CELLS.items()]
    kept = [column for column in columns if any(column[1:])]
    return [list(line) for line in zip(*kept, strict=True)]


def text_table(rows: Sequence[Measurement]) -> str:
    """The aligned plain-text tables, a block per group."""
    parts = []
    for group, members in by_group(rows).items():
        lines = table_cells(members)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        sides = ["<" if head in WORDS else ">" for head in lines[0]]
        parts.append("\n".join([group, *("  " + _aligned(line, sides, widths) for line in lines)]))
    return "\n\n".join(parts)


def _aligned(line: Sequence[str], sides: Sequence[str], widths: Sequence[int]) -> str:
    cells = (f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True))
    return "  ".join(cells).rstrip()


def _markdown_table(lines: Sequence[Sequence[str]]) -> str:
    head, *body = lines
    sides = ["---" if name in WORDS else "---:" for name in head]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in (head, sides, *body))
