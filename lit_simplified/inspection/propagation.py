"""Signal propagation: how the representations of real tokens change from block to block, before training or after it,
and the norm of the gradient that reaches each block.

Shapes: B batch, T positions, L blocks.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from lit_simplified.config import ConfigError, ModelConfig, to_dict
from lit_simplified.files import finite, write_atomically, write_text
from lit_simplified.inspection import plots
from lit_simplified.inspection.subjects import Request, Subject, list_subjects, read_windows
from lit_simplified.objectives import build_objective
from lit_simplified.signals import ATTENTION_MEASURES, TOKEN_MEASURES, probe

MEASURES = (*TOKEN_MEASURES, *ATTENTION_MEASURES, "gradient_norm")
Values = npt.NDArray[np.floating]
COLLAPSED = 0.99
"""Mean cosine above which tokens count as collapsed to one direction."""
KEPT = 0.02
"""Change of the mean cosine below which the geometry of the tokens counts as preserved."""
UNEVEN = 10.0
"""Ratio of RMS or of gradient norms that is worth a remark."""
NARROW = 256
"""Up to this width one thread is at least as fast as several, and many times faster where the cores have other work."""
HEADINGS = {
    "cosine": "cosine", "effective_rank": "effective\nrank", "rms": "RMS", "identity": "identity\npart",
    "gradient_norm": "gradient\nnorm", "stable_rank": "stable\nrank", "rank_one_distance": "from\nrank 1",
    "kurtosis": "kurtosis", "max_over_median": "max over\nmedian", "entropy": "attention\nentropy",
}
"""Of the table's columns, of which a terminal shows as many as fit."""
WIDE = 160
"""Characters of a line in a file."""


