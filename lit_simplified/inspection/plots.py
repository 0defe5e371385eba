"""The figures of signal propagation and of a run's snapshots. Needs no torch; leaves matplotlib's global state alone.

Shapes: T positions, L blocks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import FuncNorm, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from lit_simplified.config import PRESETS
from lit_simplified.files import write_atomically
from lit_simplified.inspection.snapshot import Snapshot
from lit_simplified.inspection.titles import GAINS, MEASURES

LOGARITHMIC = {
    "effective_rank", "rank_one_distance", "rms", "gradient_norm", "stable_rank", "max_over_median",
}
"""Measures whose axis is logarithmic."""
COLLAPSE = {
    "naive_skipless": "naive skipless: attention\nskip removed, nothing else",
    "pre_ln": "Pre-LN: the usual block",
    "sas,mlp_skip=false": "SAS without its MLP skip",
    "sas": "SAS: no attention skip,\nbut shaped attention",
}
"""The blocks of `collapse`, and their labels there."""
Values = npt.NDArray[np.floating]
LOST = 1e-8
"""Singular values below this share of the largest are within rounding error."""
FROM_ZERO = 1e6
"""Update-to-weight ratios above this belong to weights that were 0."""
DEPTHS = mpl.colormaps["viridis"]
STEPS = mpl.colormaps["plasma"].resampled(256)
_PALETTE = [colour for place, colour in enumerate(mpl.color_sequences["tab10"]) if place != 7]  # 7 is grey
_COLOURS: Mapping[str, Any] = dict(zip(PRESETS, _PALETTE, strict=False))
_DASHES: Sequence[Any] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))


# Signal propagation: a frame with a row per block, seed and depth, and a column per measure.


def signal(frame: pd.DataFrame, *, uniform: Sequence[float] = (), what: str = "") -> Figure:
    """Eight panels of measures by depth: the mean over seeds, with a band from the lowest to the highest.

    Args:
        frame: columns `block`, `seed`, `depth` and the measures.
        uniform: entropies that uniform attention would have; a line each.
        what: what was measured, for the title.
    """
    names = [name for name in MEASURES if name in frame][:8]
    figure = Figure(figsize=(16, 8.6), layout="constrained")
    panels = figure.subplots(2, math.ceil(len(names) / 2), squeeze=False).flatten()
    line_styles = styles(list(dict.fromkeys(frame["block"])))
    for axes, name in zip(panels, names, strict=False):
        for label, rows in frame.groupby("block", sort=False):
            _band(axes, rows, name, line_styles[str(label)], label=str(label))
        _dress(axes, title=MEASURES[name], x="after block (0: input of the first)", logarithmic=name in LOGARITHMIC)
        if name == "entropy":
            for value in uniform:
                axes.axhline(value, color="0.4", lw=1, ls=":", zorder=1)
                axes.annotate("uniform attention", (0.02, value), xycoords=("axes fraction", "data"), va="bottom",
                              color="0.35", fontsize=8, xytext=(0, 2), textcoords="offset points")
            axes.margins(y=0.12)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), handlelength=3.2)
    band = " (mean over seeds; band: lowest to highest)" if frame["seed"].nunique() > 1 else ""
    title = f"Signal propagation, block by block{f', {what}' if what else ''}{band}"
    figure.suptitle(f"{title}. Where lines coincide, the thinner is on top.", fontsize=11)
    return figure


def collapse(frame: pd.DataFrame, *, what: str = "") -> Figure:
    """Cosine and effective rank by depth of the blocks of `COLLAPSE`, or of all if none of them is there."""
    present = [label for label in COLLAPSE if label in set(frame["block"])]
    labels = present or list(dict.fromkeys(frame["block"]))
    line_styles = styles(labels)
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    titles = {
        "cosine": "Similarity of the tokens\n(mean cosine of two tokens; 1: all in one direction)",
        "effective_rank": "Number of directions they span\n(effective rank; 1: all in one)",
    }
    for axes, (name, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        ends = {}
        for label in labels:
            rows = frame[frame["block"] == label]
            mean = _band(axes, rows, name, {**line_styles[label], "linewidth": 2.4}, label=label)
            if not mean.dropna().empty:
                ends[label] = float(mean.dropna().iloc[-1])
        _dress(axes, title=title, x="depth (blocks)", logarithmic=name == "effective_rank")
        axes.set_xlim(left=0, right=frame["depth"].max())
        _label_ends(axes, {COLLAPSE.get(label, label): (y, line_styles[label]["color"]) for label, y in ends.items()})
    band = " (line: mean over seeds, band: lowest to highest)" if frame["seed"].nunique() > 1 else ""
    figure.suptitle(f"Rank collapse{f', {what}' if what else ''}{band}", fontsize=11)
    return figure


def styles(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The line style of every block: the colour of its preset, dashes for changed ones, later lines thinner."""
    line_styles: dict[str, dict[str, Any]] = {}
    seen: dict[Any, int] = {}
    free = [colour for colour in _PALETTE if colour not in [_COLOURS.get(label.split(",")[0]) for label in labels]]
    for place, label in enumerate(labels):
        preset = label.split(",")[0]
        colour = _COLOURS.get(preset)
        if colour is None:
            colour = free.pop(0) if free else mpl.colormaps["turbo"](place / max(1, len(labels) - 1))
        # The preset itself is solid, whatever its place among its variants.
        number = 0 if label == preset else seen.get(colour, 0) + 1
        seen[colour] = max(number, seen.get(colour, 0))
        width = 3.4 - 2.2 * place / max(1, len(labels) - 1)
        line_styles[label] = {"color": colour, "linestyle": _DASHES[number % len(_DASHES)], "linewidth": width}
    return line_styles


