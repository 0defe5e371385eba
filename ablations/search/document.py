"""What a search leaves: files to be read and used, and what is printed. Imports neither torch nor lightning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from rich.console import Console

from ablations.analysis.tables import each
from ablations.report.formats import markdown, records, to_json
from ablations.report.tables import between, number, plus_minus, rich_table
from ablations.search.plots import draw_all
from ablations.search.results import Found, Searched, improvements
from ablations.search.verdicts import comparison, remarks
from lit_simplified.config import RunConfig, preset_of, to_dict
from lit_simplified.files import write_text


def write_all(found: Found, *, folder: Path) -> list[Path]:
    """Write all files; return their paths.

    best-LABEL.yaml (a configuration for `python -m lit_simplified fit --config`), trials.csv, search.json, plots,
    and search.md, which holds everything.
    """
    texts = {f"best-{search.label}.yaml": best_file(search) for search in found.searches if search.best is not None}
    texts["trials.csv"] = pd.concat([search.trials for search in found.searches]).to_csv(index=False)
    texts["search.json"] = to_json(as_json(found), indent=1) + "\n"
    for name, text in texts.items():
        write_text(folder / name, text)
    plots = draw_all(found, folder=folder)
    write_text(folder / "search.md", compose(found, plots=plots))
    return [*(folder / name for name in texts), *plots, folder / "search.md"]


def best_file(search: Searched) -> str:
    """The best run as a file for `fit`, which shows its progress and keeps its checkpoint."""
    assert search.best is not None
    row = search.best_row
    trainer = replace(search.best.trainer, progress_bar=True, keep_checkpoint=True)
    config = replace(search.best, trainer=trainer, out_dir=RunConfig().out_dir)
    return (
        f"# The best of {len(search.trials)} trials of study {search.study.study_name} ({row.cell}): "
        f"validation loss {search.best_loss:.4f} on seed {config.seed}.\n"
        f"# python -m lit_simplified fit --config best-{search.label}.yaml\n"
        + yaml.safe_dump(to_dict(config), sort_keys=False)
    )


def as_json(found: Found) -> dict[str, Any]:
    """Everything as plain values."""
    return {
        "name": found.name,
        "searches": [
            {
                "search": search.label, "study": search.study.study_name, "block": block_of(search),
                "space": search.space, "own_parameters": search.spec["search"]["own"],
                "pruner": search.spec["search"]["pruner"], "steps_per_trial": search.spec["search"]["steps"],
                "best": {"cell": search.best_row.cell, "loss": search.best_loss, "values": search.best_values}
                if search.best is not None else None,
                "importances": dict(found.importances[search.label].shares),
                "importances_rest_on": found.importances[search.label].trials,
                "history": records(improvements(search)[["trial", "cell", "loss"]]),
            }
            for search in found.searches
        ],
        "comparison": records(comparison(found)), "finals": records(found.finals), "words": remarks(found),
    }


def block_of(search: Searched) -> str:
    """The best block: a preset's name, or its switches."""
    if search.best is None:
        return ""
    own = search.spec["search"]["own"]
    return search.label if own or preset_of(search.best.model.block) == search.label else _switches(search)


def _switches(search: Searched) -> str:
    values = search.best_values
    switches = {name: value for name, value in values.items() if isinstance(value, str | bool)}
    return ", ".join(f"{name} {str(value).lower()}" for name, value in switches.items())


def budget_as_text(found: Found) -> pd.DataFrame:
    """What each search cost, and its best trial."""
    rows = [
        (row.search, row.trials, row.complete, row.pruned, row.diverged, row.failed, f"{row.steps:,}",
         number(row.search_default, "{:.4f}"), number(row.search_best, "{:.4f}"))
        for row in each(comparison(found))
    ]
    return pd.DataFrame(rows, columns=["block", "trials", "complete", "pruned", "diverged", "failed", "steps",
                                       "defaults", "best"])


