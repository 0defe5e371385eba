"""The blocks at their tuned settings against each other, on seeds that no search has seen. No torch, no lightning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pandas as pd

from ablations.analysis.intervals import NOTHING, Interval, mean_interval
from ablations.analysis.tables import each
from ablations.search.results import FEW, OVER_BLOCKS, Found, Searched, edges

STATES = ("complete", "pruned", "diverged", "failed")
SELECTED = (
    "The loss of a search's best trial is biased downwards: the trial was chosen for its loss on seed 0. Judge by the "
    "final runs, which use seeds that no search has seen and are never pruned."
)


def comparison(found: Found) -> pd.DataFrame:
    """A row per search: its budget, its best trial, and its final runs with their paired differences.

    Columns:
        trials, complete, pruned, diverged, failed, steps: what the search cost.
        search_default, search_best: loss of the defaults and of the best trial, on seed 0.
        seeds, tuned_mean, tuned_std, default_mean, default_std: the final runs.
        gain: tuned minus default; tuned_difference, default_difference: minus those of the first search. Each with
        `_low` and `_high`, the 95 % t interval over the seeds, in nats.
    """
    rows = [_row(found, search, first=found.searches[0]) for search in found.searches]
    return pd.DataFrame(rows)


def _row(found: Found, search: Searched, *, first: Searched) -> dict[str, object]:
    tuned, default = (losses(found, search.label, settings) for settings in ("tuned", "default"))
    same = search.label == first.label
    differences = {
        "gain": paired(tuned, default),
        "tuned_difference": NOTHING if same else paired(tuned, losses(found, first.label, "tuned")),
        "default_difference": NOTHING if same else paired(default, losses(found, first.label, "default")),
    }
    row: dict[str, object] = {
        "search": search.label, "trials": len(search.trials), **{state: search.count(state) for state in STATES},
        "steps": search.steps, "search_default": search.default_loss, "search_best": search.best_loss,
        "seeds": len(tuned), "tuned_mean": tuned.mean(), "tuned_std": tuned.std(), "default_mean": default.mean(),
        "default_std": default.std(),
    }
    for name, interval in differences.items():
        row |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return row


def losses(found: Found, label: str, settings: str) -> pd.Series:
    """Losses of the complete final runs, by seed."""
    finals = found.finals
    rows = finals[(finals.label == label) & (finals.settings == settings) & (finals.state == "complete")]
    return rows.set_index("seed").loss


def paired(left: pd.Series, right: pd.Series) -> Interval:
    """The mean of left - right over the seeds that both have, and its t interval."""
    return mean_interval((left - right).dropna().to_numpy())


def remarks(found: Found) -> list[str]:
    """What was equal between the searches, what was not, and how to read the results."""
    lines = [*_held_equal(found.searches), *_not_equal(found.searches)]
    lines += [line for search in found.searches for line in _cautions(found, search)]
    return [*lines, *_verdicts(found)]


def _held_equal(searches: Sequence[Searched]) -> list[str]:
    first = searches[0]
    spec = first.spec["search"]
    shared = [name for name in spec["space"] if name not in spec["own"]]
    between = "Held equal between the searches" if len(searches) > 1 else "Of the search"
    parts = [f"up to {spec['steps']} steps per trial", f"pruner {spec['pruner']} from step {spec['first']} on",
             f"the ranges of {', '.join(shared)}", "data, seed 0 and validation windows",
             "the defaults as a trial that is never pruned"]
    if _equal(searches, lambda search: len(search.trials)):
        parts.insert(0, f"{len(first.trials)} trials each")
    return [f"{between}: {'; '.join(parts)}."]


def _not_equal(searches: Sequence[Searched]) -> list[str]:
    lines = []
    if len(searches) > 1 and not _equal(searches, lambda search: len(search.trials)):
        counts = ", ".join(f"{search.label} {len(search.trials)}" for search in searches)
        lines.append(f"NOT equal: the number of trials ({counts}). Give the same --trials to all before comparing.")
    if len(searches) > 1 and not _equal(searches, lambda search: search.spec["search"]["pruner"]):
        lines.append("NOT equal: the pruner.")
    for search in searches:
        own = search.spec["search"]["own"]
        if own:
            lines.append(f"Not equal: {search.label} has {len(own)} more parameter{'s' * (len(own) > 1)} to tune "
                         f"({', '.join(own)}) with its number of trials.")
    if not _equal(searches, lambda search: search.steps):
        spent = ", ".join(f"{search.label} {search.steps:,}" for search in searches)
        lines.append(f"Not equal: the steps spent ({spent}): runs are pruned by their own losses.")
    return lines


def _equal(searches: Sequence[Searched], of: Callable[[Searched], object]) -> bool:
    return len({of(search) for search in searches}) == 1


def _cautions(found: Found, search: Searched) -> list[str]:
    lines = []
    at_edge = edges(search)
    if at_edge:
        lines.append(f"At the edge of its range in the best trial of {search.label}: {', '.join(at_edge)}. Better "
                     "values may lie beyond (--set moves the ranges with the defaults).")
    rests = found.importances[search.label]
    if rests.reason:
        lines.append(f"No importances for {search.label}: {rests.reason}.")
    elif rests.trials < FEW:
        lines.append(f"The importances of {search.label} rest on only {rests.trials} complete trials: no more than a "
                     "hint.")
    if search.label == OVER_BLOCKS:
        lines.append("The search over blocks gave every block few trials: it finds a good one, but does not rank them.")
    return lines


def _verdicts(found: Found) -> list[str]:
    """The comparison in words, one sentence per block after the first."""
    if found.finals.empty:
        return []
    lines = [SELECTED]
    table = comparison(found)
    first = table.iloc[0].search
    for row in each(table.iloc[1:]):
        interval = Interval(row.tuned_difference, row.tuned_difference_low, row.tuned_difference_high)
        if not math.isnan(interval.estimate):
            lines.append(f"Tuned, {row.search} is {describe_difference(interval)} {first}.")
    return lines


def describe_difference(interval: Interval) -> str:
    """A difference in loss in words, with the preposition that leads to what it is a difference from."""
    size = f"{interval.estimate:+.4f} nats"
    if math.isnan(interval.low):
        return f"{size} (one seed: no interval) against"
    size += f" [{interval.low:+.4f}, {interval.high:+.4f}]"
    if interval.contains(0):
        return f"not distinguishable, {size}, from"
    return f"{'better' if interval.estimate < 0 else 'worse'}, {size}, than"