def _band(axes: Axes, rows: pd.DataFrame, name: str, style: Mapping[str, Any], *, label: str) -> pd.Series:
    """Draw mean and range over seeds; return the mean by depth."""
    by_depth = rows.groupby("depth")[name]
    mean, low, high = by_depth.mean(), by_depth.min(), by_depth.max()
    if name == "rank_one_distance":
        mean, low, high = (values.clip(lower=LOST) for values in (mean, low, high))
    axes.plot(mean.index, mean, label=label, zorder=3, **style)
    if rows["seed"].nunique() > 1:
        axes.fill_between(mean.index, low, high, color=style["color"], alpha=0.15, lw=0, zorder=2)
    return mean


def _label_ends(axes: Axes, ends: Mapping[str, tuple[float, Any]], *, gap: float = 0.115) -> None:
    """A name at the end of each line, spread out where lines end close together."""
    to_fraction = axes.transData + axes.transAxes.inverted()
    right = axes.get_xlim()[1]
    wanted = sorted((float(to_fraction.transform((right, y))[1]), name) for name, (y, _) in ends.items())
    places: list[float] = []
    for height, _ in wanted:
        places.append(max(height, places[-1] + gap) if places else height)
    ceiling = 1.0
    for place in reversed(range(len(places))):  # back below the upper edge
        places[place] = min(places[place], ceiling)
        ceiling = places[place] - gap
    for (_, name), height in zip(wanted, places, strict=True):
        axes.annotate(name, (1, height), xycoords="axes fraction", xytext=(7, 0), textcoords="offset points",
                      va="center", color=ends[name][1], fontsize=9, annotation_clip=False)


def _dress(axes: Axes, *, title: str, x: str, logarithmic: bool = False) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if logarithmic and any(np.nanmax(line.get_ydata(), initial=0) > 0 for line in axes.lines):
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high < 300 * low:  # too few powers of ten for ticks
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="0.92", zorder=0)


# Snapshots of a run during training.


def draw_snapshots(snapshots: Sequence[Snapshot], folder: Path) -> Iterator[tuple[Path, str]]:
    """Write every figure that the snapshots have the data for; yield its path and a line with its numbers."""
    frame, last = trajectories(snapshots), snapshots[-1].step
    figures: list[tuple[str, Figure | None, Callable[[], str]]] = [
        ("gains.png", gains(frame), lambda: _summary(frame, "gains", f"gains at step {last}")),
        ("ratios.png", ratios(frame), lambda: _ratio_summary(frame)),
        ("attention.png", attention(snapshots), lambda: _attention_summary(snapshots)),
        ("signals.png", signals(frame), lambda: _summary(frame, "signal", f"after the last block at step {last}", -1)),
        ("gradients.png", gradients(frame), lambda: _gradient_summary(frame)),
    ]
    for name, figure, summary in figures:
        if figure is not None:
            save(figure, folder / name)
            yield folder / name, summary()


