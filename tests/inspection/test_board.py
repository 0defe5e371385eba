"""What TensorBoard gets of a run, read back through TensorBoard's own readers."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import re
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from matplotlib import colormaps
from PIL import Image
from tensorboard import default, program
from tensorboard.backend.event_processing.event_accumulator import (
    STORE_EVERYTHING_SIZE_GUIDANCE,
    EventAccumulator,
    TensorEvent,
)
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import api_pb2, metadata
from torch.utils.tensorboard import SummaryWriter

from ablations.engine.storage import StudyError
from ablations.viewers import tensorboard
from lit_simplified.config import PRESETS, SWITCHES, BlockConfig, ModelConfig, RunConfig, to_dict
from lit_simplified.inspection.board import BINS, GAP, SIDE, Board, block_text, draw, histogram, layout
from lit_simplified.inspection.parts import Parts
from lit_simplified.inspection.snapshot import Snapshot
from lit_simplified.model import Transformer
from lit_simplified.signals import ATTENTION_MEASURES, TOKEN_MEASURES, branch_gains, head_gains, residual_ratios

DEPTH, HEADS, CONTEXT = 6, 4, 64
SIGNALS = ("cosine", "effective_rank", "rms", "kurtosis", "entropy", "identity")
PARTS = ("query", "key", "mixing", "attention_gain", "up", "down", "mlp_gain", "norm")


def run_config(preset: str, *, seed: int = 0) -> RunConfig:
    return RunConfig(model=ModelConfig(block=PRESETS[preset], depth=DEPTH, heads=HEADS, context=CONTEXT), seed=seed)


def made_up(step: int, *, shaped: bool = True, seed: int = 0) -> Snapshot:
    """A snapshot as a run could give, with numbers that drift by depth and step."""
    random = np.random.default_rng((seed, step))
    done = step / 200
    scalars: dict[str, float] = {}
    heads: dict[str, Any] = {}
    for index in range(DEPTH):
        block = f"block_{index:02}"
        for place, name in enumerate(SIGNALS):
            scalars[f"signal/{block}/{name}"] = (place + 1) * (0.2 + 0.1 * index * done) + random.normal(scale=0.01)
        scalars[f"grad/{block}"] = math.exp(-done) * (1 + index / DEPTH)
        for part in PARTS if shaped else PARTS[:2]:
            scalars[f"grad/{block}/{part}"] = random.uniform(0.1, 0.3)
            scalars[f"update/{block}/{part}"] = 1e-3 * random.uniform(0.5, 1.5)
        if shaped:
            gains = {"alpha": 1 - 0.3 * done, "beta": 1 + 0.2 * done * index, "gamma": 1 - 0.1 * done * index}
            for name, mean in gains.items():
                values = mean + done * random.normal(scale=0.1, size=HEADS)
                heads[f"gains/{block}/{name}"] = values
                scalars[f"gains/{block}/{name}"] = float(values.mean())
                scalars[f"spread/{block}/{name}"] = float(values.std())
            scalars[f"gains/{block}/attention"], scalars[f"gains/{block}/mlp"] = 1 - 0.1 * done, 0.17 + 0.1 * done
    maps = {
        f"attention/block_{index:02}/head_{head:02}": attention(random, done * (1 + index))
        for index in (0, DEPTH // 2, DEPTH - 1) for head in range(2)
    }
    mixing = {tag: np.eye(CONTEXT) + a - uniform() if shaped else a for tag, a in maps.items()}
    return Snapshot(step=step, scalars=scalars, heads=heads, weights=maps, mixing=mixing)


def attention(random: np.random.Generator, sharpness: float) -> Any:
    scores = sharpness * random.normal(size=(CONTEXT, CONTEXT)) - 0.1 * np.abs(np.subtract.outer(*2 * [range(CONTEXT)]))
    weights = np.tril(np.exp(scores))
    return weights / weights.sum(axis=1, keepdims=True)


def uniform() -> Any:
    return np.tril(np.ones((CONTEXT, CONTEXT))) / np.arange(1, CONTEXT + 1)[:, None]


def write_run(folder: Path, preset: str, *, seed: int = 0, state: str = "complete") -> None:
    """A whole run, as `fit` would leave it."""
    config = run_config(preset, seed=seed)
    writer = SummaryWriter(str(folder))
    board = Board(writer, config)
    board.begin(0)
    for step in range(0, 201, 50):
        board.add(made_up(step, shaped=config.model.block.attention == "shaped", seed=seed))
        writer.add_scalar("val/loss", 6 - step / 100 - seed / 10, step)
        writer.add_scalar("val/perplexity", math.exp(6 - step / 100 - seed / 10), step)
    writer.add_scalar("test/loss", 4.1 - seed / 10, 200)
    writer.add_scalar("speed/tokens_per_second", 40_000 + seed, 200)
    board.end(state)


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance=STORE_EVERYTHING_SIZE_GUIDANCE)
    events.Reload()
    return events


def content(events: EventAccumulator, tag: str) -> bytes:
    """Of the one tensor with a string in it."""
    found: list[TensorEvent] = events.Tensors(tag)
    assert len(found) == 1
    value: bytes = found[0].tensor_proto.string_val[0]
    return value


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> EventAccumulator:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, "sas_p")
    return read(folder)


def test_scalars_come_back_at_their_steps(run: EventAccumulator) -> None:
    snapshots = [made_up(step) for step in range(0, 201, 50)]
    for tag in snapshots[0].scalars:
        found = run.Scalars(tag)
        assert [event.step for event in found] == [0, 50, 100, 150, 200]
        assert [event.value for event in found] == pytest.approx([shot.scalars[tag] for shot in snapshots], rel=1e-6)


def test_histograms_hold_the_heads_where_they_are(run: EventAccumulator) -> None:
    heads = made_up(200).heads["gains/block_03/beta"]
    found = run.Histograms("heads/block_03/beta")[-1].histogram_value
    assert (found.num, sum(found.bucket)) == (HEADS, HEADS)
    assert found.sum / found.num == pytest.approx(heads.mean())
    edges = [found.min, *found.bucket_limit]
    for gain in heads:
        place = int(np.searchsorted(found.bucket_limit, gain))
        assert found.bucket[place] >= 1
        assert edges[place] <= gain <= edges[place + 1]
    assert max(np.diff(edges)) < 2 * np.ptp(heads) / BINS


@pytest.mark.parametrize("values", [[1.0] * 4, [0.0] * 4, [-2.0], [3e-9, 4e-9], [1.0, np.nan, np.inf, 1.5]])
def test_histograms_of_equal_tiny_and_endless_numbers(values: list[float]) -> None:
    found = histogram(np.array(values))
    assert found is not None
    finite = np.array(values)[np.isfinite(values)]
    assert sum(found.bucket) == len(finite)
    # TensorBoard reads float32 and draws nothing of a bin without width.
    edges = np.array([found.min, *found.bucket_limit], dtype=np.float32)
    assert (np.diff(edges) > 0).all()
    assert found.min < finite.min() <= finite.max() < found.max
    assert histogram(np.array([np.nan])) is None


def test_images_show_both_matrices_in_their_colours(run: EventAccumulator) -> None:
    tag, snapshot = "attention/block_05/head_01", made_up(200)
    weights, mixing = snapshot.weights[tag], snapshot.mixing[tag]
    found = run.Images(tag)
    assert [event.step for event in found] == [0, 50, 100, 150, 200]
    image = Image.open(io.BytesIO(found[-1].encoded_image_string)).convert("RGB")
    assert image.size == (found[-1].width, found[-1].height) == (2 * SIDE + GAP, SIDE)
    factor = SIDE // CONTEXT
    signed, largest = colormaps["RdBu_r"], np.abs(mixing).max()
    for row, column in ((0, 0), (40, 13), (63, 62), (5, 50), (63, 0)):
        left = column * factor + factor // 2, row * factor + factor // 2
        near(image.getpixel(left), colormaps["viridis"](math.sqrt(weights[row, column] / weights.max())))
        near(image.getpixel((left[0] + SIDE + GAP, left[1])), signed((share(mixing[row, column] / largest) + 1) / 2))
    assert image.getpixel((SIDE + GAP // 2, 7)) == (255, 255, 255)
    assert mixing.min() < 0 < mixing.max()


def share(value: float) -> float:
    return math.copysign(math.sqrt(abs(value)), value)


def near(pixel: Any, colour: tuple[float, ...]) -> None:
    """Equal but for the palette's 127 levels."""
    assert np.abs(np.array(pixel) / 255 - np.array(colour[:3])).max() < 0.03


