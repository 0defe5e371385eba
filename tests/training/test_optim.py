"""Parameter groups and schedules."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lit_simplified import PRESETS, ModelConfig, Transformer
from lit_simplified.config import OptimConfig
from lit_simplified.optim import build_optimizer, build_scheduler, parameter_groups, schedule
from lit_simplified.scales import run_of


@pytest.mark.parametrize("positions", ["learned", "scaled_sinusoidal"])
@pytest.mark.parametrize("name", PRESETS)
def test_gains_norms_and_biases_do_not_decay(name: str, positions: Any) -> None:
    config = ModelConfig(
        depth=2, width=16, heads=2, vocab_size=32, context=8, positions=positions, embedding_norm=True
    )
    model = Transformer(replace(config, block=PRESETS[name]))
    groups: list[dict[str, Any]] = parameter_groups(model, weight_decay=0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    decayed = {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}
    spared = {names[id(p)] for g in groups if not g["weight_decay"] for p in g["params"]}
    assert decayed == {n for n in names.values() if n.endswith((".weight", ".table", ".delta")) and "norm" not in n}
    assert spared == {n for n, p in model.named_parameters() if p.requires_grad} - decayed


def test_schedules() -> None:
    for kind, middle in (("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)):
        factor = schedule(OptimConfig(steps=1000, warmup=0.1, schedule=kind))  # type: ignore[arg-type]
        assert factor(0) == pytest.approx(0.01)
        assert factor(99) == pytest.approx(1.0)
        assert factor(549) == pytest.approx(middle, abs=0.01)
        assert 0 < factor(999) < 0.01 or kind == "constant"
    cosine = schedule(OptimConfig(steps=1000, warmup=0.0, schedule="cosine"))
    assert cosine(249) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)), abs=0.01)


@pytest.mark.parametrize("start", [0.0, 0.25, 0.9])
@pytest.mark.parametrize(("steps", "warmup"), [(1000, 0.75), (1500, 0.75), (20, 0.2), (7, 0.0), (1, 0.5)])
def test_the_warm_up_rises_from_its_start_on_a_line(start: float, steps: int, warmup: float) -> None:
    factor = schedule(OptimConfig(steps=steps, warmup=warmup, warmup_start=start))
    top = max(1, round(warmup * steps)) - 1
    expected = np.interp(np.arange(steps), [-1, top, steps], [start, 1, 0])
    assert [factor(step) for step in range(steps)] == pytest.approx(expected.tolist(), rel=1e-12)
    if start == 0:  # to the bit what it was before there was a start
        assert [factor(step) for step in range(top + 1)] == [(step + 1) / (top + 1) for step in range(top + 1)]


def test_the_crammed_schedule_is_the_triangle_of_its_authors() -> None:
    steps = 10**6  # of the run's length only shares count
    factor = schedule(replace(run_of("paper", task="mlm").optim, steps=steps))
    for share, expected in {0: 0.25, 0.1: 0.35, 0.5: 0.75, 0.75: 1.0, 0.9: 0.4, 1: 0.0}.items():
        assert factor(min(round(share * steps), steps - 1)) == pytest.approx(expected, abs=1e-5)


def test_learning_rate_reaches_its_peak_and_settings_arrive() -> None:
    model = Transformer(ModelConfig(depth=1, width=16, heads=2, vocab_size=32, context=8))
    config = OptimConfig(steps=20, learning_rate=0.5, warmup=0.1, beta1=0.8, beta2=0.9, eps=1e-6)
    optimizer = build_optimizer(model, config)
    scheduler = build_scheduler(optimizer, config)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert max(rates) == pytest.approx(0.5)
    assert all(rate > 0 for rate in rates)
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.defaults["eps"] == 1e-6
