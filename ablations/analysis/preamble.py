"""The words at the head of a summary: what is held fixed, on what it ran, what was left out."""

from __future__ import annotations

from typing import Any

from ablations.analysis.tables import Record

SMOKE_WARNING = (
    "**This scale shows that everything works; the order of the blocks means nothing after so few steps.**"
)


def fixed(record: Record) -> str:
    """What all cells share, scale, seeds, corpus, machine and versions, as a Markdown list."""
    spec, corpus = record.attrs.get("spec", {}), record.attrs.get("corpus", {})
    lines = [
        f"Scale `{spec.get('scale')}`, task `{spec.get('task')}`. Fixed for every block: data and their order (per "
        "seed), steps, batch, optimiser and schedule, vocabulary, initialisation rules. Rules: `ablations/README.md`.",
        f"model: {_items(spec.get('model', {}))}",
        f"training: {_items({**spec.get('optim', {}), **spec.get('trainer', {})})}",
        f"data: {_items(spec.get('data', {}))}; corpus digest `{spec.get('corpus')}`"
        + (f", Python {corpus['python']}" if "python" in corpus else ""),
        f"seeds: {_seeds(record)}; learning rates: {_values(record, 'learning_rate')}",
        *(f"machine: {_machine(machine)}" for machine in record.attrs.get("machines", [])),
        f"speed pass: {_items(record.attrs.get('speed_conditions', {})) or 'not run yet'}",
        f"cells: {_states(record)}",
    ]
    warning = [SMOKE_WARNING] if spec.get("scale") == "smoke" else []
    return "\n\n".join([*warning, "\n".join(f"- {line}" for line in lines)])


def _items(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _values(record: Record, column: str) -> str:
    return ", ".join(f"{value:g}" for value in sorted(record.cells[column].unique()))


def _seeds(record: Record) -> str:
    """Which seeds, and for how many blocks each."""
    counts = record.cells.groupby("seed")["block"].nunique()
    return ", ".join(f"{seed} ({count} blocks)" for seed, count in counts.items())


def _machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    return (f"{machine['cpu']} ({machine['cores']} cores), {machine['system']}{gpu}, {machine['workers']} workers; "
            f"{versions}")


def _states(record: Record) -> str:
    return ", ".join(f"{count} {state}" for state, count in record.cells.state.value_counts().items())


def left_out(record: Record) -> str:
    """How many cells the effects do without, in words."""
    counts = record.cells.state.value_counts()
    diverged, failed = int(counts.get("diverged", 0)), int(counts.get("failed", 0))
    unfinished = len(record.cells) - sum(int(counts.get(state, 0)) for state in ("complete", "diverged", "failed"))
    words = [f"{diverged} cells diverged and {failed} failed; pairs with one of them are left out of the effects on "
             "loss, which understates a switch that makes training diverge."]
    if unfinished:
        words.append(f"{unfinished} cells are not finished yet: this is an interim summary.")
    if not diverged and not failed:
        words[0] = "No cell diverged or failed, so no pair is left out."
    return " ".join(words)
