"""Settings and checks of the machine before training: memory, precision, compilation."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from pathlib import Path

import torch

from lit_simplified.config import ConfigError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h
TOP_PAD = 64 * 2**20
CGROUP_LIMITS = tuple(map(Path, ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")))
"""Of a container, in the two versions of control groups; a number of bytes, or `max`."""


def keep_freed_memory() -> bool:
    """Keep freed memory in this process for the next allocation; return whether the C library supports it.

    By default glibc returns large blocks to the system and gets them back page by page, each with a fault: about 6,000
    in a step of 6 blocks of width 256 with 2,048 tokens. Steps take 1 to 3 % longer for that, at widths of 64 to 768.
    (If all logits existed at once, it would be 73,000 faults and 16 %.) The price: the process stays at its peak size
    until it ends. Other C libraries and systems are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    never = -1
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: never, M_TOP_PAD: TOP_PAD}
    return all(mallopt(option, value) == 1 for option, value in settings.items())


def memory_of(device: torch.device) -> int | None:
    """Bytes of memory that a device has in all; of the CPU what this process may use. None: unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return min((size for size in (_physical(), *map(_number_in, CGROUP_LIMITS)) if size), default=None)


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on every system
        return None


def _number_in(path: Path) -> int | None:
    """The limit that a file holds; None where there is no such file, or no limit in it."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def refuse_beyond_memory(needed: int, *, device: torch.device, field: str, value: object, what: str) -> None:
    """Raise `ConfigError` where more memory is needed than there is, before any of it is taken.

    Args:
        needed: bytes, at least.
        device: where.
        field: what to make smaller, by its name in the message.
        value: what it is now.
        what: needs it.
    """
    there = memory_of(device) if device.type in ("cpu", "cuda") else None
    if there is not None and needed > there:
        raise ConfigError(field, value, f"{what} needs at least {needed / 2**30:,.1f} GiB, and this machine has "
                          f"{there / 2**30:,.1f} GiB ({device.type}): make it smaller")


def refuse_emulated_precision(precision: str, *, accelerator: str, field: str = "trainer.precision") -> None:
    """Raise `ConfigError` for bfloat16 on a CPU without instructions for it, or whose torch would not use them.

    Args:
        precision: by Lightning's names.
        accelerator: by Lightning's names.
        field: its name in the message.
    """
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    if on_cpu and precision.startswith("bf16") and not _has_bfloat16():
        raise ConfigError(field, precision, "this CPU, or its build of torch, does not support bfloat16 and would be "
                          "about twenty times slower than with 32-true: choose 32-true, or a GPU")


def _has_bfloat16() -> bool:
    """Whether the CPU's matrix products of bfloat16 are fast, which only oneDNN makes them; some builds of torch lack
    it, and the question to it, too."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def refuse_crowded_cpu(devices: int | str, *, accelerator: str) -> None:
    """Raise `ConfigError` for more devices of a CPU, which are processes, than it has cores (two may share one).

    Args:
        devices: by Lightning's words.
        accelerator: by Lightning's names.
    """
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if on_cpu and str(devices).isdigit() and int(devices) > max(2, cores):
        raise ConfigError("trainer.devices", devices, f"on a CPU these are processes, and this machine has {cores} "
                          f"cores: give at most {max(2, cores)}")


def refuse_broken_compile() -> None:
    """Raise `ConfigError` where torch.compile cannot work: on a CPU it calls a C++ compiler, without quoting torch's
    own path."""
    if torch.cuda.is_available():
        return
    remedy = None
    if " " in (path := str(Path(torch.__file__).parent)):
        remedy = f"torch.compile fails on a CPU if torch is installed under a path with a space ({path})"
    elif not any(shutil.which(compiler) for compiler in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        remedy = "torch.compile needs a C++ compiler on a CPU, and found no g++"
    if remedy:
        raise ConfigError("trainer.compile", True, f"{remedy}: leave it false")
