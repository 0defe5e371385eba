"""What a study ran on: hardware and versions, for its reports."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("lit-simplified", "torch", "lightning", "optuna", "numpy", "scipy")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine() -> dict[str, Any]:
    """Processor, cores, GPU (where torch is loaded and sees one) and system. No host name: summaries are shared."""
    torch = sys.modules.get("torch")
    gpus = torch.cuda.device_count() if torch is not None else 0
    return {
        "cpu": _cpu(), "cores": cores(), "system": f"{platform.system()} {platform.machine()}",
        "gpu": f"{gpus} x {torch.cuda.get_device_name(0)}" if torch is not None and gpus else "",
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def versions(*more: str) -> dict[str, str]:
    """Versions of Python and of what decides a result, `more` packages included; read without importing them."""
    found = {"python": platform.python_version()}
    for package in (*PACKAGES, *more):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
