"""Looking inside while a model trains: what is seen is right, and what is trained does not change."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lit_simplified import PRESETS, BlockConfig, ConfigError, CurvePoint, ModelConfig, RunConfig, RunResult, fit
from lit_simplified.config import DataConfig, OptimConfig, TrainerConfig
from lit_simplified.datamodules import WindowDataModule
from lit_simplified.datamodules.datamodule import spread
from lit_simplified.inspection import callback
from lit_simplified.inspection.board import METRICS, experiment, hyperparameters
from lit_simplified.inspection.callback import SEQUENCES, Inspector
from lit_simplified.inspection.parts import Parts, part_of
from lit_simplified.inspection.snapshot import Snapshot, load_snapshots
from lit_simplified.model import Transformer
from lit_simplified.module import LitTransformer
from lit_simplified.signals import ATTENTION_MEASURES, TOKEN_MEASURES, of_tokens, probe

Finished = Callable[[RunConfig], RunResult]
RESIDUAL = replace(
    PRESETS["sas"], value="residual", projection="residual", value_delta_gain=0.2, projection_delta_gain=0.2,
    residual_gains_trainable=True,
)


@pytest.fixture
def config(corpus: DataConfig, tmp_path: Path) -> RunConfig:
    return RunConfig(
        model=ModelConfig(block=RESIDUAL, depth=3, width=16, heads=2, vocab_size=300, context=16),
        data=corpus,
        optim=OptimConfig(steps=11, learning_rate=1e-2),
        trainer=TrainerConfig(
            accelerator="cpu", val_every=5, log_every=2, checkpoint_every=4, progress_bar=False, threads=1,
            inspect_every=4,
        ),
        out_dir=str(tmp_path / "runs"),
    )


def of_block(config: RunConfig, block: BlockConfig) -> RunConfig:
    return replace(config, model=replace(config.model, block=block))


def events_of(run: str) -> EventAccumulator:
    return EventAccumulator(run, size_guidance={"scalars": 0, "histograms": 0, "images": 0, "tensors": 0}).Reload()


def in_every_block(*tags: str) -> set[str]:
    return {tag.replace("{i}", f"{index:02}") for tag in tags for index in range(3)}


ALWAYS = in_every_block(
    "grad/block_{i}", *(f"signal/block_{{i}}/{name}" for name in (*TOKEN_MEASURES, *ATTENTION_MEASURES))
)
HEADS = in_every_block("gains/block_{i}/alpha", "gains/block_{i}/beta", "gains/block_{i}/gamma")
TAGS = {
    "sas": (
        RESIDUAL, HEADS | in_every_block("ratio/block_{i}/value", "ratio/block_{i}/projection", "gains/block_{i}/mlp"),
        in_every_block("gains/block_{i}/attention"),
    ),
    "sas_p": (
        PRESETS["sas_p"], HEADS | in_every_block("gains/block_{i}/mlp", "gains/block_{i}/attention"),
        in_every_block("ratio/block_{i}/value", "ratio/block_{i}/projection"),
    ),
    "v_skipinit": (
        PRESETS["v_skipinit"], in_every_block("gains/block_{i}/alpha", "gains/block_{i}/beta", "gains/block_{i}/mlp"),
        in_every_block("gains/block_{i}/gamma", "gains/block_{i}/attention", "ratio/block_{i}/value"),
    ),
    "pre_ln": (
        PRESETS["pre_ln"], set(),
        HEADS | in_every_block("gains/block_{i}/mlp", "gains/block_{i}/attention", "ratio/block_{i}/value"),
    ),
}


@pytest.mark.parametrize("name", TAGS)
def test_every_tag_for_a_block_that_has_the_part_and_none_for_one_that_has_not(
    config: RunConfig, finished_run: Finished, name: str
) -> None:
    block, present, absent = TAGS[name]
    events = events_of(finished_run(of_block(config, block)).run_dir)
    tags = set(events.Tags()["scalars"])
    general = {
        "train/loss", "train/learning_rate", "train/gradient_norm", "val/loss", "val/perplexity", "test/loss",
        "speed/tokens_per_second",
    }
    assert tags >= general | ALWAYS | present
    assert not tags & absent
    assert all(re.search(r"block_\d\d(/|$)", tag) for tag in tags if "block" in tag)
    per_head = {tag for tag in present if re.search("alpha|beta|gamma", tag)}
    assert set(events.Tags()["histograms"]) == {tag.replace("gains", "heads") for tag in per_head}
    images = {f"attention/block_{i:02}/head_{h:02}" for i in range(3) for h in range(2)}
    assert set(events.Tags()["images"]) == images
    assert {e.step for e in events.Scalars("signal/block_00/cosine")} == {0, 4, 8, 11}
    assert {e.step for e in events.Scalars("grad/block_02")} == {4, 8, 11}  # before the first step there is none
    if present:
        assert {e.step for e in events.Scalars(sorted(present)[0])} == {0, 4, 8, 11}


@pytest.mark.parametrize(("task", "accumulate"), [("clm", 1), ("clm", 2), ("mlm", 1)])
def test_training_is_the_same_with_and_without_looking(
    config: RunConfig, tmp_path: Path, task: str, accumulate: int
) -> None:
    """To the last bit, dropout included: neither random numbers nor gradients nor weights are touched."""
    config = replace(of_block(config, replace(RESIDUAL, dropout=0.1)), task=task)
    config = replace(config, optim=replace(config.optim, accumulate=accumulate))
    blind = replace(config.trainer, inspect_every=0, tensorboard=False)
    seen, unseen = fit(config), fit(replace(config, trainer=blind, out_dir=str(tmp_path / "blind")))
    assert [(p.train_loss, p.val_loss) for p in seen.curve] == [(p.train_loss, p.val_loss) for p in unseen.curve]
    assert seen.test == unseen.test
    assert [s.step for s in load_snapshots(Path(seen.run_dir))] == [0, 4, 8, 11]
    assert {p.name for p in Path(unseen.run_dir).iterdir()} == {
        "config.yaml", "result.json", "checkpoints", "tokenizer.json"
    }
    with pytest.raises(ConfigError, match="inspect_every"):
        load_snapshots(Path(unseen.run_dir))


def test_nothing_is_hooked_between_looks_nor_when_off(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    hooked: list[int] = []
    step = LitTransformer.training_step

    def spied(self: LitTransformer, windows: torch.Tensor, batch_idx: int) -> torch.Tensor:
        hooked.append(sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in self.modules()))
        return step(self, windows, batch_idx)

    monkeypatch.setattr(LitTransformer, "training_step", spied)
    registered: list[torch.nn.Module] = []
    register = torch.nn.Module.register_forward_hook
    monkeypatch.setattr(
        torch.nn.Module, "register_forward_hook",
        lambda self, *args, **kwargs: (registered.append(self), register(self, *args, **kwargs))[1],
    )
    fit(replace(config, trainer=replace(config.trainer, inspect_every=0)))
    assert hooked == [0] * 11
    assert not [part for part in registered if not isinstance(part, LitTransformer)]
    fit(config, redo=True)
    assert hooked == [0] * 22
    assert len(registered) == 4 * 6  # four looks, at the output and the attention of three blocks


class CrashError(Exception):
    """Stands for a crash in the middle of a run."""


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_has_every_look_once(config: RunConfig, tmp_path: Path, accumulate: int) -> None:
    """The looks of the interrupted session beyond its checkpoint are taken again, and TensorBoard shows them once."""
    config = replace(config, optim=replace(config.optim, accumulate=accumulate))

    def interrupt(point: CurvePoint) -> None:
        if point.step == 10:
            raise CrashError

    config = replace(config, trainer=replace(config.trainer, checkpoint_every=6, inspect_every=2))
    whole = fit(replace(config, out_dir=str(tmp_path / "whole")))
    with pytest.raises(CrashError):
        fit(config, on_validation=interrupt)
    resumed = fit(config)
    assert resumed.curve[-1].val_loss == whole.curve[-1].val_loss
    expected, found = load_snapshots(Path(whole.run_dir)), load_snapshots(Path(resumed.run_dir))
    assert [s.step for s in found] == [s.step for s in expected] == [0, 2, 4, 6, 8, 10, 11]
    for one, other in zip(expected, found, strict=True):
        assert one.scalars == other.scalars
    for tag in ("signal/block_00/cosine", "gains/block_01/alpha"):
        assert [e.step for e in events_of(resumed.run_dir).Scalars(tag)] == [0, 2, 4, 6, 8, 10, 11]
    assert [e.step for e in events_of(resumed.run_dir).Scalars("val/loss")] == [5, 10, 11]


def test_the_last_look_sees_the_trained_model(config: RunConfig, finished_run: Finished) -> None:
    """Signals of the fixed batch, gains and ratios, against the weights of the checkpoint."""
    result = finished_run(config)
    module = LitTransformer.load_from_checkpoint(Path(result.run_dir) / "checkpoints" / "last.ckpt", weights_only=True)
    model = module.model.eval()
    data = WindowDataModule(config.data, vocab_size=300, context=16, extra=1, seed=0)
    data.setup()
    validation = data.windows["validation"]
    windows = validation.__getitems__(spread(len(validation), limit=SEQUENCES))
    snapshot = load_snapshots(Path(result.run_dir))[-1]
    with torch.no_grad():
        x = model.positions(model.embedding(windows[:, :-1]) * model.embedding_scale)
        for index, block in enumerate(model.blocks):
            x = block(x)
            for name, values in of_tokens(x).items():
                tag = f"signal/block_{index:02}/{name}"
                assert snapshot.scalars[tag] == pytest.approx(values.mean().item(), rel=1e-4), tag
    attention = model.blocks[2].token_mixing.attention
    alpha = attention.mixing.alpha.flatten().detach()
    assert snapshot.heads["gains/block_02/alpha"].tolist() == pytest.approx(alpha.tolist())
    assert snapshot.scalars["gains/block_02/alpha"] == pytest.approx(alpha.mean().item())
    assert snapshot.scalars["spread/block_02/alpha"] == pytest.approx(alpha.numpy().std(), rel=1e-4)
    ratio = attention.projection.delta_gain / attention.projection.gain
    assert snapshot.scalars["ratio/block_02/projection"] == pytest.approx(ratio.item())
    assert ratio.item() != pytest.approx(0.2, abs=1e-4)  # it was trained
    mixing = snapshot.mixing["attention/block_02/head_01"]
    weights = snapshot.weights["attention/block_02/head_01"]
    assert weights.astype(np.float64).sum(-1) == pytest.approx(np.ones(16), abs=5e-3)
    beta, gamma = (float(getattr(attention.mixing, name)[1].detach()) for name in ("beta", "gamma"))
    uniform = np.tril(np.ones((16, 16))) / np.arange(1, 17)[:, None]
    expected = float(alpha[1]) * np.eye(16) + beta * weights - gamma * uniform
    assert mixing == pytest.approx(expected, abs=3e-3)


def test_gradients_and_updates_are_those_of_the_step(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the gradients before clipping, and the weights on both sides of the step."""
    config = replace(config, trainer=replace(config.trainer, inspect_every=5, val_every=11))
    recorded: dict[str, dict[str, torch.Tensor]] = {}
    before, after = Inspector.on_before_optimizer_step, Inspector.on_train_batch_end

    def spy_before(self: Inspector, trainer: object, module: LitTransformer, optimizer: object) -> None:
        before(self, trainer, module, optimizer)
        if trainer.global_step == 4:
            recorded["grad"] = {n: p.grad.clone() for n, p in module.model.named_parameters() if p.grad is not None}
            recorded["before"] = {n: p.detach().clone() for n, p in module.model.named_parameters()}

    def spy_after(self: Inspector, trainer: object, module: LitTransformer, *rest: object) -> None:
        if trainer.global_step == 5:
            recorded["after"] = {n: p.detach().clone() for n, p in module.model.named_parameters()}
        after(self, trainer, module, *rest)

    monkeypatch.setattr(Inspector, "on_before_optimizer_step", spy_before)
    monkeypatch.setattr(Inspector, "on_train_batch_end", spy_after)
    result = fit(config)
    scalars = load_snapshots(Path(result.run_dir))[1].scalars
    block = [grad for name, grad in recorded["grad"].items() if name.startswith("blocks.1.")]
    assert scalars["grad/block_01"] == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in block)), rel=1e-5)
    name = "blocks.1.token_mixing.attention.query.weight"
    assert scalars["grad/block_01/query"] == pytest.approx(float(recorded["grad"][name].norm()), rel=1e-5)
    change = (recorded["after"][name] - recorded["before"][name]).norm() / recorded["before"][name].norm().clamp(1e-12)
    assert scalars["update/block_01/query"] == pytest.approx(float(change), rel=1e-4)
    change = (recorded["after"]["embedding.weight"] - recorded["before"]["embedding.weight"]).norm()
    size = recorded["before"]["embedding.weight"].norm()
    assert scalars["update/embedding"] == pytest.approx(float(change / size), rel=1e-4)


