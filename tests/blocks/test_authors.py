"""The authors' settings: every field against a dense reference that shares no code with the project, values and the
gradients of all that is trained; and what `settings=authors` makes of the named blocks (`docs/authors.md`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from dense import Dense, Stack
from torch import Tensor, nn
from torch.nn import functional as F

from lit_simplified import PRESETS, BlockConfig, ConfigError, ModelConfig, RunConfig, Transformer, build_block
from lit_simplified.blocks.attention import SelfAttention
from lit_simplified.blocks.linear import initial_matrix, initial_of
from lit_simplified.config import bundle, in_setting, preset_of, set_fields
from lit_simplified.inspection.parts import Parts
from lit_simplified.optim import parameter_groups
from lit_simplified.signals import branch_gains, residual_ratios

WIDTH, HEADS, DEPTH, VOCAB, LENGTH = 16, 4, 3, 23, 6
SAS = Stack(attention_skip=False, shaped=True, gains=frozenset({"b_SA", "b_FF", "a_FF"}),
            value=("residual", "identity", "identity"), projection=("identity",) * DEPTH)
SAS_P = replace(SAS, parallel=True, mlp_skip=False, gains=frozenset({"b_SA", "b_FF"}))
SMALL_B: dict[str, Any] = {"value": "residual", "projection": "residual", "value_delta_gain": 0.2,
                           "projection_delta_gain": 0.2}
ALL_RESIDUAL: dict[str, Any] = {"value": ("residual",) * DEPTH, "projection": ("residual",) * DEPTH}

AUTHORS: dict[str, tuple[BlockConfig, Stack]] = {  # block of the project, what the authors' script computes
    "pre_ln": (PRESETS["pre_ln"], Stack()),
    "parallel": (PRESETS["parallel"], Stack(parallel=True)),
    "v_skipinit of the script": (PRESETS["shaped_orthogonal"],
                                 replace(SAS, value=("linear",) * DEPTH, projection=("linear",) * DEPTH)),
    "sas": (PRESETS["sas"], SAS),
    "sas_p": (PRESETS["sas_p"], SAS_P),
    "sas_p_no_norm": (PRESETS["sas_p_no_norm"], replace(SAS_P, norm="none", first_norm="layer")),
    "sas with b = 0.2": (replace(PRESETS["sas"], **SMALL_B), replace(SAS, **ALL_RESIDUAL)),
    "sas_p with b = 0.2": (replace(PRESETS["sas_p"], **SMALL_B), replace(SAS_P, **ALL_RESIDUAL)),
    "sas with ends of their own": (
        replace(PRESETS["sas"], **SMALL_B, first_value_delta_gain=1.0, last_projection_delta_gain=0.5),
        replace(SAS, **ALL_RESIDUAL)),
    "sas that keeps the last projection": (
        replace(PRESETS["sas"], last_projection_delta_gain=0.3),
        replace(SAS, projection=("identity", "identity", "residual"))),
}
PAPER = {"norm": "sqrt(mean+eps)", "first_norm": "sqrt(mean+eps)", "final_norm": "sqrt(mean+eps)", "eps": 1e-3,
         "bias": False}
"""Of a stack in the paper's settings, with an epsilon that matters."""
PAPER_SAS = {**PAPER, "gains": frozenset({"b_FF"})}
FIELDS: dict[str, tuple[BlockConfig, Stack]] = {
    "outer_norm": (BlockConfig(norm_eps=1e-3, outer_norm="layer"), replace(Stack(**PAPER), final_norm="layer")),
    "outer_norm, no norm": (
        BlockConfig(norm="none", norm_eps=1e-3, outer_norm="layer"),
        replace(Stack(**PAPER), norm="none", first_norm="layer", final_norm="layer")),
    "norm_eps_outside": (
        BlockConfig(norm_eps=1e-3, norm_eps_outside=True),
        replace(Stack(**PAPER), norm="rms(x)+eps", first_norm="rms(x)+eps", final_norm="rms(x)+eps")),
    "norm_eps_outside, no norm": (
        BlockConfig(norm="none", norm_eps=1e-3, norm_eps_outside=True),
        replace(Stack(**PAPER), norm="none", first_norm="rms(x)+eps", final_norm="rms(x)+eps")),
    "all_gains": (replace(PRESETS["sas"], norm_eps=1e-3, all_gains=True), replace(SAS, **PAPER)),
    "all_gains, with its skip": (replace(PRESETS["pre_ln"], norm_eps=1e-3, all_gains=True), Stack(**PAPER)),
    "first_value_delta_gain": (
        replace(PRESETS["sas"], norm_eps=1e-3, first_value_delta_gain=0.25), replace(SAS, **PAPER_SAS)),
    "first_value_delta_gain, b = 0 elsewhere": (
        replace(PRESETS["sas"], norm_eps=1e-3, value="residual", value_delta_gain=0.0, first_value_delta_gain=0.5),
        replace(SAS, **PAPER_SAS, value=("residual", "fixed", "fixed"))),
    "last_projection_delta_gain": (
        replace(PRESETS["sas"], norm_eps=1e-3, last_projection_delta_gain=0.25),
        replace(SAS, **PAPER_SAS, projection=("identity", "identity", "residual"))),
    "lecun": (
        replace(PRESETS["sas"], norm_eps=1e-3, **SMALL_B, value_init="lecun", projection_init="lecun"),
        replace(SAS, **PAPER_SAS, **ALL_RESIDUAL)),
}


