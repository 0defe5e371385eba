"""`fit(RunConfig) -> RunResult`: the one door to training."""

from __future__ import annotations

import json
import logging
import math
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lit_simplified.blocks.check import check_own
from lit_simplified.callbacks import (
    CheckpointFiles,
    Checkpoints,
    CurvePoint,
    DivergenceGuard,
    Progress,
    RandomState,
    Recorder,
    peak_memory_mb,
    reset_peak_memory,
)
from lit_simplified.checkpoint import find_resumable
from lit_simplified.config import ConfigError, RunConfig, run_id, to_dict
from lit_simplified.config.safe_yaml import read_yaml
from lit_simplified.datamodules import WindowDataModule
from lit_simplified.datamodules.datamodule import batch_sizes
from lit_simplified.files import finite, write_atomically, write_text
from lit_simplified.hardware import (
    keep_freed_memory,
    refuse_broken_compile,
    refuse_crowded_cpu,
    refuse_emulated_precision,
)
from lit_simplified.inspection.callback import BoardWriter, Inspector
from lit_simplified.module import LitTransformer, refuse_untrainable
from lit_simplified.run_folder import CHECKPOINTS, LAST, Owner, clear, move_aside, tidy

__all__ = ["CurvePoint", "RunResult", "fit"]

KEPT = ("keep_checkpoint", "tensorboard", "inspect_every", "inspect_heads")
"""Fields of the trainer that say what is left of a run, and nothing about its result."""


@dataclass(frozen=True)
class RunResult:
    """The result of a run. Losses in nats per token, times in seconds, memory in MiB."""

    state: Literal["complete", "diverged"]
    reason: str
    """Why it diverged; empty for a complete run."""
    run_dir: str
    val_loss: float
    val_perplexity: float
    test: dict[str, float]
    """loss, perplexity and accuracy on the test split; empty for a diverged run."""
    curve: tuple[CurvePoint, ...]
    steps: int
    tokens: int
    seconds: float
    """Training time, without validation and test."""
    validation_seconds: float
    """Time spent on validation during training."""
    inspection_seconds: float
    """Time spent on inspection, counted in neither."""
    tokens_per_second: float
    parameters: int
    """Trained parameters; a tied head counts once."""
    peak_memory_mb: float


@dataclass(frozen=True)
class _Run:
    """The objects of one run."""

    config: RunConfig
    folder: Path
    module: LitTransformer
    data: WindowDataModule
    recorder: Recorder
    guard: DivergenceGuard
    board: BoardWriter
    files: CheckpointFiles
    trainer: pl.Trainer


def fit(
    config: RunConfig, *, on_validation: Callable[[CurvePoint], None] | None = None, resume: bool = True,
    redo: bool = False, take_over: bool = False,
) -> RunResult:
    """Train one model, test it, and write config, curve, result and checkpoint to its folder under `out_dir`.

    An interrupted run continues from its last sound checkpoint, to the result of an uninterrupted one. A finished run
    is left alone, and its recorded result returned.

    Args:
        config: the run.
        on_validation: called with each new point of the learning curve.
        resume: false starts an interrupted run over.
        redo: move the run's folder aside, to `*.old-1` or the next free number, and begin anew.
        take_over: for a study, which itself decides who trains what: train a finished run again, in its place, and one
            that another process is training. That one stops before it would next write to the folder.

    Raises:
        ConfigError: an unusable corpus, setting or part of your own, a run that another process is training, or has
            taken over, with the remedy. A run that is refused leaves no new folder.
    """
    _silence_advice()
    folder = Path(config.out_dir) / run_id(config)
    if not (redo or take_over) and (finished := read_result(folder)) is not None:
        _tell(f"{folder}: already finished{_otherwise(config, folder)}; nothing is trained; to begin anew: --redo")
        return finished
    refuse_emulated_precision(config.trainer.precision, accelerator=config.trainer.accelerator)
    refuse_crowded_cpu(config.trainer.devices, accelerator=config.trainer.accelerator)
    if config.trainer.compile:
        refuse_broken_compile()
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    refuse_untrainable(config, device=torch.device(_device(config)))
    check_own(config.model, device=_device(config))
    pl.seed_everything(config.seed, workers=True, verbose=False)
    keep_freed_memory()
    run = _build(config, folder, on_validation)
    if not _is_first_rank():
        last = folder / CHECKPOINTS / LAST  # the first rank has seen to it, before it started this one
        return _train(run, last if resume and not redo and last.exists() else None)
    run.data.setup()  # refuses a corpus, before anything is written
    if redo and folder.exists():
        _tell(f"{folder}: what was there is now {move_aside(folder).name}")
    with Owner(folder, take_over=take_over) as owner:
        run.files.check = owner.check
        return _train(run, _prepare_folder(config, folder, resume=resume))


