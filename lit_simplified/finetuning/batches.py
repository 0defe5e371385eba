"""From texts to batches: END a END, or END a END b END, padded to the longest of the batch.

Shapes: B batch, T positions of its longest sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lit_simplified.config import ConfigError
from lit_simplified.datamodules import load_tokenizer
from lit_simplified.datamodules.datamodule import keep_batch
from lit_simplified.finetuning.checkpoint import TokenizerFile
from lit_simplified.finetuning.examples import Examples, Place, load_examples
from lit_simplified.finetuning.tasks import TextTask

END, PAD = 0, 1
SORTED_TOGETHER = 50
"""Number of batches that are sorted by length together: little padding, and still a random order."""
CHUNK = 10_000


class Batch(NamedTuple):
    """Sequences padded to one length."""

    tokens: Tensor
    """(B, T) int64"""
    attention_mask: Tensor
    """(B, T) bool, false at padding."""
    labels: Tensor
    """(B,) int64 classes or float32 numbers."""


@dataclass(frozen=True)
class Encoded:
    """A split as sequences of tokens."""

    sequences: list[npt.NDArray[np.int32]]
    labels: Tensor
    """(N,) int64 or float32."""
    truncated: int
    """Examples that were longer than the context."""


@dataclass(frozen=True)
class EncodedTask:
    """The splits of a task as sequences of tokens."""

    splits: dict[str, Encoded]
    classes: tuple[str, ...]

    @property
    def outputs(self) -> int:
        """A model's outputs per example."""
        return len(self.classes) or 1


@lru_cache(maxsize=2)  # the seeds of a task share it
def encode_task(
    task: TextTask, place: Place, *, cache_dir: str, max_examples: int | None, tokenizer: TokenizerFile, context: int
) -> EncodedTask:
    """The examples of a task as a model with this tokenizer and context reads them. Errors are `load_examples`'."""
    data = load_examples(task, place, cache_dir=cache_dir, max_examples=max_examples)
    encoded = {
        split: encode_examples(examples, tokenizer=tokenizer, context=context, regression=task.regression)
        for split, examples in data.splits.items()
    }
    return EncodedTask(encoded, data.classes)


def encode_examples(examples: Examples, *, tokenizer: TokenizerFile, context: int, regression: bool) -> Encoded:
    """A split as sequences of at most `context` tokens. Raises `ConfigError` where no text fits in."""
    parts = len(examples.texts[0])
    room = context - parts - 1
    if room < parts:
        remedy = f"is too short for {parts} texts: pretrain with a longer one"
        raise ConfigError("checkpoint", f"context {context}", remedy)
    encoder, sequences, truncated = load_tokenizer(tokenizer.path), [], 0
    for start in range(0, len(examples.texts), CHUNK):
        chunk = examples.texts[start : start + CHUNK]
        columns = [
            encoder.encode_batch_fast(list(column), add_special_tokens=False) for column in zip(*chunk, strict=True)
        ]
        for encodings in zip(*columns, strict=True):
            texts = [encoding.ids for encoding in encodings]
            truncated += sum(map(len, texts)) > room
            sequences.append(sequence(texts, room=room))
    labels = torch.tensor(examples.labels, dtype=torch.float32 if regression else torch.int64)
    return Encoded(sequences, labels, truncated)


def sequence(texts: Sequence[Sequence[int]], *, room: int) -> npt.NDArray[np.int32]:
    """One or two texts between ENDs, in at most `room` tokens without these: the longer text is shortened first."""
    lengths = [len(text) for text in texts]
    if len(texts) == 1:
        kept = [min(lengths[0], room)]
    else:
        first = min(lengths[0], max(room - lengths[1], room - room // 2))
        kept = [first, min(lengths[1], room - first)]
    ids = [END]
    for text, length in zip(texts, kept, strict=True):
        ids += [*text[:length], END]
    return np.array(ids, dtype=np.int32)


def collate(sequences: Sequence[npt.NDArray[np.int32]], labels: Tensor) -> Batch:
    """Sequences padded to the longest of them."""
    lengths = torch.tensor([len(ids) for ids in sequences])
    attention_mask = torch.arange(int(lengths.max())) < lengths[:, None]  # (B, T)
    tokens = torch.full(attention_mask.shape, PAD, dtype=torch.int64)
    tokens[attention_mask] = torch.from_numpy(np.concatenate(sequences)).long()
    return Batch(tokens, attention_mask, labels)


class BatchSet(Dataset[Batch]):
    """Batches of a split by the numbers of their examples."""

    def __init__(self, encoded: Encoded) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded.sequences)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        return collate([self.encoded.sequences[i] for i in indices], self.encoded.labels[indices])


class LengthBatches(Sampler[list[int]]):
    """The batches of an epoch, a pure function of seed and epoch: all examples once, similar lengths in a batch.

    Args:
        lengths: tokens of each example.
        batch_size: examples of a batch; the last one may have fewer.
        seed: seeds the order.
        epoch: gives the number of the epoch.
    """

    def __init__(
        self, lengths: Sequence[int], *, batch_size: int, seed: int, epoch: Callable[[], int] = lambda: 0
    ) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = np.asarray(lengths), batch_size, seed, epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch()))
        order, together = random.permutation(len(self.lengths)), self.batch_size * SORTED_TOGETHER
        batches: list[list[int]] = []
        for start in range(0, len(order), together):
            pool = order[start : start + together]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            batches += [pool[i : i + self.batch_size].tolist() for i in range(0, len(pool), self.batch_size)]
        return iter([batches[i] for i in random.permutation(len(batches))])


class TaskDataModule(pl.LightningDataModule):
    """The batches of a task; those of validation in the order of their lengths."""

    def __init__(self, data: EncodedTask, *, batch_size: int, seed: int) -> None:
        super().__init__()
        self.data, self.batch_size, self.seed = data, batch_size, seed

    def train_dataloader(self) -> DataLoader[Batch]:
        encoded = self.data.splits["train"]
        batches = LengthBatches(
            [len(ids) for ids in encoded.sequences], batch_size=self.batch_size, seed=self.seed,
            epoch=lambda: self.trainer.current_epoch if self.trainer else 0,
        )
        return DataLoader(BatchSet(encoded), batch_sampler=batches, collate_fn=keep_batch)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """One per validation split, in their order."""
        return [self._in_order(encoded) for split, encoded in self.data.splits.items() if split != "train"]

    def _in_order(self, encoded: Encoded) -> DataLoader[Batch]:
        order = sorted(range(len(encoded.sequences)), key=lambda i: len(encoded.sequences[i]))
        size = 2 * self.batch_size  # no gradients to be kept
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        return DataLoader(BatchSet(encoded), batch_sampler=batches, collate_fn=keep_batch)
