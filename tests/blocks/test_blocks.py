"""Properties of every block of the grid, and the parts that are fields rather than switches."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lit_simplified import PRESETS, BlockConfig, ConfigError, ModelConfig, Transformer, build_block
from lit_simplified.blocks.attention import SelfAttention
from lit_simplified.blocks.linear import FixedLinear, ResidualLinear
from lit_simplified.blocks.norm import build_norm
from lit_simplified.blocks.residual import Skip
from lit_simplified.config import CHOICES, SWITCHES, describe, in_setting

D, H, T, DEPTH = 16, 4, 7, 3


def grid() -> list[BlockConfig]:
    """The grid's blocks by the table of switches, written out independently of `ablations.design`."""
    skips = [("sequential", a, m) for a in (True, False) for m in (True, False)]
    skips += [("parallel", True, True), ("parallel", False, False)]
    return [
        BlockConfig(
            layout=layout, attention_skip=a, mlp_skip=m, attention=attention, value=matrix, projection=matrix, norm=norm
        )
        for (layout, a, m), attention, matrix, norm in itertools.product(
            skips, *(SWITCHES[name].grid for name in ("attention", "value", "norm"))
        )
    ]


def positions() -> dict[str, BlockConfig]:
    """Pre-LN with every position of every switch, those that the grid lacks among them."""
    return {
        f"{name}_{position}": replace(BlockConfig(), **{name: position.name})
        for name, switch in CHOICES.items() for position in switch.positions
    }


FIELDS = {
    "leaky": BlockConfig(activation="leaky_relu", leaky_slope=0.8),
    "gelu_glu": BlockConfig(activation="gelu", glu=True, norm="layer", norm_eps=1e-12),
    "narrow": BlockConfig(mlp_ratio=2.0),
    "bias": BlockConfig(query_key_bias=True),
    "dropout": BlockConfig(dropout=0.1),
    "gains": BlockConfig(attention_gain=0.5, mlp_gain=0.3),
    "skipinit_identity": BlockConfig(attention_skip=False, attention="skipinit", value="identity"),
    "residual": BlockConfig(
        attention_skip=False, attention="shaped", value="residual", projection="residual",
        value_delta_gain=0.2, projection_delta_gain=0.2, residual_gains_trainable=True,
    ),
    **{
        f"residual_{value}_{projection}": BlockConfig(
            attention_skip=False, attention="shaped", value="residual", projection="residual",
            value_init=value, projection_init=projection,
        )
        for value, projection in (
            ("normal", "normal"), ("orthogonal", "orthogonal"), ("orthogonal", "tied"), ("orthogonal", "last_tied"),
            ("identity", "identity"),
        )
    },
    "all_gains": replace(PRESETS["sas"], all_gains=True, last_projection_delta_gain=0.5),
    "authors_no_norm": in_setting(PRESETS["sas_p_no_norm"], "authors"),
    "no_first_value": replace(PRESETS["sas"], first_value=False),
    "no_first_norm": replace(PRESETS["sas_p_no_norm"], first_norm=False),
}
BLOCKS = {
    **{describe(block): block for block in grid()}, **positions(), **PRESETS, **FIELDS,
    **{f"masked_{name}": in_setting(block, "mlm") for name, block in PRESETS.items()},
}


def stack(block: BlockConfig, *, causal: bool = True) -> list[nn.Module]:
    torch.manual_seed(0)
    return [build_block(block, width=D, heads=H, index=i, depth=DEPTH, causal=causal) for i in range(DEPTH)]


def perturbed(modules: list[nn.Module]) -> nn.Sequential:
    """In float64, with every trained number moved off its initial value, so that no gradient is 0 by construction."""
    torch.manual_seed(1)
    network = nn.Sequential(*modules).double().eval()
    for parameter in network.parameters():
        parameter.data += torch.randn_like(parameter) * 0.2
    return network


def test_the_blocks_of_the_grid_are_distinct() -> None:
    figures = {str(build_block(block, width=D, heads=H, index=1, depth=DEPTH)) for block in grid()}
    assert len(figures) == len(grid())


