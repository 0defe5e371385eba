"""Value and projection matrices: trained, reparameterised, fixed, or absent.

Shapes: B batch, T positions, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_simplified.config import ConfigError, MatrixParts


class ResidualLinear(nn.Module):
    """x -> x (a*W_init + b*dW)^T, dW trained from 0 (Eq. 6).  (B, T, D) -> (B, T, D)

    Args:
        initial: W_init, (D, D), fixed.
        gain: a.
        delta_gain: b.
        trainable: whether a and b are trained.
    """

    initial: Tensor

    def __init__(self, initial: Tensor, *, gain: float = 1.0, delta_gain: float = 1.0, trainable: bool = False) -> None:
        super().__init__()
        self.register_buffer("initial", initial)
        self.delta = nn.Parameter(torch.zeros_like(initial))
        self.gain = nn.Parameter(torch.tensor(float(gain)), requires_grad=trainable)
        self.delta_gain = nn.Parameter(torch.tensor(float(delta_gain)), requires_grad=trainable)

    def weight(self) -> Tensor:
        """(D, D): one small sum here spares a second matrix product over all tokens."""
        return self.gain * self.initial + self.delta_gain * self.delta

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight())

    def extra_repr(self) -> str:
        a, b = self.gain.item(), self.delta_gain.item()
        return f"{a:.3g}*W_init + {b:.3g}*dW, trainable_gains={self.gain.requires_grad}"


class FixedLinear(nn.Module):
    """x -> x (a*W_init)^T, never trained (Eq. 6 with b = 0).  (B, T, D) -> (B, T, D)

    Args:
        initial: W_init, (D, D).
        gain: a.
    """

    fixed: Tensor

    def __init__(self, initial: Tensor, *, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.register_buffer("fixed", gain * initial)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.fixed)


def initial_matrix(init: str, *, width: int, std: float) -> Tensor:
    """W_init, (D, D): `normal` with the given standard deviation, `lecun` with 1/sqrt(D), random `orthogonal`, or
    `identity`."""
    match init:
        case "identity":
            return torch.eye(width)
        case "orthogonal":
            return nn.init.orthogonal_(torch.empty(width, width))
        case "normal":
            return torch.empty(width, width).normal_(std=std)
        case "lecun":
            return torch.empty(width, width).normal_(std=width**-0.5)
    raise ValueError(f"init={init!r}: choose one of normal, lecun, orthogonal, identity")


def build_matrix(parts: MatrixParts, initial: Tensor) -> nn.Module:
    """The value or projection matrix of a block: `linear` trains `initial` itself, `identity` has no matrix."""
    match parts.kind:
        case "identity":
            return nn.Identity()
        case "linear":
            linear = nn.Linear(initial.shape[1], initial.shape[0], bias=False)
            linear.weight = nn.Parameter(initial)
            return linear
        case "residual" if parts.delta_gain == 0 and not parts.trainable:
            return FixedLinear(initial, gain=parts.gain)
        case "residual":
            return ResidualLinear(initial, gain=parts.gain, delta_gain=parts.delta_gain, trainable=parts.trainable)
    raise ConfigError("matrix", parts.kind, "nothing builds this kind of matrix: add a case to build_matrix")


def initial_of(matrix: nn.Module) -> Tensor:
    """W_init of a matrix that was just built, float64 (D, D); zeros where it was multiplied with a gain of 0."""
    match matrix:
        case ResidualLinear():
            return matrix.initial.double()
        case FixedLinear():
            return matrix.fixed.double() / (matrix.gain or 1.0)
        case nn.Linear():
            return matrix.weight.double()
    raise ValueError(f"{matrix}: has no W_init")
