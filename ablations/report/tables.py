"""Tables as people read them, in a document and on a terminal. Imports neither torch nor lightning."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from rich.table import Table

from ablations.analysis.tables import each, label
from ablations.report.formats import markdown

BLOCK_COLUMNS = ("block", "seeds", "val loss", "sd", "speed", "tokens/s", "params", "MiB", "state")
LEFT = ("block", "effect", "change", "where", "state", "claim", "verdict", "why", "left", "right", "paper", "source",
        "states", "edge")
"""Columns of words; numbers stand to the right."""
DISTINCT = "*"
"""Marks an effect whose corrected p is below 0.05."""


def number(value: float | None, form: str) -> str:
    """A number, or nothing where there is none."""
    return "" if value is None or pd.isna(value) else form.format(value)


def plus_minus(mean: float, deviation: float) -> str:
    """Mean ± standard deviation."""
    return number(mean, "{:.4f}") + ("" if pd.isna(deviation) else f" ± {deviation:.4f}")


def between(value: float | None, low: float | None, high: float | None, form: str = "{:.3f}") -> str:
    """Value [low, high]."""
    return number(value, form) + ("" if pd.isna(low) else f" [{number(low, form)}, {number(high, form)}]")


def shown_blocks(blocks: pd.DataFrame) -> pd.DataFrame:
    """The table of blocks: mean loss with its interval over seeds, and their standard deviation."""
    rows = [
        (
            label(row), row.n_seeds, between(row.val_loss_mean, row.val_loss_low, row.val_loss_high, "{:.4f}"),
            number(row.val_loss_std, "{:.4f}"), between(row.speed_ratio, row.speed_ratio_low, row.speed_ratio_high),
            number(row.tokens_per_second, "{:,.0f}"), number(row.params, "{:,.0f}"),
            number(row.peak_memory_mb, "{:,.1f}"), row.state,
        )
        for row in each(blocks)
    ]
    return pd.DataFrame(rows, columns=list(BLOCK_COLUMNS))


def rates_matrix(rates: pd.DataFrame) -> pd.DataFrame:
    """Loss by block (rows) and learning rate (columns), mean ± standard deviation over the seeds; best block first."""
    if rates.empty:
        return pd.DataFrame(columns=["block"])
    cells = rates.assign(
        block=rates.preset.where(rates.preset != "", rates["block"]),
        text=[plus_minus(row.val_loss_mean, row.val_loss_std) or ("diverged" if row.n_diverged else "failed")
              for row in each(rates)],
    )
    order = cells.groupby("block").val_loss_mean.min().sort_values(na_position="last").index
    matrix = cells.pivot(index="block", columns="learning_rate", values="text").loc[order].fillna("")
    matrix.columns = pd.Index([f"lr {rate:g}" for rate in matrix.columns])
    return matrix.reset_index()


def shown_sensitivity(table: pd.DataFrame) -> pd.DataFrame:
    """What a learning rate next to the best costs, by block."""
    rows = [
        (label(row), f"{row.best:g}", row.edge and f"{row.edge}{', still gaining' * row.still_falling}",
         number(row.spread, "{:.3f}"), number(row.factor, "{:.3g}"), row.n_spoilt or "")
        for row in each(table)
    ]
    return pd.DataFrame(rows, columns=["block", "best lr", "edge", "worst - best", "within 2 %: factor", "spoilt lr"])


def shown_effects(found: pd.DataFrame) -> pd.DataFrame:
    """Main effects and interactions in one ranking by the size of what they do to the loss, with speed beside it."""
    tested = found[found.kind != "simple"]
    measured = [measure for measure in ("loss", "speed") if (tested.measure == measure).any()]
    if not measured:
        return pd.DataFrame(columns=["effect"])
    order = tested[tested.measure == measured[0]]
    tables = {measure: tested[tested.measure == measure].set_index("term") for measure in measured}
    shown = pd.DataFrame({
        "effect": order.term.to_numpy(),
        "change": [row.change if row.kind == "main" else "" for row in each(order)],
    })
    for measure in measured:
        rows = [tables[measure].loc[term] for term in order.term]
        shown[_heading(measure)] = [_effect(row) for row in rows]
        shown[f"p ({measure})"] = [_probability(row.p_holm) for row in rows]
    return shown


def shown_simple(found: pd.DataFrame) -> pd.DataFrame:
    """Each main effect at both positions of the switch that it interacts with most."""
    rows = [(row.measure, row.term, row.change, row.where, _effect(row))
            for row in each(found[(found.kind == "simple") & found.estimate.notna()])]
    return pd.DataFrame(rows, columns=["on", "effect", "change", "where", "estimate"])


def _probability(p: float) -> str:
    return "<0.001" if p < 0.001 else number(p, "{:.3f}")


def _heading(measure: str) -> str:
    return {"loss": "loss (nats)", "speed": "speed (ratio)"}[measure]


def _effect(row: pd.Series) -> str:
    form = "{:+.3f}" if row.measure == "loss" else "{:.3f}"
    return between(row.estimate, row.low, row.high, form) + f" {DISTINCT}" * bool(row.distinct)


def shown_pairs(pairs: pd.DataFrame) -> pd.DataFrame:
    """Named blocks against each other."""
    rows = [
        (row.left, row.right, between(row.loss_difference, row.loss_low, row.loss_high, "{:+.3f}"), row.n_seeds,
         between(row.speed_ratio, row.speed_low, row.speed_high))
        for row in each(pairs)
    ]
    return pd.DataFrame(rows, columns=["left", "right", "loss, left - right", "seeds", "speed, left / right"])


def shown_claims(found: pd.DataFrame) -> pd.DataFrame:
    """What the paper reports, what was found, and the verdict."""
    rows = [
        (row.claim, f"{row.paper} ({row.source})", _found(row), row.n_seeds or "", row.verdict, row.why)
        for row in each(found)
    ]
    return pd.DataFrame(rows, columns=["claim", "paper", "found", "seeds", "verdict", "why"])


def _found(row: pd.Series) -> str:
    return between(row.estimate, row.low, row.high, "{:+.3f}" if row.measure == "loss" else "{:.3f}")


def shown_comparison(table: pd.DataFrame) -> pd.DataFrame:
    """Two studies, block by block."""
    rows = [
        (label(row), row.n_seeds, number(row.before, "{:.4f}"), between(row.difference, row.low, row.high, "{:+.4f}"),
         _probability(row.p_holm), row.verdict, _speed_change(row), "; ".join(filter(None, (row.why, row.states))))
        for row in each(table)
    ]
    return pd.DataFrame(
        rows, columns=["block", "seeds", "before", "after - before", "p (Holm)", "verdict", "speed", "why"]
    )


def _speed_change(row: pd.Series) -> str:
    ratios = f"{number(row.speed_before, '{:.3f}')} -> {number(row.speed_after, '{:.3f}')}"
    return "" if pd.isna(row.speed_before) or pd.isna(row.speed_after) else f"{ratios} {row.speed_verdict}"


def comparison_document(table: pd.DataFrame, *, names: Sequence[str], lines: Sequence[str]) -> str:
    """The comparison of two studies as Markdown."""
    return "\n\n".join((
        f"# {names[1]} against {names[0]}", "\n".join(f"- {line}" for line in lines),
        "Difference of validation loss, after - before, in nats, over the cells that both studies have (same block, "
        "seed and learning rate), with 95 % t intervals over seeds; with one seed, made with the spread of the blocks "
        "that have several. p is corrected over blocks (Holm). Speed is relative to `pre_ln` of the same study; it "
        "moved if the two intervals do not overlap.",
        markdown(shown_comparison(table)),
    )) + "\n"


def rich_table(table: pd.DataFrame, *, title: str) -> Table:
    """A table for the terminal."""
    shown = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in table.columns:
        words = column in LEFT
        shown.add_column(str(column), justify="left" if words else "right", overflow="fold",
                         no_wrap=column in ("block", "effect", "verdict", "val loss"))
    for row in table.itertuples(index=False):
        shown.add_row(*map(str, row))
    return shown
