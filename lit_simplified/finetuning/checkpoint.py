"""What `fit` left of a pretraining: its configuration, its tokenizer and its weights."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_simplified.config import ConfigError, RunConfig, TrainerConfig, describe, digest, from_dict, preset_of


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer; two files with the same content are the same tokenizer."""

    sha256: str
    path: Path = field(compare=False)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A pretrained model on disk; its weights are not in memory."""

    file: Path
    config: RunConfig
    tokenizer: TokenizerFile
    sha256: str

    @property
    def block(self) -> str:
        """The preset, or the switches in short."""
        return preset_of(self.config.model.block) or describe(self.config.model.block)

    @property
    def pretraining(self) -> str:
        """Eight digits that all seeds of one pretraining share."""
        trainer, data = TrainerConfig(precision=self.config.trainer.precision), replace(self.config.data, cache_dir="")
        return digest(replace(self.config, seed=0, out_dir="", data=data, trainer=trainer))

    def weights(self) -> dict[str, Tensor]:
        """The state of the `Transformer`, on the CPU."""
        prefix, state = "model.", _load(self.file)["state_dict"]
        return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def read_checkpoint(run: Path) -> Checkpoint:
    """The checkpoint of a run's folder, or a checkpoint file in its `checkpoints/`.

    Raises:
        ConfigError: no finished run there, or a file that is none of a run's.
    """
    file = run / "checkpoints" / "last.ckpt" if run.is_dir() else run
    tokenizer = file.parent.parent / "tokenizer.json"
    for name, path in (("checkpoint", file), ("tokenizer", tokenizer)):
        if not path.is_file():
            raise ConfigError(name, str(path), "no such file: give the folder of a run that `fit` has finished")
    try:
        config = from_dict(RunConfig, _load(file)["hyper_parameters"]["config"])
    except (OSError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
        raise ConfigError("checkpoint", str(file), f"is not a checkpoint of `fit`: {error}") from error
    return Checkpoint(
        file=file, config=config, tokenizer=TokenizerFile(_sha256(tokenizer), tokenizer), sha256=_sha256(file)
    )


def _load(file: Path) -> dict[str, Any]:
    # Mapped, not read: the optimiser's state is twice as large as the weights, and not needed.
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
