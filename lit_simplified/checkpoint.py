"""Checkpoints: the only module that writes or opens one.

A checkpoint is the zip archive of `torch.save` with a SHA-256 of all that precedes it as the archive's comment, so that
the two cannot be separated, and everything that reads archives reads it. Whatever is read was verified first: one
changed bit anywhere in the file is an error. Archives without a digest, of older versions, have their CRCs verified.

Nothing in a checkpoint is executed: it is read with `weights_only=True`, and the code of a part of your own is loaded
only where its file was named again (`config.own`). Nothing is allocated by its configuration's word alone: sizes are
compared with those of the weights first.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_simplified.config import ConfigError, ModelConfig, RunConfig, from_record, run_id
from lit_simplified.config.own import refuse_unnamed, specs_of
from lit_simplified.files import write_atomically
from lit_simplified.model import Transformer
from lit_simplified.run_folder import CHECKPOINTS, LAST, PREVIOUS

_FINISHED = "give the folder of a run that `fit` has finished"
_MARK = b"sha256:"
_COMMENT = len(_MARK) + 64
_END, _END_SIZE = b"PK\5\6", 22
"""How the last record of a zip archive begins, and its size without the comment."""
_RESUMED = ("callbacks", "global_step", "loops", "lr_schedulers", "optimizer_states")
"""What a training continues from, beside the weights."""


class _UnsoundError(Exception):
    """Why a file cannot be used as a checkpoint."""


def write_checkpoint(file: Path, values: Mapping[str, Any], *, check: Callable[[], Any] = lambda: None) -> None:
    """Write a checkpoint, durably; the one that is there becomes `PREVIOUS`.

    Args:
        file: where it goes.
        values: of `weights_only=True`'s types.
        check: called when all is written; what it raises leaves the old files as they were.
    """
    def write(temporary: Path) -> None:
        torch.save(values, temporary)
        _seal(temporary)

    def make_way() -> None:
        check()
        if file.exists():
            file.replace(file.with_name(PREVIOUS))

    write_atomically(file, write, before=make_way)


def _seal(file: Path) -> None:
    """Add the digest, as the archive's comment."""
    with file.open("r+b") as stream:
        stream.seek(-2, os.SEEK_END)  # the last field of an archive without comment is the comment's length
        stream.write(struct.pack("<H", _COMMENT))
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        stream.write(_MARK + digest.encode())


def verify(file: Path) -> None:
    """Read all of a checkpoint file and compare it with its digest.

    Raises:
        ConfigError: a file that is missing, cannot be read, or is not as it was written.
    """
    try:
        _verify(file)
    except _UnsoundError as error:
        raise _refusal(file, error) from error


def checkpoint_file(run: Path) -> Path:
    """The checkpoint of a run's folder, or the checkpoint file itself.

    Raises:
        ConfigError: none there.
    """
    return _present("checkpoint", run / CHECKPOINTS / LAST if run.is_dir() else run)


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
    return _read_usable(file)[0]


def read_weights(file: Path) -> dict[str, Tensor]:
    """The state of the `Transformer` in a checkpoint file, on the CPU.

    Raises:
        ConfigError: as `load_model`.
    """
    return _read_usable(file)[1]


def load_model(file: Path) -> Transformer:
    """The model of a checkpoint file on the CPU, to be evaluated.

    Not through the LightningModule: it compiles the blocks of a run that was compiled, which costs minutes here.

    Raises:
        ConfigError: as `read_config`, weights that do not fit, or one that is not finite.
    """
    config, weights = _read_usable(file)
    model = Transformer(config.model)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:  # a part of your own, whose sizes were not compared
        raise _refusal(file, error) from error
    return model.eval()


def find_resumable(folder: Path, config: RunConfig, *, tell: Callable[[str], Any]) -> int | None:
    """Make `LAST` in a folder the newest sound checkpoint of a run, and return its step; None if there is none.

    A damaged file is renamed to `*.damaged`, for a person to look at.

    Args:
        folder: a run's `checkpoints/`.
        config: the run that is to be continued.
        tell: is given a sentence for every damaged file.

    Raises:
        ConfigError: a file that cannot be read, as for lack of permission: it may be sound.
    """
    for file in (folder / LAST, folder / PREVIOUS):
        if not file.exists():
            continue
        try:
            step = _resumable_step(file, config)
        except _UnsoundError as error:
            file.replace(aside := file.with_name(f"{file.name}.damaged"))
            tell(f"{file} cannot be used, and is now {aside.name}: {_one_line(error)}")
        else:
            file.replace(folder / LAST)
            return step
    return None


def _resumable_step(file: Path, config: RunConfig) -> int:
    values = _load(file)
    missing = sorted(set(_RESUMED) - set(values))
    if missing:
        raise _UnsoundError(f"it has no {missing[0]}")
    if run_id(_config_of(values)) != run_id(config):
        raise _UnsoundError("it is of another run")
    _check_weights(_weights_of(values), config.model, size=file.stat().st_size)
    return int(values["global_step"])