def save(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110))


def trajectories(snapshots: Sequence[Snapshot]) -> pd.DataFrame:
    """The scalars of all snapshots, a row each: `step`, `kind` (gains, spread, ratio, signal, grad, update), `block`,
    `name` (empty for the gradient norm of a whole block) and `value`."""
    tag = re.compile(r"(gains|spread|ratio|signal|grad|update)/block_(\d+)(?:/(.+))?")
    rows = [
        (snapshot.step, found[1], int(found[2]), found[3] or "", float(value))
        for snapshot in snapshots for name, value in snapshot.scalars.items() if (found := tag.fullmatch(name))
    ]
    return pd.DataFrame(rows, columns=["step", "kind", "block", "name", "value"])


def _present(rows: pd.DataFrame, *, order: Collection[str]) -> list[str]:
    """The names in the rows: the known ones in this order, then those of new parts."""
    found = dict.fromkeys(rows["name"])
    return [name for name in order if name in found] + [name for name in found if name not in order]


def gains(frame: pd.DataFrame) -> Figure | None:
    """Gains by step, a line per block; the band is one standard deviation over the heads to either side."""
    own = frame[frame["kind"] == "gains"]
    names = _present(own, order=GAINS)
    if not names:
        return None
    figure, panels = _grid(len(names))
    for axes, name in zip(panels, names, strict=True):
        spread = frame[(frame["kind"] == "spread") & (frame["name"] == name)]
        _by_block(axes, own[own["name"] == name], spread=spread)
        _dress(axes, title=GAINS.get(name, name), x="optimiser steps")
        axes.axhline(0, color="0.6", lw=0.8, zorder=1)
    return _with_depths(figure, panels, own, title="Trained gains (band: standard deviation over heads)")


def ratios(frame: pd.DataFrame) -> Figure | None:
    """b/a of the reparameterised matrices by step, a line per block, the first block's in red (paper, Fig. 4)."""
    own = frame[frame["kind"] == "ratio"]
    names = _present(own, order=("value", "projection"))
    if not names:
        return None
    figure, panels = _grid(len(names))
    for axes, name in zip(panels, names, strict=True):
        rows = own[own["name"] == name]
        _by_block(axes, rows)
        first = rows[rows["block"] == 0]
        axes.plot(first["step"], first["value"], color="tab:red", lw=2.6, ls="--", label="first block", zorder=4)
        axes.axhline(0, color="0.6", lw=0.8, zorder=1)
        _dress(axes, title=f"b/a of the {name} matrix a*W_init + b*dW", x="optimiser steps")
        axes.legend(fontsize=8)
    return _with_depths(figure, panels, own, title="Do the trained parts of values and projections go to 0?")


def signals(frame: pd.DataFrame) -> Figure | None:
    """Measures by depth, a line per snapshot, coloured by step."""
    own = frame[frame["kind"] == "signal"]
    names = _present(own, order=MEASURES)
    if not names:
        return None
    figure, panels = _grid(len(names))
    colours = Normalize(own["step"].min(), max(own["step"].max(), own["step"].min() + 1))
    for axes, name in zip(panels, names, strict=True):
        of_measure = own[own["name"] == name].sort_values("block")
        for step in sorted(set(of_measure["step"])):
            rows = of_measure[of_measure["step"] == step]
            axes.plot(rows["block"] + 1, rows["value"], color=STEPS(0.9 * colours(step)), marker=".", lw=1.4, zorder=3)
        _dress(axes, title=MEASURES.get(name, name), x="after block", logarithmic=name in LOGARITHMIC)
    mappable = ScalarMappable(colours, ListedColormap(STEPS(np.linspace(0, 0.9, 256))))
    figure.colorbar(mappable, ax=list(panels), label="optimiser steps", fraction=0.03, aspect=40)
    figure.suptitle("Signals by depth, during training")
    return figure


