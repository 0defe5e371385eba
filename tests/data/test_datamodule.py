"""Windows in their order: exact after a resume, shared out between ranks, the same in every evaluation."""

from __future__ import annotations

import itertools
import pickle
import random
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lit_simplified.config import ConfigError, DataConfig, OptimConfig
from lit_simplified.datamodules import WindowDataModule
from lit_simplified.datamodules.datamodule import (
    BatchSizes,
    StepBatches,
    Windows,
    batch_sizes,
    spread,
    starts_in_documents,
)

CONTEXT, VOCAB = 16, 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    (folder / "text").mkdir()
    for number in range(60):
        words = draw.choices(["alpha", "beta", "gamma", "delta", "epsilon", "zeta"], k=60)
        (folder / "text" / f"{number}.txt").write_text(" ".join(words))
    (folder / "mine.yaml").write_text("kind: files\npaths: [text]\n")
    return folder


def data_module(folder: Path, *, context: int = CONTEXT, extra: int = 1, **data: Any) -> WindowDataModule:
    places = {"recipe": str(folder / "mine.yaml"), "cache_dir": str(folder / "cache")}
    config = DataConfig(**{**places, "batch_size": 4, **data})
    return WindowDataModule(config, vocab_size=VOCAB, context=context, extra=extra, seed=3)


