"""The words of a summary: what is held fixed, on what it ran, how to read the effects and claims, what was left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ablations.analysis.claims import MARGIN
from ablations.analysis.effects import FitQuality
from ablations.analysis.tables import Record
from ablations.analysis.usage import words as usage_words
from lit_simplified.config import PRE_LN, SHARED, SWITCHES, Task, in_setting

SMOKE_WARNING = (
    "**This scale shows that everything works; the order of the blocks means nothing after so few steps.**"
)
BLOCKS = (
    "Best validation loss first, in nats per token: mean over seeds with its 95 % t interval, and their standard "
    "deviation. `speed` is the training step's, relative to `pre_ln`, with its 95 % interval; the interval of "
    "`pre_ln`'s own row is the noise of the measurement."
)
EFFECTS = (
    "One model of all blocks (least squares; a block counts once, as the mean of its seeds). A main effect is the mean "
    "of the blocks with the change minus the mean of those without, all other switches balanced. An interaction, "
    "`a x b`, is the effect of a where b is changed, minus its effect where b is not: far from 0, the main effects of "
    "a and b describe no single block, and the simple effects beneath are to be read. Largest first. Brackets are 95 % "
    "t intervals from what the model leaves over: what three and more switches do together, and training noise. `*`: "
    "below 0.05 after Holm's correction over all effects on loss, or all on speed. The skips are judged in the "
    "sequential blocks; the layout in the blocks whose two skips are equal, as a parallel block has one."
)
CLAIMS = (
    f"Each block at its best learning rate of the study, paired by seed, with 95 % t intervals. Level: the whole "
    f"interval is within {MARGIN:.0%} of the second block's loss. That margin is ours: the paper calls blocks "
    "comparable whose losses differ by up to 0.023 nats of 1.155, which is 2 %. Worse, better, faster, slower: the "
    "interval is on that side of no difference. A block that diverged in every cell is worse than any loss. Verdicts "
    "are about this study's size, data and budget, not the paper's, and are not corrected for their number."
)


def fixed(record: Record) -> str:
    """What all cells share, scale, seeds, corpus, machine and versions, as a Markdown list."""
    spec, corpus = record.attrs.get("spec", {}), record.attrs.get("corpus", {})
    lines = [
        f"Scale `{spec.get('scale')}`, task `{spec.get('task')}`. Fixed for every block: data and their order (per "
        "seed), steps, batch, optimiser and schedule, vocabulary, initialisation rules. Rules: `ablations/README.md`.",
        f"model: {_items(spec.get('model', {}))}",
        f"blocks, beside their switches: {_items(_shared(spec))}",
        f"training: {_items({**spec.get('optim', {}), **spec.get('trainer', {})})}",
        f"data: {_items(spec.get('data', {}))}; corpus digest `{spec.get('corpus')}`"
        + (f", Python {corpus['python']}" if "python" in corpus else ""),
        f"seeds: {_seeds(record)}; learning rates: {_values(record, 'learning_rate')}",
        *(f"machine: {_machine(machine)}" for machine in record.attrs.get("machines", [])),
        f"speed pass: {_items(record.attrs.get('speed_conditions', {})) or 'not run yet'}",
        f"cells: {_states(record)}",
        *filter(None, [usage_words(record)]),
    ]
    warning = [SMOKE_WARNING] if spec.get("scale") == "smoke" else []
    return "\n\n".join([*warning, "\n".join(f"- {line}" for line in lines)])


def _shared(spec: dict[str, Any]) -> dict[str, Any]:
    task: Task = "mlm" if spec.get("task") == "mlm" else "clm"
    return {name: getattr(in_setting(PRE_LN, task), name) for name in SHARED if name not in SWITCHES}


def _items(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _values(record: Record, column: str) -> str:
    return ", ".join(f"{value:g}" for value in sorted(record.cells[column].unique()))


def _seeds(record: Record) -> str:
    """Which seeds, and for how many blocks each."""
    counts = record.cells.groupby("seed")["block"].nunique()
    return ", ".join(f"{seed} ({count} blocks)" for seed, count in counts.items())


def _machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ""
    shares = "".join(f", {machine[name]} {name}" for name in ("workers", "threads") if name in machine)
    return f"{machine['cpu']} ({machine['cores']} cores), {machine['system']}{gpu}{shares}; {versions}"


def _states(record: Record) -> str:
    return ", ".join(f"{count} {state}" for state, count in record.cells.state.value_counts().items())


def left_out(record: Record) -> str:
    """How many cells the effects do without, in words."""
    counts = record.cells.state.value_counts()
    diverged, failed = int(counts.get("diverged", 0)), int(counts.get("failed", 0))
    unfinished = len(record.cells) - sum(int(counts.get(state, 0)) for state in ("complete", "diverged", "failed"))
    words = [f"{diverged} cells diverged and {failed} failed; blocks with one of them are left out of the effects on "
             "loss, which understates a switch that makes training diverge."]
    if unfinished:
        words.append(f"{unfinished} cells are not finished yet: this is an interim summary.")
    if not diverged and not failed:
        words[0] = "No cell diverged or failed, so no block is left out."
    return " ".join(words)


def basis(qualities: Sequence[FitQuality]) -> list[str]:
    """What the effects rest on: a sentence per model, or one of why there is none."""
    return list(dict.fromkeys(_basis(quality) if quality.residual_degrees else quality.note for quality in qualities))


def _basis(quality: FitQuality) -> str:
    unit = "nats" if quality.measure == "loss" else "of the logarithm"
    head = f"{quality.measure.capitalize()}, {quality.design}"
    words = [f"{head}: {quality.n_blocks} blocks, {quality.n_left_out} left out"]
    if quality.measure == "loss":
        words += [f"{_listed('seed', quality.seeds)} of each at {_listed('learning rate', quality.learning_rates)}"]
    if not math.isnan(quality.r_squared):
        words += [f"R² {quality.r_squared:.2f}"]
    words += [f"residual sd {quality.residual_sd:.3f} {unit} ({quality.residual_degrees} degrees of freedom)"]
    if not math.isnan(quality.seed_sd):
        words += [f"of which training noise alone (a seed around block + seed) {quality.seed_sd:.3f} per cell"]
    return "; ".join(words) + f". {quality.note}".rstrip()


def _listed(what: str, values: Sequence[float]) -> str:
    return f"{what}{'s' * (len(values) != 1)} {', '.join(f'{value:g}' for value in values)}"
