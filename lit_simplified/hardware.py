"""What a machine can do, and what it is told before training: memory, precision, compilation."""

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


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for the next allocation; return whether the C library can.

    By default glibc returns large blocks to the system and gets them back page by page, each with a fault: about 6,000
    in a step of 6 blocks of width 256 with 2,048 tokens. Steps take 1 to 3 % longer for it, at widths of 64 to 768.
    (Where all logits exist at once, as they do not here, it is 73,000 faults and 16 %.) The price is that the process
    does not shrink below its peak before it ends. Other C libraries and systems are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    never = -1
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: never, M_TOP_PAD: TOP_PAD}
    return all(mallopt(option, value) == 1 for option, value in settings.items())


def refuse_emulated_precision(precision: str, *, accelerator: str, field: str = "trainer.precision") -> None:
    """Raise `ConfigError` for bfloat16 on a CPU without instructions for it, or whose torch would not use them.

    Args:
        precision: by Lightning's names.
        accelerator: by Lightning's names.
        field: what the message calls it.
    """
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    if on_cpu and precision.startswith("bf16") and not _has_bfloat16():
        raise ConfigError(field, precision, "this CPU, or torch on it, has no bfloat16 instructions and would take "
                          "about twenty times as long as with 32-true: choose that, or a GPU")


def _has_bfloat16() -> bool:
    """Whether the CPU's matrix products of bfloat16 are fast, which only oneDNN makes them; some builds of torch lack
    it, and the question to it, too."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def refuse_vain_compile() -> None:
    """Raise `ConfigError` where torch.compile cannot work: on a CPU it calls a C++ compiler, without quoting torch's
    own path."""
    if torch.cuda.is_available():
        return
    remedy = None
    if " " in (path := str(Path(torch.__file__).parent)):
        remedy = f"torch.compile fails on a CPU where torch is below a folder with a space in its name ({path})"
    elif not any(shutil.which(compiler) for compiler in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        remedy = "torch.compile needs a C++ compiler on a CPU, and there is no g++"
    if remedy:
        raise ConfigError("trainer.compile", True, f"{remedy}: leave it false")