def run(request: Request, *, out: Path, tensorboard: bool = True, command: str = "") -> pd.DataFrame:
    """Measure, print and write everything to `out`; return the measures, a row per block, seed and depth.

    Raises:
        ConfigError: an invalid request, with the remedy.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError("out", str(out), "is a file: name a folder")
    subjects = list_subjects(request)
    windows = read_windows(subjects, sequences=request.sequences)
    console, started = Console(), time.perf_counter()
    frame = propagate(subjects, windows, progress=True)
    seconds = time.perf_counter() - started
    sentences = findings(frame)
    if not console.is_terminal:  # a file or a pipe has no width of its own
        console = Console(width=WIDE)
    console.print(_fitting_table(frame, console))
    for sentence in sentences:
        console.print(f"- {sentence}", soft_wrap=True, highlight=False, markup=False)
    record = {
        "command": command, "sequences": request.sequences, "seconds": round(seconds, 1), "torch": torch.__version__,
        "findings": sentences, "subjects": [_recorded(subject) for subject in subjects],
    }
    written = write(frame, subjects, record, out=out, tensorboard=tensorboard)
    console.print(f"{', '.join(path.name for path in written)}: {out}", soft_wrap=True, highlight=False, markup=False)
    return frame


def _recorded(subject: Subject) -> dict[str, Any]:
    checkpoint = None if subject.checkpoint is None else str(subject.checkpoint)
    config = {name: value for name, value in to_dict(subject.config).items() if name in ("task", "model", "data")}
    return {"block": subject.label, "seed": subject.config.seed, "checkpoint": checkpoint, **config}


# Measuring.


def propagate(subjects: Sequence[Subject], windows: Tensor, *, progress: bool = False) -> pd.DataFrame:
    """The measures of all models: columns `block`, `seed`, `depth` and `MEASURES`.

    Depth 0 is the input of the first block, which has token measures only, depth i the output of block i, its
    attention, and the norm of the loss's gradient with respect to its parameters.
    """
    bar = Console(stderr=True)
    with _threads(max(subject.config.model.width for subject in subjects)):
        frames = [
            measure(subject, windows)
            for subject in track(
                subjects, "measuring", console=bar, transient=True, disable=not (progress and bar.is_terminal)
            )
        ]
    return pd.concat(frames, ignore_index=True)


@contextmanager
def _threads(width: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1 if width <= NARROW else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(subject: Subject, windows: Tensor) -> pd.DataFrame:
    """The measures of one model on int64 windows (B, T + extra): a row per depth, from one pass there and back."""
    model = subject.build()
    objective = build_objective(subject.config)
    # No step, as in an evaluation: mlm then hides the same tokens from every seed.
    found = probe(model, lambda: objective.loss(model, windows, step=None).backward())
    rows: dict[str, list[float]] = {name: found.tokens[name].tolist() for name in TOKEN_MEASURES}
    none = torch.full((len(model.blocks),), math.nan)  # with a part of your own that has no attention matrix
    rows |= {name: [math.nan, *found.attention.get(name, none).tolist()] for name in ATTENTION_MEASURES}
    rows["gradient_norm"] = [math.nan, *(gradient_norm(block) for block in model.blocks)]
    frame = pd.DataFrame(rows, columns=list(MEASURES))
    frame.insert(0, "depth", range(len(frame)))
    frame.insert(0, "seed", subject.config.seed)
    frame.insert(0, "block", subject.label)
    return frame


def gradient_norm(block: nn.Module) -> float:
    """Of all parameters of a block together."""
    squares = [p.grad.double().square().sum() for p in block.parameters() if p.grad is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else math.nan


# Reporting.


def table(frame: pd.DataFrame, *, measures: Sequence[str] = tuple(HEADINGS)) -> Table:
    """Means over seeds at the input, after block 12 and after the last one."""
    printed = Table(title="Signal propagation (means over sequences, heads and seeds)", box=SIMPLE_HEAD, pad_edge=False,
                    collapse_padding=True)
    printed.add_column("block", no_wrap=True)
    for heading in ("depth", *(HEADINGS[name] for name in measures)):
        printed.add_column(heading, justify="right", no_wrap=True)
    for label, rows in _by_block(frame):
        means = rows.groupby("depth")[list(measures)].mean()
        last = int(means.index.max())
        for depth in sorted({0, min(12, last), last}):
            numbers = [_in_short(value) for value in means.to_numpy()[depth]]
            printed.add_row(label if depth == 0 else "", str(depth), *numbers, end_section=depth == last)
    return printed


def _fitting_table(frame: pd.DataFrame, console: Console) -> Table:
    """The table with as many measures as fit."""
    names = list(HEADINGS)
    wide = console.options.update(max_width=1000)
    while len(names) > 1 and console.measure(table(frame, measures=names), options=wide).maximum > console.width:
        names.pop()
    return table(frame, measures=names)


def _in_short(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.0e}"


def findings(frame: pd.DataFrame) -> list[str]:
    """A sentence per block kind that sums up its numbers, from the means over seeds."""
    return [_finding(label, rows.groupby("depth")[list(MEASURES)].mean()) for label, rows in _by_block(frame)]


def _by_block(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(label, frame[frame["block"] == label]) for label in dict.fromkeys(frame["block"].tolist())]


def _finding(label: str, means: pd.DataFrame) -> str:
    measured = {name: means[name].to_numpy(dtype=float) for name in MEASURES}
    cosines, ranks, sizes = (measured[name] for name in ("cosine", "effective_rank", "rms"))
    lost = np.flatnonzero(~np.isfinite(sizes) | np.isnan(cosines) | (sizes == 0))
    if len(lost):
        return f"{label} is out of numerical range at depth {lost[0]} (RMS {sizes[lost[0]]:.3g})."
    collapsed, last = np.flatnonzero(cosines > COLLAPSED), len(means) - 1
    if len(collapsed):
        first = _counted(int(collapsed[0]), "block")
        text = f"collapses to rank one after {first} (mean cosine above {COLLAPSED})"
    elif abs(cosines[last] - cosines[0]) < KEPT:
        text = "preserves the input's geometry"
    else:
        text = f"makes tokens {'more' if cosines[last] > cosines[0] else 'less'} similar"
    text += f": cosine {cosines[last]:.3f} at depth {last} against {cosines[0]:.3f} at the input"
    text += f", effective rank {ranks[last]:.1f} of {ranks[0]:.1f}"
    return "; ".join((f"{label} {text}", *_remarks(sizes, measured["gradient_norm"][1:]))) + "."


def _remarks(sizes: Values, norms: Values) -> Iterator[str]:
    if not 1 / UNEVEN < sizes[-1] / sizes[0] < UNEVEN:
        yield f"the RMS goes from {sizes[0]:.3g} to {sizes[-1]:.3g}"
    if norms.min() == 0:
        yield f"no gradient reaches block {norms.argmin() + 1:d} of {len(norms)}"
    elif norms.max() / norms.min() > UNEVEN:
        yield (
            f"gradient norms differ by a factor of {norms.max() / norms.min():.3g} between blocks (largest in block "
            f"{norms.argmax() + 1:d} of {len(norms)}, smallest in block {norms.argmin() + 1:d})"
        )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# Writing.


def write(
    frame: pd.DataFrame, subjects: Sequence[Subject], record: Mapping[str, Any], *, out: Path, tensorboard: bool
) -> list[Path]:
    """Table, record, figures and, if wanted, TensorBoard's files; return their paths."""
    model, sizes = subjects[0].config.model, sorted({subject.config.model.depth for subject in subjects})
    when = "after training" if subjects[0].checkpoint is not None else "at initialisation"
    blocks = f"{sizes[0]} blocks" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} blocks"
    what = f"{when}, {blocks}"
    figures = {
        "signal": plots.signal(frame, uniform=[uniform_entropy(model)], what=what),
        "collapse": plots.collapse(frame, what=what),
    }
    csv, note = out / "signal.csv", out / "signal.json"
    write_atomically(csv, lambda path: frame.to_csv(path, index=False, float_format="%.6g"))
    write_text(note, json.dumps(finite(dict(record)), indent=1))
    for name, figure in figures.items():
        plots.save(figure, out / f"{name}.png")
    board = [_write_board(frame, figures, out / "tensorboard")] if tensorboard else []
    return [csv, note, *(out / f"{name}.png" for name in figures), *board]


def uniform_entropy(model: ModelConfig) -> float:
    """Mean entropy in nats of the rows of uniform attention."""
    if not model.causal:
        return math.log(model.context)
    return math.lgamma(model.context + 1) / model.context  # the mean of log(1) to log(T)


def _write_board(frame: pd.DataFrame, figures: Mapping[str, Any], folder: Path) -> Path:
    """A run per block kind with the measures over depth as steps, and one with the figures; replaces older ones."""
    from torch.utils.tensorboard import SummaryWriter

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tensorboard-") as scratch:
        for label, rows in _by_block(frame):
            with SummaryWriter(str(Path(scratch, label))) as writer:
                for depth, means in rows.groupby("depth")[list(MEASURES)].mean().iterrows():
                    for name, value in means.dropna().items():
                        writer.add_scalar(f"signal/{name}", value, int(typing.cast(int, depth)))
        with SummaryWriter(str(Path(scratch, "figures"))) as writer:
            for name, figure in figures.items():
                writer.add_figure(f"signal/{name}", figure, close=False)
        for old in folder.rglob("events.out.tfevents.*"):
            old.unlink()
        for new in list(Path(scratch).rglob("events.out.tfevents.*")):
            place = folder / new.relative_to(scratch)
            place.parent.mkdir(parents=True, exist_ok=True)
            new.replace(place)
    return folder
