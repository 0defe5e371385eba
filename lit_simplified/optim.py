"""AdamW with the paper's parameter groups, and the learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from lit_simplified.config import OptimConfig


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, object]]:
    """Matrices and embeddings decay; gains, norms and biases do not.

    A gain per head has shape (H, 1, 1): only axes longer than 1 count. A matrix of one row would count as a
    vector; no model of more than one unit has one.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.squeeze().ndim >= 2]
    vectors = [p for p in trained if p.squeeze().ndim < 2]
    groups = ({"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: OptimConfig, *, fused: bool = True) -> torch.optim.Optimizer:
    """AdamW over the two groups; `fused` updates a group in one kernel."""
    return torch.optim.AdamW(
        parameter_groups(model, weight_decay=config.weight_decay),
        lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps, fused=fused,
    )


def schedule(config: OptimConfig) -> Callable[[int], float]:
    """Step -> factor on the learning rate: a linear warm-up to 1, then the decay, to 0 after the last step."""
    warmup, start = max(1, round(config.warmup * config.steps)), config.warmup_start

    def factor(step: int) -> float:
        if step < warmup:
            return start + (1 - start) * (step + 1) / warmup
        progress = min(1.0, (step + 1 - warmup) / max(1, config.steps - warmup + 1))
        return {
            "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress)), "constant": 1.0
        }[config.schedule]

    return factor


def build_scheduler(optimizer: torch.optim.Optimizer, config: OptimConfig) -> LambdaLR:
    """The schedule as a scheduler that steps once per optimiser step."""
    return LambdaLR(optimizer, schedule(config))
