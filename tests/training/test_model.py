"""The whole model: sizes, positions, initial loss, learning."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_simplified import PRESETS, ModelConfig, Transformer
from lit_simplified.blocks.kv_cache import KVCache
from lit_simplified.config import preset
from lit_simplified.model import SinusoidalPositions
from lit_simplified.scales import RUNS, run_of

SMALL = ModelConfig(depth=2, width=32, heads=4, vocab_size=64, context=16)


def parameters(block: str, **fields: object) -> int:
    with torch.device("meta"):
        model = Transformer(ModelConfig(block=PRESETS[block], **fields))  # type: ignore[arg-type]
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_sas_has_13_percent_fewer_parameters_at_the_papers_size() -> None:
    paper = {"depth": 18, "width": 768, "heads": 12, "vocab_size": 50257, "context": 128, "positions": "sinusoidal"}
    sas, pre_ln = parameters("sas", **paper), parameters("pre_ln", **paper)
    assert pre_ln == pytest.approx(167e6, rel=0.01)
    assert sas == pytest.approx(146e6, rel=0.01)
    assert round(100 * (1 - sas / pre_ln)) in (12, 13)


def test_crammed_parameters() -> None:
    """The paper's Table 1: 120M and 101M, 16% fewer."""
    counts = {}
    for name in ("pre_ln", "parallel", "v_skipinit", "sas", "sas_p", "sas_p_no_norm"):
        config = replace(run_of("paper", task="mlm").model, block=preset(name, task="mlm"))
        with torch.device("meta"):
            model = Transformer(config)
        counts[name] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    for name in ("pre_ln", "parallel", "v_skipinit"):
        assert counts[name] == pytest.approx(120e6, rel=0.01)
    for name in ("sas", "sas_p", "sas_p_no_norm"):
        assert counts[name] == pytest.approx(101e6, rel=0.01)
    assert 0.15 < 1 - counts["sas"] / counts["pre_ln"] < 0.16