def read_result(folder: Path) -> RunResult | None:
    """The result in a run's folder, if the run is finished."""
    try:
        values = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        curve = tuple(CurvePoint(**_with_nan(point)) for point in values["curve"])
        test = _with_nan(values["test"])
        result = RunResult(**{**_with_nan(values), "run_dir": str(folder), "curve": curve, "test": test})
    # Missing, damaged, or of another version.
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return replace(result, val_perplexity=_perplexity(result.val_loss))


def _otherwise(config: RunConfig, folder: Path) -> str:
    """What a finished run was told to keep, where that is not what is wanted now: its name is the same."""
    asked = to_dict(config.trainer)
    try:
        kept = read_yaml(folder / "config.yaml", field="config.yaml")["trainer"]
        other = [f"trainer.{name}={kept[name]}" for name in KEPT if kept[name] != asked[name]]
    except (ConfigError, TypeError, KeyError):
        return ""
    return f" with {', '.join(other)}" if other else ""


def _with_nan(values: dict[str, Any]) -> dict[str, Any]:
    """What `finite` made of NaN, undone."""
    return {name: math.nan if value is None else value for name, value in values.items()}


def _perplexity(loss: float) -> float:
    return math.exp(loss) if not loss > 700 else math.inf  # beyond what a float holds


def _is_first_rank() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def _tell(text: str) -> None:
    if _is_first_rank():
        print(text, file=sys.stderr, flush=True)


def _device(config: RunConfig) -> str:
    """Where parts of your own are checked: some kernels run on a GPU only."""
    return "cuda" if config.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu"


