"""How many bytes of tensors live at once: a count that neither Python nor other libraries disturb."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Counts the storages that operators return, from their birth to their death, while it is active.

    A process's resident memory would say more about Python, the libraries and the allocator's habits than about a
    small model. `torch.distributed._tools.mem_tracker` does the same as this, but fails on parameters that are not
    trained.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        """Bytes alive."""
        self.peak = 0
        """The most that were."""
        self._alive: dict[int, weakref.ref[Any]] = {}

    def add(self, *values: Any) -> None:
        """Count tensors; a storage that is known, or shared by two tensors, counts once."""
        for value in values:
            if isinstance(value, torch.Tensor):
                self._add(value.untyped_storage())

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive or not storage.nbytes():
            return
        self._alive[key] = weakref.ref(storage, self._removal(key, storage.nbytes()))
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)

    def _removal(self, key: int, size: int) -> Callable[[Any], None]:
        def remove(_: Any) -> None:
            del self._alive[key]
            self.now -= size

        return remove

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.add(*tree_leaves(result))
        return result


def available_bytes(device: torch.device) -> int | None:
    """Bytes that a process may still take on a device; None where that is unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [amount for amount in (_meminfo(), _cgroup()) if amount is not None]
    return min(free, default=None)


def _meminfo() -> int | None:
    """What Linux says is available."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def _cgroup() -> int | None:
    """What a container leaves, where it sets a limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = (folder / "memory.max").read_text(), (folder / "memory.current").read_text()
        return int(limit) - int(used)
    except (OSError, ValueError):  # no cgroup, or the limit is "max"
        return None