def model_of(block: BlockConfig, **fields: Any) -> Transformer:
    torch.manual_seed(0)
    config = ModelConfig(block=block, depth=DEPTH, width=WIDTH, heads=HEADS, vocab_size=VOCAB, context=LENGTH, **fields)
    return Transformer(config)


def authors_model(block: BlockConfig) -> Transformer:
    model = replace(ModelConfig(), block=block, depth=DEPTH, width=WIDTH, heads=HEADS, vocab_size=VOCAB, context=LENGTH)
    torch.manual_seed(0)
    return Transformer(set_fields(RunConfig(model=model), bundle("authors")).model)


def assert_parity(model: Transformer, stack: Stack, *, dtype: torch.dtype, close: float) -> None:
    """Logits and all gradients of a loss, with every trained number moved off its initial value; the reference uses
    every number of the model, and knows no other."""
    torch.manual_seed(1)
    model = model.to(dtype)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    numbers = {name: value.detach().clone() for name, value in model.state_dict().items() if name != "head.weight"}
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for name in trained:
        numbers[name].requires_grad_()
    tokens = torch.randint(VOCAB, (3, LENGTH))
    reference = Dense(stack, numbers)
    logits, expected = model(tokens), reference.logits(tokens)
    assert reference.used == numbers.keys()
    torch.testing.assert_close(logits, expected, rtol=close, atol=close)
    losses = [F.cross_entropy(found[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()) for found in (logits, expected)]
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(losses[0], [parameters[name] for name in trained])
    wanted = torch.autograd.grad(losses[1], [numbers[name] for name in trained])
    for name, found, right in zip(trained, gradients, wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=close, atol=close, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", AUTHORS)
def test_the_stack_of_the_authors_script(name: str, dtype: torch.dtype, close: float) -> None:
    block, stack = AUTHORS[name]
    assert_parity(authors_model(block), stack, dtype=dtype, close=close)


@pytest.mark.parametrize("name", FIELDS)
def test_each_field_alone(name: str) -> None:
    block, stack = FIELDS[name]
    scale = 0.5 / (0.02 * (768 / WIDTH) ** 0.5)
    model = model_of(block, positions="learned", embedding_rms=0.5)
    assert_parity(model, replace(stack, embedding_scale=scale), dtype=torch.float64, close=1e-12)


def test_initial_values_of_the_authors_settings() -> None:
    """What is no random draw, by the table of `docs/authors.md`; and which numbers are trained."""
    model = authors_model(replace(PRESETS["sas"], **SMALL_B, first_value_delta_gain=1.0))
    numbers = dict(model.named_parameters())
    one = {"attention.gain.gain": 1.0, "skip_gain.gain": 1.0, "mlp.gain.gain": 0.1 * 6**0.5, "value.gain": 1.0,
           "projection.gain": 1.0, "projection.delta_gain": 0.2}
    for ending, value in one.items():
        found = [number for name, number in numbers.items() if name.endswith(ending)]
        assert len(found) == DEPTH, ending
        assert all(number.requires_grad and number.item() == pytest.approx(value) for number in found), ending
    firsts = [numbers[f"blocks.{index}.token_mixing.attention.value.delta_gain"].item() for index in range(DEPTH)]
    assert firsts == pytest.approx([1.0, 0.2, 0.2])
    assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert not any(number.any() for name, number in numbers.items() if name.endswith(("bias", "query.weight", "delta")))
    groups: list[dict[str, Any]] = parameter_groups(model, weight_decay=0.1)
    decayed = {id(parameter) for parameter in groups[0]["params"]}
    gains = [name for name in numbers if name.endswith(("gain", "alpha", "beta", "gamma"))]
    assert len(gains) == (3 + 4 + 3) * DEPTH  # of branches and skip; a and b of two matrices; per head
    assert not [name for name in gains if id(numbers[name]) in decayed]
    wide = initial_matrix("lecun", width=400, std=1.0)
    assert wide.std().item() == pytest.approx(400**-0.5, rel=0.02)


def matrices_of(model: Transformer) -> list[Tensor]:
    parts = [part for part in model.modules() if isinstance(part, SelfAttention)]
    return [initial_of(matrix).detach() for part in parts for matrix in (part.value, part.projection)]


@pytest.mark.parametrize(
    "fields",
    [{}, {**SMALL_B, "value_gain": 0.7}, {**SMALL_B, "value_delta_gain": 0.0, "projection_delta_gain": 0.0,
                                          "projection_gain": 0.5, "value_gain": 2.0}],
    ids=["linear", "residual", "fixed"],
)
def test_last_tied_makes_the_product_of_the_stack_the_identity(fields: dict[str, Any]) -> None:
    block = replace(PRESETS["shaped_orthogonal"], **fields, value_init="orthogonal", projection_init="last_tied")
    identity = torch.eye(WIDTH, dtype=torch.float64)
    model = model_of(block)
    product = identity
    for matrix in matrices_of(model):
        torch.testing.assert_close(matrix @ matrix.T, identity, atol=1e-5, rtol=0)
        product = matrix @ product
    assert (product - identity).abs().max() < 1e-5
    usual = matrices_of(model_of(replace(block, projection_init="orthogonal")))
    assert all(torch.equal(*pair) for pair in zip(matrices_of(model)[:3], usual[:3], strict=True))
    alone = build_block(block, width=WIDTH, heads=HEADS, index=DEPTH - 1, depth=DEPTH)
    part = next(part for part in alone.modules() if isinstance(part, SelfAttention))
    assert torch.allclose(initial_of(part.projection) @ initial_of(part.value), identity, atol=1e-5)
    other = model_of(replace(block, projection_init="orthogonal"))
    assert [(n, p.requires_grad) for n, p in model.named_parameters()] == [
        (n, p.requires_grad) for n, p in other.named_parameters()
    ]


def test_new_gains_are_shown_where_the_others_are() -> None:
    block = in_setting(PRESETS["sas"], "authors")
    model = model_of(block)
    first, second = model.blocks[0], model.blocks[1]
    assert branch_gains(second).keys() == {"attention", "mlp", "mlp_skip"}
    assert residual_ratios(first).keys() == {"value"}
    assert residual_ratios(second) == {}
    assert "(skip_gain): Gain(1, trainable=True)" in str(second)
    names = Parts(model).names
    assert {f"block_01/{part}" for part in ("skip_gain", "mlp_gain", "attention_gain", "norm")} <= set(names)
    assert not [name for name in names if "branch" in name]
    assert (preset_of(block), preset_of(in_setting(PRESETS["sas_p_no_norm"], "authors"))) == ("sas", "sas_p_no_norm")
    fixed = model_of(replace(block, gains_trainable=False)).blocks[1]
    assert not any(gain.requires_grad for name, gain in fixed.named_parameters() if name.endswith("gain.gain"))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"all_gains": True, **SMALL_B, "projection_delta_gain": 0.0}, r"block.projection_delta_gain=0.0: .*never"),
        ({"all_gains": True, "first_value_delta_gain": 0.0}, r"block.first_value_delta_gain=0.0: .*never move"),
        ({"all_gains": True, "last_projection_delta_gain": 0.0}, r"block.last_projection_delta_gain=0.0"),
        ({"outer_norm": "none"}, r"block.outer_norm='none': choose one of rms, layer"),
    ],
)
def test_what_cannot_train_is_refused_by_field(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        replace(PRESETS["sas"], **fields)


def test_a_norm_with_epsilon_outside_takes_zeros_and_half_precision() -> None:
    block = BlockConfig(norm_eps=1e-8, norm_eps_outside=True)
    norm = build_block(block, width=WIDTH, heads=HEADS, index=0, depth=1).token_mixing.norm
    assert isinstance(norm, nn.RMSNorm)
    x = torch.zeros(2, WIDTH, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    wide = torch.full((1, WIDTH), 300.0, dtype=torch.float16)  # whose square is beyond half precision
    torch.testing.assert_close(norm(wide), torch.ones_like(wide))
