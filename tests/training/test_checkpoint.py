"""The reader of checkpoints: what is missing, damaged or not of `fit` is refused alike, whoever reads it."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lit_simplified
from lit_simplified import PRESETS, ConfigError, ModelConfig, RunConfig, Transformer
from lit_simplified.checkpoint import checkpoint_file, load_model, read_config, read_weights, tokenizer_file
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


def save(run: Path, **changes: Any) -> Path:
    """A run's folder with a checkpoint like Lightning's, and a tokenizer."""
    from tokenizers import Tokenizer, models

    model = Transformer(CONFIG.model)
    saved = {
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()} | {"val_loss.sum": 1},
        "hyper_parameters": {"config": to_dict(CONFIG)}, "optimizer_states": [], **changes,
    }
    (run / "checkpoints").mkdir(parents=True)
    torch.save(saved, run / "checkpoints" / "last.ckpt")
    Tokenizer(models.BPE()).save(str(run / "tokenizer.json"))
    return run


def test_what_a_run_left_is_read(tmp_path: Path) -> None:
    run = save(tmp_path / "run")
    file = checkpoint_file(run)
    assert file == checkpoint_file(file) == run / "checkpoints" / "last.ckpt"
    assert tokenizer_file(file) == run / "tokenizer.json"
    assert read_config(file) == CONFIG
    model = load_model(file)
    assert not model.training
    state = model.state_dict()
    assert set(read_weights(file)) == set(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in read_weights(file).items())
    for parameter in model.parameters():
        parameter.data += 1  # nothing of the file is written
    assert not torch.equal(read_weights(file)["embedding.weight"], model.embedding.weight)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["none", "empty", "text", "cut", "other", "pickle", "fields"])
def test_what_is_none_is_refused(reader: str, kind: str, tmp_path: Path) -> None:
    strange = {"hyper_parameters": {"config": {"wings": 2}}} if kind == "fields" else {}
    run = save(tmp_path / "run", **strange)
    file = run / "checkpoints" / "last.ckpt"
    whole = file.read_bytes()
    match kind:
        case "none":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
        case "text":
            file.write_text("a checkpoint, says its name")
        case "cut":
            file.write_bytes(whole[: len(whole) // 2])
        case "other":
            torch.save({"weights": 1}, file)
        case "pickle":  # which would run code if it were unpickled
            torch.save({"hyper_parameters": {"config": print}}, file)
    told = "no such file" if kind == "none" else "is not a checkpoint of `fit`, or damaged"
    with pytest.raises(ConfigError, match=told) as refused:
        READERS[reader](run)
    assert str(file) in str(refused.value)
    assert "give the folder of a run that `fit` has finished" in str(refused.value)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a checkpoint of `fit`"):
        load_model(checkpoint_file(save(tmp_path / "run", state_dict={"model.embedding.weight": torch.zeros(2, 2)})))


def test_no_other_module_opens_a_checkpoint() -> None:
    package = Path(lit_simplified.__file__).parent
    calls = {
        path.name for path in package.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("load", "load_from_checkpoint")
        and isinstance(node.value, ast.Name) and node.value.id in ("torch", "LitTransformer")
    }
    assert calls == {"checkpoint.py"}
