"""Reading on from a cache equals reading everything, for every block, in float64; and what a step costs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from test_blocks import BLOCKS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lit_simplified import PRESETS, BlockConfig, ModelConfig, Transformer
from lit_simplified.blocks.kv_cache import KVCache, Past

T = 9
SMALL = ModelConfig(depth=2, width=16, heads=4, vocab_size=32, context=T)


def perturbed(config: ModelConfig) -> Transformer:
    """In float64, with every number moved off its initial value: no gain is 0 or the same in two heads."""
    torch.manual_seed(0)
    model = Transformer(config).double().eval()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.2
    return model


class Operations(TorchDispatchMode):
    """Counts the operations and keeps the size of the largest result."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        self.count[str(function)] += 1
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


def operations(model: Transformer, tokens: Tensor, kv_cache: KVCache | None) -> Operations:
    with Operations() as seen:
        model(tokens, kv_cache=kv_cache)
    return seen


@pytest.mark.parametrize("name", BLOCKS)
@torch.no_grad()
def test_prompt_and_single_steps_equal_the_full_forward(name: str) -> None:
    """At every position, for prompts of one token, of some and of all but one."""
    model = perturbed(replace(SMALL, block=BLOCKS[name]))
    tokens = torch.randint(32, (2, T))
    expected = model(tokens)
    for prompt in (1, 4, T - 1):
        kv_cache = KVCache(T)
        parts = [tokens[:, :prompt], *tokens[:, prompt:].split(1, dim=1)]
        logits = torch.cat([model(part, kv_cache=kv_cache) for part in parts], dim=1)
        assert kv_cache.length == T
        torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scheme", ["learned", "sinusoidal"])
@torch.no_grad()
def test_positions_count_on_from_the_cache(scheme: str) -> None:
    model = perturbed(replace(SMALL, positions=scheme))  # type: ignore[arg-type]
    kv_cache, tokens = KVCache(T), torch.zeros(1, T, dtype=torch.int64)  # equal tokens: only positions tell them apart
    logits = torch.cat([model(token, kv_cache=kv_cache) for token in tokens.split(1, dim=1)], dim=1)
    torch.testing.assert_close(logits, model(tokens), rtol=1e-10, atol=1e-10)
    assert (logits[:, 1:] - logits[:, :-1]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_without_a_cache_nothing_is_done_for_one(name: str) -> None:
    """A prompt goes the way of a forward without a cache, bit for bit; two copies per block are all that is added."""
    model = perturbed(replace(SMALL, block=PRESETS[name]))
    tokens = torch.randint(32, (2, T))
    assert torch.equal(model(tokens), model(tokens, kv_cache=KVCache(T)))
    without, reading = (operations(model, tokens, kv_cache).count for kv_cache in (None, KVCache(T)))
    assert reading - without == {"aten.new_empty.default": 4, "aten.slice.Tensor": 4, "aten.copy_.default": 4}
    assert without - reading == Counter()


@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_a_step_costs_the_same_operations_at_every_length_and_no_matrix_over_positions(name: str) -> None:
    length = 256
    config = replace(SMALL, block=PRESETS[name], context=length)
    model, kv_cache = Transformer(config).eval(), KVCache(length)
    tokens = torch.randint(32, (1, length))
    model(tokens[:, :7], kv_cache=kv_cache)
    first, second, *_, last = [operations(model, token, kv_cache) for token in tokens[:, 7:].split(1, dim=1)]
    assert second.count == last.count  # the first makes the mean of shaped attention
    assert first.largest < last.largest == length * config.width  # the view of all keys


def test_running_mean_keeps_its_precision_in_bfloat16() -> None:
    """Over 3,000 positions: a bfloat16 sum would stop growing after some hundred."""
    torch.manual_seed(0)
    values = (1 + torch.rand(1, 1, 3000, 2)).bfloat16()
    past = Past(values, values, capacity=3000)
    for value in values.split(1, dim=2):
        past.append(value, value)
        mean = past.mean(value)
    torch.testing.assert_close(mean.float(), values.float().mean(2, keepdim=True), rtol=2**-8, atol=0)


def test_what_a_cache_cannot_serve_is_refused() -> None:
    model, tokens = perturbed(SMALL), torch.randint(32, (2, T))
    with pytest.raises(ValueError, match="causal=False"):
        perturbed(replace(SMALL, causal=False))(tokens, kv_cache=KVCache(T))
    with pytest.raises(ValueError, match="a cache takes no mask"):
        model(tokens, torch.ones_like(tokens, dtype=torch.bool), kv_cache=KVCache(T))
    with torch.no_grad():
        model(tokens[:, :5], kv_cache=(kv_cache := KVCache(T)))
        with pytest.raises(ValueError, match=r"2 x 3 positions.*one position of each"):
            model(tokens[:, 5:8], kv_cache=kv_cache)
        with pytest.raises(ValueError, match=r"1 x 1 positions.*of 2 sequences"):
            model(tokens[:1, 5:6], kv_cache=kv_cache)
        with pytest.raises(ValueError, match=r"shape\[1\]=5 after the 5 of the cache: the model has 9 positions"):
            model(tokens[:, :5], kv_cache=kv_cache)
        with pytest.raises(ValueError, match="7 positions: the cache has room for 6"):
            model(tokens[:, :7], kv_cache=KVCache(6))


@torch.no_grad()
def test_autocast() -> None:
    """Identity values stay in float32 where keys are in bfloat16."""
    block = BlockConfig(attention="shaped", value="identity", projection="identity", norm="none", attention_skip=False)
    model, tokens, kv_cache = Transformer(replace(SMALL, block=block)).eval(), torch.randint(32, (2, T)), KVCache(T)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = torch.cat([model(token, kv_cache=kv_cache) for token in tokens.split(1, dim=1)], dim=1)
    assert (logits.float() - model(tokens)).abs().max() < 0.2
