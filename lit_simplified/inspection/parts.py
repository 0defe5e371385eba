"""The parts of a model, by their names in TensorBoard's tags, and norms over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_simplified.model import Transformer

CONTAINERS = {"token_mixing", "channel_mixing", "branches", "branch"}
"""Modules that only combine parts; they are left out of a part's name."""


class Parts:
    """The trained parameters of a model, and the part of the block that each belongs to."""

    def __init__(self, model: Transformer) -> None:
        named = [(part_of(name), p) for name, p in model.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        self.names = list(dict.fromkeys(part for part, _ in named))
        self.index = torch.tensor([self.names.index(part) for part, _ in named], device=self.parameters[0].device)

    def norms(self, tensors: Sequence[Tensor | None], *, prefix: str, totals: bool = False) -> dict[str, Tensor]:
        """The 2-norm over the tensors of each part, as `PREFIX/block_00/query`; with the totals `PREFIX/block_00`.

        Args:
            tensors: one for every parameter; None counts as zeros.
            prefix: of the tags.
            totals: whether to add one for every block.
        """
        there = [place for place, tensor in enumerate(tensors) if tensor is not None]
        given = [tensor.detach().float() for tensor in tensors if tensor is not None]
        squares = torch.stack(torch._foreach_norm(given)).square()
        sums = torch.zeros(len(self.names), device=squares.device).index_add_(0, self.index[there], squares)
        by_part = dict(zip(self.names, sums.unbind(), strict=True))
        found = {f"{prefix}/{name}": value.sqrt() for name, value in by_part.items()}
        if totals:
            for block in dict.fromkeys(name.split("/")[0] for name in self.names if "/" in name):
                whole = [value for name, value in by_part.items() if name.startswith(f"{block}/")]
                found[f"{prefix}/{block}"] = torch.stack(whole).sum().sqrt()
        return found


def part_of(name: str) -> str:
    """The part that a parameter of the model belongs to: `block_03/query`, `block_03/mlp_gain`, `embedding`."""
    path = name.split(".")[:-1]
    if path[0] != "blocks":
        return path[0]
    owners = [owner for owner in path[2:] if owner not in CONTAINERS] or ["block"]  # of a block of your own
    part = "_".join(owners[-2:]) if owners[-1] == "gain" else owners[-1]
    return f"block_{int(path[1]):02}/{part}"
