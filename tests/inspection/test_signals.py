"""The measures against cases computed by hand, and the probe against the explicit formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_simplified import PRESETS, BlockConfig, ModelConfig, Transformer
from lit_simplified.blocks.attention import SoftmaxMixing, attend
from lit_simplified.blocks.residual import Context
from lit_simplified.signals import (
    ATTENTION_MEASURES,
    TOKEN_MEASURES,
    attention_matrices,
    branch_gains,
    cosine,
    effective_rank,
    entropy,
    head_gains,
    identity,
    kurtosis,
    max_over_median,
    of_tokens,
    probe,
    rank_one_distance,
    residual_ratios,
    rms,
    spectrum,
    stable_rank,
)

T, D = 6, 8


def orthonormal(tokens: int = T, width: int = D) -> Tensor:
    return torch.linalg.qr(torch.randn(width, tokens, generator=torch.Generator().manual_seed(0)))[0].T


@pytest.mark.parametrize("width", [4, 8])
def test_identical_tokens(width: int) -> None:
    """Cosine 1, all ranks 1, whether there are more tokens than units or fewer."""
    tokens = torch.tensor([3.0, -1.0, 2.0, 0.5]).repeat(width // 4).expand(T, width)
    found = of_tokens(tokens)
    assert found["cosine"].item() == pytest.approx(1, abs=1e-12)
    assert found["effective_rank"].item() == pytest.approx(1, abs=1e-6)
    assert found["stable_rank"].item() == pytest.approx(1, abs=1e-12)
    assert found["rank_one_distance"].item() == pytest.approx(0, abs=1e-7)


def test_orthonormal_tokens() -> None:
    """Cosine 0, ranks T, and a distance of sqrt(1 - 1/T) to the nearest matrix of rank one."""
    found = of_tokens(orthonormal())
    assert found["cosine"].item() == pytest.approx(0, abs=1e-7)
    assert found["effective_rank"].item() == pytest.approx(T, rel=1e-6)
    assert found["stable_rank"].item() == pytest.approx(T, rel=1e-6)
    assert found["rank_one_distance"].item() == pytest.approx(math.sqrt(1 - 1 / T), rel=1e-6)


def test_opposite_tokens_are_of_rank_one_though_not_alike() -> None:
    line = torch.tensor([1.0, 2.0, 0.0, -1.0])
    tokens = torch.stack((line, -3 * line))
    assert cosine(tokens).item() == pytest.approx(-1)
    assert rank_one_distance(spectrum(tokens)).item() == pytest.approx(0, abs=1e-7)


def test_ranks_of_known_singular_values() -> None:
    """3 and 1: shares 3/4 and 1/4 of the singular values, 9/10 and 1/10 of their squares."""
    squares = spectrum(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    assert squares.tolist() == pytest.approx([9, 1])
    assert effective_rank(squares).item() == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert stable_rank(squares).item() == pytest.approx(10 / 9)
    assert rank_one_distance(squares).item() == pytest.approx(math.sqrt(0.1))


def test_measures_equal_their_definitions_on_random_tokens() -> None:
    tokens = torch.randn(3, T, D, generator=torch.Generator().manual_seed(1)) + 0.5
    found = of_tokens(tokens)
    assert set(found) == set(TOKEN_MEASURES)
    for index, x in enumerate(tokens.double().numpy()):
        units = x / np.linalg.norm(x, axis=1, keepdims=True)
        pairs = [units[i] @ units[j] for i in range(T) for j in range(T) if i != j]
        singular = np.linalg.svd(x, compute_uv=False)
        shares = singular / singular.sum()
        expected = {
            "cosine": np.mean(pairs), "effective_rank": np.exp(-(shares * np.log(shares)).sum()),
            "stable_rank": (singular**2).sum() / singular[0] ** 2,
            "rank_one_distance": np.sqrt((singular[1:] ** 2).sum() / (singular**2).sum()),
            "rms": np.sqrt((x**2).mean()),
            "kurtosis": ((x**2).mean(0) ** 2).mean() / ((x**2).mean(0).mean()) ** 2,
            # torch's median of an even number of entries is the lower of the two in the middle
            "max_over_median": np.mean(np.abs(x).max(1) / np.sort(np.abs(x), axis=1)[:, (D - 1) // 2]),
        }
        assert {name: float(values[index]) for name, values in found.items()} == pytest.approx(expected, rel=1e-9)


def test_outlier_measures() -> None:
    flat = torch.tensor([[1.0, -1.0, 1.0, 1.0], [-1.0, 1.0, 1.0, -1.0]])
    assert rms(3 * flat).item() == pytest.approx(3)
    assert kurtosis(flat).item() == pytest.approx(1)
    assert max_over_median(flat).item() == pytest.approx(1)
    one = torch.zeros(5, D)
    one[:, 2] = 7.0
    assert kurtosis(one).item() == pytest.approx(D)  # one unit carries everything
    assert max_over_median(torch.tensor([[1.0, 2.0, -30.0]])).item() == pytest.approx(15)


def test_a_collapse_is_seen_far_beyond_float32() -> None:
    """Rank one plus 1e-6 of something else, whose distance float32 singular values could not give."""
    first, second = orthonormal()[:2].double()
    tokens = torch.stack([first + 1e-6 * second, first - 1e-6 * second])
    assert rank_one_distance(spectrum(tokens)).item() == pytest.approx(1e-6, rel=1e-3)


def test_zero_tokens_give_numbers() -> None:
    assert all(torch.isfinite(value).all() for value in of_tokens(torch.zeros(2, T, D)).values())


def test_attention_measures() -> None:
    uniform = torch.full((T, T), 1 / T)
    causal = torch.tril(torch.ones(T, T)) / torch.arange(1, T + 1)[:, None]
    assert entropy(uniform).item() == pytest.approx(math.log(T))
    assert entropy(causal).item() == pytest.approx(sum(math.log(i) for i in range(1, T + 1)) / T)
    assert entropy(torch.eye(T)).item() == 0
    assert identity(5 * torch.eye(T)).item() == pytest.approx(1)
    assert identity(-torch.eye(T)).item() == pytest.approx(-1)
    assert identity(uniform).item() == pytest.approx(1 / math.sqrt(T))
    assert identity(torch.eye(T).roll(1, 0)).item() == 0


def model_of(block: BlockConfig, *, depth: int = 3, causal: bool = True) -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig(
        block=block, depth=depth, width=16, heads=2, vocab_size=50, context=12, causal=causal
    ))


TOKENS = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("attention", ["softmax", "skipinit", "shaped"])
def test_the_probe_sees_the_explicit_attention(attention: str, causal: bool) -> None:
    """A and what multiplies the values, against the formulas of the paper on the same queries and keys."""
    block = replace(PRESETS["sas"], attention=attention, query_init="normal", alpha=0.7, beta=0.4, gamma=0.2)
    model = model_of(block, causal=causal).double()
    mask = torch.ones(12, 12, dtype=torch.bool).tril() if causal else torch.ones(12, 12, dtype=torch.bool)
    inputs: list[Tensor] = []
    part = next(p for p in model.blocks[1].modules() if type(p).__name__ == "SelfAttention")
    hook = part.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.no_grad():
        found = probe(model, lambda: model(TOKENS), maps=((1, 0), (1, 1)))
        hook.remove()
        query, key = (linear(inputs[0]).unflatten(-1, (2, 8)).transpose(1, 2) for linear in (part.query, part.key))
        scores = (query @ key.mT / math.sqrt(8)).masked_fill(~mask, -torch.inf)
        weights = scores.softmax(-1)
        uniform = mask / mask.sum(-1, keepdim=True)
        eye = torch.eye(12)
        weighed = 0.7 * eye + 0.4 * weights
        mixing = {"softmax": weights, "skipinit": weighed, "shaped": weighed - 0.2 * uniform}[attention]
    for head in range(2):
        assert torch.allclose(found.weights[1, head], weights[0, head], atol=1e-6)
        assert torch.allclose(found.mixing[1, head], mixing[0, head], atol=1e-6)
    rows = weights.clamp(min=1e-300)
    assert found.attention["entropy"][1].item() == pytest.approx(-(rows * rows.log()).sum(-1).mean().item(), rel=1e-6)
    shares = mixing.diagonal(dim1=-2, dim2=-1).sum(-1) / (mixing.flatten(-2).norm(dim=-1) * math.sqrt(12))
    assert found.attention["identity"][1].item() == pytest.approx(shares.mean().item(), rel=1e-5)


def test_the_probe_measures_input_and_outputs_and_leaves_no_hook() -> None:
    model = model_of(PRESETS["pre_ln"])
    outputs: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, given, out: outputs.append(out)) for block in model.blocks]
    with torch.no_grad():
        found = probe(model, lambda: model(TOKENS))
    for hook in hooks:
        hook.remove()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert {name: len(values) for name, values in found.tokens.items()} == dict.fromkeys(TOKEN_MEASURES, 4)
    assert {name: len(values) for name, values in found.attention.items()} == dict.fromkeys(ATTENTION_MEASURES, 3)
    start = model.positions(model.embedding(TOKENS) * model.embedding_scale)
    for index, x in enumerate([start, *outputs]):
        for name, values in of_tokens(x).items():
            assert found.tokens[name][index].item() == pytest.approx(values.mean().item(), rel=1e-9)


def test_the_probe_leaves_no_hook_behind_an_error() -> None:
    model = model_of(PRESETS["sas"])
    with pytest.raises(ValueError, match="positions"):
        probe(model, lambda: model(torch.zeros(1, 13, dtype=torch.int64)))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_gradients_pass_through_a_probe_unchanged() -> None:
    model = model_of(PRESETS["sas_p"])
    trained = [p for p in model.parameters() if p.requires_grad]
    plain = torch.autograd.grad(model(TOKENS).square().mean(), trained)
    losses: list[Tensor] = []
    probe(model, lambda: losses.append(model(TOKENS).square().mean()))
    probed = torch.autograd.grad(losses[0], trained)
    assert all(torch.equal(one, other) for one, other in zip(plain, probed, strict=True))


def test_shaped_attention_starts_as_the_identity_and_naive_attention_does_not() -> None:
    with torch.no_grad():
        found = {name: probe(m := model_of(PRESETS[name]), lambda m=m: m(TOKENS)) for name in ("sas", "naive_skipless")}
    assert found["sas"].attention["identity"].tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    assert found["naive_skipless"].attention["identity"].max() < 0.6


def test_gains_and_ratios_are_those_of_the_parts() -> None:
    block = replace(
        PRESETS["sas_p"], value="residual", projection="residual", value_gain=2.0, value_delta_gain=0.2,
        projection_delta_gain=0.4, residual_gains_trainable=True, alpha=0.5, gamma=0.25,
    )
    model = model_of(block)
    gains = head_gains(model)
    assert {name: [g.tolist() for g in values] for name, values in gains.items()} == {
        "alpha": [[0.5, 0.5]] * 3, "beta": [[1.0, 1.0]] * 3, "gamma": [[0.25, 0.25]] * 3
    }
    assert {k: v.item() for k, v in branch_gains(model.blocks[2]).items()} == pytest.approx(
        {"attention": 1.0, "mlp": 0.1 * math.sqrt(18 / 3)}
    )
    assert {k: v.item() for k, v in residual_ratios(model.blocks[0]).items()} == pytest.approx(
        {"value": 0.1, "projection": 0.4}
    )
    plain = model_of(PRESETS["pre_ln"])
    assert head_gains(plain) == {}
    assert branch_gains(plain.blocks[0]) == residual_ratios(plain.blocks[0]) == {}
    # the first value matrix of SAS has a = b = 1, both fixed: no ratio to follow
    assert residual_ratios(model_of(PRESETS["sas"]).blocks[0]) == {}


@pytest.mark.parametrize("causal", [True, False])
def test_padding_reaches_the_measured_attention(causal: bool) -> None:
    """A is what the model itself multiplies with the values, also where nothing may be attended to."""
    torch.manual_seed(3)
    query, key = torch.randn(2, 2, 2, 5, 8, dtype=torch.float64).unbind()
    context = Context(torch.tensor([[True, True, False, True, True], [False, False, True, True, False]]))
    eye = torch.eye(5, dtype=torch.float64).expand(2, 2, -1, -1)
    weights, mixing = attention_matrices(SoftmaxMixing(causal=causal), query, key, context=context)
    assert torch.equal(weights, mixing)
    assert torch.allclose(weights, attend(query, key, eye, causal=causal, context=context), atol=1e-12)
    if causal:
        assert weights[1, :, :2].abs().max() == 0


def test_half_precision_is_measured_in_float32() -> None:
    """As under mixed precision: bfloat16 activations, float32 matrices whose rows add up to 1."""
    model = model_of(PRESETS["sas_p"])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = probe(model, lambda: model(TOKENS), maps=((0, 0),), attended=1)
    assert found.weights[0, 0].dtype == torch.float32
    assert torch.allclose(found.weights[0, 0].sum(-1), torch.ones(12), atol=1e-6)
    assert found.attention["identity"].tolist() == pytest.approx([1, 1, 1], abs=1e-5)


def test_what_is_not_a_number_is_measured_as_such() -> None:
    tokens = torch.ones(2, T, D)
    tokens[0, 1, 1] = torch.nan
    assert all(value.shape == (2,) and torch.isnan(value[0]) for value in of_tokens(tokens).values())
