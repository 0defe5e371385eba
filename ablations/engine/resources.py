"""The share of a machine that each worker gets: GPUs, processes, threads."""

from __future__ import annotations

import os

from ablations.timing.machine import cores

MAX_CPU_WORKERS = 2


def visible_gpus(accelerator: str) -> list[str]:
    """The GPUs this run may use, as CUDA_VISIBLE_DEVICES names them. Imports torch unless the accelerator is cpu."""
    if accelerator not in ("auto", "gpu", "cuda"):
        return []
    import torch

    if not torch.cuda.is_available():
        return []
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return listed.split(",") if listed else [str(index) for index in range(torch.cuda.device_count())]


def workers_for(accelerator: str, *, asked: int | None = None) -> int:
    """Worker processes on this machine: as asked for, else one per GPU, else two where there are two cores."""
    return asked or len(visible_gpus(accelerator)) or min(MAX_CPU_WORKERS, cores())


def threads_for(workers: int) -> int:
    """CPU threads of each of so many workers."""
    return max(1, cores() // workers)
