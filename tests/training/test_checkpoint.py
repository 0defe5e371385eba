"""The reader of checkpoints: what is missing, damaged or not of `fit` is refused alike, whoever reads it."""

from __future__ import annotations

import ast
import errno
import io
import os
import random
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_damage import flip

import lit_simplified
from lit_simplified import PRESETS, ConfigError, ModelConfig, RunConfig, Transformer
from lit_simplified.__main__ import main
from lit_simplified.checkpoint import (
    _shapes,
    checkpoint_file,
    find_resumable,
    load_model,
    read_config,
    read_weights,
    tokenizer_file,
    verify,
    write_checkpoint,
)
from lit_simplified.config import to_dict
from lit_simplified.finetuning.checkpoint import read_checkpoint
from lit_simplified.generate import generate
from lit_simplified.inspection.subjects import Request, list_subjects

CONFIG = RunConfig(model=ModelConfig(block=PRESETS["sas_p"], depth=2, width=16, heads=2, vocab_size=32, context=8))
READERS: dict[str, Callable[[Path], Any]] = {
    "config": lambda run: read_config(run / "checkpoints" / "last.ckpt"),
    "model": lambda run: load_model(run / "checkpoints" / "last.ckpt"),
    "generate": lambda run: generate(run, prompt="a", tokens=1),
    "finetune": read_checkpoint,
    "signal": lambda run: list_subjects(Request(checkpoints=[run])),
}
COMMANDS = {"generate": [], "signal": ["--tensorboard", "false"], "finetune": ["--task", "docstrings"]}


def save(run: Path, write: Callable[..., Any] = write_checkpoint, **changes: Any) -> Path:
    """A run's folder with a checkpoint like Lightning's, and a tokenizer."""
    from tokenizers import Tokenizer, models

    (run / "checkpoints").mkdir(parents=True)
    write(run / "checkpoints" / "last.ckpt", contents(**changes))
    Tokenizer(models.BPE()).save(str(run / "tokenizer.json"))
    return run


def contents(**changes: Any) -> dict[str, Any]:
    """What Lightning has a checkpoint hold, of a training's fifth step."""
    return {
        "state_dict": state() | {"val_loss.sum": 1}, "hyper_parameters": {"config": to_dict(CONFIG)},
        "optimizer_states": [], "callbacks": {}, "loops": {}, "lr_schedulers": [], "global_step": 5, **changes,
    }


def state(**changes: Any) -> dict[str, Any]:
    """The weights of a model, some of them changed; None leaves one out."""
    weights = Transformer(CONFIG.model).state_dict() | {name.replace("__", "."): new for name, new in changes.items()}
    return {f"model.{name}": tensor for name, tensor in weights.items() if tensor is not None}


def save_archive(file: Path, values: dict[str, Any]) -> None:
    """As an older version wrote checkpoints, without a digest."""
    torch.save(values, file)


def of_model(**changes: Any) -> dict[str, Any]:
    """The record of a configuration whose model is changed."""
    record = to_dict(CONFIG)
    return {"hyper_parameters": {"config": {**record, "model": {**record["model"], **changes}}}}


@pytest.mark.parametrize("write", [write_checkpoint, save_archive])
def test_what_a_run_left_is_read(write: Callable[..., Any], tmp_path: Path) -> None:
    run = save(tmp_path / "run", write)
    file = checkpoint_file(run)
    assert file == checkpoint_file(file) == run / "checkpoints" / "last.ckpt"
    assert tokenizer_file(file) == run / "tokenizer.json"
    assert read_config(file) == CONFIG
    model = load_model(file)
    assert not model.training
    weights = model.state_dict()
    assert set(read_weights(file)) == set(weights)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in read_weights(file).items())
    for parameter in model.parameters():
        parameter.data += 1  # nothing of the file is written
    assert not torch.equal(read_weights(file)["embedding.weight"], model.embedding.weight)
    assert torch.load(file, weights_only=True)["global_step"] == 5  # torch, and whatever else, reads it too
    assert zipfile.ZipFile(file).testzip() is None


