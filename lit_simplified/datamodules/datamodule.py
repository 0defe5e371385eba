"""Windows of tokens for the trainer: the order is a pure function of the seed, so that a resumed run sees what an
uninterrupted one would, and the ranks of a distributed run share it out without overlap.

B batch, L tokens of a window.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lit_simplified.config import ConfigError, DataConfig, OptimConfig, Windowing
from lit_simplified.datamodules.packing import PreparedCorpus, count_windows, prepare
from lit_simplified.datamodules.recipe import SPLITS, Split
from lit_simplified.datamodules.tokenizer import END_ID

Batch = TypeVar("Batch")


class Windows(Dataset[Tensor]):
    """Window i of a split is `tokens[i * context : i * context + context + extra]`, as int64 (L,)."""

    def __init__(self, corpus: PreparedCorpus, *, split: Split, context: int, extra: int) -> None:
        self.corpus, self.split, self.context, self.extra = corpus, split, context, extra
        self.length = context + extra
        self.tokens = corpus.tokens(split)

    def __len__(self) -> int:
        return count_windows(len(self.tokens), context=self.context, extra=self.extra)

    def starts(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where these windows begin."""
        return indices * self.context

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> Tensor:
        """int64 (B, L) in one read. Raises IndexError outside 0 <= index < len."""
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"indices {indices} of {len(self)} windows")
        positions = self.starts(wanted)[:, None] + np.arange(self.length)
        return torch.from_numpy(self.tokens[positions].astype(np.int64))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "tokens": None}  # a loader process opens the file: a memmap would travel as a copy

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.tokens = self.corpus.tokens(self.split)