def test_an_image_has_one_matrix_where_the_other_is_the_same(tmp_path: Path) -> None:
    large = np.tril(np.ones((300, 300)))
    board = Board(SummaryWriter(str(tmp_path)), run_config("pre_ln"))
    board.add(replace(made_up(0, shaped=False), weights={"attention/block_00/head_00": large}, mixing={}))
    board.add(replace(made_up(50, shaped=False), weights={"attention/block_00/head_00": large * np.nan}, mixing={}))
    board.end("diverged")
    whole, nothing = read(tmp_path).Images("attention/block_00/head_00")
    assert (whole.width, whole.height) == (300, 300)
    assert nothing.height == 300


def test_the_texts_are_the_block_and_the_configuration(run: EventAccumulator) -> None:
    config = content(run, "config/text_summary").decode()
    assert yaml.safe_load(config.strip("`")) == to_dict(run_config("sas_p"))
    block = content(run, "block/text_summary").decode()
    assert "**sas_p**: 6 blocks" in block
    assert "+--- MLP --- b_FF ---------+" in block
    assert "(mixing): ShapedMixing" in block


@pytest.mark.parametrize("name", PRESETS)
def test_the_figure_has_the_parts_of_the_block_and_no_others(name: str) -> None:
    block = PRESETS[name]
    state = torch.get_rng_state()
    figure, legend = draw(ModelConfig(block=block, depth=DEPTH)).split("\n\n")
    whole = block_text(run_config(name))
    assert torch.equal(state, torch.get_rng_state())
    assert figure.count("skip") == block.mlp_skip + (block.attention_skip if block.layout == "sequential" else 0)
    assert ("norm" in figure) == (block.norm != "none") == ("norm)" in whole)
    assert ("b_FF" in figure) == ("b_FF" in legend) == (block.resolved_mlp_gain(DEPTH) is not None)
    assert ("b_SA" in figure) == ("b_SA" in legend) == (block.resolved_attention_gain is not None)
    lines = figure.splitlines()
    assert sum(line.startswith("x ---") and line.endswith("--- out") for line in lines) == 1
    for upper, lower in itertools.pairwise(lines):  # what goes down comes from a corner and meets one
        for at, sign in enumerate(lower):
            if sign == "|":
                assert upper[at] == "+"
        for at, sign in enumerate(upper):
            if sign == "|":
                assert lower[at] == "+"


