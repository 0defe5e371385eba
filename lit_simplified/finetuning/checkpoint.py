"""A pretraining as fine-tunings know it: its configuration, its tokenizer, its weights, its identity."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from lit_simplified.checkpoint import checkpoint_file, read_config, read_weights, tokenizer_file
from lit_simplified.config import RunConfig, TrainerConfig, describe, digest, preset_of


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
        config = replace(self.config, trainer=TrainerConfig(precision=self.config.trainer.precision))
        return digest(config, changes={"seed": 0, "out_dir": "", "data.cache_dir": ""})

    def weights(self) -> dict[str, Tensor]:
        """The state of the `Transformer`, on the CPU."""
        return read_weights(self.file)


def read_checkpoint(run: Path) -> Checkpoint:
    """The checkpoint of a run's folder, or a checkpoint file in its `checkpoints/`.

    Raises:
        ConfigError: no finished run there, or a file that is none of a run's (`lit_simplified.checkpoint`).
    """
    file = checkpoint_file(run)
    tokenizer = tokenizer_file(file)
    return Checkpoint(
        file=file, config=read_config(file), tokenizer=TokenizerFile(_sha256(tokenizer), tokenizer),
        sha256=_sha256(file),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