HUGE = torch.zeros(1).expand(2**20, 16)  # four bytes in the file
CHANGES: dict[str, dict[str, Any]] = {
    # what is sealed in the file, and yet not a checkpoint
    "fields": {"hyper_parameters": {"config": {"wings": 2}}},
    "no config": {"hyper_parameters": {"config": [1]}},
    "pickle": {"hyper_parameters": {"config": print}},  # which would run code if it were unpickled
    "no weights": {"state_dict": None},
    "no tensor": {"state_dict": state(embedding__weight=3)},
    "missing": {"state_dict": state(blocks__1__mlp__down__weight=None, norm__scale=None, embedding__weight=None)},
    "other sizes": {"state_dict": {"model.embedding.weight": torch.zeros(2, 2)}},
    "nan": {"state_dict": state(embedding__weight=torch.full((32, 16), torch.nan))},
    "infinite": {"state_dict": state(embedding__weight=torch.full((32, 16), torch.inf))},
    "width": of_model(width=2**20),
    "depth": of_model(depth=10_000),
    "mlp": of_model(block={**to_dict(CONFIG.model.block), "mlp_ratio": 2.0**31}),
    "repeated": {"state_dict": state(embedding__weight=HUGE, head__weight=HUGE), **of_model(vocab_size=2**20)},
}
FILES: dict[str, Callable[[bytes], bytes]] = {
    # what becomes of the file's bytes
    "empty": lambda whole: b"",
    "text": lambda whole: b"a checkpoint, says its name",
    "cut": lambda whole: whole[: len(whole) // 2],
    "without its end": lambda whole: whole[:-1],
    "longer": lambda whole: whole + b"0",
    "a bit of a weight": lambda whole: flip(whole, 8 * (len(whole) // 2)),
    "a bit of the digest": lambda whole: flip(whole, 8 * len(whole) - 3),
    "case of the digest": lambda whole: whole[:-64] + whole[-64:].upper(),
    "a bit of its mark": lambda whole: flip(whole, 8 * (len(whole) - 70)),
    "a list": lambda whole: archive([1, 2]),
    "another": lambda whole: archive({"weights": 1}),
    "a tensor": lambda whole: archive(torch.zeros(3)),
}


def archive(values: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(values, stream)
    return stream.getvalue()


def damaged(run: Path, kind: str) -> Path:
    """A run's folder whose checkpoint is none."""
    save(run, **CHANGES.get(kind, {}))
    file = run / "checkpoints" / "last.ckpt"
    file.write_bytes(FILES.get(kind, bytes)(file.read_bytes()))
    return file


@pytest.mark.parametrize("kind", [*CHANGES, *FILES, "none"])
def test_what_is_none_is_refused(kind: str, tmp_path: Path) -> None:
    """By every reader, at once and in one line; a training goes on from the checkpoint before."""
    file = damaged(run := tmp_path / "run", kind)
    if kind == "none":
        file.unlink()
    told = "no such file" if kind == "none" else "is not a checkpoint of `fit`, or damaged"
    began = time.monotonic()
    for read in READERS.values():
        with pytest.raises(ConfigError, match=told) as refused:
            read(run)
        assert str(file) in str(refused.value)
        assert "give the folder of a run that `fit` has finished" in str(refused.value)
        assert "\n" not in str(refused.value)
    messages: list[str] = []
    assert find_resumable(file.parent, CONFIG, tell=messages.append) is None
    assert [str(file) in message and "\n" not in message for message in messages] == [True] * (kind != "none")
    assert (file.parent / "last.ckpt.damaged").exists() == (kind != "none")
    assert not file.exists()
    write_checkpoint(file.with_name("previous.ckpt"), contents())
    assert find_resumable(file.parent, CONFIG, tell=messages.append) == 5
    assert load_model(file)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("kind", ["a bit of a weight", "width"])
def test_commands_end_in_one_line(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = damaged(tmp_path / "run", kind)
    for command, arguments in COMMANDS.items():
        with pytest.raises(SystemExit) as ended:
            main([command, "--checkpoint", str(tmp_path / "run"), *arguments])
        assert str(ended.value).startswith(f"error: checkpoint={str(file)!r}: is not a checkpoint of `fit`, or damaged")
        assert "\n" not in str(ended.value)


def test_every_bit_counts(tmp_path: Path) -> None:
    """Of an archive without a digest, those of the records' contents do."""
    file = checkpoint_file(save(tmp_path / "sealed"))
    whole = file.read_bytes()
    draws = random.Random(0)
    for bit in [draws.randrange(8 * len(whole)) for _ in range(100)]:
        file.write_bytes(flip(whole, bit))
        with pytest.raises(ConfigError, match="is not a checkpoint of `fit`, or damaged"):
            verify(file)
    old = checkpoint_file(save(tmp_path / "old", save_archive))
    whole = old.read_bytes()
    place = whole.index(state_bytes(old))
    for bit in range(8 * place, 8 * place + 16):
        old.write_bytes(flip(whole, bit))
        with pytest.raises(ConfigError, match="is not a checkpoint of `fit`, or damaged"):
            verify(old)


def state_bytes(file: Path) -> bytes:
    weights = torch.load(file, weights_only=True)["state_dict"]["model.embedding.weight"]
    return bytes(weights.numpy().tobytes())


def test_the_message_names_the_tensor_or_the_size(tmp_path: Path) -> None:
    for kind, told in {
        "nan": r"embedding\.weight is not finite", "depth": "2 blocks, but depth=10000",
        "width": r"vocab_size and width are \(32, 1048576\)", "repeated": r"embedding\.weight is larger than the",
        "a bit of a weight": "its content is not what was written",
    }.items():
        file = damaged(tmp_path / kind, kind)
        with pytest.raises(ConfigError, match=told):
            load_model(file)


def test_what_a_training_cannot_continue_from_is_moved_aside(tmp_path: Path) -> None:
    folder, told = save(tmp_path / "run") / "checkpoints", list[str]()
    values = contents()
    del values["optimizer_states"]  # as `save_checkpoint(weights_only=True)` leaves it
    write_checkpoint(folder / "last.ckpt", values)  # and the other becomes the previous one
    assert find_resumable(folder, CONFIG, tell=told.append) == 5
    assert "it has no optimizer_states" in told[0]
    assert find_resumable(folder, replace(CONFIG, seed=1), tell=told.append) is None
    assert "it is of another run" in told[1]


def test_a_file_that_cannot_be_read_may_be_sound_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = checkpoint_file(save(tmp_path / "run"))

    def fail(self: Path, mode: str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", fail)
    number = errno.EACCES
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        find_resumable(file.parent, CONFIG, tell=print)
    number = errno.EIO  # the disk has lost it
    assert find_resumable(file.parent, CONFIG, tell=print) is None


@pytest.mark.parametrize("name", PRESETS)
def test_the_sizes_of_every_block_are_known_without_its_memory(name: str, tmp_path: Path) -> None:
    for positions in ("learned", "sinusoidal"):
        model = replace(CONFIG.model, block=PRESETS[name], positions=positions)  # type: ignore[arg-type]  # a word
        built, before = Transformer(model).state_dict(), torch.get_rng_state()
        assert _shapes(built, model) == {weight: tuple(tensor.shape) for weight, tensor in built.items()}
        assert torch.equal(torch.get_rng_state(), before)


def test_a_checkpoint_keeps_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    for step in (1, 2, 3):
        write_checkpoint(file, contents(global_step=step))
    steps = {path.name: torch.load(path, weights_only=True)["global_step"] for path in tmp_path.iterdir()}
    assert steps == {"last.ckpt": 3, "previous.ckpt": 2}
    with pytest.raises(ZeroDivisionError):
        write_checkpoint(file, contents(global_step=4), check=lambda: 1 / 0)
    assert steps == {path.name: torch.load(path, weights_only=True)["global_step"] for path in tmp_path.iterdir()}


def test_no_other_module_opens_a_checkpoint() -> None:
    package = Path(lit_simplified.__file__).parent
    calls = {
        path.name for path in package.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("load", "load_from_checkpoint")
        and isinstance(node.value, ast.Name) and node.value.id in ("torch", "LitTransformer")
    }
    assert calls == {"checkpoint.py"}
