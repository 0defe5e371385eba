"""What `fit` left on disk: the only module that opens a checkpoint.

Nothing in a checkpoint is executed: it is read with `weights_only=True`, and the code of a part of your own is loaded
only where its file was named again (`config.own`).
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_simplified.config import ConfigError, RunConfig, from_record
from lit_simplified.config.own import refuse_unnamed
from lit_simplified.model import Transformer

_DAMAGED = (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError)
_FINISHED = "give the folder of a run that `fit` has finished"


def checkpoint_file(run: Path) -> Path:
    """The checkpoint of a run's folder, or the checkpoint file itself.

    Raises:
        ConfigError: none there.
    """
    return _present("checkpoint", run / "checkpoints" / "last.ckpt" if run.is_dir() else run)


def tokenizer_file(checkpoint: Path) -> Path:
    """The tokenizer beside the checkpoint file of a run.

    Raises:
        ConfigError: none there.
    """
    return _present("tokenizer", checkpoint.parent.parent / "tokenizer.json")


def _present(name: str, path: Path) -> Path:
    if not path.is_file():
        raise ConfigError(name, str(path), f"no such file: {_FINISHED}")
    return path


def read_config(file: Path) -> RunConfig:
    """The run that a checkpoint file is of.

    Raises:
        ConfigError: a file that is missing, damaged or not of `fit`, or a run with a part of your own whose file was
            not named.
    """
    values = _read(file, "hyper_parameters")
    try:
        config = from_record(RunConfig, values["config"])
    except _DAMAGED as error:  # a `ConfigError` is a `ValueError`
        raise _foreign(file, error) from error
    refuse_unnamed(config.model.block)
    return config


def read_weights(file: Path) -> dict[str, Tensor]:
    """The state of the `Transformer` in a checkpoint file, on the CPU.

    Raises:
        ConfigError: a file that is missing, damaged or not of `fit`.
    """
    prefix, state = "model.", _read(file, "state_dict")
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def load_model(file: Path) -> Transformer:
    """The model of a checkpoint file on the CPU, to be evaluated.

    Not through the LightningModule: it compiles the blocks of a run that was compiled, which costs minutes here.

    Raises:
        ConfigError: as `read_config`, or weights that do not fit.
    """
    model = Transformer(read_config(file).model)
    try:
        model.load_state_dict(read_weights(file))
    except RuntimeError as error:
        raise _foreign(file, error) from error
    return model.eval()


def _read(file: Path, key: str) -> Any:
    """What a checkpoint file has under a key."""
    try:
        # Mapped, not read: the optimiser's state is twice as large as the weights, and not needed.
        return torch.load(_present("checkpoint", file), map_location="cpu", weights_only=True, mmap=True)[key]
    except ConfigError:
        raise
    except _DAMAGED as error:
        raise _foreign(file, error) from error


def _foreign(file: Path, error: Exception) -> ConfigError:
    told = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
    return ConfigError("checkpoint", str(file), f"is not a checkpoint of `fit`, or damaged: {_FINISHED} ({told})")
