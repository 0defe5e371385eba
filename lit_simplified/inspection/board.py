"""What TensorBoard shows of a run beside its losses: the block, its configuration, what was seen inside it while it
trained, charts that put all blocks side by side, and the row of the run in the table of a study (HParams).

Shapes: T positions, H heads.
"""

from __future__ import annotations

import functools
import io
import time
import typing
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml
from google.protobuf.struct_pb2 import ListValue, Value
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_BLOB_SEQUENCE, HistogramProto, Summary, SummaryMetadata
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from lit_simplified.blocks.factory import build_block
from lit_simplified.config import (
    CHOICES,
    SWITCHES,
    BlockConfig,
    ModelConfig,
    RunConfig,
    Task,
    describe,
    preset_of,
    to_dict,
)
from lit_simplified.config.own import parse, specs_of
from lit_simplified.config.switches import Position
from lit_simplified.inspection.parts import Parts
from lit_simplified.inspection.snapshot import Array, Snapshot
from lit_simplified.inspection.titles import GAINS, MEASURES
from lit_simplified.model import Transformer
from lit_simplified.signals import ATTENTION_MEASURES, TOKEN_MEASURES, branch_gains, head_gains, residual_ratios

BINS = 31
"""Of a histogram; TensorBoard's own page draws 30. Odd, so that equal numbers lie in the middle of one."""
SIDE = 128
"""Pixels to which small attention maps are enlarged, at least half of it. TensorBoard enlarges them further."""
GAP = 4
"""Pixels between the two maps of an image."""
LEVELS = 127
"""Colours of each of the two colour maps; odd, so that the diverging one has a middle."""
IMAGE_NOTE = (
    "Rows are query positions, columns key positions. Left: the attention matrix A, from 0 (dark) "
    "to its largest entry (bright). Right, where it differs from A: what multiplies the values, alpha\\*I + beta\\*A "
    "(- gamma\\*C), red above 0, white at 0, blue below, up to its largest absolute entry. Colours follow the "
    "square root, so that small entries are visible."
)
METRICS = {
    "val/loss": "validation loss", "val/perplexity": "validation perplexity", "test/loss": "test loss",
    "speed/tokens_per_second": "tokens per second",
}
"""The metrics by which runs are ranked, by their tags."""
OWN = "own"
"""The box of all parts of your own, whose names no table can know beforehand; `preset` has the class."""
FIRST = (*SWITCHES, "preset")
"""Columns that come first, the first five of them ticked; seed and name are in the name of the run anyway."""