def test_looks_are_kept_without_tensorboard(config: RunConfig) -> None:
    for changes in ({"tensorboard": False}, {"options": {"logger": False}}, {"options": {"fast_dev_run": 2}}):
        result = fit(replace(config, trainer=replace(config.trainer, **changes)))
        assert load_snapshots(Path(result.run_dir))[0].step == 0
        assert not list(Path(result.run_dir).glob("events.*"))


def test_a_run_has_its_row_in_the_table_of_its_study(config: RunConfig) -> None:
    """With this project's columns and no others, its own settings, and how it ended."""
    config = replace(config, trainer=replace(config.trainer, log_every=50))  # so that no step logs the speed
    events = events_of(fit(config).run_dir)
    table = events.PluginTagToContent("hparams")
    pages = {tag: HParamsPluginData.FromString(content) for tag, content in table.items()}
    assert pages["_hparams_/experiment"].experiment == experiment()
    assert set(pages["_hparams_/session_start_info"].session_start_info.hparams) == set(hyperparameters(config))
    assert pages["_hparams_/session_end_info"].session_end_info.status == api_pb2.STATUS_SUCCESS
    assert set(METRICS) <= set(events.Tags()["scalars"])
    (speed,) = events.Scalars("speed/tokens_per_second")
    assert speed.step == 11
    assert speed.value > 0


