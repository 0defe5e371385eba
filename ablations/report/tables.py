"""Tables as people read them, in a document and on a terminal: every value is a text. Imports neither torch nor
lightning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from ablations.analysis.margins import MARGIN
from ablations.analysis.tables import each
from ablations.report.columns import AxisColumn
from ablations.report.formats import are_numbers, is_missing

ONE_LINE = ("row", "effect", "verdict", "val loss")
"""Columns that are not folded on a terminal."""
MEASURES = ("loss", "speed")
HEADINGS = {"loss": "loss (nats)", "speed": "speed (ratio)"}
DIFFERENCES = ("val_loss", "test_loss", "bits_per_byte")
"""Quantities of a claim that are a difference; the others are a ratio."""
OTHER_SEEDS = "\N{DAGGER}"
"""Marks a row whose seeds are not those of the baseline's, so that their means are no match."""
WITHHELD = "withheld"
"""In place of a speed that the noise of the speed pass forbids to tell."""
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


def p_value(p: float) -> str:
    """A p value in three digits."""
    return "" if pd.isna(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def rows_as_text(rows: pd.DataFrame, *, columns: Sequence[AxisColumn] = ()) -> pd.DataFrame:
    """The rows of a study: a column for each axis, mean loss with its interval over seeds, their standard deviation.

    Args:
        rows: of `rows_table`.
        columns: what varies between them.
    """
    table = [
        (
            row.label, *(column.levels.get(str(row.row), "") for column in columns),
            f"{row.n_seeds}{OTHER_SEEDS * (not row.same_seeds)}", loss_of(row), number(row.val_loss_std, "{:.4f}"),
            difference_of(row), number(row.bits_per_byte_mean, "{:.4f}"),
            WITHHELD if row.speed_withheld else between(row.speed_ratio, row.speed_ratio_low, row.speed_ratio_high),
            number(row.tokens_per_second, "{:,.0f}"), number(row.params, "{:,.0f}"),
            number(row.peak_memory_mb, "{:,.1f}"), state_of(row),
        )
        for row in each(rows)
    ]
    heads = ("row", *(column.title for column in columns), "seeds", "val loss", "sd", "difference", "bits/byte",
             "speed", "tokens/s", "params", "MiB", "state")
    shown = pd.DataFrame(table, columns=list(heads))
    empty = [name for name in ("difference", "bits/byte") if not shown[name].astype(bool).any()]
    return shown.drop(columns=empty)


def screening_as_text(screening: pd.DataFrame, *, columns: Sequence[AxisColumn] = ()) -> pd.DataFrame:
    """Every row as it was screened, best loss first, and which went on.

    Args:
        screening: of `Findings`.
        columns: what varies between the rows.
    """
    table = rows_as_text(screening, columns=columns).drop(columns=["sd", "seeds", "MiB", "tokens/s"])
    return table.assign(**{"went on": ["yes" if kept else "" for kept in screening.kept]})


def budgets_as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Loss, difference to the baseline and place of each row at each budget (columns), best at the largest first.

    Args:
        table: of `budgets`.
    """
    order = table[table.share == 1].sort_values("val_loss_mean").label
    shown = pd.DataFrame({"row": list(order)})
    for share, own in table.groupby("share"):
        known = {str(row.label): row for row in each(own)}
        steps, tokens = float(own.steps.iloc[0]), float(own.tokens.iloc[0])
        head = f"{steps:,.0f} steps" if steps == steps else f"{share:.3g} of the steps"
        head += f", {tokens / 1e6:.3g} M tokens" if tokens == tokens else ""
        shown[head] = [_at_budget(known[label]) if label in known else "" for label in order]
    return shown


def _at_budget(row: Any) -> str:
    difference = "" if pd.isna(row.difference) else f" [{row.difference:+.3f}]"
    return f"{row.val_loss_mean:.3f}{difference}, {row.place}."


def difference_of(row: Any) -> str:
    """The difference of a row to the baseline's, paired by seed, with its interval."""
    return between(row.difference, row.difference_low, row.difference_high, "{:+.3f}")


def loss_of(row: Any) -> str:
    """The loss of a row with its interval; of one that collapsed with every seed in parentheses."""
    collapsed = pd.isna(row.val_loss_mean) and not pd.isna(row.collapsed_loss_mean)
    return f"({row.collapsed_loss_mean:.4f})" if collapsed else \
        between(row.val_loss_mean, row.val_loss_low, row.val_loss_high, "{:.4f}")


def state_of(row: Any) -> str:
    """The state of a row, with how many of its seeds ended otherwise: `complete, 1 collapsed`."""
    counts = ((row.n_collapsed, "collapsed"), (row.n_diverged, "diverged"), (row.n_failed, "failed"))
    return ", ".join([str(row.state), *(f"{count} {state}" for count, state in counts if count and state != row.state)])


def tuned_matrix(tuned: pd.DataFrame, *, title: str) -> pd.DataFrame:
    """Loss by row and tuned values (columns), mean ± standard deviation over the seeds; best row first.

    Args:
        tuned: of `tuned_table`.
        title: of the tuned axis, for the heads; empty where the values say it themselves.
    """
    if tuned.empty:
        return pd.DataFrame(columns=["row"])
    texts = tuned.assign(text=[", ".join(filter(None, (
        plus_minus(row.val_loss_mean, row.val_loss_std), *_lost_at(row)))) or "failed" for row in each(tuned)])
    order = texts.groupby("row").val_loss_mean.min().sort_values(na_position="last", kind="stable").index
    matrix = texts.pivot(index="row", columns="tuned", values="text").loc[order].fillna("")
    labels = tuned.drop_duplicates("row").set_index("row").label
    shown = pd.DataFrame({"row": [labels[row] for row in matrix.index]})
    for values in sorted(matrix.columns, key=_numbers_first):
        shown[f"{title} {values}".strip()] = matrix[values].to_numpy()
    return shown


def _lost_at(row: Any) -> list[str]:
    """How many seeds collapsed or diverged at some tuned values; where all did alike, the word alone."""
    counts = {"collapsed": row.n_collapsed, "diverged": row.n_diverged}
    lost = {state: count for state, count in counts.items() if count}
    alone = len(lost) == 1 and not row.n_seeds
    return [state if alone else f"{count} {state}" for state, count in lost.items()]


def _numbers_first(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text


def along(by_axis: pd.DataFrame, axis: str) -> pd.DataFrame:
    """The points along one axis, of the lines that have two or more with a loss."""
    own = by_axis[by_axis.axis == axis]
    counts = own.dropna(subset="val_loss_mean").groupby("line").x.nunique()
    return own[own.line.isin(counts[counts > 1].index)]


def axis_matrix(own: pd.DataFrame) -> pd.DataFrame:
    """Loss along an axis of numbers (columns), with its interval; a row for each combination of the other axes.

    Args:
        own: of `along`.
    """
    title = str(own.title.iloc[0])
    texts = own.assign(text=[between(row.val_loss_mean, row.low, row.high) or row.state for row in each(own)])
    matrix = texts.pivot_table(index="line", columns="x", values="text", aggfunc="first", sort=False).fillna("")
    shown = pd.DataFrame({"row": matrix.index.to_list()})
    for x in sorted(matrix.columns):
        shown[f"{title} {x:g}"] = matrix[x].to_numpy()
    return shown


def sensitivity_as_text(table: pd.DataFrame) -> pd.DataFrame:
    """What a tuned value next to the best costs, by row."""
    rows = [
        (row.label, f"{row.best:g}", row.edge and f"{row.edge}{', still gaining' * bool(row.still_falling)}",
         number(row.spread, "{:.3f}"), number(row.factor, "{:.3g}"), row.n_spoilt or "")
        for row in each(table)
    ]
    title = str(table["axis"].iloc[0]).replace("_", " ")
    heads = ("row", f"best {title}", "edge", "worst - best", f"within {MARGIN:g} nats: factor",
             "values that lost a seed")
    return pd.DataFrame(rows, columns=list(heads))


def some_do_not_train(training: pd.DataFrame) -> bool:
    """Whether a row lost a seed."""
    return bool((training.n_train < training.n_rows).any())


def training_as_text(training: pd.DataFrame) -> pd.DataFrame:
    """How many rows train at each level of the axes."""
    rows = [
        (row.term, row.level, f"{row.n_train} of {row.n_rows}", f"{row.share:.0%}",
         ", ".join(f"{count} {state}" for state, count in (
             ("collapsed", row.n_collapsed), ("diverged", row.n_diverged), ("failed", row.n_failed)) if count))
        for row in each(training)
    ]
    return pd.DataFrame(rows, columns=["axis", "level", "rows that train", "seeds", "the others"])


def tested(effects: pd.DataFrame, *kinds: str) -> pd.DataFrame:
    """The effects of some kinds that have an estimate."""
    return effects[effects.kind.isin(kinds) & effects.estimate.notna()]


def effects_as_text(effects: pd.DataFrame, *kinds: str) -> pd.DataFrame:
    """Effects in one ranking by the size of what they do to the loss, with speed beside it.

    Args:
        effects: of `Findings`.
        kinds: which: main, interaction, simple or step.
    """
    own = effects[effects.kind.isin(kinds)]
    measured = [measure for measure in MEASURES if (own.measure == measure).any()]
    keys = in_path_order(own[["term", "change", "where"]].drop_duplicates())
    known = {(row.term, row.change, row.where, row.measure): row for row in each(own)}
    shown = pd.DataFrame({"effect": keys.term.to_numpy(), "change": keys.change.to_numpy()})
    if {"simple", "step"} & set(kinds):
        shown["where"] = keys["where"].to_numpy()
    for measure in measured:
        rows = [known.get((*key, measure)) for key in keys.itertuples(index=False, name=None)]
        shown[HEADINGS[measure]] = [_effect(row) for row in rows]
        if set(kinds) - {"simple"}:
            p_values = ["" if row is None else p_value(row.p_holm) for row in rows]
            shown = shown.assign(**{f"p ({measure})": p_values}) if any(p_values) else shown
    alias = {(row.term, row.change, row.where): alias_of(row.term, row.alias) for row in reversed(list(each(own)))
             if not is_missing(row.alias) and row.alias}
    aliases = [alias.get(key, "") for key in keys.itertuples(index=False, name=None)]
    return shown.assign(**{"not separable from": aliases}) if any(aliases) else shown


def in_path_order(effects: pd.DataFrame) -> pd.DataFrame:
    """The steps of a path in their order; any other effects as they are, by size."""
    places = effects["where"].str.extract(r"^step (\d+)$")[0].astype(float)
    return effects.iloc[places.argsort(kind="stable")] if places.notna().any() else effects


def alias_of(term: str, alias: str) -> str:
    """What an effect cannot be separated from, without itself."""
    return str(alias).removeprefix(f"{term} = ")


def _effect(row: Any) -> str:
    if row is None:
        return ""
    form = "{:+.3f}" if row.measure == "loss" else "{:.3f}"
    return between(row.estimate, row.low, row.high, form) + f" {DISTINCT}" * bool(row.distinct)


def left_out_as_text(left_out: pd.DataFrame) -> pd.DataFrame:
    """Rows that the effects do without, and why."""
    return pd.DataFrame([(row.label, row.measure, row.reason) for row in each(left_out)],
                        columns=["row", "left out of effects on", "because"])


def pairs_as_text(pairs: pd.DataFrame) -> pd.DataFrame:
    """Rows against each other."""
    rows = [
        (row.left, row.right, between(row.loss_difference, row.loss_low, row.loss_high, "{:+.3f}"), row.n_seeds,
         between(row.speed_ratio, row.speed_low, row.speed_high), row.note)
        for row in each(pairs)
    ]
    table = pd.DataFrame(rows, columns=["left", "right", "loss, left - right", "seeds", "speed, left / right", "note"])
    return table if pairs.note.astype(bool).any() else table.drop(columns="note")


def claims_as_text(claims: pd.DataFrame) -> pd.DataFrame:
    """What is claimed, what the source reports, what was found, and the verdict; claims of one place together."""
    places = {name: index for index, name in enumerate(dict.fromkeys(claims.name))}
    rows = [
        (row.name, row.claim, row.paper, claim_found(row), row.n_seeds or "", p_value(row.p_holm), row.verdict,
         row.why)
        for row in sorted(each(claims), key=lambda row: places[row.name])
    ]
    table = pd.DataFrame(rows, columns=["where", "claim", "source says", "found", "seeds", "p Holm", "verdict",
                                        "why"])
    empty = [column for column in ("where", "source says", "p Holm") if not table[column].astype(bool).any()]
    return table.drop(columns=empty)


def claim_found(row: Any, *, digits: int = 3) -> str:
    """The estimate of a claim with its interval: a difference in nats, or a ratio."""
    return between(row.estimate, row.low, row.high, f"{{:{'+' * (row.quantity in DIFFERENCES)}.{digits}f}}")


def comparison_as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Two studies, row by row."""
    rows = [
        (row.label, row.n_seeds, number(row.before, "{:.4f}"),
         between(row.difference, row.low, row.high, "{:+.4f}"), p_value(row.p_holm), row.verdict, _speed_change(row),
         "; ".join(filter(None, (row.why, row.states))))
        for row in each(table)
    ]
    return pd.DataFrame(
        rows, columns=["row", "seeds", "before", "after - before", "p (Holm)", "verdict", "speed", "why"]
    )


def verdicts_as_text(claims: pd.DataFrame) -> pd.DataFrame:
    """What two studies say to the same claims."""
    rows = [(row.claim, f"{number(row.estimate_before, '{:+.3f}')} {row.before}".strip(),
             f"{number(row.estimate_after, '{:+.3f}')} {row.after}".strip(), row.change) for row in each(claims)]
    return pd.DataFrame(rows, columns=["claim", "before", "after", "change"])


def _speed_change(row: Any) -> str:
    ratios = f"{number(row.speed_before, '{:.3f}')} -> {number(row.speed_after, '{:.3f}')}"
    return "" if pd.isna(row.speed_before) or pd.isna(row.speed_after) else f"{ratios} {row.speed_verdict}"


def rich_table(table: pd.DataFrame, *, title: str) -> Table:
    """A table for the terminal: numbers stand to the right."""
    shown = Table(title=Text(title), title_justify="left", box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(table.columns):
        numbers = are_numbers(table.iloc[:, index])
        shown.add_column(Text(str(column)), justify="right" if numbers else "left", overflow="fold",
                         no_wrap=column in ONE_LINE)
    for row in table.itertuples(index=False):
        shown.add_row(*(Text(str(value)) for value in row))  # a label in brackets is no markup
    return shown