@pytest.mark.parametrize("name", BLOCKS)
def test_shape_finiteness_and_gradient_of_every_parameter(name: str) -> None:
    network = perturbed(stack(BLOCKS[name]))
    x = torch.randn(2, T, D, dtype=torch.float64)
    y = network(x)
    assert y.shape == x.shape
    assert y.isfinite().all()
    (y * torch.randn_like(y)).sum().backward()
    dead = [n for n, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert dead == []


@pytest.mark.parametrize("name", BLOCKS)
def test_causal_by_gradient(name: str) -> None:
    """Position i's output depends on position i and, through attention, on all before, and on none after."""
    for causal in (True, False):
        network = perturbed(stack(BLOCKS[name], causal=causal))
        gradient = position_gradients(network, T)
        future = torch.ones(T, T).triu(1).bool()
        assert gradient[~future].min() > 1e-9
        assert (gradient[future].max() == 0) if causal else (gradient[future].min() > 1e-9)


def position_gradients(network: nn.Module, length: int) -> Tensor:
    """(T, T): how strongly output i (row) depends on input j (column)."""
    x = torch.randn(1, length, D, dtype=torch.float64, requires_grad=True)
    y = network(x)
    weights = torch.randn(D, dtype=torch.float64)
    rows = [torch.autograd.grad((y[0, i] * weights).sum(), x, retain_graph=True)[0][0] for i in range(length)]
    return torch.stack(rows).abs().amax(-1)


@pytest.mark.parametrize("name", ["sas", "sas_p", "sas_p_no_norm", "v_skipinit", "shaped_orthogonal", "residual"])
def test_identity_like_attention_mixes_no_tokens_at_initialisation(name: str) -> None:
    network = nn.Sequential(*stack(BLOCKS[name])).double()
    gradient = position_gradients(network, T)
    diagonal = torch.eye(T).bool()
    assert gradient[~diagonal].max() < 1e-12
    assert gradient[diagonal].min() > 1e-6


def test_softmax_attention_mixes_tokens_at_initialisation() -> None:
    gradient = position_gradients(nn.Sequential(*stack(PRESETS["pre_ln"])).double(), T)
    assert gradient.tril(-1)[torch.ones(T, T).tril(-1).bool()].min() > 1e-6


@pytest.mark.parametrize("name", BLOCKS)
def test_padding_is_invisible(name: str) -> None:
    """A padded batch gives at real positions what each sequence gives alone, and nothing that is not finite."""
    for causal, left in itertools.product((True, False), (True, False)):
        network = perturbed(stack(BLOCKS[name], causal=causal))
        x = torch.randn(3, T, D, dtype=torch.float64, requires_grad=True)
        attention_mask = torch.arange(T) < torch.tensor([[T], [4], [0]])
        attention_mask = attention_mask.flip(-1) if left else attention_mask
        y = with_mask(network, x, attention_mask)
        assert y.isfinite().all()
        weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
        gradient, *trained = torch.autograd.grad(y[attention_mask].square().sum(), [x, *weights])
        assert all(found.isfinite().all() for found in (gradient, *trained))
        assert not gradient[~attention_mask].any()
        sums = [torch.zeros_like(weight) for weight in weights]
        for row in (0, 1):
            alone = x[row : row + 1, attention_mask[row]].detach().requires_grad_()
            expected = network(alone)
            torch.testing.assert_close(y[row][attention_mask[row]], expected[0], rtol=1e-10, atol=1e-10)
            own, *theirs = torch.autograd.grad(expected.square().sum(), [alone, *weights])
            torch.testing.assert_close(gradient[row][attention_mask[row]], own[0], rtol=1e-10, atol=1e-10)
            sums = [total + found for total, found in zip(sums, theirs, strict=True)]
        for ours, total in zip(trained, sums, strict=True):
            assert torch.linalg.vector_norm(ours - total) <= 1e-10 * (1 + torch.linalg.vector_norm(total))


def with_mask(network: nn.Sequential, x: Tensor, attention_mask: Tensor) -> Tensor:
    from lit_simplified.blocks.residual import Context

    for block in network:
        x = block(x, Context(attention_mask))
    return x


@pytest.mark.parametrize("name", [*PRESETS, *map(describe, grid())])
def test_parameter_count_by_closed_formula(name: str) -> None:
    block = BLOCKS[name]
    for index in range(DEPTH):
        module = build_block(block, width=D, heads=H, index=index, depth=DEPTH)
        matrices = 2 + (block.value == "linear" or index == 0) + (block.projection == "linear")
        norms = 0 if block.norm == "none" else (1 if block.layout == "parallel" else 2)
        norms = max(norms, int(index == 0))
        per_head = {"softmax": 0, "skipinit": 2, "shaped": 3}[block.attention]
        gains = int(block.resolved_mlp_gain(DEPTH) is not None) + int(block.resolved_attention_gain is not None)
        own = sum(p.numel() for p in build_norm(block, width=D).parameters())  # of a norm that has no formula here
        per_norm = {"rms": D, "none": D}.get(block.norm, own)
        expected = (matrices + 8) * D * D + norms * per_norm + per_head * H + gains
        assert sum(p.numel() for p in module.parameters() if p.requires_grad) == expected


def test_a_removed_part_is_absent() -> None:
    names = {n for n, _ in build_block(PRESETS["sas_p_no_norm"], width=D, heads=H, index=1, depth=3).named_parameters()}
    assert names == {
        "branches.attention.query.weight", "branches.attention.key.weight", "branches.attention.mixing.alpha",
        "branches.attention.mixing.beta", "branches.attention.mixing.gamma", "branches.attention.gain.gain",
        "branches.mlp.up.weight", "branches.mlp.down.weight", "branches.mlp.gain.gain",
    }
    skipless = build_block(PRESETS["sas_p"], width=D, heads=H, index=1, depth=3)
    assert not any(isinstance(part, Skip) for part in skipless.modules())


def test_sas_p_equals_sas_at_initialisation() -> None:
    """The paper, section 4.3. SAS adds the MLP of the normalised attention output, SAS-P that of the normalised input:
    with the identity attention of the start, the input's norm in between is all that differs."""
    models = {}
    for name in ("sas", "sas_p"):
        config = ModelConfig(block=PRESETS[name], depth=3, width=D, heads=H, vocab_size=32, context=T)
        torch.manual_seed(0)
        models[name] = Transformer(config).double()
    for sas, sas_p in zip(models["sas"].blocks, models["sas_p"].blocks, strict=True):
        source = sas.state_dict()
        target = {k: source[k.replace("branches.attention", "token_mixing.attention").replace(
            "branches.mlp", "channel_mixing.mlp")] for k in sas_p.state_dict() if k.startswith("branches.")
            and "attention.gain" not in k}
        sas_p.load_state_dict(target, strict=False)
    tokens = torch.randint(32, (2, T))
    torch.testing.assert_close(models["sas"](tokens), models["sas_p"](tokens), rtol=1e-6, atol=1e-6)


def attention_of(block: BlockConfig, *, index: int = 1) -> SelfAttention:
    module = build_block(block, width=D, heads=H, index=index, depth=DEPTH)
    return next(m for m in module.modules() if isinstance(m, SelfAttention))


def test_initialisations_that_belong_to_a_switch() -> None:
    identity = torch.eye(D)
    shaped = attention_of(PRESETS["shaped_orthogonal"])
    assert not shaped.query.weight.any()
    assert shaped.key.weight.std() > 0.05
    torch.testing.assert_close(shaped.value.weight @ shaped.value.weight.T, identity, atol=1e-5, rtol=0)
    skipinit = attention_of(PRESETS["v_skipinit"])
    assert (skipinit.mixing.alpha == 1).all()
    assert (skipinit.mixing.beta == 0).all()
    first = attention_of(PRESETS["sas"], index=0).value
    assert isinstance(first, ResidualLinear)
    torch.testing.assert_close(first.weight(), identity)
    assert isinstance(attention_of(PRESETS["sas"]).value, nn.Identity)
    assert attention_of(PRESETS["pre_ln"]).query.weight.std() > 0.05
    tied = attention_of(FIELDS["residual_orthogonal_tied"])
    torch.testing.assert_close(tied.projection.initial @ tied.value.initial, identity, atol=1e-5, rtol=0)
    for index in range(DEPTH):
        part = attention_of(FIELDS["residual_orthogonal_last_tied"], index=index)
        product = part.projection.initial @ part.value.initial
        assert torch.allclose(product, identity, atol=1e-5) == (index == DEPTH - 1)


def test_residual_matrix_follows_equation_6() -> None:
    torch.manual_seed(0)
    block = BlockConfig(value="residual", value_init="orthogonal", value_gain=0.9, value_delta_gain=0.3)
    value = attention_of(block).value
    value.delta.data.normal_()
    x = torch.randn(2, D)
    expected = x @ (0.9 * value.initial + 0.3 * value.delta).T
    torch.testing.assert_close(value(x), expected)
    fixed = attention_of(replace(block, value_delta_gain=0.0)).value
    assert isinstance(fixed, FixedLinear)
    assert list(fixed.parameters()) == []


@pytest.mark.parametrize(("depth", "gain"), [(18, 0.1), (72, 0.05), (2, 0.3)])
def test_mlp_gain_depends_on_depth(depth: int, gain: float) -> None:
    block = build_block(PRESETS["sas"], width=D, heads=H, index=0, depth=depth)
    assert block.channel_mixing.mlp.gain.gain.item() == pytest.approx(gain)
    assert block.channel_mixing.mlp.gain.gain.requires_grad


def test_naive_skipless_changes_nothing_else() -> None:
    naive, pre_ln = (
        build_block(PRESETS[n], width=D, heads=H, index=0, depth=3).state_dict() for n in ("naive_skipless", "pre_ln")
    )
    assert set(naive) == set(pre_ln)
    assert PRESETS["naive_skipless"] == BlockConfig(attention_skip=False)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"layout": "parallel", "mlp_skip": False}, "block.mlp_skip=False"),
        ({"layout": "paralel"}, "sequential, parallel"),
        ({"attention": "flash"}, "softmax, skipinit, shaped"),
        ({"norm": "batch"}, "rms, layer, none"),
        ({"value": "identity", "value_init": "orthogonal"}, "block.value_init='orthogonal'"),
        ({"projection_init": "tied"}, "value_init='orthogonal'"),
        ({"value": "residual", "residual_gains_trainable": True, "value_delta_gain": 0.0}, "never move"),
        ({"dropout": 1.0}, "block.dropout=1.0"),
        ({"mlp_ratio": -1.0}, "block.mlp_ratio=-1.0"),
    ],
)
def test_impossible_configurations_name_field_value_and_remedy(fields: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told.replace("(", r"\(")):
        BlockConfig(**fields)  # type: ignore[arg-type]


