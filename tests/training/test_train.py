"""`fit`: the same seed gives the same losses, a resumed run those of an uninterrupted one, on a tiny real corpus."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml

from lit_simplified import PRESETS, ConfigError, CurvePoint, ModelConfig, RunConfig, RunResult, fit
from lit_simplified.callbacks import CheckpointFiles
from lit_simplified.config import DataConfig, OptimConfig, TrainerConfig, from_dict
from lit_simplified.datamodules import WindowDataModule
from lit_simplified.module import LitTransformer
from lit_simplified.train import _trainer

ROOT = Path(__file__).parents[2]
Finished = Callable[[RunConfig], RunResult]


@pytest.fixture
def config(corpus: DataConfig, tmp_path: Path) -> RunConfig:
    return RunConfig(
        model=ModelConfig(block=PRESETS["sas"], depth=2, width=16, heads=2, vocab_size=300, context=16),
        data=corpus,
        optim=OptimConfig(steps=12, learning_rate=1e-2),
        trainer=TrainerConfig(
            accelerator="cpu", val_every=5, log_every=2, checkpoint_every=4, progress_bar=False, threads=1
        ),
        out_dir=str(tmp_path / "runs"),
    )


def losses(result: RunResult) -> list[tuple[float, float]]:
    return [(p.train_loss, p.val_loss) for p in result.curve]


def test_same_seed_same_losses_other_seed_others(config: RunConfig, finished_run: Finished) -> None:
    first = losses(finished_run(config))
    assert len(first) == 3
    assert first == losses(fit(config))
    assert first != losses(fit(replace(config, seed=1)))


class CrashError(Exception):
    """Stands for a crash in the middle of a run."""


@pytest.mark.parametrize(
    ("task", "accumulate", "ramp", "checkpoint_every"),
    [  # every pair of values of any two of them
        ("clm", 1, 0.0, 4), ("clm", 2, 0.9, 5), ("mlm", 1, 0.9, 5), ("mlm", 2, 0.0, 5), ("mlm", 2, 0.9, 4),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    config: RunConfig, tmp_path: Path, task: str, accumulate: int, ramp: float, checkpoint_every: int
) -> None:
    """Also where a checkpoint falls on a step that is validated, as by default."""
    config = replace(config, trainer=replace(config.trainer, checkpoint_every=checkpoint_every))
    block = replace(config.model.block, dropout=0.1)  # so that the random state matters too
    config = replace(
        config, task=task,  # type: ignore[arg-type]
        optim=replace(config.optim, accumulate=accumulate, batch_ramp=ramp),
        model=replace(config.model, block=block),
    )
    if (task, accumulate) == ("mlm", 2):  # with what the crammed recipe has of its own
        config = replace(
            config, optim=replace(config.optim, warmup_start=0.25, mask_count="exact"),
            model=replace(config.model, positions="scaled_sinusoidal", embedding_norm=True),
        )
    whole = fit(replace(config, out_dir=str(tmp_path / "whole")))

    def interrupt(point: CurvePoint) -> None:
        if point.step == 10:
            raise CrashError

    with pytest.raises(CrashError):
        fit(config, on_validation=interrupt)
    seen: list[CurvePoint] = []
    resumed = fit(config, on_validation=seen.append)
    assert [p.step for p in seen] == [10, 12]  # the checkpoint is of step 8 or 10: 5 is not trained again
    assert [(p.step, p.train_loss, p.val_loss) for p in resumed.curve] == [
        (p.step, p.train_loss, p.val_loss) for p in whole.curve
    ]
    assert [p.seconds for p in resumed.curve] == sorted({p.seconds for p in resumed.curve})  # the clock goes on
    assert resumed.test == whole.test
    windows = 12 * 4 if not ramp else sum(max(1, round(4 * step / 12)) for step in range(1, 13))  # 11 steps of growth
    assert resumed.tokens == whole.tokens == windows * 16 * accumulate


def test_validations_of_a_masked_model_tell_its_accuracy(config: RunConfig) -> None:
    """Over all windows, against the whole matrix of logits at once."""
    config = replace(config, task="mlm", data=replace(config.data, val_windows=10))
    module = LitTransformer(config)
    data = WindowDataModule(config.data, vocab_size=300, context=16, extra=0, seed=0)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, use_distributed_sampler=False,
                         enable_checkpointing=False, enable_model_summary=False)
    [told] = trainer.validate(module, data, verbose=False)
    windows = torch.cat(list(data.val_dataloader()))
    inputs, hidden = module.objective.corrupt(windows, vocab_size=300, step=None)  # type: ignore[attr-defined]
    with torch.no_grad():
        right = module.model(inputs).argmax(-1)[hidden] == windows[hidden]
    assert told["val/accuracy"] == pytest.approx(right.float().mean().item(), abs=1e-6)
    assert LitTransformer(replace(config, task="clm")).val_accuracy is None


def test_what_a_run_leaves(config: RunConfig, finished_run: Finished) -> None:
    result = finished_run(config)
    folder = Path(result.run_dir)
    config = replace(config, out_dir=str(folder.parent))
    assert result.state == "complete"
    assert result.curve[-1].step == result.steps == 12
    assert result.val_loss == result.curve[-1].val_loss < math.log(300)
    assert math.isclose(result.val_perplexity, math.exp(result.val_loss))
    assert math.isclose(result.test["perplexity"], math.exp(result.test["loss"]), rel_tol=1e-5)
    assert 0 <= result.test["accuracy"] <= 1
    assert result.tokens_per_second > 0
    assert result.peak_memory_mb > 50
    assert from_dict(RunConfig, yaml.safe_load((folder / "config.yaml").read_text())) == config
    saved = json.loads((folder / "result.json").read_text())
    assert saved["val_loss"] == result.val_loss
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["last.ckpt"]
    module = LitTransformer.load_from_checkpoint(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert module.config == config
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == result.parameters


def test_validation_loss_is_the_mean_over_tokens_though_batches_differ(config: RunConfig) -> None:
    """Ten windows in batches of 4, 4 and 2, against all ten at once in float64."""
    config = replace(config, data=replace(config.data, val_windows=10))
    result = fit(config)
    module = LitTransformer.load_from_checkpoint(Path(result.run_dir) / "checkpoints" / "last.ckpt", weights_only=True)
    data = WindowDataModule(config.data, vocab_size=300, context=16, extra=1, seed=0)
    data.setup()
    windows = torch.cat(list(data.val_dataloader()))
    assert len(windows) == 10
    with torch.no_grad():
        expected = module.objective.loss(module.model.double().eval(), windows.to(module.device)).item()
    assert result.val_loss == pytest.approx(expected, rel=1e-5)


def test_tensorboard_tags(config: RunConfig, finished_run: Finished) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(finished_run(config).run_dir, size_guidance={"scalars": 0}).Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= {
        "train/loss", "train/learning_rate", "train/gradient_norm", "val/loss", "val/perplexity",
        "speed/tokens_per_second", "gains/block_00/alpha", "gains/block_01/beta", "gains/block_01/gamma",
        "gains/block_00/mlp", "test/loss",
    }
    assert "gains/block_00/attention" not in tags  # sequential blocks have no such gain
    assert [event.step for event in events.Scalars("val/loss")] == [5, 10, 12]


def test_divergence_is_a_result(config: RunConfig) -> None:
    wild = replace(config, optim=replace(config.optim, learning_rate=1e4, clip=None, steps=200))
    result = fit(wild)
    assert result.state == "diverged"
    assert "training loss" in result.reason
    assert result.steps < 200
    assert math.isnan(result.val_loss)
    assert json.loads((Path(result.run_dir) / "result.json").read_text())["val_loss"] is None


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precision_and_options_reach_the_trainer(
    config: RunConfig, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)  # emulation will do here
    options = {"detect_anomaly": precision == "64-true"}
    result = fit(replace(config, trainer=replace(config.trainer, precision=precision, options=options)))
    assert result.state == "complete"
    with pytest.raises(ConfigError, match=r"trainer\.options"):
        fit(replace(config, trainer=replace(config.trainer, options={"no_such_option": 1})))
    for options in ({"callbacks": "x"}, {"max_steps": -7}, {"strategy": "no-such-one"}):
        refused = replace(config, trainer=replace(config.trainer, options=options))
        with pytest.raises(ConfigError, match=r"trainer\.options=\{'.*lightning.Trainer refuses it"):
            _trainer(refused, Path("x"), [], CheckpointFiles(str))


def test_emulated_bfloat16_is_refused(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    for precision in ("bf16-mixed", "bf16-true"):
        with pytest.raises(ConfigError, match=r"trainer\.precision='bf16-.*32-true"):
            fit(replace(config, trainer=replace(config.trainer, precision=precision, accelerator="cpu")))


@pytest.mark.slow
def test_compiled_blocks_train_alike(config: RunConfig) -> None:
    compiled = replace(config, trainer=replace(config.trainer, compile=True))
    if " " in torch.__file__ or shutil.which("g++") is None:
        with pytest.raises(ConfigError, match=r"trainer\.compile"):
            fit(compiled)
        return
    assert fit(compiled).val_loss == pytest.approx(fit(config).val_loss, rel=1e-4)


def test_compile_is_refused_where_it_cannot_work(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    compiled = replace(config, trainer=replace(config.trainer, compile=True))
    monkeypatch.setattr(torch, "__file__", "/my projects/torch/__init__.py")
    with pytest.raises(ConfigError, match=r"trainer\.compile=True: .*a path with a space"):
        fit(compiled)
    monkeypatch.setattr(torch, "__file__", "/projects/torch/__init__.py")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "c++")
    with pytest.raises(ConfigError, match=r"found no g\+\+"):
        fit(compiled)


@pytest.mark.parametrize("scheme", ["learned", "sinusoidal"])
def test_both_positions_train(config: RunConfig, scheme: str) -> None:
    result = fit(replace(config, model=replace(config.model, positions=scheme)))  # type: ignore[arg-type]
    assert result.curve[-1].val_loss < result.curve[0].val_loss


def command_line(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "lit_simplified", *arguments], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, **environment}, timeout=240, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_two_processes_of_ddp_equal_one_with_the_double_batch(config: RunConfig, tmp_path: Path) -> None:
    """The ranks share out each global batch, so two of 4 windows take the steps of one of 8."""
    file = tmp_path / "config.yaml"
    from lit_simplified.config import to_dict

    values = to_dict(replace(config, out_dir=str(tmp_path / "ddp")))
    values["trainer"] |= {"devices": 2, "strategy": "ddp"}
    file.write_text(yaml.safe_dump(values))
    printed = command_line("fit", "--config", str(file))
    (folder,) = (tmp_path / "ddp").iterdir()
    two = json.loads((folder / "result.json").read_text())
    one = fit(replace(config, data=replace(config.data, batch_size=8)))
    assert str(folder) in printed
    assert two["val_loss"] == pytest.approx(one.val_loss, rel=1e-4)
    assert two["test"]["loss"] == pytest.approx(one.test["loss"], rel=1e-4)
    assert two["tokens"] == one.tokens


def test_generate_continues_a_text(config: RunConfig, finished_run: Finished) -> None:
    from lit_simplified.generate import generate

    run = Path(finished_run(config).run_dir)
    text = generate(run, prompt="def function", tokens=20, seed=1)
    assert text.startswith("def function")
    assert len(text) > len("def function")
    assert text == generate(run, prompt="def function", tokens=20, seed=1)
    assert text != generate(run, prompt="def function", tokens=20, seed=2)
    greedy = [generate(run, prompt="def", tokens=30, temperature=0, seed=seed) for seed in (1, 2)]
    assert greedy[0] == greedy[1]
    with pytest.raises(ConfigError, match="no such file"):
        generate(run / "nowhere", prompt="", tokens=1)
    with pytest.raises(ConfigError, match=r"prompt='caf\\udce9': has half of a character"):
        generate(run, prompt="caf\udce9", tokens=1)


def test_the_command_line_prints_the_text_piece_by_piece(
    config: RunConfig, finished_run: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    from lit_simplified.__main__ import main
    from lit_simplified.generate import generate, stream

    run = Path(finished_run(config).run_dir)
    capsys.readouterr()
    main(["generate", "--checkpoint", str(run), "--prompt", "def é", "--tokens", "20", "--seed", "3"])
    text = generate(run, prompt="def é", tokens=20, seed=3)
    assert capsys.readouterr().out == text + "\n"
    pieces = list(stream(run, prompt="def é", tokens=20, seed=3))
    assert len(pieces) == 21
    assert pieces[0] == "def é"
    assert "".join(pieces) == text


def test_a_masked_model_does_not_continue_texts(config: RunConfig, finished_run: Finished) -> None:
    from lit_simplified.generate import generate

    run = finished_run(replace(config, task="mlm")).run_dir
    with pytest.raises(ConfigError, match="use task=clm"):
        generate(Path(run), prompt="def", tokens=1)
