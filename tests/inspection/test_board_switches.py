"""The board reads the table of switches: a position that is added there appears without a change to the board."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import pytest
from torch import Tensor, nn

from lit_simplified.blocks import norm as norms
from lit_simplified.blocks.residual import NO_CONTEXT, Context
from lit_simplified.config import CHOICES, PRE_LN, PRESETS, BlockConfig, ModelConfig, Position, RunConfig, types
from lit_simplified.inspection.board import block_text, draw, experiment, hyperparameters


class DynamicTanh(nn.Module):
    """x -> tanh(x).  (B, T, D) -> (B, T, D)"""

    def __init__(self, width: int, *, eps: float) -> None:
        super().__init__()

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        return x.tanh()


@pytest.fixture
def dyt(monkeypatch: pytest.MonkeyPatch) -> Iterator[BlockConfig]:
    """Pre-LN with a norm that the table does not have otherwise."""
    switch = CHOICES["norm"]
    before = switch.positions
    further = Position(name="dyt", words="dynamic tanh", formula="tanh(a·x)")
    monkeypatch.setattr(norms, "NORMS", {**norms.NORMS, "dyt": DynamicTanh})
    known = {**types.hints(BlockConfig), "norm": Literal[*(position.name for position in (*before, further))]}
    monkeypatch.setitem(types._HINTS, BlockConfig, known)
    object.__setattr__(switch, "positions", (*before, further))
    yield replace(PRE_LN, norm="dyt")
    object.__setattr__(switch, "positions", before)


def test_a_further_position_appears_on_the_board(dyt: BlockConfig) -> None:
    config = RunConfig(model=ModelConfig(block=dyt))
    figure, legend = draw(config.model).split("\n\n")
    assert figure.count("norm") == 2
    assert "norm       dynamic tanh: tanh(a·x)\n" in legend
    assert "(norm): DynamicTanh()" in block_text(config)
    domains = {info.name: [value.string_value for value in info.domain_discrete.values]
               for info in experiment().hparam_infos}
    assert domains["norm"] == ["rms", "layer", "none", "dyt", "own"]
    assert domains["activation"] == [*CHOICES["activation"].names, "own"]
    assert hyperparameters(config)["norm"] == "dyt"


@pytest.mark.parametrize(("name", "lines"), [
    ("pre_ln", ["norm       RMSNorm", "attention  softmax attention: A", "MLP        ReLU, 256 hidden units"]),
    ("v_skipinit", ["attention  skipinit attention: αI + βA; alpha, beta per head"]),
    ("sas_p_no_norm", ["norm       no norm, but RMSNorm before the first block",
                       "W_V        none, but I + ΔW in the first block", "W_P        none"]),
])
def test_the_legend_is_in_the_words_of_the_table(name: str, lines: list[str]) -> None:
    legend = draw(ModelConfig(block=PRESETS[name])).split("\n\n")[1].splitlines()
    assert set(lines) <= set(legend)