def _read_usable(file: Path) -> tuple[RunConfig, dict[str, Tensor]]:
    """Configuration and weights of a checkpoint file, which fit each other."""
    try:
        values = _load(_present("checkpoint", file))
        config, weights = _config_of(values), _weights_of(values)
        refuse_unnamed(config.model.block)
        _check_weights(weights, config.model, size=file.stat().st_size)
    except _UnsoundError as error:
        raise _refusal(file, error) from error
    return config, weights


def _load(file: Path) -> dict[str, Any]:
    """What a checkpoint file holds, verified."""
    _verify(file)
    try:
        # Mapped, not read: the optimiser's state is twice as large as the weights, and most readers do not need it.
        values = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # strange content makes the unpickler raise almost anything
        raise _UnsoundError(str(error)) from error
    if not isinstance(values, dict):
        raise _UnsoundError(f"it holds a {type(values).__name__}")
    return values


def _verify(file: Path) -> None:
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _END_SIZE - _COMMENT))
            tail = stream.read()
            if tail.startswith(_END) and tail[_END_SIZE:].startswith(_MARK):
                sound = _digest(stream, size - _COMMENT) == tail[_END_SIZE + len(_MARK) :]
            else:
                sound = tail[-_END_SIZE:].startswith(_END) and zipfile.ZipFile(stream).testzip() is None
    except OSError as error:
        if error.errno != errno.EIO:  # but for a sector that the disk has lost, it may be sound
            raise ConfigError("checkpoint", str(file), f"cannot be read: {error.strerror}") from error
        raise _UnsoundError(str(error)) from error
    except Exception as error:  # a damaged archive makes `zipfile` raise almost anything
        raise _UnsoundError(str(error)) from error
    if not sound:
        raise _UnsoundError("its content is not what was written" if size else "it is empty")


def _digest(stream: Any, size: int) -> bytes:
    """The SHA-256 of the first bytes of a file."""
    digest, left = hashlib.sha256(), size
    stream.seek(0)
    while left and (part := stream.read(min(left, 2**20))):
        digest.update(part)
        left -= len(part)
    return digest.hexdigest().encode()


def _config_of(values: Mapping[str, Any]) -> RunConfig:
    try:
        return from_record(RunConfig, values["hyper_parameters"]["config"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:  # a `ConfigError` is a `ValueError`
        told = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise _UnsoundError(told) from error


def _weights_of(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of the `Transformer`."""
    prefix, state = "model.", values.get("state_dict")
    if not isinstance(state, dict):
        raise _UnsoundError("it holds no weights")
    found = {name.removeprefix(prefix): value for name, value in state.items() if str(name).startswith(prefix)}
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise _UnsoundError(f"{name} is no tensor")
    return found


def _check_weights(weights: Mapping[str, Tensor], config: ModelConfig, *, size: int) -> None:
    """Refuse weights that are not those of the model, in a file of so many bytes, or that are not finite."""
    expected = _shapes(weights, config)
    if expected is not None:
        for name in sorted(expected.keys() ^ weights.keys()):
            raise _UnsoundError(f"{name} is {'missing' if name in expected else 'not a weight of its model'}")
    for name, tensor in weights.items():
        shape = tuple(tensor.shape)
        if expected is not None and shape != expected[name]:
            raise _UnsoundError(f"{name} is {shape}, but {expected[name]} in the model of its configuration")
        if tensor.numel() * tensor.element_size() > size:  # one number, repeated
            raise _UnsoundError(f"{name} is larger than the file")
        if tensor.is_floating_point() and tensor.numel() and not all(map(torch.isfinite, tensor.aminmax())):
            raise _UnsoundError(f"{name} is not finite")


def _shapes(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, tuple[int, ...]] | None:
    """The shapes that the weights of a configuration have; None if it has parts of your own, which may need numbers.

    Whatever could make a model large is compared first: even one without memory takes time per block.
    """
    own = specs_of(config.block)
    blocks = {match[1] for name in weights if (match := re.match(r"blocks\.(\d+)\.", name))}
    if len(blocks) != config.depth and (blocks or not own):
        raise _UnsoundError(f"it has the weights of {len(blocks)} blocks, but depth={config.depth}")
    embedding, wanted = weights.get("embedding.weight"), (config.vocab_size, config.width)
    if embedding is None or tuple(embedding.shape) != wanted:
        found = None if embedding is None else tuple(embedding.shape)
        raise _UnsoundError(f"embedding.weight is {found}, but vocab_size and width are {wanted}")
    if own:
        return None
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return {name: tuple(tensor.shape) for name, tensor in Transformer(config).state_dict().items()}
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise _UnsoundError(str(error)) from error


def _refusal(file: Path, error: Exception) -> ConfigError:
    told = f"is not a checkpoint of `fit`, or damaged: {_FINISHED} ({_one_line(error)})"
    return ConfigError("checkpoint", str(file), told)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
