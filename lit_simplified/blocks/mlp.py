"""The MLP sub-layer, plain or gated.

Shapes: B batch, T positions, D width, M hidden width.
"""

from __future__ import annotations

from torch import Tensor, nn

from lit_simplified.blocks.own import build_own
from lit_simplified.blocks.residual import NO_CONTEXT, Context
from lit_simplified.config import BlockConfig, ConfigError
from lit_simplified.config.own import parse


class MLP(nn.Module):
    """x -> gain * activation(x W_up) W_down.  (B, T, D) -> (B, T, D)"""

    def __init__(self, *, up: nn.Module, activation: nn.Module, down: nn.Module, dropout: nn.Module, gain: nn.Module):
        super().__init__()
        self.up, self.activation, self.down, self.dropout, self.gain = up, activation, down, dropout, gain

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        return self.gain(self.dropout(self.down(self.activation(self.up(x)))))


class Gated(nn.Module):
    """(u, g) -> u * inner(g): the GLU around an activation.  (B, T, 2M) -> (B, T, M)"""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        hidden, gate = x.chunk(2, dim=-1)
        return hidden * self.inner(gate)


def build_activation(config: BlockConfig) -> nn.Module:
    """The non-linearity, gated where the block has a GLU."""
    match config.activation:
        case "relu":
            inner: nn.Module = nn.ReLU()
        case "leaky_relu":
            inner = nn.LeakyReLU(config.leaky_slope)
        case "gelu":
            inner = nn.GELU()
        case spec if parse(spec):
            inner = build_own(spec, field="activation")
        case unknown:
            raise ConfigError("block.activation", unknown, "nothing builds it: add a case to build_activation")
    return Gated(inner) if config.glu else inner
