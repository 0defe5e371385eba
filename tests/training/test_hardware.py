"""What a machine is told before training, and what is refused on it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ablations.bench import __main__ as bench
from ablations.engine.queue import Queue, QueuedCell
from ablations.engine.speed import speed_pass
from ablations.engine.storage import create_study
from lit_simplified import ModelConfig, RunConfig, Transformer, fit, hardware
from lit_simplified.config import ConfigError, DataConfig, TrainerConfig, preset, to_dict
from lit_simplified.hardware import refuse_emulated_precision
from lit_simplified.model import size_of
from lit_simplified.module import refuse_untrainable

FAULTS = """
import resource, sys, torch
from lit_simplified.hardware import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    raise SystemExit(77)
def once(): torch.ones(16 * 2**20)  # 64 MiB, above the largest block that glibc keeps by default
for _ in range(10): once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("this C library has no mallopt")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.timed
def test_freed_memory_is_used_again_without_page_faults() -> None:
    assert faults("keep") < faults("default") / 3  # 10 * 16,384 pages of 4 KiB, or 10 * 32 of 2 MiB


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was called, in order; none of it does anything, and training ends where its model would be built."""
    found: list[str] = []

    def spy(name: str) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> dict[str, Any]:
            found.append(name)
            if name == "build":
                raise RuntimeError("enough")
            return {}

        return called

    for module in ("lit_simplified.train", "ablations.engine.speed", "ablations.bench.__main__"):
        monkeypatch.setattr(f"{module}.keep_freed_memory", spy("keep"))
    monkeypatch.setattr("lit_simplified.train._build", spy("build"))
    monkeypatch.setattr("ablations.engine.speed._measure_all", spy("measure"))
    monkeypatch.setattr("ablations.bench.__main__._measure_all", spy("measure"))
    return found


def test_training_keeps_freed_memory(tmp_path: Path, calls: list[str]) -> None:
    with pytest.raises(RuntimeError, match="enough"):
        fit(RunConfig(out_dir=str(tmp_path)))
    assert calls == ["keep", "build"]


def test_the_speed_pass_keeps_freed_memory(tmp_path: Path, calls: list[str]) -> None:
    storage = str(tmp_path / "journal.log")
    queue = Queue(create_study(storage, name="s", spec={}), storage=storage, folder=tmp_path)
    queue.enqueue([QueuedCell("cell", to_dict(RunConfig()), {})])
    speed_pass(queue, rounds=1, burst=1, threads=1)
    assert calls == ["keep", "measure"]


def test_the_benchmark_keeps_freed_memory(tmp_path: Path, calls: list[str]) -> None:
    bench.main(["--device", "cpu", "--out", str(tmp_path), "--no-plots"])
    assert calls == ["keep", "measure"]


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
def test_bfloat16_is_refused_where_torch_has_no_onednn(accelerator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.delattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", raising=False)
    monkeypatch.setattr(type(torch.ops.mkldnn), "__getattr__", absent)
    with pytest.raises(ConfigError, match=r"trainer\.precision='bf16-mixed'.*32-true"):
        refuse_emulated_precision("bf16-mixed", accelerator=accelerator)
    refuse_emulated_precision("32-true", accelerator=accelerator)
    refuse_emulated_precision("bf16-mixed", accelerator="cuda")


def absent(namespace: object, name: str) -> object:
    """As torch answers for an operator of a part that it was built without."""
    raise AttributeError(f"'_OpNamespace' object has no attribute {name!r}")


@pytest.mark.parametrize(("name", "depth"), [("pre_ln", 1), ("sas_p_no_norm", 2), ("shaped_orthogonal", 5)])
def test_the_size_of_a_model_is_known_without_building_it(name: str, depth: int) -> None:
    for changes in ({}, {"tied_head": False, "positions": "learned"}):
        config = ModelConfig(block=preset(name, task="mlm"), depth=depth, width=32, **changes)  # type: ignore[arg-type]  # words
        model = Transformer(config)
        every = [*model.parameters(), *model.buffers()]
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        before = torch.get_rng_state()
        assert size_of(config) == (trained, sum(tensor.numel() for tensor in every) - trained)
        assert torch.equal(torch.get_rng_state(), before)


def test_a_model_larger_than_the_memory_is_refused_before_it_takes_any(tmp_path: Path) -> None:
    for large in ({"width": 2**20, "heads": 1}, {"depth": 10_000, "width": 4096}, {"context": 2**24, "width": 4096},
                  {"vocab_size": 2**24, "width": 4096}):
        with pytest.raises(ConfigError, match=r"^model='.*needs at least [\d,.]+ GiB, and this machine has [\d.]+ GiB"):
            Transformer(ModelConfig(**large))
    with torch.device("meta"):
        assert Transformer(ModelConfig(width=2**14, vocab_size=2**24, depth=1)).head.weight.is_meta


@pytest.mark.parametrize("change", [{"data": DataConfig(batch_size=2**20)}, {"model": ModelConfig(width=2**18)},
                                    {"model": ModelConfig(vocab_size=2**24)}])
def test_a_training_larger_than_the_memory_is_refused_before_it_begins(change: dict[str, Any], tmp_path: Path) -> None:
    run = RunConfig(out_dir=str(tmp_path), trainer=TrainerConfig(accelerator="cpu"))
    with pytest.raises(ConfigError, match=r"^model='.*: its training needs at least [\d,.]+ GiB, and this machine has"):
        fit(replace(run, **change))
    assert not list(tmp_path.iterdir())


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, cpu = RunConfig(model=ModelConfig(width=1024, depth=2)), torch.device("cpu")
    (tmp_path / "max").write_text("max\n")
    monkeypatch.setattr(hardware, "CGROUP_LIMITS", (tmp_path / "max", tmp_path / "none"))
    refuse_untrainable(run, device=cpu)
    Transformer(run.model)
    (tmp_path / "none").write_text(f"{2**28}\n")  # room for the weights, and not for gradients and moments
    Transformer(run.model)
    with pytest.raises(ConfigError, match=r"this machine has 0\.2 GiB \(cpu\)"):
        refuse_untrainable(run, device=cpu)
    sharded = replace(run, trainer=TrainerConfig(strategy="fsdp", devices=8))
    refuse_untrainable(sharded, device=cpu)


@pytest.mark.parametrize("devices", [99, "99"])
def test_more_processes_than_cores_are_refused(tmp_path: Path, devices: int | str) -> None:
    config = RunConfig(out_dir=str(tmp_path), trainer=TrainerConfig(accelerator="cpu", devices=devices))
    with pytest.raises(ConfigError, match=r"trainer.devices=.*99.*: on a CPU these are processes"):
        fit(config)
    assert not list(tmp_path.iterdir())