class Board:
    """Writes a run's pages.

    Args:
        writer: what `TensorBoardLogger.experiment` gives.
        config: the run.
    """

    def __init__(self, writer: SummaryWriter, config: RunConfig) -> None:
        self.writer = writer
        self.config = config

    def begin(self, step: int) -> None:
        """At the start of training: texts, charts and the row in the table, or a mark where a run was resumed.

        Args:
            step: optimiser steps done; above 0 for a resumed run, of which TensorBoard then drops what the interrupted
                one wrote beyond.
        """
        # TensorBoard drops what has the step of such an event or a later one, from the second event of its kind on.
        # What was written at `step` itself came before the checkpoint, and stays.
        start = Event(session_log=SessionLog(status=SessionLog.START))
        self._file().add_event(start, step=step + 1 if step else 0)
        if step:
            return
        self.writer.add_text("block", block_text(self.config), 0)
        self.writer.add_text("config", _fenced(yaml.safe_dump(to_dict(self.config), sort_keys=False)), 0)
        self.writer.add_custom_scalars(layout(self.config))
        session = SessionStartInfo(start_time_secs=time.time())
        for name, value in hyperparameters(self.config).items():
            session.hparams[name].CopyFrom(_value(value))
        self._add_hparams(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment()))
        self._add_hparams(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=session))
        self.writer.flush()

    def add(self, snapshot: Snapshot) -> None:
        """Add a snapshot: scalars, histograms over heads, attention maps. One event holds them all."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in snapshot.scalars.items()]
        values += [
            # Under tags of their own: TensorBoard takes what has the tag of a scalar for one.
            Summary.Value(tag=tag.replace("gains/", "heads/", 1), histo=found)
            for tag, gains in snapshot.heads.items() if (found := histogram(gains)) is not None
        ]
        # TensorBoard's fast reader keeps the note only if its class is given.
        note = SummaryMetadata(
            summary_description=IMAGE_NOTE, data_class=DATA_CLASS_BLOB_SEQUENCE,
            plugin_data=SummaryMetadata.PluginData(plugin_name="images"),
        )
        values += [
            Summary.Value(tag=tag, image=attention_image(weights, snapshot.mixing.get(tag)), metadata=note)
            for tag, weights in snapshot.weights.items()
        ]
        self._file().add_summary(Summary(value=values), snapshot.step)

    def end(self, state: str) -> None:
        """At the end of the run: its state for the table, `complete` or another. Closes the writer."""
        status = api_pb2.STATUS_SUCCESS if state == "complete" else api_pb2.STATUS_FAILURE
        session = SessionEndInfo(status=status, end_time_secs=time.time())
        self._add_hparams(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=session))
        self.writer.close()

    def _add_hparams(self, tag: str, data: HParamsPluginData) -> None:
        value = Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)
        self._file().add_summary(Summary(value=[value]), 0)

    def _file(self) -> Any:
        """The writer of whole events. Lightning closes it after each of its stages; this opens it again."""
        return self.writer._get_file_writer()


def block_text(config: RunConfig) -> str:
    """A figure of the block and its modules, as Markdown."""
    model = config.model
    index = min(1, model.depth - 1)  # the first block may have a norm or a value matrix of its own
    with torch.random.fork_rng(devices=[]):  # the training's random numbers are as without the figure
        block = build_block(
            model.block, width=model.width, heads=model.heads, index=index, depth=model.depth, causal=model.causal,
            init_std=model.init_std,
        )
    name = preset_of(model.block) or describe(model.block)
    title = f"**{name}**: {model.depth} blocks, width {model.width}, {model.heads} heads"
    return f"{title}\n\n{_fenced(draw(model))}\n\nBlock {index} of 0 to {model.depth - 1}:\n\n{_fenced(str(block))}"


def draw(model: ModelConfig) -> str:
    """The block as a figure, with the parts that it has, and a line on each of them."""
    block, gains = model.block, _gains(model)
    if (own := parse(block.own)) is not None:
        return f"x ---{_chain([own.name])} out\n\n{own.name:<10} a block of your own, {own.file}"
    norm = [] if _position(model, "norm").absent else ["norm"]
    attention = ["attention", *(name for name in gains if name == "b_SA")]
    mlp = ["MLP", *(name for name in gains if name == "b_FF")]
    above, middle, below = ["", ""], "x ---", ["", ""]
    if block.layout == "parallel":
        upper, lower = _chain(attention), _chain(mlp)
        width = max(len(upper), len(lower))
        indent = " " * (len(middle) + 4 * block.mlp_skip + len(_chain(norm)))
        below = [f"{indent}|{'':{width + 3}}|", f"{indent}+---{lower:-<{width}}+"]
        branches = [(block.mlp_skip, f"{_chain(norm)}+---{upper:-<{width}}+---")]
    else:
        branches = [(block.attention_skip, _chain(norm + attention)), (block.mlp_skip, _chain(norm + mlp))]
    for skip, chain in branches:
        start, across = len(middle), len(chain) + 3
        if skip:
            label = f" {'a_FF ' if 'a_FF' in gains and chain.endswith(_chain(mlp)) else ''}skip "
            above = [f"{above[0]:<{start}}+{label:-^{across}}+", f"{above[1]:<{start}}|{'':{across}}|"]
        middle += f"+---{chain}+---" if skip else chain
    figure = [line for line in (*above, middle + " out", *below) if line]
    return "\n".join([*figure, "", *(f"{name:<10} {text}" for name, text in _legend(model).items())])


def _chain(parts: list[str]) -> str:
    return "".join(f" {part} ---" for part in parts)


def _gains(model: ModelConfig) -> dict[str, float]:
    """Initial gains of the branches and of the MLP's skip, where there are some."""
    block = model.block
    known = {"b_SA": block.resolved_attention_gain, "a_FF": block.resolved_mlp_skip_gain,
             "b_FF": block.resolved_mlp_gain(model.depth)}
    return {name: gain for name, gain in known.items() if gain is not None}


