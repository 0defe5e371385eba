"""The machine's peak for the MFU: the speed of a large matrix product, timed in the same rounds as the models.

Measured rather than read off a data sheet: it holds for this precision, this number of threads and this moment's clock.
"""

from __future__ import annotations

import math
import time

import torch

from ablations.timing.step import synchronize

SIDES = {"cpu": 1024, "cuda": 8192}
"""Side of the matrices by kind of device: from there on, larger ones are no faster."""
DTYPES = {"32": torch.float32, "64": torch.float64, "bf16": torch.bfloat16, "16": torch.float16}
"""By the beginning of a precision's name in Lightning."""


class Matmul:
    """Square matrix products, whose speed is taken for the machine's peak.

    Args:
        side: of the matrices.
        dtype: in which the products are made.
        device: where.
        seconds: a measurement takes about so long, or one product where that takes longer.
    """

    def __init__(self, *, side: int, dtype: torch.dtype, device: torch.device, seconds: float = 0.1) -> None:
        generator = torch.Generator().manual_seed(0)
        self.left, self.right = (
            torch.randn(side, side, generator=generator).to(device=device, dtype=dtype) for _ in range(2)
        )
        self.out = torch.empty_like(self.left)
        self.device, self.operations, self.count = device, 2 * side**3, 1
        self.flops_per_second()  # the first pays for allocation and the choice of a kernel
        self.count = max(1, math.ceil(seconds * self.flops_per_second() / self.operations))

    def flops_per_second(self) -> float:
        """Operations per second, measured now."""
        synchronize(self.device)
        start = time.perf_counter()
        for _ in range(self.count):
            torch.mm(self.left, self.right, out=self.out)
        synchronize(self.device)
        return self.count * self.operations / (time.perf_counter() - start)


def matmul_for(device: torch.device, *, precision: str, seconds: float = 0.1) -> Matmul:
    """The matrix product that a model is measured against: on its device, in its precision by Lightning's name."""
    dtype = next(dtype for name, dtype in DTYPES.items() if precision.startswith(name))
    return Matmul(side=SIDES.get(device.type, SIDES["cpu"]), dtype=dtype, device=device, seconds=seconds)