def test_equals_torch_encoder_layer_with_copied_weights() -> None:
    """`pre_ln` with LayerNorm is `nn.TransformerEncoderLayer(norm_first=True)`: values and input gradient, float64."""
    torch.manual_seed(0)
    ours = build_block(replace(PRESETS["pre_ln"], norm="layer", norm_eps=1e-5), width=D, heads=H, index=1, depth=3)
    ours = ours.double()
    theirs = nn.TransformerEncoderLayer(D, H, 4 * D, dropout=0.0, norm_first=True, batch_first=True).double()
    attention, mlp = ours.token_mixing.attention, ours.channel_mixing.mlp
    for part in (ours.token_mixing.norm, ours.channel_mixing.norm):
        part.weight.data.normal_()
        part.bias.data.normal_()
    copies = {
        "self_attn.in_proj_weight": torch.cat([attention.query.weight, attention.key.weight, attention.value.weight]),
        "self_attn.out_proj.weight": attention.projection.weight,
        "linear1.weight": mlp.up.weight, "linear2.weight": mlp.down.weight,
        "norm1.weight": ours.token_mixing.norm.weight, "norm1.bias": ours.token_mixing.norm.bias,
        "norm2.weight": ours.channel_mixing.norm.weight, "norm2.bias": ours.channel_mixing.norm.bias,
    }
    state = {name: torch.zeros_like(tensor) for name, tensor in theirs.state_dict().items()}  # their biases: zero
    theirs.load_state_dict({**state, **copies})
    x = torch.randn(2, T, D, dtype=torch.float64, requires_grad=True)
    mask = nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64)
    results = [ours(x), theirs(x, src_mask=mask, is_causal=True)]
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-10)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in results]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-10)