def _legend(model: ModelConfig) -> dict[str, str]:
    """A line on each part, in the words of the table of switches."""
    block = model.block
    value, projection = _position(model, "value"), _position(model, "projection")
    first_value = f", but {value.formula} in the first block"
    last_projection = f", but {projection.formula} in the last block"
    hidden = int(block.mlp_ratio * model.width) // (2 if block.glu else 1)
    trained = "trained" if block.gains_trainable else "fixed"
    return {
        "norm": _describe(_position(model, "norm")) + _outer_norm(block),
        "attention": _describe(_position(model, "attention")) + _per_head(model),
        "W_V": _describe(value) + (first_value if value.absent and block.first_value else ""),
        "W_P": _describe(projection) + (
            last_projection if projection.absent and block.matrix("projection", end=True).kind != "identity" else ""
        ),
        "MLP": f"{_describe(_position(model, 'activation'))}{', gated' if block.glu else ''}, {hidden} hidden units",
        **{name: f"starts at {gain:.3g}, {trained}" for name, gain in _gains(model).items()},
    }


def _outer_norm(block: BlockConfig) -> str:
    """What the legend says of the norms at the ends of the stack, where they are not those of the blocks."""
    kept = block.norm == "none" and block.first_norm
    places = ["before the first block"] * kept + ["before the head"] * (block.outer_norm not in (None, block.norm))
    return f", but {SWITCHES['norm'][block.resolved_outer_norm].words} {' and '.join(places)}" if places else ""


def _position(model: ModelConfig, switch: str) -> Position:
    return CHOICES[switch][getattr(model.block, switch)]


def _describe(position: Position) -> str:
    return f"{position.words}: {position.formula}" if position.formula and not position.absent else position.words


def _per_head(model: ModelConfig) -> str:
    """The names of the gains per head, read from the model itself."""
    with torch.device("meta"):  # shapes only
        names = list(head_gains(Transformer(replace(model, depth=1))))
    return f"; {', '.join(names)} per head" if names else ""


def _fenced(text: str) -> str:
    return f"```\n{text.rstrip()}\n```"


def layout(config: RunConfig) -> dict[str, dict[str, list[Any]]]:
    """Charts over all blocks, for `SummaryWriter.add_custom_scalars`; of the parts that this block has.

    Every run has the same categories: TensorBoard joins the charts of several runs by them, and loses some where the
    first run lacks a category.
    """
    model = _bare(config)
    heads, branches = list(head_gains(model)), _in_blocks(model, branch_gains)
    gains = {GAINS.get(name, name): f"gains/{{}}/{name}" for name in (*heads, *branches)}
    gains |= {f"spread of {name} over heads": f"spread/{{}}/{name}" for name in heads}
    gains |= {f"b/a of the {name} matrix": f"ratio/{{}}/{name}" for name in _in_blocks(model, residual_ratios)}
    gains["gradient norm"] = "grad/{}"
    parts = dict.fromkeys(name.split("/")[1] for name in Parts(model).names if "/" in name)
    measures = (*TOKEN_MEASURES, *ATTENTION_MEASURES)
    charts = {
        "Gains and gradients by block": gains,
        "Signals by block": {MEASURES.get(name, name): f"signal/{{}}/{name}" for name in measures},
        "Updates by block: change of a step over size": {
            part.replace("_", " "): f"update/{{}}/{part}" for part in parts
        },
    }
    return {
        category: {title: ["Multiline", [f"^{tag.format('block_[0-9]+')}$"]] for title, tag in tags.items()}
        for category, tags in charts.items()
    }


def _in_blocks(model: Transformer, find: Callable[[nn.Module], Mapping[str, Any]]) -> list[str]:
    """What is found in any block: the first may have parts of its own."""
    return list(dict.fromkeys(name for block in model.blocks for name in find(block)))


def hyperparameters(config: RunConfig) -> dict[str, bool | float | str]:
    """The row of a run in the table of a study."""
    parameters = sum(p.numel() for p in _bare(config).parameters() if p.requires_grad)
    return {**_settings(config), "parameters": parameters}


def _bare(config: RunConfig) -> Transformer:
    """A model of which only shapes and names are of use."""
    if not specs_of(config.model.block):
        with torch.device("meta"):
            return Transformer(config.model)
    with torch.random.fork_rng(devices=[]):  # a part of your own may need numbers to be made
        return Transformer(config.model)


def _settings(config: RunConfig) -> dict[str, bool | float | str]:
    model, block = config.model, config.model.block
    return {
        "preset": preset_of(block) or describe(block),
        **{name: OWN if parse(getattr(block, name)) else getattr(block, name) for name in CHOICES},
        "seed": config.seed, "learning_rate": config.optim.learning_rate,
        "depth": model.depth, "width": model.width, "heads": model.heads, "context": model.context,
        "batch_size": config.data.batch_size, "steps": config.optim.steps, "task": config.task,
    }


