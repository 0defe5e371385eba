"""What attention remembers of the positions it has read, so that decoding costs O(T) per token.

Keys and values are kept. With identity values the value cache holds the block's inputs, split into heads, so that the
keys could be had from it; but that would fold W_K into the query, H times the work of the scores, or recompute the keys
of all positions, K times, to spare half of the memory.

Shapes: B batch, T positions, H heads, K head width, C capacity: the positions there is room for.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Past:
    """Keys and values of the positions that one attention has read, in buffers with room for all that will come.

    Args:
        key: like the keys to come, (B, H, any, K).
        value: like the values to come, (B, H, any, K).
        capacity: C.
    """

    def __init__(self, key: Tensor, value: Tensor, *, capacity: int) -> None:
        self.length = 0
        self.capacity = capacity
        batch, heads, _, width = key.shape
        self.one = torch.Size((batch, heads, 1, width))  # the shape of one position
        self._keys = key.new_empty(batch, heads, capacity, width)
        self._values = value.new_empty(batch, heads, capacity, width)
        self._mean: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> None:
        """Write the keys and values of new positions behind the others.  2 x (B, H, T, K)

        Raises:
            ValueError: more positions than there is room for, or, after the first call, other than one per sequence.
        """
        if self.length and key.shape != self.one:
            raise ValueError(
                f"{key.shape[0]} x {key.shape[2]} positions: after its first, a cache of {self.one[0]} sequences takes "
                "one position of each at a time; give these, or begin with an empty KVCache"
            )
        start, length = self.length, self.length + key.shape[2]
        if length > self.capacity:
            raise ValueError(
                f"{length} positions: the cache has room for {self.capacity}; read the last of them into an empty one"
            )
        self._keys.narrow(2, start, length - start).copy_(key)
        self._values.narrow(2, start, length - start).copy_(value)
        self.length = length

    def keys(self) -> Tensor:
        """(B, H, length, K), a view."""
        return self._keys.narrow(2, 0, self.length)

    def values(self) -> Tensor:
        """(B, H, length, K), a view."""
        return self._values.narrow(2, 0, self.length)

    def mean(self, newest: Tensor) -> Tensor:
        """The mean of all values, to be asked for once for each newest one.  (B, H, 1, K) -> (B, H, 1, K)

        In float32 at least: the first time the mean of what is there, from then on m_n = m_(n-1) + (v_n - m_(n-1)) / n,
        which is O(1) and loses no precision as a sum does that grows.
        """
        if self._mean is None:
            wide = torch.promote_types(newest.dtype, torch.float32)
            self._mean = self.values().mean(dim=2, keepdim=True, dtype=wide)
        else:
            self._mean.lerp_(newest.to(self._mean.dtype), 1 / self.length)
        return self._mean.to(newest.dtype)


class KVCache:
    """The `Past` of every attention of a model; empty when made. For inference: no gradient reaches what it holds.

    It is passed to the model with every call: first with prompts of one length, then with one token of each sequence
    at a time. An attention's buffers are made when it first asks for them.

    Args:
        capacity: the most positions it will hold, at most `ModelConfig.context`.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._pasts: dict[nn.Module, Past] = {}

    @property
    def length(self) -> int:
        """The number of positions that the model has read."""
        return next(iter(self._pasts.values())).length if self._pasts else 0

    def past(self, owner: nn.Module, key: Tensor, value: Tensor) -> Past:
        """What `owner` has read, with new keys and values put behind it.  2 x (B, H, T, K)"""
        past = self._pasts.get(owner)
        if past is None:
            past = self._pasts[owner] = Past(key, value, capacity=self.capacity)
        past.append(key, value)
        return past
