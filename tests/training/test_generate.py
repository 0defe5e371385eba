"""Continuing texts: with and without a cache, beyond the context, in batches."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_simplified import PRESETS, ConfigError, ModelConfig, Transformer
from lit_simplified.generate import choose, draw, extend, stream, window_start

SMALL = ModelConfig(depth=2, width=16, heads=4, vocab_size=32, context=8)


def model_of(name: str, **fields: int) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(replace(SMALL, block=PRESETS[name], **fields)).double().eval()  # type: ignore[arg-type]
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.2
    return model


def continued(model: Transformer, ids: Tensor, **options: object) -> Tensor:
    settings = {"tokens": 30, "temperature": 1.0, "top_k": 32, "generator": torch.Generator().manual_seed(1)}
    return extend(model, ids, **{**settings, **options})


@pytest.mark.parametrize("prompt", [1, 5, 8, 9, 21])
@pytest.mark.parametrize("name", PRESETS)
def test_a_cache_changes_nothing(name: str, prompt: int) -> None:
    """Three sequences at once, over several contexts: the same draws, from the same logits."""
    model, ids, heard = model_of(name), torch.randint(32, (3, prompt)), {True: [], False: []}
    texts = {}
    for cached, logits in heard.items():
        hook = model.head.register_forward_hook(lambda module, inputs, output, logits=logits: logits.append(output))
        texts[cached] = continued(model, ids, cached=cached)
        hook.remove()
    assert texts[True].shape == (3, prompt + 30)
    assert torch.equal(texts[True][:, :prompt], ids)
    assert torch.equal(texts[True], texts[False])
    assert not torch.equal(texts[True][0, prompt:], texts[True][1, prompt:])
    torch.testing.assert_close(torch.stack(heard[True]), torch.stack(heard[False]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("context", [1, 2, 7])
def test_small_and_odd_contexts(context: int) -> None:
    model, ids = model_of("sas_p", context=context), torch.zeros(1, 3, dtype=torch.int64)
    assert torch.equal(continued(model, ids), continued(model, ids, cached=False))


def test_with_a_cache_each_token_is_read_once_within_a_context_and_twice_beyond() -> None:
    def read(cached: bool, tokens: int) -> int:
        model, count = model_of("sas_p", context=64), []
        model.embedding.register_forward_hook(lambda module, inputs, output: count.append(inputs[0].shape[1]))
        continued(model, torch.zeros(1, 10, dtype=torch.int64), tokens=tokens, cached=cached)
        return sum(count)

    assert read(True, 55) == 10 + 54  # the last token is written and not read
    assert read(False, 55) == sum(range(10, 65))
    assert read(True, 1000) < 2 * 1010


def test_a_token_is_drawn_from_the_window() -> None:
    model = model_of("sas")
    ids = continued(model, torch.zeros(1, 1, dtype=torch.int64), temperature=0)
    with torch.inference_mode():
        for length in range(1, 31):
            window = ids[:, window_start(length, context=8) : length]
            assert ids[0, length] == model(window)[0, -1].argmax()


@pytest.mark.parametrize("context", [1, 2, 3, 8, 9])
def test_the_window_is_all_of_a_short_text_and_more_than_half_a_context_of_a_long_one(context: int) -> None:
    starts = [window_start(length, context=context) for length in range(1, 50)]
    for length, start in enumerate(starts, start=1):
        assert start == 0 if length <= context else context / 2 < length - start <= context
    assert {b - a for a, b in pairwise(starts)} <= {0, max(1, context // 2)}


def test_draws_follow_temperature_and_top_k() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 0.0, 0.0, 4.0]]).repeat(2000, 1)
    generator = torch.Generator().manual_seed(0)
    assert choose(logits, temperature=0, top_k=1, generator=generator)[:2].tolist() == [[1], [0]]
    drawn = choose(logits, temperature=2.0, top_k=2, generator=generator).view(-1, 2)
    shares = torch.stack([F.one_hot(row, 4).double().mean(0) for row in drawn.T])
    likelier = torch.tensor(0.5).sigmoid().item()  # of two logits that differ by 1, at temperature 2
    expected = [[0, likelier, 0, 1 - likelier], [likelier, 0, 0, 1 - likelier]]
    torch.testing.assert_close(shares, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=0.04)


def test_tokens_come_one_by_one() -> None:
    """The first is there before the second is begun, and the caller's gradients are not switched off meanwhile."""
    model, calls = model_of("pre_ln"), []
    model.embedding.register_forward_hook(lambda module, inputs, output: calls.append(1))
    drawn = draw(
        model, torch.zeros(2, 1, dtype=torch.int64), tokens=3, temperature=0, top_k=1, generator=torch.Generator()
    )
    assert next(drawn).shape == (2, 1)
    assert len(calls) == 1
    assert torch.is_grad_enabled()
    assert len(list(drawn)) == 2


@pytest.mark.parametrize("given", [{"tokens": -1}, {"top_k": 0}, {"temperature": -1.0}, {"temperature": float("nan")}])
def test_numbers_out_of_range_are_refused(given: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(given))}=.*: give a number from"):
        next(stream(tmp_path, prompt="", **{"tokens": 1, **given}))