def _silence_advice() -> None:
    """Silence advice that does not apply here; errors and real warnings stay."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*", ".*exists and is not empty.*", ".*smaller than the logging interval.*",
        ".*IterableDataset.*", ".*resuming from a checkpoint that ended.*", ".*tensorboardX.*", ".*litlogger.*",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def _prepare_folder(config: RunConfig, folder: Path, *, resume: bool) -> Path | None:
    """Write the run's config to its folder; return the checkpoint to continue from, if there is one."""
    checkpoints, damaged = folder / CHECKPOINTS, list[str]()
    unfinished = resume and read_result(folder) is None
    step = find_resumable(checkpoints, config, tell=damaged.append) if unfinished else None
    for text in damaged:
        _tell(text)
    if step is not None:
        _tell(f"{folder}: continues from step {step} of {config.optim.steps}")
    elif damaged:
        _tell(f"{folder}: begins anew, since no sound checkpoint is left")
    if step is None:
        clear(folder)
    write_text(folder / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
    return None if step is None else checkpoints / LAST


def _train(run: _Run, checkpoint: Path | None) -> RunResult:
    reset_peak_memory()
    run.trainer.fit(run.module, run.data, ckpt_path=checkpoint, weights_only=True)
    return _finish(run)


def _build(config: RunConfig, folder: Path, on_validation: Callable[[CurvePoint], None] | None) -> _Run:
    module, sizes = LitTransformer(config), batch_sizes(config.data, config.optim)
    data = WindowDataModule(
        config.data, vocab_size=config.model.vocab_size, context=config.model.context, extra=module.objective.extra,
        seed=config.seed, sizes=sizes,
    )
    guard = DivergenceGuard(vocab_size=config.model.vocab_size, every=config.trainer.log_every)
    recorder = Recorder(
        tokens_per_device=lambda steps: sizes.before_step(steps) * config.model.context,
        log_every=config.trainer.log_every,
        on_validation=on_validation,
    )
    board = BoardWriter(config)
    callbacks: list[Callback] = [recorder, guard, RandomState(), board]
    if config.trainer.inspect_every:  # before what writes checkpoints: a resumed run does not lack the last snapshot
        callbacks.append(Inspector(folder, config.trainer, paused=recorder.paused, on_snapshot=board.add))
    files = CheckpointFiles(check=lambda: None)
    trainer = _trainer(config, folder, callbacks, files)
    return _Run(config, folder, module, data, recorder, guard, board, files, trainer)


def _trainer(config: RunConfig, folder: Path, callbacks: list[Callback], files: CheckpointFiles) -> pl.Trainer:
    own = config.trainer
    callbacks = [*callbacks]
    if own.checkpoint_every:
        file = folder / CHECKPOINTS / LAST
        callbacks.append(Checkpoints(file, every=own.checkpoint_every, val_every=own.val_every))
    if own.progress_bar:
        callbacks.append(Progress(refresh_rate=own.log_every))
    arguments: dict[str, Any] = {
        "accelerator": own.accelerator, "devices": own.devices, "num_nodes": own.num_nodes, "strategy": own.strategy,
        "precision": own.precision, "max_steps": config.optim.steps, "max_epochs": -1,
        "gradient_clip_val": config.optim.clip, "accumulate_grad_batches": config.optim.accumulate,
        "val_check_interval": min(own.val_every, config.optim.steps) * config.optim.accumulate,
        "check_val_every_n_epoch": None, "log_every_n_steps": own.log_every, "num_sanity_val_steps": 0,
        "logger": TensorBoardLogger(folder, name="", version="", default_hp_metric=False) if own.tensorboard else False,
        "callbacks": callbacks, "enable_progress_bar": own.progress_bar, "enable_model_summary": False,
        "enable_checkpointing": False, "use_distributed_sampler": False,
    }
    plugins = own.options.get("plugins") or []
    plugins = [files, *(plugins if isinstance(plugins, list | tuple) else [plugins])]
    try:
        return pl.Trainer(**{**arguments, **own.options, "plugins": plugins})
    except Exception as error:  # of many kinds, each of which says what of these it does not take
        given = {name: arguments[name] for name in ("accelerator", "devices", "strategy", "precision")}
        field, value = ("trainer.options", own.options) if own.options else ("trainer", given)
        raise ConfigError(field, value, f"lightning.Trainer refuses it: {error}") from error


def _finish(run: _Run) -> RunResult:
    """Validate and test the trained model, and write the result."""
    trainer, recorder = run.trainer, run.recorder
    steps = trainer.global_step
    speed = recorder.tokens_per_second(steps)
    peak = peak_memory_mb()
    diverged = bool(run.guard.reason)
    if not diverged and (not recorder.curve or recorder.curve[-1].step != steps):
        trainer.validate(run.module, run.data, verbose=False)
    if not diverged and not math.isfinite(recorder.curve[-1].val_loss):
        diverged, run.guard.reason = True, f"validation loss {recorder.curve[-1].val_loss} at step {steps}"
    val_loss = math.nan if diverged else recorder.curve[-1].val_loss
    test = {} if diverged else trainer.test(run.module, run.data, verbose=False)[0]
    if trainer.logger is not None:
        trainer.logger.log_metrics({"speed/tokens_per_second": speed}, step=steps)  # of short runs too
    result = RunResult(
        state="diverged" if diverged else "complete",
        reason=run.guard.reason,
        run_dir=str(run.folder),
        val_loss=val_loss,
        val_perplexity=_perplexity(val_loss),
        test={name.removeprefix("test/"): value for name, value in test.items()},
        curve=tuple(recorder.curve),
        steps=steps,
        tokens=recorder.tokens(steps),
        seconds=recorder.seconds,
        validation_seconds=recorder.validation_seconds,
        inspection_seconds=recorder.inspection_seconds,
        tokens_per_second=speed,
        parameters=sum(p.numel() for p in run.module.parameters() if p.requires_grad),
        peak_memory_mb=peak,
    )
    _keep(run, result)
    run.board.end(result.state)
    return result


def _keep(run: _Run, result: RunResult) -> None:
    """Write the result, and keep one checkpoint with its tokenizer if configured."""
    checkpoints = run.folder / CHECKPOINTS
    run.files.check()
    if run.config.trainer.keep_checkpoint:
        run.trainer.save_checkpoint(checkpoints / LAST, weights_only=False)
    if not run.trainer.is_global_zero:
        return
    if not run.config.trainer.keep_checkpoint:
        shutil.rmtree(checkpoints, ignore_errors=True)
    else:
        tidy(checkpoints)
        tokenizer = run.data.corpus.tokenizer_file
        write_atomically(run.folder / "tokenizer.json", lambda path: shutil.copyfile(tokenizer, path))
    write_text(run.folder / "result.json", json.dumps(finite(asdict(result)), indent=1))