def experiment() -> api_pb2.Experiment:
    """The table's columns. The same for every run: TensorBoard takes those of the first run that it finds."""
    domains: dict[str, tuple[bool | str, ...]] = {
        name: (*switch.names, OWN) if switch.own else switch.names for name, switch in CHOICES.items()
    }
    domains["task"] = typing.get_args(Task)
    infos = []
    for name, value in {**_settings(RunConfig()), "parameters": 0}.items():
        infos.append(api_pb2.HParamInfo(name=name, type=_data_type(value), differs=name in FIRST))
        if name in domains:  # check boxes
            infos[-1].domain_discrete.CopyFrom(ListValue(values=[_value(choice) for choice in domains[name]]))
    return api_pb2.Experiment(
        description="One row per run", hparam_infos=infos,
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=title) for tag, title in METRICS.items()
        ],
    )


def _data_type(value: bool | float | str) -> Any:
    if isinstance(value, bool):
        return api_pb2.DATA_TYPE_BOOL
    return api_pb2.DATA_TYPE_STRING if isinstance(value, str) else api_pb2.DATA_TYPE_FLOAT64


def _value(value: bool | float | str) -> Value:
    if isinstance(value, bool):
        return Value(bool_value=value)
    return Value(string_value=value) if isinstance(value, str) else Value(number_value=value)


def histogram(gains: Array) -> HistogramProto | None:
    """Of a few numbers, (H,), in bins of equal width; None where none of them is finite."""
    values = np.asarray(gains, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, high = values.min(), values.max()
    # Equal numbers need a bin with a width, or TensorBoard draws nothing.
    margin = max(high - low, 1e-3 * max(abs(low), abs(high)), 1e-6) / BINS
    edges = np.linspace(low - margin, high + margin, BINS + 1)
    counts, _ = np.histogram(values, edges)
    filled = np.flatnonzero(counts)
    first, last = filled[0], filled[-1] + 1
    # TensorBoard takes min and max for the outer edges of the outermost bins that are not empty.
    return HistogramProto(
        min=edges[first], max=edges[last], num=values.size, sum=values.sum(), sum_squares=values @ values,
        bucket_limit=edges[first + 1 : last + 1].tolist(), bucket=counts[first:last].tolist(),
    )


def attention_image(weights: Array, mixing: Array | None) -> Summary.Image:
    """A, (T, T), and beside it what multiplies the values, if that is another matrix."""
    panels = [_levels(weights, signed=False)]
    if mixing is not None and not np.array_equal(weights, mixing):
        panels.append(_levels(mixing, signed=True))
    factor = max(1, SIDE // len(weights))
    panels = [panel.repeat(factor, axis=0).repeat(factor, axis=1) for panel in panels]
    gap = np.full((len(panels[0]), GAP), LEVELS, dtype=np.uint8)
    pixels = panels[0] if len(panels) == 1 else np.concatenate((panels[0], gap, panels[1]), axis=1)
    image = Image.fromarray(pixels)
    image.putpalette(_palette())
    png = io.BytesIO()
    image.save(png, format="png", compress_level=1)
    return Summary.Image(
        height=image.height, width=image.width, colorspace=3, encoded_image_string=png.getvalue()
    )


def _levels(matrix: Array, *, signed: bool) -> npt.NDArray[np.uint8]:
    """Places in the palette, by square root: 0 to the largest, or minus to plus the largest in absolute value."""
    finite = np.nan_to_num(matrix.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    largest = max(float(np.abs(finite).max()), float(np.finfo(np.float32).tiny))
    # The first row of a causal A is a single 1, beside which the rest would be invisible on a linear scale.
    shares = np.sign(finite) * np.sqrt(np.abs(finite) / largest)
    places = (shares + 1) / 2 * (LEVELS - 1) + LEVELS + 1 if signed else shares.clip(0, 1) * (LEVELS - 1)
    return np.rint(places).astype(np.uint8)


@functools.cache
def _palette() -> bytes:
    """The sequential colours, white for the gap, the diverging colours."""
    from matplotlib import colormaps  # takes a fifth of a second

    steps = np.linspace(0, 1, LEVELS)
    colours = [colormaps["viridis"](steps), np.ones((1, 4)), colormaps["RdBu_r"](steps)]
    return bytes((np.concatenate(colours)[:, :3] * 255).round().astype(np.uint8))

