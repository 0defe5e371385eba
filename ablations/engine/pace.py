"""How often to do what grows with the study: seldom enough that it takes a small share of the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Pace:
    """Spaces out calls so that they take at most a share of the time.

    Args:
        share: of the time.
        least: seconds between two calls at least.
        most: and at most, however long one took: it may have waited, or its process been stopped.
    """

    def __init__(self, *, share: float = 0.05, least: float = 0.0, most: float = 60.0) -> None:
        self.share, self.least, self.most = share, least, most
        self._next = 0.0

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next call."""
        return time.monotonic() >= self._next

    @property
    def wait(self) -> float:
        """Seconds until then."""
        return max(0.0, self._next - time.monotonic())

    def __call__(self, call: Callable[[], T]) -> T:
        """Call now, and note how long it took."""
        begin = time.monotonic()
        result = call()
        end = time.monotonic()
        self._next = end + min(self.most, max(self.least, (end - begin) * (1 / self.share - 1)))
        return result