class Recorder(pl.LightningModule):
    """Records the batches that it is trained and validated on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.batches: list[Tensor] = []
        self.validated: list[tuple[int, Tensor]] = []

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        self.batches.append(batch.clone())
        return self.weight * batch.float().mean()

    def validation_step(self, batch: Tensor, index: int) -> None:
        self.validated.append((self.global_step, batch.clone()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(
    module: Recorder, data: WindowDataModule, *, steps: int, path: str | None = None, **options: Any
) -> pl.Trainer:
    defaults = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": "callbacks" in options, "use_distributed_sampler": False, "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
    }  # fmt: skip
    trainer = pl.Trainer(max_steps=steps, **{**defaults, **options})
    trainer.fit(module, data, ckpt_path=path, weights_only=False)
    return trainer


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


class TestWindows:
    @pytest.mark.parametrize("extra", [0, 1])
    def test_rows_are_slices_of_the_tokens(self, folder: Path, extra: int) -> None:
        data = data_module(folder, extra=extra)
        data.setup()
        windows, tokens = data.windows["train"], np.asarray(data.corpus.tokens("train")).astype(np.int64)
        last = len(windows) - 1
        batch = windows.__getitems__([0, last, 2])
        assert batch.dtype == torch.int64
        assert batch.shape == (3, CONTEXT + extra)
        for row, index in zip(batch, (0, last, 2), strict=True):
            expected = tokens[index * CONTEXT : index * CONTEXT + CONTEXT + extra]
            assert row.tolist() == expected.tolist() == windows[index].tolist()
        assert (last + 1) * CONTEXT + extra <= len(tokens) < (last + 2) * CONTEXT + extra
        with pytest.raises(IndexError):
            windows[last + 1]
        with pytest.raises(IndexError):
            windows[-1]

    def test_travels_to_another_process_without_the_tokens(self, folder: Path) -> None:
        data = data_module(folder)
        data.setup()
        pickled = pickle.dumps(data.windows["train"])
        assert len(pickled) < 4000 < data.corpus.tokens("train").nbytes
        copy: Windows = pickle.loads(pickled)
        assert torch.equal(copy[5], data.windows["train"][5])


class TestOrder:
    def test_every_epoch_has_every_window_once(self) -> None:
        batches = StepBatches(50, sizes=BatchSizes(8), seed=1)
        rows = list(itertools.chain.from_iterable(itertools.islice(batches, 50)))
        epochs = [rows[start : start + 50] for start in range(0, 400, 50)]
        assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)

    def test_batch_is_a_function_of_seed_and_number(self) -> None:
        batches = StepBatches(50, sizes=BatchSizes(8), seed=1)
        last = batches.batch(40)
        assert StepBatches(50, sizes=BatchSizes(8), seed=1, start=lambda: 40).batch(40) == last
        assert next(iter(StepBatches(50, sizes=BatchSizes(8), seed=1, start=lambda: 40))) == last
        assert StepBatches(50, sizes=BatchSizes(8), seed=2).batch(40) != last

    @pytest.mark.parametrize("world_size", [2, 3])
    def test_ranks_share_the_order_of_one(self, world_size: int) -> None:
        whole = StepBatches(50, sizes=BatchSizes(4 * world_size), seed=1)
        ranks = [StepBatches(50, sizes=BatchSizes(4), seed=1, rank=r, world_size=world_size) for r in range(world_size)]
        for k in range(30):
            assert list(itertools.chain.from_iterable(rank.batch(k) for rank in ranks)) == whole.batch(k)

    def test_golden(self) -> None:
        """Another order would make old and new results incomparable."""
        assert StepBatches(10, sizes=BatchSizes(4), seed=0).batch(0) == [4, 6, 2, 7]
        assert StepBatches(10, sizes=BatchSizes(4), seed=0).batch(2) == [8, 1, 9, 1]


class TestRamp:
    @pytest.mark.parametrize("accumulate", [1, 3])
    def test_batches_grow_along_a_line_to_their_full_size(self, accumulate: int) -> None:
        sizes = batch_sizes(DataConfig(batch_size=20), OptimConfig(steps=50, batch_ramp=0.6, accumulate=accumulate))
        grown = [sizes.of_step(step) for step in range(50)]
        for step, size in enumerate(grown[:30]):
            assert abs(size - 20 * (step + 1) / 31) <= 0.5 + 1e-9
        assert grown[0] == 1
        assert grown[29:] == [19] + 20 * [20]
        for step in range(50):
            assert sizes.before_step(step) == accumulate * sum(grown[:step])
        for k in range(accumulate * 50):
            assert sizes.of_batch(k) == grown[k // accumulate]
            assert sizes.before_batch(k) == sum(sizes.of_batch(j) for j in range(k))

    @pytest.mark.parametrize("world_size", [1, 2])
    def test_no_window_is_left_out_or_seen_twice_while_batches_grow(self, world_size: int) -> None:
        sizes = BatchSizes(6, accumulate=2, ramp=9)
        ranks = [StepBatches(50, sizes=sizes, seed=1, rank=r, world_size=world_size) for r in range(world_size)]
        rows = [row for k in range(80) for rank in ranks for row in rank.batch(k)]
        straight = StepBatches(50, sizes=BatchSizes(1), seed=1)
        assert rows == [row for k in range(len(rows)) for row in straight.batch(k)]

    def test_without_a_ramp_all_batches_are_full(self) -> None:
        sizes = batch_sizes(DataConfig(batch_size=20), OptimConfig(steps=50, accumulate=2))
        assert {sizes.of_batch(k) for k in range(100)} == {20}
        assert sizes.before_step(7) == 7 * 2 * 20


class TestEvaluation:
    def test_spread_is_even_disjoint_and_equal(self) -> None:
        ranks = [spread(1000, limit=256, rank=rank, world_size=4) for rank in range(4)]
        assert [len(rank) for rank in ranks] == [64] * 4
        union = sorted(itertools.chain.from_iterable(ranks))
        assert union == spread(1000, limit=256)
        assert set(np.diff(union)) == {3, 4}
        assert union[-1] > 990
        assert spread(7, limit=None) == list(range(7))
        assert [spread(7, limit=None, rank=r, world_size=2) for r in (0, 1)] == [[0, 2, 4], [1, 3, 5]]

    def test_loaders_give_the_same_windows_every_time(self, folder: Path) -> None:
        data = data_module(folder, val_windows=6)
        data.setup()
        first, second = list(data.val_dataloader()), list(data.val_dataloader())
        assert [len(batch) for batch in first] == [4, 2]
        assert equal(first, second)
        assert sum(map(len, data.test_dataloader())) == len(data.windows["test"])
        expected = [data.windows["validation"][i] for i in spread(len(data.windows["validation"]), limit=6)]
        assert torch.equal(torch.cat(first), torch.stack(expected))


class TestRun:
    @pytest.mark.parametrize(("accumulate", "workers"), [(1, 0), (2, 0), (1, 1)])
    def test_resume_is_exact(self, folder: Path, tmp_path: Path, accumulate: int, workers: int) -> None:
        options: dict[str, Any] = {"accumulate_grad_batches": accumulate}
        make = partial(data_module, folder, num_workers=workers)
        whole = Recorder()
        train(whole, make(), steps=10, **options)
        assert len(whole.batches) == 10 * accumulate
        keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
        train(Recorder(), make(), steps=6, callbacks=[keep], **options)  # written within the run, then killed later
        resumed = Recorder()
        train(resumed, make(), steps=10, path=str(tmp_path / "step=4.ckpt"), **options)
        assert equal(resumed.batches, whole.batches[4 * accumulate :])
        assert resumed.weight.item() == whole.weight.item() != 0

    def test_resume_from_the_end_of_a_run(self, folder: Path, tmp_path: Path) -> None:
        whole, first, second = Recorder(), Recorder(), Recorder()
        train(whole, data_module(folder), steps=7)
        train(first, data_module(folder), steps=4).save_checkpoint(tmp_path / "end.ckpt")
        train(second, data_module(folder), steps=7, path=str(tmp_path / "end.ckpt"))
        assert equal(first.batches + second.batches, whole.batches)

    def test_resume_after_an_exception_and_across_validation(self, folder: Path, tmp_path: Path) -> None:
        class Killed(Recorder):
            def training_step(self, batch: Tensor, index: int) -> Tensor:
                if self.global_step == 5:
                    raise KeyError("killed")
                return super().training_step(batch, index)

        options: dict[str, Any] = {
            "val_check_interval": 2, "check_val_every_n_epoch": None, "limit_val_batches": 1.0,
        }  # fmt: skip
        whole, resumed = Recorder(), Recorder()
        train(whole, data_module(folder), steps=8, **options)
        keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        with pytest.raises(KeyError, match="killed"):
            train(Killed(), data_module(folder), steps=8, callbacks=[keep], **options)
        train(resumed, data_module(folder), steps=8, path=str(tmp_path / "step=5.ckpt"), **options)
        assert equal(resumed.batches, whole.batches[5:])

    def test_lightning_epochs_of_a_limited_length_go_on_in_the_order(self, folder: Path) -> None:
        whole, limited = Recorder(), Recorder()
        train(whole, data_module(folder), steps=8)
        train(limited, data_module(folder), steps=8, limit_train_batches=3)
        assert equal(limited.batches, whole.batches)

    def test_validation_runs_every_so_many_steps(self, folder: Path) -> None:
        module, data = Recorder(), data_module(folder, val_windows=6)
        train(
            module, data, steps=9, val_check_interval=3, check_val_every_n_epoch=None, limit_val_batches=1.0
        )  # fmt: skip
        assert [step for step, _ in module.validated] == [3, 3, 6, 6, 9, 9]
        assert equal([b for s, b in module.validated if s == 3], [b for s, b in module.validated if s == 9])

    def test_overfitting_repeats_its_batches(self, folder: Path) -> None:
        module = Recorder()
        train(module, data_module(folder), steps=6, overfit_batches=2)
        assert equal(module.batches[:2] * 3, module.batches)

    def test_ranks_of_a_trainer(self, folder: Path) -> None:
        batches, evaluated = [], []
        for rank in (0, 1):
            data = data_module(folder)
            data.trainer = FakeTrainer(rank=rank, world_size=2, done=5)  # type: ignore[assignment]
            data.setup("fit")
            batches.append(next(iter(data.train_dataloader())))
            evaluated.append(torch.cat(list(data.val_dataloader())))
        data = data_module(folder, batch_size=8)
        data.trainer = FakeTrainer(rank=0, world_size=1, done=5)  # type: ignore[assignment]
        data.setup("fit")
        assert torch.equal(torch.cat(batches), next(iter(data.train_dataloader())))
        assert len(evaluated[0]) == len(evaluated[1])

    def test_a_second_sampler_is_refused(self, folder: Path) -> None:
        data = data_module(folder)
        data.trainer = FakeTrainer(rank=0, world_size=2, done=0, use_distributed_sampler=True)  # type: ignore[assignment]
        with pytest.raises(ConfigError, match=r"use_distributed_sampler=True.*set it to false"):
            data.setup("fit")


class FakeTrainer:
    """What the data module reads of a trainer of several processes."""

    overfit_batches = 0

    def __init__(self, *, rank: int, world_size: int, done: int, use_distributed_sampler: bool = False) -> None:
        self.global_rank, self.world_size = rank, world_size
        total = type("Total", (), {"processed": done})
        progress = type("Progress", (), {"total": total})
        self.fit_loop = type("Fit", (), {"epoch_loop": type("Epoch", (), {"batch_progress": progress})})
        self._accelerator_connector = type("Accelerator", (), {"use_distributed_sampler": use_distributed_sampler})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 4000}, r"train split is too small: it has \d+ documents, \d+ tokens, 0 windows of 4001 tokens"),
        ({"batch_size": 5000}, r"but needs 5000 \(1 device\(s\), batch_size=5000\)"),
    ],
)
def test_too_few_windows_are_refused_with_the_numbers(folder: Path, change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data_module(folder, **change).setup()


def test_too_few_windows_for_the_devices(folder: Path) -> None:
    data = data_module(folder, val_windows=2)
    data.trainer = FakeTrainer(rank=0, world_size=3, done=0)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"validation split is too small.*at most 2 used.*but needs 3"):
        data.setup("fit")


class TestDocumentWindows:
    def test_each_lies_in_one_document_from_its_start(self, folder: Path) -> None:
        """As the authors' data set has them, by its definition: the full windows of each document, its tail dropped."""
        for context, extra in ((16, 1), (7, 0)):  # whatever the objective, a window has `context` tokens
            module = data_module(folder, context=context, extra=extra, windows="document")
            module.setup()
            for split, windows in module.windows.items():
                documents = "".join(map(chr, module.corpus.tokens(split))).split("\0")[:-1]
                expected = [list(map(ord, text[start : start + context])) for text in documents
                            for start in range(0, len(text) - context + 1, context)]
                assert windows.__getitems__(list(range(len(windows)))).tolist() == expected
                assert pickle.loads(pickle.dumps(windows))[3].tolist() == expected[3]
                with pytest.raises(IndexError):
                    windows[len(expected)]
            batch = next(iter(module.train_dataloader()))
            assert batch.shape == (4, context)

    def test_starts_whatever_the_documents(self) -> None:
        draw = random.Random(1)
        for lengths in ([], [0], [5], [4, 0, 0, 9, 3], [draw.randrange(12) for _ in range(50)]):
            tokens = np.array([token for length in lengths for token in (*range(1, length + 1), 0)], dtype=np.uint16)
            begins = np.cumsum([0, *(length + 1 for length in lengths)])
            for size, chunk in itertools.product((1, 2, 4, 20), (1, 3, 1000)):
                expected = [begin + start for begin, length in zip(begins, lengths, strict=False)
                            for start in range(0, length - size + 1, size)]
                assert starts_in_documents(tokens, length=size, chunk=chunk).tolist() == expected

    def test_too_few(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match=r"train split is too small: .* 0 windows of 500 tokens"):
            data_module(folder, context=500, windows="document").setup()
