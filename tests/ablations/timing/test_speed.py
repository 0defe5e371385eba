"""The speed pass: every row once, against the baseline at its own size, with peak memory and MFU."""

from __future__ import annotations

import gc
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ablations.design.scales import SCALES
from ablations.engine.queue import Queue, QueuedCell
from ablations.engine.speed import compare, peak_memory_mb, speed_pass
from ablations.engine.storage import create_study
from ablations.timing.flops import is_known, step_flops, training_flops
from ablations.timing.memory import Allocations, available_bytes
from ablations.timing.peak import Matmul
from ablations.timing.step import TrainingStep
from lit_simplified.config import PRESETS, BlockConfig, RunConfig, block_id, to_dict

pytestmark = pytest.mark.usefixtures("one_thread")


def config_of(block: BlockConfig | None = None, **model: Any) -> RunConfig:
    template = SCALES["smoke"].template
    return replace(
        template, model=replace(template.model, block=block or PRESETS["pre_ln"], **model),
        trainer=replace(template.trainer, accelerator="cpu"),
    )


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    storage = str(tmp_path / "journal.log")
    queue = Queue(create_study(storage, name="s", spec={}), storage=storage, folder=tmp_path)
    configs = {name: config_of(PRESETS[name]) for name in ("pre_ln", "sas", "sas_p_no_norm")}
    queue.enqueue([
        QueuedCell(name, to_dict(config), {}, row=block_id(config.model.block)) for name, config in configs.items()
    ])
    return queue


@pytest.mark.timed
def test_every_block_is_measured_once_and_kept_in_the_study(queue: Queue) -> None:
    rows = speed_pass(queue, rounds=3, burst=1, threads=2)
    assert torch.get_num_threads() == 1  # as before
    assert set(rows) == {block_id(PRESETS[name]) for name in ("pre_ln", "sas", "sas_p_no_norm")}
    for row in rows.values():
        assert 0 < row["low"] <= row["ratio"] <= row["high"]
        assert row["tokens_per_second"] > 0
        assert row["peak_memory_mb"] > 0
        assert row["flops"] > 0
        assert 0 < row["mfu"] < 2  # a small product may be slower than a model on a busy machine
    first, second = rows.values(), queue.study.user_attrs["speed"]
    assert list(first) == list(second.values())
    assert speed_pass(queue, rounds=3, burst=1, threads=2) == rows  # timings never repeat: nothing was measured
    assert speed_pass(queue, rounds=3, burst=1, threads=1, redo=True) != rows


def test_a_block_that_cannot_run_does_not_end_the_pass(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: RunConfig) -> float:
        if config.model.block == PRESETS["sas"]:
            raise RuntimeError("out of memory")
        return 1.0

    monkeypatch.setattr("ablations.engine.speed.peak_memory_mb", fail)
    rows = speed_pass(queue, rounds=2, burst=1, threads=1)
    assert rows[block_id(PRESETS["sas"])] == {"error": "RuntimeError: out of memory"}
    assert rows[block_id(PRESETS["pre_ln"])]["ratio"] > 0


def small_matmul() -> Matmul:
    return Matmul(side=64, dtype=torch.float32, device=torch.device("cpu"), seconds=0.001)


def test_a_baseline_that_cannot_run_fails_its_rows_and_not_the_pass(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: RunConfig, **options: Any) -> TrainingStep:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("ablations.engine.speed.TrainingStep", fail)
    rows = speed_pass(queue, rounds=2, burst=1, threads=1)
    assert len(rows) == 3
    assert {row["error"] for row in rows.values()} == {"the baseline: RuntimeError: out of memory"}