def test_a_look_uses_the_precision_of_the_training(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)  # emulation will do here
    seen: list[torch.dtype] = []
    monkeypatch.setattr(callback, "probe", lambda model, forward, **options: (
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32),
        probe(model, forward, **options),
    )[1])
    fit(config)
    assert set(seen) == {torch.float32}
    seen.clear()
    fit(replace(config, trainer=replace(config.trainer, precision="bf16-mixed")))
    assert set(seen) == {torch.bfloat16}


def test_of_long_contexts_the_first_positions_are_kept() -> None:
    (kept,) = callback._maps({(1, 0): torch.eye(300)}).values()
    assert np.array_equal(kept, np.eye(callback.MAP_POSITIONS))


@pytest.mark.parametrize("heads", [0, 1, 5])
def test_as_many_maps_as_asked_for(config: RunConfig, finished_run: Finished, heads: int) -> None:
    trainer = replace(config.trainer, inspect_heads=heads)
    for snapshot in load_snapshots(Path(finished_run(replace(config, trainer=trainer)).run_dir)):
        assert len(snapshot.weights) == len(snapshot.mixing) == 3 * min(heads, config.model.heads)
        assert all(matrix.shape == (16, 16) for matrix in snapshot.weights.values())


@pytest.mark.parametrize("preset", PRESETS)
def test_every_trained_parameter_belongs_to_a_part(preset: str) -> None:
    model = Transformer(ModelConfig(block=PRESETS[preset], depth=2, width=16, heads=2, vocab_size=30, context=8))
    parts = Parts(model)
    assert len(parts.parameters) == sum(p.requires_grad for p in model.parameters())
    known = {"query", "key", "value", "projection", "mixing", "up", "down", "norm", "attention_gain", "mlp_gain"}
    assert {name.split("/")[1] for name in parts.names if "/" in name} <= known
    assert part_of("blocks.7.branches.mlp.gain.gain") == "block_07/mlp_gain"
    assert part_of("embedding.weight") == "embedding"
    norms = parts.norms([torch.ones_like(p) for p in parts.parameters], prefix="n", totals=True)
    size = sum(p.numel() for p in model.blocks[1].parameters() if p.requires_grad)
    assert float(norms["n/block_01"]) == pytest.approx(math.sqrt(size))


