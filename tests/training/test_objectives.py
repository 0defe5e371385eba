"""Objectives: what is predicted from what."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from lit_simplified import ModelConfig, RunConfig, Transformer
from lit_simplified.config import MaskCount, MaskRule, OptimConfig
from lit_simplified.objectives import CHUNK, MASK_ID, CausalLM, MaskedLM, argmax, build_objective, cross_entropy

SMALL = ModelConfig(depth=1, width=16, heads=2, vocab_size=32, context=12)


def test_causal_targets_are_the_right_neighbours() -> None:
    class Echo(nn.Module):
        head = nn.Linear(32, 32, bias=False)
        nn.init.eye_(head.weight)

        def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
            return F.one_hot((tokens + 1) % 32, 32) * 100.0

    windows = torch.arange(13).expand(2, 13)
    assert CausalLM().loss(Echo(), windows).item() == pytest.approx(0.0, abs=1e-6)  # type: ignore[arg-type]


def test_causal_loss_equals_the_sum_over_positions() -> None:
    torch.manual_seed(0)
    model = Transformer(SMALL).double()
    windows = torch.randint(32, (3, 13))
    logits = model(windows[:, :-1]).log_softmax(-1)
    total = sum(-logits[b, t, windows[b, t + 1]] for b in range(3) for t in range(12))
    torch.testing.assert_close(CausalLM().loss(model, windows), total / 36)


COUNTS: list[MaskCount] = ["independent", "exact"]


@pytest.mark.parametrize("count", COUNTS)
def test_masks_are_a_function_of_seed_and_step(count: MaskCount) -> None:
    windows = torch.randint(3, 1000, (64, 128), generator=torch.Generator().manual_seed(0))
    objective = MaskedLM(seed=1, probability=0.25, count=count)
    inputs, hidden = objective.corrupt(windows, vocab_size=1000, step=5)
    again, same = objective.corrupt(windows, vocab_size=1000, step=5)
    assert torch.equal(inputs, again)
    assert torch.equal(hidden, same)
    assert not torch.equal(hidden, objective.corrupt(windows, vocab_size=1000, step=6)[1])
    other = MaskedLM(seed=2, probability=0.25, count=count)
    assert not torch.equal(hidden, other.corrupt(windows, vocab_size=1000, step=5)[1])


def test_masking_is_25_percent_in_80_10_10() -> None:
    windows = torch.randint(3, 1000, (64, 128), generator=torch.Generator().manual_seed(0))
    inputs, hidden = MaskedLM(seed=1, probability=0.25).corrupt(windows, vocab_size=1000, step=0)
    assert hidden.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(inputs[~hidden], windows[~hidden])
    masked = (inputs[hidden] == MASK_ID).float().mean().item()
    kept = (inputs[hidden] == windows[hidden]).float().mean().item()
    assert masked == pytest.approx(0.8, abs=0.03)
    assert kept == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(("rule", "masked", "kept"), [("80-10-10", 0.8, 0.1), ("all", 1.0, 0.0)])
def test_the_rule_says_what_stands_for_a_hidden_token(rule: MaskRule, masked: float, kept: float) -> None:
    windows = torch.randint(3, 100_000, (64, 128), generator=torch.Generator().manual_seed(0))
    for step in (3, None):
        inputs, hidden = MaskedLM(seed=1, probability=0.25, rule=rule).corrupt(windows, vocab_size=100_000, step=step)
        assert (inputs[hidden] == MASK_ID).float().mean().item() == pytest.approx(masked, abs=0.03)
        assert (inputs[hidden] == windows[hidden]).float().mean().item() == pytest.approx(kept, abs=0.03)
        assert torch.equal(inputs[~hidden], windows[~hidden])


@pytest.mark.parametrize("count", COUNTS)
def test_an_evaluation_hides_the_same_whatever_seed_and_batch(count: MaskCount) -> None:
    windows = torch.randint(1, 1000, (9, 128), generator=torch.Generator().manual_seed(0))
    inputs, hidden = MaskedLM(seed=1, probability=0.25, count=count).corrupt(windows, vocab_size=1000, step=None)
    assert hidden.float().mean().item() == pytest.approx(0.25, abs=0.04)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    for part in order.split(4):
        other = MaskedLM(seed=2, probability=0.25, count=count)
        again, same = other.corrupt(windows[part], vocab_size=1000, step=None)
        assert torch.equal(again, inputs[part])
        assert torch.equal(same, hidden[part])
    assert len({tuple(row.tolist()) for row in hidden}) == 9  # not one mask for all


def windows_with_special_tokens(length: int) -> torch.Tensor:
    """Windows that are wholly text, that have ends of documents, a long padding, one word of text, or none."""
    generator = torch.Generator().manual_seed(length)
    windows = torch.randint(3, 100_000, (40, length), generator=generator)
    windows[10:20][torch.rand(10, length, generator=generator) < 0.2] = 0
    windows[20:30, 1 + length // 8 :] = 1
    windows[30:39, 1:] = 1
    windows[39] = 0
    return windows


@pytest.mark.parametrize("step", [7, None])
@pytest.mark.parametrize(("length", "probability"), [(128, 0.25), (128, 0.15), (40, 0.9), (7, 0.25), (7, 0.01)])
def test_an_exact_count_is_that_of_every_window_and_of_every_fate(
    length: int, probability: float, step: int | None
) -> None:
    windows = windows_with_special_tokens(length)
    objective = MaskedLM(seed=1, probability=probability, count="exact")
    inputs, hidden = objective.corrupt(windows, vocab_size=100_000, step=step)
    assert torch.equal(inputs[~hidden], windows[~hidden])
    if step is None:
        assert hidden[39].tolist() == [True] + [False] * (length - 1)  # a loss over no token would be NaN
    for window, row, mask in zip(windows[:39], inputs, hidden, strict=False):
        assert not mask[window < 3].any()
        text = int((window >= 3).sum())
        number = min(text, max(1, round(probability * length)))
        fates = [Fraction(2 * i + 1, 2 * number) for i in range(number)]
        assert int(mask.sum()) == number
        assert int((row[mask] == window[mask]).sum()) == sum(fate >= Fraction(9, 10) for fate in fates)
        replaced = sum(Fraction(1, 10) <= fate < Fraction(9, 10) for fate in fates)
        assert int((row[mask] == MASK_ID).sum()) == replaced


def test_an_exact_count_hides_every_position_as_often() -> None:
    windows = torch.full((4000, 32), 5)
    inputs, hidden = MaskedLM(seed=3, probability=0.25, count="exact").corrupt(windows, vocab_size=9, step=0)
    expected, deviation = 0.25, math.sqrt(0.25 * 0.75 / 4000)
    assert (hidden.float().mean(0) - expected).abs().max() < 4 * deviation
    assert ((inputs == MASK_ID).float().mean(0) - 6 / 32).abs().max() < 4 * deviation
    assert sum(bool(a and b) for a, b in hidden[:, :2].tolist()) == pytest.approx(4000 * 8 * 7 / 32 / 31, rel=0.2)


def test_independent_draws_are_what_they_were() -> None:
    windows = torch.randint(3, 1000, (5, 16), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(4 * 1_000_003 + 9)
    draw, fate = torch.rand(2, 5, 16, generator=generator)
    others = torch.randint(3, 1000, (5, 16), generator=generator)
    expected = torch.where(draw < 0.25, torch.where(fate < 0.1, others, torch.where(fate < 0.9, 2, windows)), windows)
    for objective in (MaskedLM(seed=4, probability=0.25), build_objective(RunConfig(task="mlm", seed=4))):
        assert isinstance(objective, MaskedLM)
        inputs, hidden = objective.corrupt(windows, vocab_size=1000, step=9)
        assert torch.equal(inputs, expected)
        assert torch.equal(hidden, draw < 0.25)
    exact = build_objective(RunConfig(task="mlm", optim=OptimConfig(mask_count="exact")))
    assert isinstance(exact, MaskedLM)
    assert exact.corrupt(windows, vocab_size=1000, step=0)[1].sum(1).tolist() == [4] * 5


def test_a_batch_without_a_hidden_token_gets_one() -> None:
    objective = MaskedLM(seed=0, probability=1e-9)
    for step in (0, None):
        _, hidden = objective.corrupt(torch.full((1, 4), 7), vocab_size=10, step=step)
        assert hidden.sum() == 1


def test_logits_exist_for_hidden_positions_only() -> None:
    model = Transformer(replace(SMALL, causal=False))
    rows: list[int] = []
    model.head.register_forward_pre_hook(lambda _, given: rows.append(given[0].shape[0]))
    windows = torch.randint(3, 32, (4, 12))
    hidden, targets = MaskedLM(seed=0, probability=0.25).select(model, windows, step=1)
    expected = MaskedLM(seed=0, probability=0.25).corrupt(windows, vocab_size=32, step=1)[1]
    assert hidden.shape == (int(expected.sum()), 16)
    assert torch.equal(targets, windows[expected])
    assert not rows  # the model made none of its own


@pytest.mark.parametrize("rows", [1, CHUNK, CHUNK + 3])
def test_the_argmax_token_is_that_of_the_whole_matrix(rows: int) -> None:
    hidden, weight = torch.randn(rows, 8), torch.randn(20, 8)
    assert torch.equal(argmax(hidden, weight), (hidden @ weight.T).argmax(-1))


def test_masked_loss_counts_hidden_positions_only() -> None:
    torch.manual_seed(0)
    model = Transformer(replace(SMALL, causal=False)).double()
    objective = MaskedLM(seed=0, probability=0.3)
    windows = torch.randint(3, 32, (3, 12))
    inputs, hidden = objective.corrupt(windows, vocab_size=32, step=4)
    expected = F.cross_entropy(model(inputs)[hidden], windows[hidden])
    torch.testing.assert_close(objective.loss(model, windows, step=4), expected)


def test_the_task_sets_the_direction() -> None:
    assert RunConfig(task="clm").model.causal
    assert not RunConfig(task="mlm").model.causal
    assert isinstance(build_objective(RunConfig(task="mlm")), MaskedLM)
    assert math.isclose(build_objective(RunConfig(task="mlm")).probability, 0.25)  # type: ignore[attr-defined]


@pytest.mark.parametrize("rows", [1, CHUNK - 1, CHUNK, 2 * CHUNK + 3])
def test_chunked_cross_entropy_is_exact_with_gradients(rows: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(rows, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(20, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(20, (rows,))
    losses = cross_entropy(hidden, weight, targets), F.cross_entropy(hidden @ weight.T, targets)
    gradients = [torch.autograd.grad(3 * loss, (hidden, weight)) for loss in losses]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)
    with torch.no_grad():
        torch.testing.assert_close(cross_entropy(hidden, weight, targets), losses[1])


def test_not_all_logits_exist_at_once() -> None:
    hidden, weight = torch.randn(8 * CHUNK, 4, requires_grad=True), torch.randn(300, 4, requires_grad=True)
    targets = torch.randint(300, (8 * CHUNK,))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as chunked:
        cross_entropy(hidden, weight, targets).backward()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as dense:
        F.cross_entropy(hidden @ weight.T, targets).backward()
    largest = [max(event.cpu_memory_usage for event in run.events()) for run in (chunked, dense)]
    assert largest[1] >= 8 * CHUNK * 300 * 4  # the logits
    assert largest[0] < largest[1] / 3


@pytest.mark.parametrize(
    ("precision", "rows"), [(None, CHUNK), (torch.bfloat16, CHUNK), (torch.float16, None)]
)
def test_the_operator_gets_the_precision_and_chunks_unless_gradients_would_vanish(
    precision: torch.dtype | None, rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[torch.dtype, torch.dtype, int | None]] = []

    def spy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, *, options: Any) -> torch.Tensor:
        calls.append((hidden.dtype, weight.dtype, None if options is None else options.batch_chunk_size))
        return hidden.sum()

    monkeypatch.setattr(F, "linear_cross_entropy", spy)
    with torch.autocast("cpu", precision, enabled=precision is not None):
        cross_entropy(torch.randn(4, 8), torch.randn(20, 8), torch.zeros(4, dtype=torch.long))
    expected = precision or torch.float32
    assert calls == [(expected, expected, rows)]


def test_the_loss_follows_mixed_precision() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    targets = torch.randint(20, (64,))
    with torch.autocast("cpu", torch.bfloat16):
        mixed, dense = cross_entropy(hidden, weight, targets), F.cross_entropy(F.linear(hidden, weight), targets)
    ours, theirs = (torch.autograd.grad(loss.float(), (hidden, weight)) for loss in (mixed, dense))
    torch.testing.assert_close(mixed.float(), dense.float(), rtol=2e-2, atol=0)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.float32
        assert torch.linalg.vector_norm(one - other) < 0.02 * torch.linalg.vector_norm(other)