@pytest.mark.parametrize("block", [*PRESETS.values(), BlockConfig(
    value="residual", projection="residual", residual_gains_trainable=True, attention_gain=0.5, gains_trainable=False,
)])
def test_every_chart_finds_what_the_block_gives(block: BlockConfig) -> None:
    """Against the parameters and gains of the model itself; and no chart finds the tags of another."""
    config = RunConfig(model=ModelConfig(block=block, depth=DEPTH, width=16))
    model = Transformer(config.model)
    tags = {f"update/{name}" for name in Parts(model).names} | {f"grad/{name}" for name in Parts(model).names}
    for index, one in enumerate(model.blocks):
        place = f"block_{index:02}"
        tags |= {f"grad/{place}", *(f"signal/{place}/{name}" for name in TOKEN_MEASURES + ATTENTION_MEASURES)}
        tags |= {f"gains/{place}/{name}" for name in (*branch_gains(one), *head_gains(model))}
        tags |= {f"ratio/{place}/{name}" for name in residual_ratios(one)}
        tags |= {f"spread/{place}/{name}" for name in head_gains(model)}
    charts = [pattern for category in layout(config).values() for _, (pattern,) in category.values()]
    found = {pattern: {tag for tag in tags if re.match(pattern, tag)} for pattern in charts}
    assert all(found.values())
    shown = set().union(*found.values())
    assert len(shown) == sum(map(len, found.values()))
    by_part = {tag for tag in tags if re.fullmatch(r"grad/(block_\d\d/)?[a-z_]+", tag)}
    elsewhere = by_part - {f"grad/block_{index:02}" for index in range(DEPTH)}
    assert tags - shown == elsewhere | {tag for tag in tags if re.fullmatch(r"update/[a-z]+", tag)}