def test_rows_are_measured_against_the_baseline_at_their_own_size(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []

    def spy(baseline: TrainingStep, config: RunConfig, **options: Any) -> tuple[dict[str, Any], list[float]]:
        assert baseline.config.model.block == PRESETS["pre_ln"]
        compared.append((baseline.config.model.depth, config.model.depth))
        return {"ratio": 2.0}, [0.5 * config.model.depth]

    monkeypatch.setattr("ablations.engine.speed.compare", spy)
    deep = {name: config_of(PRESETS[name], depth=6) for name in ("sas", "pre_ln")}
    cells = [QueuedCell(f"deep-{name}", to_dict(config), {}, row=f"deep-{name}") for name, config in deep.items()]
    queue.enqueue(cells)
    rows = speed_pass(queue, rounds=1, burst=1, threads=1)
    assert compared == 3 * [(2, 2)] + 2 * [(6, 6)]
    tokens = TrainingStep(config_of()).tokens
    assert rows["deep-sas"]["tokens_per_second"] == pytest.approx(2 * tokens / 3)  # twice its own baseline's
    assert rows[block_id(PRESETS["sas"])]["tokens_per_second"] == pytest.approx(2 * tokens)


def test_the_head_of_a_masked_model_counts_the_hidden_tokens() -> None:
    causal, masked = config_of(), replace(config_of(), task="mlm")
    tokens = causal.data.batch_size * causal.model.context
    hidden = round(tokens * masked.optim.mask_probability)
    assert step_flops(causal) == training_flops(causal.model, batch=causal.data.batch_size)
    masked_flops = training_flops(masked.model, batch=masked.data.batch_size, head_tokens=hidden)
    assert step_flops(masked) == masked_flops
    assert step_flops(masked, whole_head=True) != masked_flops


def test_a_row_with_an_unknown_part_has_no_mfu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(is_known(block) for block in PRESETS.values())
    monkeypatch.setattr("ablations.timing.flops.is_known", lambda block: False)
    found, _ = compare(TrainingStep(config_of()), config_of(), rounds=2, burst=1, peak=small_matmul())
    assert (found["mfu"], found["flops"]) == (None, None)
    assert found["ratio"] > 0


@pytest.mark.timed
def test_a_model_of_four_times_the_depth_is_measured_slower() -> None:
    found, seconds = compare(TrainingStep(config_of()), config_of(depth=8), rounds=5, burst=2, peak=small_matmul())
    assert 0.15 < found["ratio"] < 0.6  # 0.25, and what does not grow with depth
    assert len(seconds) == 5


def test_the_baseline_is_pre_ln_whatever_the_study_trains() -> None:
    step = TrainingStep(config_of(PRESETS["sas"]), block=PRESETS["pre_ln"])
    assert step.config.model.block == PRESETS["pre_ln"]
    assert step.tokens == 4 * 64


def test_a_step_trains() -> None:
    step = TrainingStep(config_of(PRESETS["sas_p"]))
    with torch.no_grad():
        before = step.objective.loss(step.model, step.batch).item()
    step.time(20)
    with torch.no_grad():
        assert step.objective.loss(step.model, step.batch).item() < before - 0.1


def test_inference_of_an_encoder_ends_at_its_output() -> None:
    config = config_of()
    logits = TrainingStep(config).infer()
    output = TrainingStep(replace(config, task="mlm")).infer()
    rows = (config.data.batch_size, config.model.context)
    assert logits.shape == (*rows, config.model.vocab_size)
    assert output.shape == (*rows, config.model.width)


def test_a_masked_task_and_bfloat16_are_measured_too() -> None:
    config = config_of()
    config = replace(config, task="mlm", trainer=replace(config.trainer, precision="bf16-mixed"))
    seen: list[torch.dtype] = []
    step = TrainingStep(config)
    next(m for m in step.model.modules() if isinstance(m, nn.Linear)).register_forward_hook(
        lambda module, args, output: seen.append(output.dtype)
    )
    assert step.time(1) > 0
    assert seen == [torch.bfloat16]
    assert step.model.embedding.weight.dtype == torch.float32


def test_allocations_count_what_lives_and_nothing_twice() -> None:
    with Allocations() as count:
        x = torch.zeros(256, 1024)  # 1 MiB
        view = x.view(-1)[5:]
        y = x + 1
        assert count.now == count.peak == 2 * 2**20
        del y, x
        gc.collect()
        assert count.now == 2**20  # the view keeps the storage
        del view
        assert (count.now, count.peak) == (0, 2 * 2**20)


def test_free_memory_is_read() -> None:
    free = available_bytes(torch.device("cpu"))
    assert free is None or free > 2**20


@pytest.mark.timed
def test_peak_memory_repeats_and_holds_at_least_the_training_state() -> None:
    step = TrainingStep(config_of())
    state = 4 * 4 * sum(parameter.numel() for parameter in step.model.parameters()) / 2**20  # weights, grads, 2 moments
    first, second = peak_memory_mb(config_of()), peak_memory_mb(config_of())
    assert first == second
    assert first is not None
    assert state < first < 50
    deeper = peak_memory_mb(config_of(depth=4))
    assert deeper is not None
    assert deeper > first
    assert math.isfinite(deeper)
