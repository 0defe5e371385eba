"""A stack written out densely, after the paper's equations and the table of `docs/authors.md`: one matrix product after
the other, all (T, T) matrices built, no part of the project used. It reads a model's numbers by their names.

Shapes: B batch, T positions, D width, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Stack:
    """What is computed, said without the project's own configuration. The defaults are the authors' Pre-LN."""

    depth: int = 3
    heads: int = 4
    parallel: bool = False
    attention_skip: bool = True
    mlp_skip: bool = True
    shaped: bool = False
    norm: str = "rms(x)+eps"
    """rms(x)+eps, sqrt(mean+eps), layer or none."""
    first_norm: str = "rms(x)+eps"
    final_norm: str = "layer"
    eps: float = 1e-5
    bias: bool = True
    """Of queries and keys."""
    value: tuple[str, ...] = ("linear",) * 3
    """linear, residual, fixed or identity, by block."""
    projection: tuple[str, ...] = ("linear",) * 3
    gains: frozenset[str] = frozenset()
    """Of b_SA, b_FF, a_FF."""
    embedding_scale: float = 1.0


@dataclass
class Dense:
    """The logits of a stack from the numbers of a model."""

    stack: Stack
    numbers: Mapping[str, Tensor]
    used: set[str] = field(default_factory=set)

    def get(self, name: str) -> Tensor:
        self.used.add(name)
        return self.numbers[name]

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, V), the head tied to the embedding."""
        embedding, positions = self.get("embedding.weight"), self.get("positions.table")
        x = self.stack.embedding_scale * (embedding[tokens] + positions[: tokens.shape[1]])
        for index in range(self.stack.depth):
            x = self.block(x, index)
        return self.norm(x, "norm", self.stack.final_norm) @ embedding.T

    def block(self, x: Tensor, index: int) -> Tensor:
        place, stack = f"blocks.{index}", self.stack
        first = stack.first_norm if index == 0 else stack.norm
        if stack.parallel:
            read = self.norm(x, f"{place}.norm", first)
            branches = self.attention(read, f"{place}.branches.attention", index)
            branches = branches + self.mlp(read, f"{place}.branches.mlp")
            return branches + x if stack.mlp_skip else branches
        token, channel = f"{place}.token_mixing", f"{place}.channel_mixing"
        after = self.attention(self.norm(x, f"{token}.norm", first), f"{token}.attention", index)
        after = after + x if stack.attention_skip else after
        inner = f"{channel}.branch" if "a_FF" in stack.gains else channel
        out = self.mlp(self.norm(after, f"{inner}.norm", stack.norm), f"{inner}.mlp")
        if "a_FF" in stack.gains:
            return self.get(f"{channel}.skip_gain.gain") * after + out
        return after + out if stack.mlp_skip else out

    def norm(self, x: Tensor, name: str, kind: str) -> Tensor:
        if kind == "none":
            return x
        weight, eps = self.get(f"{name}.weight"), self.stack.eps
        if kind == "layer":
            centred = x - x.mean(-1, keepdim=True)
            scaled = centred / ((centred**2).mean(-1, keepdim=True) + eps) ** 0.5
            return weight * scaled + self.get(f"{name}.bias")
        square = (x**2).mean(-1, keepdim=True)
        return weight * x / (square**0.5 + eps if kind == "rms(x)+eps" else (square + eps) ** 0.5)

    def attention(self, x: Tensor, name: str, index: int) -> Tensor:
        length, width = x.shape[1], x.shape[2]
        query, key = (x @ self.get(f"{name}.{part}.weight").T for part in ("query", "key"))
        if self.stack.bias:
            query, key = query + self.get(f"{name}.query.bias"), key + self.get(f"{name}.key.bias")
        value = self.matrix(x, f"{name}.value", self.stack.value[index])
        past = torch.ones(length, length, dtype=x.dtype).tril()
        uniform, size = past / past.sum(-1, keepdim=True), width // self.stack.heads
        heads = []
        for head in range(self.stack.heads):
            columns = slice(head * size, (head + 1) * size)
            scores = query[..., columns] @ key[..., columns].transpose(1, 2) / math.sqrt(size)
            weights = scores.masked_fill(past == 0, -torch.inf).softmax(-1)
            if self.stack.shaped:
                alpha, beta, gamma = (self.get(f"{name}.mixing.{gain}")[head] for gain in ("alpha", "beta", "gamma"))
                weights = alpha * torch.eye(length, dtype=x.dtype) + beta * weights - gamma * uniform
            heads.append(weights @ value[..., columns])
        out = self.matrix(torch.cat(heads, -1), f"{name}.projection", self.stack.projection[index])
        return self.get(f"{name}.gain.gain") * out if "b_SA" in self.stack.gains else out

    def matrix(self, x: Tensor, name: str, kind: str) -> Tensor:
        if kind == "identity":
            return x
        if kind == "linear":
            return x @ self.get(f"{name}.weight").T
        if kind == "fixed":
            return x @ self.get(f"{name}.fixed").T
        initial, delta = self.get(f"{name}.initial"), self.get(f"{name}.delta")
        return x @ (self.get(f"{name}.gain") * initial + self.get(f"{name}.delta_gain") * delta).T

    def mlp(self, x: Tensor, name: str) -> Tensor:
        hidden = (x @ self.get(f"{name}.up.weight").T).clamp(min=0)
        out = hidden @ self.get(f"{name}.down.weight").T
        return self.get(f"{name}.gain.gain") * out if "b_FF" in self.stack.gains else out