class DocumentWindows(Windows):
    """The windows that lie in one document each, one behind the other from its start, as int64 (context,); what is left
    at the end of a document is in none of them, nor is its END."""

    def __init__(self, corpus: PreparedCorpus, *, split: Split, context: int, extra: int) -> None:
        super().__init__(corpus, split=split, context=context, extra=extra)
        self.length = context
        self.places = starts_in_documents(self.tokens, length=context)

    def __len__(self) -> int:
        return len(self.places)

    def starts(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return self.places[indices]


WINDOWS: Mapping[Windowing, type[Windows]] = {"packed": Windows, "document": DocumentWindows}
"""By `data.windows`."""


def starts_in_documents(tokens: npt.NDArray[Any], *, length: int, chunk: int = 1 << 24) -> npt.NDArray[np.int64]:
    """Where the windows of a number of tokens begin that lie in one document each.

    Args:
        tokens: (N,) documents, each closed by END, which no text contains.
        length: of a window.
        chunk: tokens that are looked at together.
    """
    ends = np.concatenate([begin + np.flatnonzero(tokens[begin : begin + chunk] == END_ID)
                           for begin in range(0, max(1, len(tokens)), chunk)])
    begins = np.concatenate(([0], ends + 1))[: len(ends)]
    counts = (ends - begins) // length
    before = np.cumsum(counts) - counts  # windows of the documents before
    return np.repeat(begins - before * length, counts) + np.arange(counts.sum()) * length


@dataclass(frozen=True)
class BatchSizes:
    """Windows per batch and device: `full`, after a linear growth from 1 over the first `ramp` steps.

    All batches of a step, `accumulate` of them, have the same size, so that each window weighs the same in it.
    """

    full: int
    accumulate: int = 1
    ramp: int = 0

    def of_step(self, step: int) -> int:
        """Windows of each batch of a step, from 0."""
        return max(1, round(self.full * min(1.0, (step + 1) / (self.ramp + 1))))

    def before_step(self, step: int) -> int:
        """Windows of the batches of all steps before one."""
        return self.accumulate * (self._ramp_sums[min(step, self.ramp)] + max(0, step - self.ramp) * self.full)

    def of_batch(self, k: int) -> int:
        """Windows of batch k."""
        return self.of_step(k // self.accumulate)

    def before_batch(self, k: int) -> int:
        """Windows of the batches before batch k."""
        step, part = divmod(k, self.accumulate)
        return self.before_step(step) + part * self.of_step(step)

    @cached_property
    def _ramp_sums(self) -> list[int]:
        return list(itertools.accumulate(map(self.of_step, range(self.ramp)), initial=0))


def batch_sizes(data: DataConfig, optim: OptimConfig) -> BatchSizes:
    """The sizes of a run's batches."""
    return BatchSizes(data.batch_size, optim.accumulate, round(optim.batch_ramp * optim.steps))


class StepBatches(Sampler[list[int]]):
    """The endless batches of one rank: the epochs' permutations, laid end to end, are cut into batches, and each of
    these into a part per rank. Iteration begins at batch `start()`.

    Args:
        windows: of an epoch.
        sizes: how many windows batch k has on each rank, and how many the batches before it had.
        seed: of the permutations.
        rank: this process.
        world_size: processes.
        start: the batch to begin with.
    """

    def __init__(
        self, windows: int, *, sizes: BatchSizes, seed: int, rank: int = 0, world_size: int = 1,
        start: Callable[[], int] = lambda: 0,
    ) -> None:  # fmt: skip
        self.windows, self.sizes, self.seed = windows, sizes, seed
        self.rank, self.world_size, self.start = rank, world_size, start

    def __iter__(self) -> Iterator[list[int]]:
        return map(self.batch, itertools.count(self.start()))

    def batch(self, k: int) -> list[int]:
        """(B,) the windows of the rank's batch k."""
        size = self.sizes.of_batch(k)
        first = self.sizes.before_batch(k) * self.world_size + self.rank * size
        places = (divmod(row, self.windows) for row in range(first, first + size))
        return [int(_permutation(self.windows, self.seed, epoch)[place]) for epoch, place in places]


@lru_cache(maxsize=2)  # a batch lies in two epochs at most
def _permutation(windows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(windows)


def spread(windows: int, *, limit: int | None, rank: int = 0, world_size: int = 1) -> list[int]:
    """The windows a rank evaluates: at most `limit` over all ranks, evenly spread, none twice, the same number on
    each rank (ranks that run out of batches first would leave the others waiting in a collective call)."""
    count = min(windows, limit or windows) // world_size * world_size
    return [place * windows // count for place in range(rank, count, world_size)]


def keep_batch(batch: Batch) -> Batch:
    """Collation for data sets that give whole batches."""
    return batch


class WindowDataModule(pl.LightningDataModule):
    """Batches of windows, int64 (B, L) with L = context + extra. One epoch of Lightning is the whole run: end it by
    `max_steps`, and create the trainer with `use_distributed_sampler=False`."""

    def __init__(
        self, data: DataConfig, *, vocab_size: int, context: int, extra: int, seed: int, sizes: BatchSizes | None = None
    ) -> None:
        """`extra`: tokens of a window beyond `context`, 1 when the targets are the inputs shifted by one, else 0.
        `sizes`: of the batches; unset, all have `data.batch_size` windows."""
        super().__init__()
        self.sizes = sizes or BatchSizes(data.batch_size)
        self.data, self.vocab_size, self.context, self.extra, self.seed = data, vocab_size, context, extra, seed
        self.corpus: PreparedCorpus  # from setup on
        self.windows: dict[Split, Windows] = {}

    def prepare_data(self) -> None:
        prepare(self.data, vocab_size=self.vocab_size)

    def setup(self, stage: str | None = None) -> None:
        """Open the splits. Raises `ConfigError` when one is too small for a batch per device."""
        self._refuse_second_sampler()
        self.corpus = prepare(self.data, vocab_size=self.vocab_size)
        for split in SPLITS:
            kind = WINDOWS[self.data.windows]
            self.windows[split] = kind(self.corpus, split=split, context=self.context, extra=self.extra)
            self._refuse_too_small(split)

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Endless: the k-th batch of a run, whether resumed or not."""
        batches = StepBatches(
            len(self.windows["train"]), sizes=self.sizes, seed=self.seed,
            rank=self._rank, world_size=self._world_size, start=self._batches_done,
        )  # fmt: skip
        return self._loader("train", batches)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """The same `val_windows` windows every time."""
        return self._evaluation_loader("validation", self.data.val_windows)

    def test_dataloader(self) -> DataLoader[Tensor]:
        """The same `test_windows` windows every time."""
        return self._evaluation_loader("test", self.data.test_windows)

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def _batches_done(self) -> int:
        """Batches this run has trained on, over all its sessions.

        Lightning restores its counters before it asks for the loader, but never forwards the loader itself. Of the
        counters, `current` starts anew with every Lightning epoch, and `completed` lags by one in a checkpoint that
        was written at the end of a batch; `total.processed` is the number of batches behind the weights.
        """
        if not self.trainer or self.trainer.overfit_batches:  # type: ignore[attr-defined]
            return 0
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.total.processed)  # type: ignore[attr-defined]

    def _evaluation_loader(self, split: Split, limit: int | None) -> DataLoader[Tensor]:
        mine = spread(len(self.windows[split]), limit=limit, rank=self._rank, world_size=self._world_size)
        size = self.data.batch_size
        return self._loader(split, [mine[start : start + size] for start in range(0, len(mine), size)])

    def _loader(self, split: Split, batches: Sampler[list[int]] | list[list[int]]) -> DataLoader[Tensor]:
        return DataLoader(
            self.windows[split], batch_sampler=batches, collate_fn=keep_batch, num_workers=self.data.num_workers,
            persistent_workers=self.data.num_workers > 0, pin_memory=torch.cuda.is_available(),
        )  # fmt: skip

    def _refuse_second_sampler(self) -> None:
        if self._world_size > 1 and self.trainer._accelerator_connector.use_distributed_sampler:  # type: ignore[union-attr]
            raise ConfigError(
                "trainer.options.use_distributed_sampler", True,
                "the data module already gives each device its own windows: set it to false",
            )

    def _refuse_too_small(self, split: Split) -> None:
        windows, devices, size = len(self.windows[split]), self._world_size, self.data.batch_size
        limit = {"train": None, "validation": self.data.val_windows, "test": self.data.test_windows}[split]
        needed = devices * size if split == "train" else devices
        if min(windows, limit or windows) >= needed:
            return
        part = self.windows[split].corpus.card["splits"][split]
        raise ConfigError(
            "data.recipe", self.data.recipe,
            f"the {split} split is too small: it has {part['documents']} documents, {part['tokens']} tokens, {windows} "
            f"windows of {self.windows[split].length} tokens (at most {limit or 'all'} used), but needs {needed} "
            f"({devices} device(s), batch_size={size}). Give a larger corpus, or a smaller model.context, "
            "data.batch_size or trainer.devices",
        )