@pytest.mark.parametrize("name", PRESETS)
def test_a_padded_batch_of_tokens_gives_what_each_sequence_gives_alone(name: str) -> None:
    torch.manual_seed(0)
    model = Transformer(replace(SMALL, block=preset(name, task="mlm"), causal=False)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    lengths, tokens = torch.tensor([16, 5, 1, 0]), torch.randint(64, (4, 16))
    attention_mask = torch.arange(16) < lengths[:, None]
    hidden, logits = model.hidden(tokens, attention_mask), model(tokens, attention_mask)
    assert logits.isfinite().all()  # of the row that is all padding, too
    for row, length in enumerate(lengths[:3].tolist()):
        alone = tokens[row : row + 1, :length]
        torch.testing.assert_close(hidden[row, :length], model.hidden(alone)[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(logits[row, :length], model(alone)[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("positions", "ratio"), [("learned", 1.0), ("sinusoidal", 1.0), ("scaled_sinusoidal", 0.5**0.5 / 768**0.5 / 0.02)]
)
@pytest.mark.parametrize("width", [32, 768])
def test_embedding_enters_at_its_rms_and_positions_do_not_drown_it(positions: str, ratio: float, width: int) -> None:
    torch.manual_seed(0)
    config = ModelConfig(depth=1, width=width, heads=4, vocab_size=512, context=64, positions=positions)  # type: ignore[arg-type]
    model = Transformer(config)
    tokens = torch.randint(512, (4, 64))
    embedded = (model.embedding(tokens) * model.embedding_scale).detach()
    added = model.positions(embedded).detach() - embedded
    assert embedded.square().mean().sqrt().item() == pytest.approx(1.0, rel=0.1)
    assert added.square().mean().sqrt().item() == pytest.approx(ratio, rel=0.1)


@pytest.fixture
def float64() -> Iterator[None]:
    """Models are built in float64, their tables too."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def crammed_stream(
    weight: Tensor, tokens: Tensor, *, scale: Tensor, gain: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """What enters the first block of crammed BERT, from its definition: norm(embedding + scale * sinusoids)."""
    width = weight.shape[1]
    rows = [[(math.sin if k % 2 == 0 else math.cos)(t / 10_000 ** ((k - k % 2) / width)) for k in range(width)]
            for t in range(tokens.shape[1])]
    x = weight[tokens] + scale * torch.tensor(rows)
    centred = x - x.mean(-1, keepdim=True)
    return gain * centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() + bias


@pytest.mark.usefixtures("float64")
def test_what_enters_the_first_crammed_block_is_its_formula_with_gradients() -> None:
    torch.manual_seed(0)
    config = replace(run_of("paper", task="mlm").model, block=preset("sas", task="mlm"), depth=1, vocab_size=50)
    model = Transformer(config)
    assert model.embedding_scale == 1
    assert model.positions.scale.item() == 768**-0.5
    norm, tokens = model.embedding_norm, torch.randint(50, (2, 9))
    with torch.no_grad():
        norm.weight.add_(torch.rand_like(norm.weight))
        norm.bias.add_(torch.rand_like(norm.bias))
    seen: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model.hidden(tokens)
    parts = {"scale": model.positions.scale, "gain": norm.weight, "bias": norm.bias}
    expected = crammed_stream(model.embedding.weight, tokens, eps=1e-12, **parts)
    torch.testing.assert_close(seen[0], expected, rtol=1e-11, atol=1e-12)
    trained = [model.embedding.weight, *parts.values()]
    direction = torch.randn_like(expected)
    for ours, theirs in zip(*(torch.autograd.grad((x * direction).sum(), trained) for x in (seen[0], expected)),
                            strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("norm", ["rms", "layer", "none"])
def test_a_normalised_embedding_enters_at_rms_1_and_a_cache_does_not_change_it(norm: str) -> None:
    torch.manual_seed(0)
    block = replace(PRESETS["pre_ln"], norm=norm)
    config = replace(SMALL, block=block, embedding_norm=True, positions="scaled_sinusoidal", embedding_rms=0.02)
    model, tokens, cache = Transformer(config).double(), torch.randint(64, (2, 16)), KVCache(16)
    seen: list[Tensor] = []
    handle = model.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    whole = model.hidden(tokens)
    handle.remove()
    torch.testing.assert_close(seen[0].square().mean(-1), torch.ones(2, 16, dtype=torch.float64), rtol=1e-3, atol=0)
    parts = [model.hidden(tokens[:, a:b], kv_cache=cache) for a, b in ((0, 9), *((t, t + 1) for t in range(9, 16)))]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-9, atol=1e-10)
    assert set(Transformer(config).state_dict()) - set(Transformer(replace(SMALL, block=block)).state_dict()) == {
        "positions.scale", *(f"embedding_norm.{name}" for name, _ in model.embedding_norm.named_parameters()),
    }


def test_only_the_papers_scale_of_masked_models_is_crammed_throughout() -> None:
    for task, runs in RUNS.items():
        for name, run in runs.items():
            found = (run.model.embedding_norm, run.model.positions, run.optim.warmup_start, run.optim.mask_count,
                     run.data.tokenizer)
            crammed = (True, "scaled_sinusoidal", 0.25, "exact", "wordpiece")
            assert found == (crammed if (task, name) == ("mlm", "paper") else
                             (False, "sinusoidal", 0.0, "independent", "bpe")), (task, name)


def test_sinusoids_have_the_asked_rms() -> None:
    table = SinusoidalPositions(context=100, width=16, rms=0.02).table
    assert table.square().mean().sqrt().item() == pytest.approx(0.02, rel=1e-3)


@pytest.mark.parametrize("name", PRESETS)
def test_first_loss_is_that_of_guessing(name: str) -> None:
    torch.manual_seed(0)
    model = Transformer(replace(SMALL, block=PRESETS[name]))
    tokens = torch.randint(64, (8, 17))
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert math.log(64) - 0.1 < loss.item() < math.log(64) + 0.6


def first_losses() -> dict[str, list[float]]:
    """Loss and gradient norm of each preset before its first step, in float64."""
    losses = {}
    tokens = torch.randint(64, (8, 17), generator=torch.Generator().manual_seed(0))
    for name, block in PRESETS.items():
        torch.manual_seed(0)
        model = Transformer(replace(SMALL, block=block)).double()
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        norm = torch.nn.utils.get_total_norm(p.grad for p in model.parameters() if p.grad is not None)
        losses[name] = [loss.item(), norm.item()]
    return losses


def test_golden_first_losses() -> None:
    """Same seed, same start. Where a change of the initialisation is meant, record anew:

    cd tests/training
    python -c "import json, test_model as t; print(json.dumps(t.first_losses(), indent=1))" \\
        > ../golden/first_losses.json
    """
    golden = json.loads((Path(__file__).parents[1] / "golden" / "first_losses.json").read_text())
    losses = first_losses()
    assert losses.keys() == golden.keys()
    for name, values in losses.items():
        assert values == pytest.approx(golden[name], rel=1e-6), name


@pytest.mark.parametrize("name", [n for n in PRESETS if n != "naive_skipless"])
def test_overfits_one_batch(name: str) -> None:
    torch.manual_seed(0)
    model = Transformer(replace(SMALL, block=PRESETS[name]))
    tokens = torch.randint(64, (4, 17))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(120):
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.3


def test_tied_and_free_head() -> None:
    tied, free = Transformer(SMALL), Transformer(replace(SMALL, tied_head=False))
    assert tied.head.weight is tied.embedding.weight
    assert free.head.weight is not free.embedding.weight
    count = [sum(p.numel() for p in m.parameters()) for m in (tied, free)]
    assert count[1] - count[0] == 64 * 32


def test_weights_are_scaled_to_the_width() -> None:
    assert ModelConfig(width=768, heads=12).resolved_init_std == pytest.approx(0.02)
    for width in (48, 192):
        torch.manual_seed(0)
        model = Transformer(ModelConfig(depth=1, width=width, heads=4))
        expected = 0.02 * math.sqrt(768 / width)
        assert model.blocks[0].token_mixing.attention.key.weight.std().item() == pytest.approx(expected, rel=0.05)
        assert model.blocks[0].channel_mixing.mlp.up.weight.std().item() == pytest.approx(expected, rel=0.05)


def test_bfloat16_autocast_and_compilable_dtype() -> None:
    for name in PRESETS:
        model = Transformer(replace(SMALL, block=PRESETS[name]))
        tokens = torch.randint(64, (2, 16))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(tokens)
        assert (logits.float() - model(tokens)).abs().max() < 0.2


def test_too_many_positions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape\[1\]=17.*16 positions"):
        Transformer(SMALL)(torch.zeros(1, 17, dtype=torch.int64))
