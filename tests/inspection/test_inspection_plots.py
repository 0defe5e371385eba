"""The figures of signal propagation and of snapshots: what their lines hold, and none where there is no data."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

from lit_simplified.__main__ import main
from lit_simplified.inspection import plots
from lit_simplified.inspection.snapshot import Snapshot

LAYERS, HEADS, TOKENS, STEPS = 3, 4, 16, (0, 50, 100)
SIGNALS = (
    "cosine", "effective_rank", "stable_rank", "rank_one_distance", "rms", "kurtosis", "max_over_median", "entropy",
    "identity",
)
PARTS = ("query", "key", "value", "mixing", "up", "down", "mlp_gain", "norm")


def snapshot(step: int) -> Snapshot:
    """Of a model with shaped attention and trained residual matrices; every number is another."""
    rng = np.random.default_rng(step)
    scalars: dict[str, float] = {"grad/embedding": 1.0, "update/norm": 0.1}
    heads: dict[str, Any] = {}
    for block in range(LAYERS):
        tag = f"block_{block:02}"
        for place, name in enumerate(("alpha", "beta", "gamma")):
            gains = 1 + place + 0.1 * block + 0.001 * step + 0.01 * rng.standard_normal(HEADS)
            heads[f"gains/{tag}/{name}"] = gains
            scalars |= {f"gains/{tag}/{name}": gains.mean(), f"spread/{tag}/{name}": gains.std()}
        scalars[f"gains/{tag}/mlp"] = 0.1 + 0.01 * block + 0.0001 * step
        for name in ("value", "projection"):
            scalars[f"ratio/{tag}/{name}"] = 0.2 / (1 + step) + (0.1 if block == 0 and name == "value" else 0)
        scalars |= {f"signal/{tag}/{name}": 0.1 + rng.random() for name in SIGNALS}
        if step:
            scalars[f"grad/{tag}"] = 0.5 + block + 0.01 * step
            scalars |= {f"grad/{tag}/{part}": rng.random() for part in PARTS}
            scalars |= {f"update/{tag}/{part}": 1e-3 * (1 + block) / step for part in PARTS}
    weights = {f"attention/block_{b:02}/head_{h:02}": attention(rng) for b in (0, LAYERS - 1) for h in range(2)}
    mixing = {tag: np.eye(TOKENS) + matrix - np.tril(np.ones((TOKENS, TOKENS))) for tag, matrix in weights.items()}
    return Snapshot(step, scalars, heads, weights, mixing)


def attention(rng: np.random.Generator) -> np.ndarray:
    scores = np.tril(rng.random((TOKENS, TOKENS)))
    return scores / scores.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def snapshots() -> list[Snapshot]:
    return [snapshot(step) for step in STEPS]


@pytest.fixture(scope="module")
def frame(snapshots: list[Snapshot]) -> pd.DataFrame:
    return plots.trajectories(snapshots)


def panels(figure: Figure | None) -> list[Axes]:
    assert figure is not None
    return [axes for axes in figure.axes if axes.get_title()]


def points(axes: Axes) -> list[np.ndarray]:
    """The curves of a panel, (2, N) each."""
    return [np.array(line.get_data(), dtype=float) for line in axes.lines if len(line.get_xdata()) > 2]


def values(snapshots: list[Snapshot], tag: str) -> list[float]:
    return [snapshot.scalars[tag] for snapshot in snapshots if tag in snapshot.scalars]


def test_trajectories_are_the_scalars_of_blocks(frame: pd.DataFrame, snapshots: list[Snapshot]) -> None:
    for row in frame.sample(20, random_state=0).itertuples():
        tag = f"{row.kind}/block_{row.block:02}" + (f"/{row.name}" if row.name else "")
        assert row.value == next(s for s in snapshots if s.step == row.step).scalars[tag]
    assert len(frame) == sum(len(s.scalars) - 2 for s in snapshots)  # those of the embedding and the last norm


def test_gains_have_a_line_per_block_and_a_band_over_heads(frame: pd.DataFrame, snapshots: list[Snapshot]) -> None:
    shown = panels(plots.gains(frame))
    assert [axes.get_title().split(":")[0] for axes in shown] == ["alpha", "beta", "gamma", "gain of the MLP branch"]
    for axes, name in zip(shown, ("alpha", "beta", "gamma", "mlp"), strict=True):
        for block, curve in enumerate(points(axes)):
            np.testing.assert_allclose(curve, [STEPS, values(snapshots, f"gains/block_{block:02}/{name}")])
        assert len(points(axes)) == LAYERS
        assert len(axes.collections) == (0 if name == "mlp" else LAYERS)
    band = shown[1].collections[2].get_paths()[0].vertices
    last = snapshots[-1].heads["gains/block_02/beta"]
    assert band[:, 1].max() == pytest.approx(last.mean() + last.std())
    colours = [line.get_color() for line in shown[0].lines[:LAYERS]]
    assert len({to_rgba(colour) for colour in colours}) == LAYERS


def test_ratios_mark_the_first_block(frame: pd.DataFrame, snapshots: list[Snapshot]) -> None:
    shown = panels(plots.ratios(frame))
    assert len(shown) == 2
    for axes, name in zip(shown, ("value", "projection"), strict=True):
        (first,) = [line for line in axes.lines if line.get_label() == "first block"]
        np.testing.assert_allclose(first.get_ydata(), values(snapshots, f"ratio/block_00/{name}"))
        assert first.get_color() == "tab:red"
        assert len(points(axes)) == LAYERS + 1


def test_signals_have_a_line_per_snapshot_over_depth(frame: pd.DataFrame, snapshots: list[Snapshot]) -> None:
    shown = {axes.get_title(): axes for axes in panels(plots.signals(frame))}
    assert len(shown) == len(SIGNALS)
    for name in SIGNALS:
        title, logarithmic = plots.MEASURES[name], name in plots.LOGARITHMIC
        axes = shown[title]
        assert axes.get_yscale() == ("log" if logarithmic else "linear")
        for place, curve in enumerate(points(axes)):
            expected = [snapshots[place].scalars[f"signal/block_{block:02}/{name}"] for block in range(LAYERS)]
            np.testing.assert_allclose(curve, [[1, 2, 3], expected])
        assert len(points(axes)) == len(STEPS)


def test_gradients_of_blocks_and_updates_of_parts(frame: pd.DataFrame) -> None:
    frame = pd.concat([frame, pd.DataFrame([{  # a first update of weights that were 0
        "step": 25, "kind": "update", "block": 1, "name": "query", "value": 1e9,
    }])])
    shown = panels(plots.gradients(frame))
    assert [axes.get_title().removeprefix("Update over weight: ") for axes in shown] == [
        "Gradient norm of the block", *PARTS,
    ]
    for axes in shown[1:]:
        assert [line.get_ydata().tolist() for line in axes.lines] == [
            [1e-3 * (1 + block) / step for step in STEPS[1:]] for block in range(LAYERS)
        ]
    norms = [line.get_ydata().tolist() for line in shown[0].lines]
    assert norms == [[0.5 + block + 0.01 * step for step in STEPS[1:]] for block in range(LAYERS)]


def test_attention_shows_both_matrices_at_both_ends(snapshots: list[Snapshot]) -> None:
    figure = plots.attention(snapshots)
    assert figure is not None
    maps = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(maps) == 4 * 4
    first, last = snapshots[0], snapshots[-1]
    tag = "attention/block_00/head_00"
    for shown, matrix in zip(maps, (first.weights, first.mixing, last.weights, last.mixing), strict=False):
        np.testing.assert_allclose(shown, matrix[tag])
    assert [axes.get_title() for axes in panels(figure)] == [
        f"step {step}: {what}" for step in (0, 100) for what in ("A", "what multiplies the values")
    ]


def test_attention_without_another_mixing_shows_one_matrix(snapshots: list[Snapshot]) -> None:
    softmax = [Snapshot(s.step, {}, {}, s.weights, s.weights) for s in snapshots]
    figure = plots.attention(softmax)
    assert figure is not None
    assert [axes.get_title() for axes in panels(figure)] == ["step 0: A", "step 100: A"]
    alone = plots.attention(softmax[:1])
    assert [axes.get_title() for axes in panels(alone)] == ["step 0: A"]


def test_absent_parts_give_no_figure() -> None:
    empty = [Snapshot(0, {"signal/block_00/rms": 1.0}), Snapshot(5, {"signal/block_00/rms": 2.0})]
    frame = plots.trajectories(empty)
    assert [draw(frame) for draw in (plots.gains, plots.ratios, plots.gradients)] == [None] * 3
    assert plots.attention(empty) is None
    assert len(panels(plots.signals(frame))) == 1
    assert plots.signals(plots.trajectories([Snapshot(0)])) is None
    assert plots.attention([]) is None


def test_the_command_writes_what_there_is_and_tells_its_numbers(
    snapshots: list[Snapshot], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for each in snapshots:
        each.save(tmp_path)
    main(["inspect", str(tmp_path)])
    printed = capsys.readouterr().out.splitlines()
    names = ["gains", "ratios", "attention", "signals", "gradients"]
    assert printed[::2] == [str(tmp_path / "inspection" / f"{name}.png") for name in names]
    for path in printed[::2]:
        assert min(Image.open(path).size) > 200
    assert printed[3] == (
        "  b/a at step 100, first block to last: value 0.102 0.002 0.002; projection 0.002 0.002 0.002"
    )
    assert "gradient norms of the blocks 1.5 to 3.5, update over weight 1e-05 to 3e-05" in printed[9]
    Snapshot(7, {"gains/block_00/mlp": 0.25}).save(tmp_path / "poor")
    main(["inspect", str(tmp_path / "poor"), "--out", str(tmp_path / "figures")])
    assert capsys.readouterr().out.splitlines() == [
        str(tmp_path / "figures" / "gains.png"), "  gains at step 7: mlp 0.25",
    ]
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["gains.png"]
    with pytest.raises(SystemExit, match=r"no snapshots in it: give the folder of a run"):
        main(["inspect", str(tmp_path / "nowhere")])


def propagation() -> pd.DataFrame:
    rows = [
        {"block": block, "seed": seed, "depth": depth, **dict.fromkeys(plots.MEASURES, 1.0 + seed + depth),
         "cosine": (0.1 + place) / (1 + place) + 0.01 * seed + 0.01 * depth}
        for place, block in enumerate(("sas,mlp_skip=false", "sas", "parallel", "naive_skipless"))
        for seed in (0, 1, 2) for depth in range(5)
    ]
    frame = pd.DataFrame(rows)
    frame.loc[frame["depth"] == 0, ["gradient_norm", "entropy", "identity"]] = np.nan
    frame.loc[frame["depth"] == 4, "rank_one_distance"] = 0.0
    return frame


def test_signal_draws_means_and_ranges_over_seeds() -> None:
    frame = propagation()
    figure = plots.signal(frame, uniform=[3.5])
    shown = panels(figure)
    assert len(shown) == 8
    assert [axes.get_yscale() for axes in shown] == [
        "log" if name in plots.LOGARITHMIC else "linear" for name in list(plots.MEASURES)[:8]
    ]
    curves = dict(zip(("sas,mlp_skip=false", "sas", "parallel", "naive_skipless"), shown[0].lines, strict=True))
    for label, line in curves.items():
        own = frame[frame["block"] == label].groupby("depth")["cosine"]
        assert line.get_label() == label
        np.testing.assert_allclose(line.get_ydata(), own.mean())
    band = shown[0].collections[1].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (pytest.approx(0.1 + 0.0 + 0.45), pytest.approx(0.61))
    distance = next(axes for axes in shown if "rank one" in axes.get_title())
    assert min(distance.lines[0].get_ydata()) == plots.LOST  # 0 has no place on a logarithmic axis
    entropy = next(axes for axes in shown if axes.get_title().startswith("entropy"))
    assert list(entropy.lines[-1].get_ydata()) == [3.5, 3.5]
    assert len(figure.legends[0].get_texts()) == 4


def test_collapse_names_the_lines_at_their_ends() -> None:
    figure = plots.collapse(propagation())
    present = [name for name in plots.COLLAPSE if name in ("naive_skipless", "sas,mlp_skip=false", "sas")]
    for axes in panels(figure):
        assert [line.get_label() for line in axes.lines] == present  # parallel is for `signal`
        named = {text.get_text(): text for text in axes.texts}
        assert set(named) == {plots.COLLAPSE[name] for name in present}
        heights = sorted(text.xy[1] for text in axes.texts)
        assert all(above - below > 0.1 for below, above in pairwise(heights))
        assert heights[-1] <= 1
        for line in axes.lines:
            assert to_rgba(named[plots.COLLAPSE[line.get_label()]].get_color()) == to_rgba(line.get_color())
    others = propagation().replace({"block": {"naive_skipless": "a", "sas": "b", "sas,mlp_skip=false": "c"}})
    labels = [line.get_label() for line in panels(plots.collapse(others))[0].lines]
    assert labels == ["c", "b", "parallel", "a"]


def test_styles_tell_blocks_apart() -> None:
    looks = plots.styles(["sas,mlp_skip=false", "sas", "sas,norm=none", "pre_ln", "run-1", "run-2"])
    assert len({(str(look["color"]), str(look["linestyle"])) for look in looks.values()}) == 6
    assert looks["sas"]["linestyle"] == "-"
    assert looks["sas"]["color"] == looks["sas,norm=none"]["color"] != looks["pre_ln"]["color"]


@pytest.mark.filterwarnings("error")
def test_a_diverged_run_is_drawn_as_far_as_it_has_numbers(snapshots: list[Snapshot], tmp_path: Path) -> None:
    """The last snapshot holds nothing but NaN; the line on gradients tells the one before."""
    last = snapshots[-1]
    nothing = {tag: np.full_like(matrix, np.nan) for tag, matrix in last.weights.items()}
    lost = Snapshot(150, dict.fromkeys(last.scalars, np.nan), last.heads, nothing, nothing)
    told = dict(plots.draw_snapshots([*snapshots, lost], tmp_path))
    assert {path.stem for path in told} == {"gains", "ratios", "attention", "signals", "gradients"}
    assert told[tmp_path / "gradients.png"].startswith("at step 100: gradient norms of the blocks 1.5 to 3.5")
    assert "nan" in told[tmp_path / "signals.png"]
    told = dict(plots.draw_snapshots([lost], tmp_path))
    assert told.get(tmp_path / "gradients.png", "no finite numbers") == "no finite numbers"


def test_what_a_new_part_brings_is_drawn_behind_the_known() -> None:
    scalars = {"gains/block_00/delta": 0.5, "gains/block_00/mlp": 0.1, "signal/block_00/novelty": 2.0}
    frame = plots.trajectories([Snapshot(0, scalars), Snapshot(5, scalars)])
    assert [axes.get_title() for axes in panels(plots.gains(frame))] == ["gain of the MLP branch", "delta"]
    assert [axes.get_title() for axes in panels(plots.signals(frame))] == ["novelty"]


def test_a_damaged_snapshot_is_an_error_in_one_line(tmp_path: Path) -> None:
    file = snapshot(50).save(tmp_path)
    whole = file.read_bytes()
    middle = len(whole) // 2
    for content in (b"", b"text", whole[:middle], whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]):
        file.write_bytes(content)
        with pytest.raises(SystemExit, match=r"^error: run=.*step_00000050\.npz': is no snapshot, or damaged") as ended:
            main(["inspect", str(tmp_path)])
        assert "\n" not in str(ended.value)