def finals_as_text(found: Found) -> pd.DataFrame:
    """The final runs: means over fresh seeds and paired differences."""
    table = comparison(found)
    first = table.iloc[0].search
    rows = [
        (row.search, row.seeds, plus_minus(row.tuned_mean, row.tuned_std),
         plus_minus(row.default_mean, row.default_std),
         between(row.gain, row.gain_low, row.gain_high, "{:+.4f}"),
         between(row.tuned_difference, row.tuned_difference_low, row.tuned_difference_high, "{:+.4f}"),
         between(row.default_difference, row.default_difference_low, row.default_difference_high, "{:+.4f}"))
        for row in each(table)
    ]
    return pd.DataFrame(rows, columns=["block", "seeds", "tuned", "default", "tuned - default",
                                       f"tuned - {first} tuned", f"default - {first} default"])


def values_as_text(found: Found) -> pd.DataFrame:
    """The best parameters, a column per search, beside ranges and defaults."""
    names = list(dict.fromkeys(name for search in found.searches for name in search.best_values))
    ranges = {name: text for search in reversed(found.searches) for name, text in search.space.items()}
    table = pd.DataFrame({"parameter": names, "range": [ranges.get(name, "switch") for name in names]})
    for search in found.searches:
        table[search.label] = [_value(search.best_values.get(name)) for name in names]
    return table


def _value(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value).lower()


def importances_as_text(found: Found) -> pd.DataFrame:
    """Importances, a column per search that says on how many trials it rests."""
    names = list(dict.fromkeys(name for of in found.importances.values() for name in of.shares))
    table = pd.DataFrame({"parameter": names})
    for label, of in found.importances.items():
        table[f"{label} ({of.trials} complete)"] = [number(of.shares.get(name), "{:.2f}") for name in names]
    return table


def history_line(search: Searched) -> str:
    """How the best loss improved."""
    better = [f"trial {row.trial} {row.loss:.4f}{' (defaults)' * row.default}" for row in each(improvements(search))]
    return f"{search.label}: " + (" → ".join(better) or "no complete trial yet")


def compose(found: Found, *, plots: Sequence[Path]) -> str:
    """The document."""
    parts = [
        f"# Search {found.name}", "\n".join(f"- {line}" for line in remarks(found)),
        "## Final runs" if len(found.finals) else "", _finals_text(found),
        markdown(finals_as_text(found)) if len(found.finals) else "",
        "## Searches", "Losses in nats per token on seed 0; steps are those of all trials together.",
        markdown(budget_as_text(found)), "## Best parameters", markdown(values_as_text(found)),
        *(f"`python -m lit_simplified fit --config best-{search.label}.yaml` trains the best of {search.label} "
          f"({block_of(search)}) again." for search in found.searches if search.best is not None),
        "## History", "\n".join(f"- {history_line(search)}" for search in found.searches),
        *_importances_text(found),
        "## Plots", *(f"![{path.stem.replace('_', ' ')}]({path.name})" for path in plots),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _importances_text(found: Found) -> list[str]:
    if not any(of.shares for of in found.importances.values()):
        return []
    return [
        "## Importances", "Share of the loss's variance over the complete trials that a parameter explains (fANOVA). "
        "Runs that were pruned or diverged do not count: it shows what matters among good settings. "
        "Rough with few trials: of twenty, a parameter that does nothing may be given a quarter.",
        markdown(importances_as_text(found)),
    ]


def _finals_text(found: Found) -> str:
    if not len(found.finals):
        return ""
    left = int((found.finals.state != "complete").sum())
    return ("Validation loss, mean ± standard deviation over fresh seeds, none pruned; differences in "
            f"nats, paired by seed, with 95 % t intervals.{f' {left} of them are not complete.' if left else ''}")


def show(found: Found, *, console: Console) -> None:
    """Print the tables and what they mean."""
    console.print(rich_table(budget_as_text(found), title=f"search {found.name}: losses on seed 0"))
    console.print(rich_table(values_as_text(found), title="best parameters"))
    if any(of.shares for of in found.importances.values()):
        console.print(rich_table(importances_as_text(found), title="importances (fANOVA over complete trials)"))
    for search in found.searches:
        console.print(history_line(search), highlight=False, markup=False)
    if len(found.finals):
        console.print(rich_table(finals_as_text(found), title="final runs, on fresh seeds"))
    for line in remarks(found):
        console.print(f"- {line}", highlight=False, markup=False)