def gradients(frame: pd.DataFrame) -> Figure | None:
    """Gradient norm of whole blocks, and the update-to-weight ratio of their parts, by step."""
    whole = frame[(frame["kind"] == "grad") & (frame["name"] == "")]
    updates = frame[(frame["kind"] == "update") & (frame["value"] < FROM_ZERO)]
    parts = list(dict.fromkeys(updates["name"]))
    if whole.empty and not parts:
        return None
    figure, panels = _grid((not whole.empty) + len(parts))
    free = iter(panels)
    if not whole.empty:
        axes = next(free)
        _by_block(axes, whole)
        _dress(axes, title="Gradient norm of the block", x="optimiser steps", logarithmic=True)
    for axes, part in zip(free, parts, strict=False):
        _by_block(axes, updates[updates["name"] == part])
        _dress(axes, title=f"Update over weight: {part}", x="optimiser steps", logarithmic=True)
    return _with_depths(figure, panels, pd.concat([whole, updates]), title="Gradients and updates")


def attention(snapshots: Sequence[Snapshot]) -> Figure | None:
    """The kept maps at the first and the last snapshot: A, and what multiplies the values where that differs."""
    ends = [snapshot for snapshot in (snapshots[0], snapshots[-1]) if snapshot.weights] if snapshots else []
    ends = ends[:1] if len(snapshots) == 1 else ends
    tags = list(dict.fromkeys(tag for snapshot in ends for tag in snapshot.weights))
    if not tags:
        return None
    columns = [(snapshot, kind) for snapshot in ends for kind in ("A", "M") if kind == "A" or _mixes(snapshots)]
    figure = Figure(figsize=(1.2 + 2.7 * len(columns), 0.8 + 2.5 * len(tags)), layout="constrained")
    panels = figure.subplots(len(tags), len(columns), squeeze=False)
    for row, tag in zip(panels, tags, strict=True):
        for axes, (snapshot, kind) in zip(row, columns, strict=True):
            matrix = (snapshot.weights if kind == "A" else snapshot.mixing).get(tag)
            if matrix is None:
                axes.set_axis_off()
                continue
            _map(axes, np.asarray(matrix, dtype=float), signed=kind == "M")
        row[0].set_ylabel(_place(tag) + "\nquery position", fontsize=8)
    for axes, (snapshot, kind) in zip(panels[0], columns, strict=True):
        what = "A" if kind == "A" else "what multiplies the values"
        axes.set_title(f"step {snapshot.step}: {what}", fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("key position", fontsize=8)
    return figure


def _map(axes: Axes, matrix: Values, *, signed: bool) -> None:
    largest = float(np.nan_to_num(np.abs(matrix), posinf=0).max()) or 1.0  # a diverged run may have no finite entry
    # By the square root: beside a diagonal of ones, or a first row that reads one token, small entries would not show.
    norm = FuncNorm((_root, _square), vmin=-largest if signed else 0, vmax=largest)
    image = axes.imshow(matrix, cmap="RdBu_r" if signed else "viridis", norm=norm, interpolation="nearest")
    ticks = [share * largest for share in ((-1, -0.1, 0, 0.1, 1) if signed else (0, 0.01, 0.1, 0.4, 1))]
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.046, ticks=ticks, format="%.2g")
    bar.ax.tick_params(labelsize=7)
    bar.minorticks_off()
    axes.set(xticks=[], yticks=[])


def _root(values: Values) -> Values:
    return np.sign(values) * np.sqrt(np.abs(values))


def _square(values: Values) -> Values:
    return np.sign(values) * np.square(values)


def _mixes(snapshots: Sequence[Snapshot]) -> bool:
    """Whether anything but A multiplies the values anywhere."""
    return any(
        not np.array_equal(matrix, snapshot.weights[tag])
        for snapshot in snapshots for tag, matrix in snapshot.mixing.items() if tag in snapshot.weights
    )