def test_the_layout_is_written(run: EventAccumulator) -> None:
    found = Layout.FromString(content(run, "custom_scalars__config__"))
    expected = layout(run_config("sas_p"))
    assert [category.title for category in found.category] == list(expected)
    gains = {chart.title: list(chart.multiline.tag) for chart in found.category[0].chart}
    assert gains["gradient norm"] == ["^grad/block_[0-9]+$"]
    assert gains["alpha: gain of the identity, mean over heads"] == ["^gains/block_[0-9]+/alpha$"]


@pytest.mark.parametrize(("state", "status"), [
    ("complete", api_pb2.STATUS_SUCCESS), ("diverged", api_pb2.STATUS_FAILURE),
])
def test_the_end_is_told_even_when_the_writer_was_closed(tmp_path: Path, state: str, status: int) -> None:
    writer = SummaryWriter(str(tmp_path))
    board = Board(writer, run_config("pre_ln"))
    board.begin(0)
    writer.close()  # as Lightning does after training
    board.end(state)
    found = read(tmp_path).summary_metadata[metadata.SESSION_END_INFO_TAG].plugin_data.content
    assert metadata.parse_session_end_info_plugin_data(found).status == status


def test_a_resumed_run_has_no_step_twice(tmp_path: Path) -> None:
    """Interrupted after step 130, taken up again from the checkpoint of step 100."""
    for started, ended in ((0, 130), (100, 200)):
        writer = SummaryWriter(str(tmp_path), filename_suffix=f".{started:03}")
        board = Board(writer, run_config("sas"))
        board.begin(started)
        for step in range(started + (10 if started else 0), ended + 1, 10):
            board.add(made_up(step, seed=started))
            if step % 100 == 0:  # before the checkpoint of that step
                writer.add_scalar("val/loss", 5.0, step)
        writer.close()
    events = read(tmp_path)
    for tag in ("gains/block_00/alpha", "signal/block_05/cosine"):
        assert [event.step for event in events.Scalars(tag)] == [*range(0, 201, 10)]
    assert [event.step for event in events.Scalars("val/loss")] == [0, 100, 200]
    assert events.Scalars("grad/block_00/query")[12].value == pytest.approx(
        made_up(120, seed=100).scalars["grad/block_00/query"]
    )
    assert [event.step for event in events.Histograms("heads/block_00/alpha")] == [*range(0, 201, 10)]
    assert [event.step for event in events.Images("attention/block_00/head_00")] == [*range(0, 201, 10)]
    for tag in ("block/text_summary", "config/text_summary", "custom_scalars__config__"):
        assert content(events, tag)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a server on three runs."""
    runs = tmp_path_factory.mktemp("runs")
    write_run(runs / "pre_ln-s0", "pre_ln")
    write_run(runs / "sas_p-s1", "sas_p", seed=1)
    write_run(runs / "sas-s2", "sas", seed=2, state="diverged")
    server = program.TensorBoard(default.get_plugins())
    server.configure(argv=[
        "tensorboard", "--logdir", str(runs), "--port", "0", "--load_fast", "false", "--reload_interval", "0"
    ])
    address: str = server.launch()
    return address


def ask(address: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def wait_for_runs(address: str) -> None:
    deadline = time.monotonic() + 60
    while len(ask(f"{address}data/runs")) < 3:
        assert time.monotonic() < deadline, "runs not found"
        time.sleep(0.2)


def test_the_table_of_a_study_can_be_filtered_and_ranked(study: str) -> None:
    wait_for_runs(study)
    table = ask(f"{study}data/plugin/hparams/experiment", {})
    infos = {info["name"]: info for info in table["hparamInfos"]}
    assert {*SWITCHES, "preset", "seed", "learning_rate", "parameters", "task"} <= set(infos)
    assert infos["attention"]["domainDiscrete"] == ["softmax", "skipinit", "shaped", "own"]
    assert (infos["mlp_skip"]["domainDiscrete"], infos["mlp_skip"]["type"]) == ([True, False], "DATA_TYPE_BOOL")
    assert [metric["name"]["tag"] for metric in table["metricInfos"]] == [
        "val/loss", "val/perplexity", "test/loss", "speed/tokens_per_second"
    ]
    rows = session_groups(study)
    assert [row["name"] for row in rows] == ["sas-s2", "sas_p-s1", "pre_ln-s0"]  # by validation loss
    row = rows[1]
    assert row["hparams"] == {**row["hparams"], "preset": "sas_p", "attention_skip": False, "layout": "parallel"}
    assert row["hparams"]["parameters"] == sum(
        p.numel() for p in Transformer(run_config("sas_p").model).parameters() if p.requires_grad
    )
    assert {metric["name"]["tag"]: metric["value"] for metric in row["metricValues"]} == pytest.approx({
        "val/loss": 3.9, "val/perplexity": math.exp(3.9), "test/loss": 4.0, "speed/tokens_per_second": 40_001,
    })
    assert [one["sessions"][0]["status"] for one in rows] == ["STATUS_FAILURE", "STATUS_SUCCESS", "STATUS_SUCCESS"]
    assert [one["name"] for one in session_groups(study, mlp_skip=[True])] == ["sas-s2", "pre_ln-s0"]
    assert [one["name"] for one in session_groups(study, attention=["shaped"], layout=["parallel"])] == ["sas_p-s1"]


def session_groups(address: str, **chosen: list[Any]) -> list[dict[str, Any]]:
    """The rows of the table whose switches have the chosen values, by validation loss."""
    columns = [{"hparam": name, "filterDiscrete": values} for name, values in chosen.items()]
    answer = ask(f"{address}data/plugin/hparams/session_groups", {
        "startIndex": 0, "sliceSize": 100,
        "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
        "colParams": [*columns, {"metric": {"tag": "val/loss", "group": ""}, "order": "ORDER_ASC"}],
    })
    found: list[dict[str, Any]] = answer["sessionGroups"]
    return found


def test_the_charts_of_different_blocks_come_together(study: str) -> None:
    """TensorBoard joins the layouts of its runs: none of them may lose a chart."""
    wait_for_runs(study)
    joined = ask(f"{study}data/plugin/custom_scalars/layout")["category"]
    assert [category["title"] for category in joined] == list(layout(run_config("sas")))
    for preset in ("pre_ln", "sas_p", "sas"):
        for category, charts in zip(joined, layout(run_config(preset)).values(), strict=True):
            assert set(charts) <= {chart["title"] for chart in category["chart"]}
    alpha = "%5Egains/block_%5B0-9%5D%2B/alpha%24"
    found = ask(f"{study}data/plugin/custom_scalars/scalars?run=sas_p-s1&tag={alpha}")["tag_to_events"]
    assert list(found) == [f"gains/block_{index:02}/alpha" for index in range(DEPTH)]


def test_the_study_that_was_written_to_last_is_shown_or_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tensorboard.main([]) == 2
    assert "make ablation" in capsys.readouterr().err
    for age, (folder, run) in enumerate((("new/runs", "a"), ("runs", "single"), ("old/runs", "a"), ("new/runs", "b"))):
        file = tmp_path / "results" / folder / run / "events.out.tfevents.1.host.1.0"
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (1e9 - age,) * 2)
    assert tensorboard.runs_of(None) == Path("results/new/runs")
    assert tensorboard.runs_of("old") == Path("results/old/runs")
    assert tensorboard.runs_of("runs") == Path("results/runs")
    os.utime(tmp_path / "results/runs/single/events.out.tfevents.1.host.1.0")
    assert tensorboard.runs_of(None) == Path("results/runs")
    with pytest.raises(StudyError, match=r"--study='other'.*There are: runs, new, old"):
        tensorboard.runs_of("other")
    started: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda program, command: started.append(command))
    tensorboard.main(["--study", "old", "--port", "7000", "--bind_all"])
    assert started[-1][started[-1].index("--logdir") + 1] == "results/old/runs"
    assert started[-1][-3:] == ["--port", "7000", "--bind_all"]
    assert "--host" not in started[-1]
    tensorboard.main(["--host", "0.0.0.0"])
    assert started[-1][-2:] == ["--host", "0.0.0.0"]
    tensorboard.main(["--all"])
    assert started[-1][-2:] == ["--host", "localhost"]
    assert started[-1][started[-1].index("--logdir") + 1] == "results"