@pytest.mark.timed
def test_the_clock_does_not_count_the_looks(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    take = Inspector._take

    def slow(self: Inspector, *rest: object) -> None:
        paused = self.paused

        @contextmanager
        def slowly() -> Iterator[None]:
            with paused():
                time.sleep(0.5)
                yield

        self.paused = slowly
        take(self, *rest)
        self.paused = paused

    monkeypatch.setattr(Inspector, "_take", slow)
    result = fit(config)
    assert result.inspection_seconds > 2 > 1.5 > result.seconds > 0
    assert load_snapshots(Path(result.run_dir))[0].step == 0


def test_snapshots_survive_the_way_to_disk(tmp_path: Path) -> None:
    snapshot = Snapshot(
        step=50, scalars={"signal/block_00/cosine": 0.25, "grad/block_00": math.nan},
        heads={"gains/block_00/alpha": np.array([1.0, 2.0], dtype=np.float32)},
        weights={"attention/block_00/head_00": np.eye(3, dtype=np.float16)},
    )
    file = snapshot.save(tmp_path)
    assert [p.name for p in file.parent.iterdir()] == ["step_00000050.npz"]
    (found,) = load_snapshots(tmp_path)
    assert found.step == 50
    assert math.isnan(found.scalars["grad/block_00"])
    assert found.scalars["signal/block_00/cosine"] == 0.25
    assert found.heads["gains/block_00/alpha"].tolist() == [1, 2]
    assert np.array_equal(found.weights["attention/block_00/head_00"], np.eye(3))
    assert found.mixing == {}


def test_a_diverged_run_keeps_its_looks(config: RunConfig) -> None:
    """Also of weights that are not numbers."""
    wild = replace(
        config, optim=replace(config.optim, learning_rate=1e30, clip=None, steps=200),
        trainer=replace(config.trainer, inspect_every=1, log_every=5),
    )
    result = fit(wild)
    assert result.state == "diverged"
    assert json.loads((Path(result.run_dir) / "result.json").read_text())["state"] == "diverged"
    snapshots = load_snapshots(Path(result.run_dir))
    assert math.isnan(snapshots[1].scalars["update/block_00/query"])  # queries start at 0
    assert [s.step for s in snapshots][:2] == [0, 1]
    assert math.isnan(snapshots[-1].scalars["signal/block_02/effective_rank"])