def _place(tag: str) -> str:
    """`attention/block_03/head_01` in words."""
    found = re.search(r"block_(\d+)/head_(\d+)", tag)
    return f"block {int(found[1])}, head {int(found[2])}" if found else tag


def _grid(count: int) -> tuple[Figure, Any]:
    """A figure of `count` panels, at most four side by side."""
    columns = 3 if count in (5, 9) else min(count, 4)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(6.0, 4.1 * columns + 0.8), 3.3 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]


def _by_block(axes: Axes, rows: pd.DataFrame, *, spread: pd.DataFrame | None = None) -> None:
    """A line per block over the steps, coloured by depth, with markers if there are few steps."""
    last = max(1, int(rows["block"].max()))
    for block in sorted(set(rows["block"])):
        own = rows[rows["block"] == block].sort_values("step")
        colour = DEPTHS(0.95 * block / last)
        axes.plot(own["step"], own["value"], color=colour, lw=1.6, marker="." if len(own) < 30 else "", zorder=3)
        if spread is None or not (spread["block"] == block).any():
            continue
        std = spread[spread["block"] == block].set_index("step")["value"].reindex(own["step"]).to_numpy()
        axes.fill_between(own["step"], own["value"] - std, own["value"] + std, color=colour, alpha=0.12, lw=0, zorder=2)


def _with_depths(figure: Figure, panels: Any, rows: pd.DataFrame, *, title: str) -> Figure:
    """Add the title, and the colour scale of the blocks."""
    last = max(1, int(rows["block"].max()))
    depths = ListedColormap(DEPTHS(np.linspace(0, 0.95, 256)))
    bar = figure.colorbar(ScalarMappable(Normalize(0, last), depths), ax=list(panels), label="block (0: the first)",
                          fraction=0.03, aspect=20 if len(panels) < 5 else 40)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    figure.suptitle(title)
    return figure


# A line with the numbers of each figure.


def _summary(frame: pd.DataFrame, kind: str, what: str, block: int | None = None) -> str:
    rows = frame[(frame["kind"] == kind) & (frame["step"] == frame["step"].max())]
    if block is not None:
        rows = rows[rows["block"] == rows["block"].max()]
    means = rows.groupby("name", sort=False)["value"].agg(["min", "max"])
    texts = [f"{name} {_range(low, high)}" for name, low, high in means.itertuples()]
    return f"{what}: {', '.join(texts)}"


def _range(low: float, high: float) -> str:
    return f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"


def _ratio_summary(frame: pd.DataFrame) -> str:
    rows = frame[(frame["kind"] == "ratio") & (frame["step"] == frame["step"].max())].sort_values("block")
    texts = [
        f"{name} {' '.join(f'{value:.3f}' for value in own['value'])}"
        for name, own in rows.groupby("name", sort=False)
    ]
    return f"b/a at step {frame['step'].max()}, first block to last: {'; '.join(texts)}"


def _gradient_summary(frame: pd.DataFrame) -> str:
    whole = (frame["kind"] == "update") | ((frame["kind"] == "grad") & (frame["name"] == ""))
    rows = frame[whole & (frame["value"] < FROM_ZERO)]
    if rows.empty:
        return "no finite numbers"
    rows = rows[rows["step"] == rows["step"].max()]
    norms = rows[rows["kind"] == "grad"]["value"]
    ratio = rows[rows["kind"] == "update"]["value"]
    texts = [f"gradient norms of the blocks {_range(norms.min(), norms.max())}"] if len(norms) else []
    texts += [f"update over weight {_range(ratio.min(), ratio.max())}"] if len(ratio) else []
    return f"at step {rows['step'].max()}: {', '.join(texts)}"


def _attention_summary(snapshots: Sequence[Snapshot]) -> str:
    last = snapshots[-1]
    texts = []
    for tag, weights in last.weights.items():
        matrix = np.asarray(last.mixing.get(tag, weights), dtype=float)
        size = np.linalg.norm(matrix) * math.sqrt(len(matrix))
        texts.append(f"{_place(tag)} {np.trace(matrix) / size if size else 0.0:.2f}")
    return f"cosine to the identity at step {last.step}: {'; '.join(texts)}"
