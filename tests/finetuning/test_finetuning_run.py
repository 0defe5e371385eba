"""`finetune` and the suite, on a tiny pretrained model."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from glue import rows, write_local, write_rows

from lit_simplified import PRESETS, ConfigError, ModelConfig, RunConfig, RunResult
from lit_simplified.__main__ import main
from lit_simplified.config import DataConfig, OptimConfig, TrainerConfig
from lit_simplified.finetuning import GROUPS, TASKS, FinetuneConfig, FinetuneResult, finetune
from lit_simplified.finetuning.batches import LengthBatches, encode_task
from lit_simplified.finetuning.checkpoint import read_checkpoint
from lit_simplified.finetuning.examples import locate
from lit_simplified.finetuning.module import LitClassifier
from lit_simplified.finetuning.run import build_module, read_result
from lit_simplified.finetuning.suite import run_suite


@pytest.fixture(scope="module")
def pretrained(corpus: DataConfig, finished_run: Callable[[RunConfig], RunResult]) -> Callable[..., Path]:
    """Pretrains a small model; gives the folder of its run."""

    def pretrain(**changes: Any) -> Path:
        model = ModelConfig(block=PRESETS["sas"], depth=2, width=16, heads=2, vocab_size=300, context=48)
        config = RunConfig(
            task="mlm", model=model, data=corpus, optim=OptimConfig(steps=3),
            trainer=TrainerConfig(
                accelerator="cpu", val_every=3, inspect_every=0, tensorboard=False, progress_bar=False, threads=1
            ),
        )
        return Path(finished_run(replace(config, **changes)).run_dir)

    return pretrain


@pytest.fixture(scope="module")
def run(pretrained: Callable[..., Path]) -> Path:
    """A masked language model, pretrained for three steps."""
    return pretrained()


@pytest.fixture
def config(tmp_path: Path) -> FinetuneConfig:
    return FinetuneConfig(
        task="glue/sst2", data_dir=str(write_local(tmp_path / "data", "sst2", "jsonl")), epochs=2, batch_size=8,
        accelerator="cpu", threads=1, progress_bar=False, out_dir=str(tmp_path / "out"),
        cache_dir=str(tmp_path / "cache"),
    )


def outcome(result: FinetuneResult) -> dict[str, Any]:
    """What must be equal when a run is repeated."""
    values = asdict(result)
    for point in values["curve"]:
        del point["seconds"]
    return {name: value for name, value in values.items() if name not in ("seconds", "run_dir")}


# --- one run ---


def test_what_a_run_leaves(config: FinetuneConfig, run: Path) -> None:
    result = finetune(config, run=run, seed=3)
    folder = Path(result.run_dir)
    assert folder.parent == Path(config.out_dir) / "glue" / "sst2"
    assert re.fullmatch("sas-s0-f3-[0-9a-f]{8}", folder.name)
    assert (result.state, result.reason, result.block, result.seed) == ("complete", "", "sas", 3)
    assert result.examples == {"train": 24, "validation": 9}
    assert result.steps == 2 * 3
    assert [point.epoch for point in result.curve] == [1, 2]
    assert result.metrics == result.curve[-1].metrics
    assert result.score == result.scores["validation"] == result.metrics["validation"]["accuracy"]
    # 12 of 24 are of each class: the first is guessed, which 5 of 9 are of
    assert result.guess == {"validation": {"accuracy": pytest.approx(5 / 9)}}
    assert result.checkpoint_sha256 == read_checkpoint(run).sha256
    head = 16 * 16 + 16 + 16 * 2 + 2
    assert result.parameters == json.loads((run / "result.json").read_text())["parameters"] + head
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "result.json"]
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["finetune"] == asdict(config)
    assert written["pretraining"]["model"]["width"] == 16
    assert read_result(folder) == result


@pytest.mark.parametrize("name", ["stsb", "mnli"])
def test_regression_and_two_validation_splits(
    name: str, config: FinetuneConfig, run: Path, tmp_path: Path
) -> None:
    folder = write_local(tmp_path / name, name, "csv")
    result = finetune(replace(config, task=f"glue/{name}", data_dir=str(folder)), run=run)
    assert result.score == pytest.approx(sum(result.scores.values()) / len(result.scores))
    if name == "stsb":
        pearson, spearman = result.metrics["validation"].values()
        assert result.scores["validation"] == pytest.approx((pearson + spearman) / 2)
        assert result.guess == {"validation": {"pearson": 0.0, "spearman": 0.0}}
        assert result.classes == ()
    else:
        assert list(result.metrics) == ["validation_matched", "validation_mismatched"]
        assert result.examples["validation_mismatched"] == 7
        assert len(result.classes) == 3


def test_same_seed_same_result_other_seed_another(config: FinetuneConfig, run: Path, tmp_path: Path) -> None:
    first = finetune(config, run=run)
    assert outcome(first) == outcome(finetune(replace(config, out_dir=str(tmp_path / "again")), run=run))
    other = finetune(config, run=run, seed=1)
    assert [p.train_loss for p in other.curve] != [p.train_loss for p in first.curve]


@pytest.mark.parametrize("from_scratch", [False, True])
def test_the_seed_is_also_that_of_the_weights(config: FinetuneConfig, run: Path, from_scratch: bool) -> None:
    """All examples in one batch, without dropout: what is left of the seed is what a model begins with."""
    whole = replace(config, batch_size=24, dropout=0.0, from_scratch=from_scratch, epochs=1)
    losses = [finetune(whole, run=run, seed=seed).curve[0].train_loss for seed in (0, 1)]
    assert abs(losses[0] - losses[1]) > 1e-4


def test_every_epoch_has_an_order_of_its_own(
    config: FinetuneConfig, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[list[list[int]]] = []
    draw = LengthBatches.__iter__

    def noted(self: LengthBatches) -> Iterator[list[int]]:
        orders.append(list(draw(self)))
        return iter(orders[-1])

    monkeypatch.setattr(LengthBatches, "__iter__", noted)
    finetune(replace(config, epochs=3), run=run, seed=5)
    checkpoint, task = read_checkpoint(run), TASKS["glue/sst2"]
    lengths = [len(ids) for ids in encode_task(
        task, locate(task, config), cache_dir=config.cache_dir, max_examples=None, tokenizer=checkpoint.tokenizer,
        context=48,
    ).splits["train"].sequences]
    expected = [list(draw(LengthBatches(lengths, batch_size=8, seed=5, epoch=lambda e=e: e))) for e in range(3)]
    assert orders == expected
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize("preset", ["pre_ln", "sas_p"])
def test_it_learns(
    preset: str, config: FinetuneConfig, pretrained: Callable[..., Path], tmp_path: Path
) -> None:
    """Sixteen sentences whose label is a word in them: all are told apart, from a pretrained model of either kind."""
    model = ModelConfig(block=PRESETS[preset], depth=2, width=16, heads=2, vocab_size=300, context=48)
    run = pretrained(model=model)
    examples = rows("sst2", "train")[:16]
    for split in ("train", "validation"):
        write_rows(tmp_path / "data" / f"{split}.jsonl", examples)
    result = finetune(replace(config, epochs=40, learning_rate=1e-2, dropout=0.0), run=run)
    assert result.score == 1.0
    assert result.curve[-1].train_loss < 0.1 < result.curve[0].train_loss


def test_regression_learns(config: FinetuneConfig, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stsb"
    folder.mkdir()
    examples = rows("stsb", "train")[:16]
    for number, row in enumerate(examples):
        row |= {"label": float(number % 4), "sentence2": f"value {'len ' * (number % 4)}"}
    for split in ("train", "validation"):
        write_rows(folder / f"{split}.csv", examples)
    single = replace(
        config, task="glue/stsb", data_dir=str(folder), epochs=80, learning_rate=1e-2, dropout=0.0, clip=1.0
    )
    result = finetune(single, run=run)
    assert result.metrics["validation"]["pearson"] > 0.98
    assert result.curve[-1].val_loss["validation"] < 0.1


def test_the_encoder_starts_as_the_checkpoint_and_from_scratch_it_does_not(config: FinetuneConfig, run: Path) -> None:
    checkpoint, task = read_checkpoint(run), TASKS["glue/sst2"]
    data = encode_task(
        task, locate(task, config), cache_dir=config.cache_dir, max_examples=None, tokenizer=checkpoint.tokenizer,
        context=48,
    )
    saved = checkpoint.weights()
    loaded = build_module(config, task=task, checkpoint=checkpoint, data=data).model.encoder.state_dict()
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)
    fresh = build_module(replace(config, from_scratch=True), task=task, checkpoint=checkpoint, data=data)
    weights = fresh.model.encoder.state_dict()
    assert weights.keys() == saved.keys()
    assert not torch.equal(weights["embedding.weight"], saved["embedding.weight"])


def test_a_causal_model_may_be_fine_tuned(config: FinetuneConfig, pretrained: Callable[..., Path]) -> None:
    causal = pretrained(task="clm")
    assert finetune(config, run=causal).state == "complete"
    with pytest.raises(ConfigError, match=r"head='cramming': the first position of a causal model .* choose mean"):
        finetune(replace(config, head="cramming"), run=causal)


def test_a_head_that_a_later_checkpoint_cannot_have_is_refused_before_anything_is_trained(
    config: FinetuneConfig, run: Path, pretrained: Callable[..., Path], trainings: list[str]
) -> None:
    with pytest.raises(ConfigError, match="head='cramming'"):
        run_suite(replace(config, head="cramming"), checkpoints=[run, pretrained(task="clm")], seeds=[0])
    assert not trainings


def test_a_loss_that_is_not_finite_is_a_result(config: FinetuneConfig, run: Path) -> None:
    result = finetune(replace(config, learning_rate=1e30, epochs=30, warmup=0.0, schedule="constant"), run=run)
    assert result.state == "diverged"
    assert re.search("nan|inf", result.reason)
    assert (result.score, result.scores, result.metrics) == (None, {}, {})
    assert result.steps < 30 * 3
    folder = Path(result.run_dir)
    assert json.loads((folder / "result.json").read_text())["score"] is None
    assert read_result(folder) == result


@pytest.mark.parametrize("where", ["loss", "outputs"])
def test_nan_is_seen_in_the_loss_and_in_the_validation(
    where: str, config: FinetuneConfig, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "loss":
        monkeypatch.setattr(LitClassifier, "loss", lambda self, outputs, labels: outputs.sum() * math.nan)
    else:
        step = LitClassifier.validation_step

        def broken(self: LitClassifier, *arguments: Any) -> None:
            step(self, *arguments)
            self.now.outputs[0][0][0, 0] = math.nan

        monkeypatch.setattr(LitClassifier, "validation_step", broken)
    result = finetune(config, run=run)
    assert result.state == "diverged"
    assert result.reason.startswith("mean training loss nan" if where == "loss" else "outputs on validation nan")
    assert result.curve == ()


def test_a_diverged_run_ends_within_its_epoch(
    config: FinetuneConfig, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LitClassifier, "loss", lambda self, outputs, labels: outputs.sum() * math.nan)
    result = finetune(replace(config, batch_size=1), run=run)
    assert result.examples["train"] > result.steps == 10


# --- what is repeated ---


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A word for every training that was begun."""
    begun: list[str] = []
    start = LitClassifier.on_train_start

    def noted(self: LitClassifier) -> None:
        begun.append(self.task.name)
        start(self)

    monkeypatch.setattr(LitClassifier, "on_train_start", noted)
    return begun


def test_a_finished_run_is_not_repeated(config: FinetuneConfig, run: Path, trainings: list[str]) -> None:
    first = finetune(config, run=run)
    assert finetune(config, run=run) == first
    elsewhere = replace(config, threads=None, accelerator="auto", progress_bar=True, cache_dir="nowhere")
    assert finetune(elsewhere, run=run) == first  # none of these decides the result
    assert len(trainings) == 1
    assert outcome(finetune(config, run=run, redo=True)) == outcome(first)
    assert len(trainings) == 2


def test_what_decides_the_result_is_trained_anew(
    config: FinetuneConfig, run: Path, pretrained: Callable[..., Path], tmp_path: Path, trainings: list[str]
) -> None:
    finetune(config, run=run)
    finetune(config, run=run, seed=1)
    finetune(replace(config, learning_rate=1e-3), run=run)
    finetune(replace(config, from_scratch=True), run=run)
    assert len(trainings) == 4
    crammed = finetune(replace(config, head="cramming"), run=run)
    assert len(trainings) == 5
    head = 16 * 1024 + 1024 + 1024 * 2 + 2
    assert crammed.parameters == json.loads((run / "result.json").read_text())["parameters"] + head
    other = pretrained(seed=1)
    finetune(config, run=other)
    assert len(trainings) == 6
    finetune(replace(config, from_scratch=True), run=other)  # of another checkpoint only sizes and tokenizer are used
    assert len(trainings) == 6
    write_rows(tmp_path / "data" / "train.jsonl", rows("sst2", "train")[1:])  # other examples under the same names
    finetune(config, run=run)
    assert len(trainings) == 7


def test_an_interrupted_run_is_repeated(
    config: FinetuneConfig, run: Path, trainings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class CrashError(Exception):
        pass

    def crash(self: LitClassifier, *arguments: Any) -> None:
        if self.global_step == 4:
            raise CrashError

    with monkeypatch.context() as patched:
        patched.setattr(LitClassifier, "on_train_batch_end", crash)
        with pytest.raises(CrashError):
            finetune(config, run=run)
    result = finetune(config, run=run)
    assert trainings == ["glue/sst2"] * 2
    assert outcome(result) == outcome(finetune(config, run=run, redo=True))


def test_a_repetition_that_is_interrupted_leaves_no_result(
    config: FinetuneConfig, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(finetune(config, run=run).run_dir)
    monkeypatch.setattr(LitClassifier, "configure_optimizers", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        finetune(config, run=run, redo=True)
    assert read_result(folder) is None


def test_a_checkpoint_that_was_trained_anew_is_another(
    config: FinetuneConfig, run: Path, tmp_path: Path, trainings: list[str]
) -> None:
    """The same configuration and seed with other weights, as another machine would give them."""
    finetune(config, run=run)
    copy = shutil.copytree(run, tmp_path / "copy")
    finetune(config, run=copy)
    assert len(trainings) == 1
    file = copy / "checkpoints" / "last.ckpt"
    saved = torch.load(file, weights_only=True)
    saved["state_dict"]["model.embedding.weight"] += 0.1
    torch.save(saved, file)
    finetune(config, run=copy)
    assert len(trainings) == 2


def test_half_a_result_does_not_count(config: FinetuneConfig, run: Path) -> None:
    folder = Path(finetune(config, run=run).run_dir)
    text = (folder / "result.json").read_text()
    (folder / "result.json").write_text(text[: len(text) // 2])
    assert read_result(folder) is None


# --- checkpoints ---


def test_a_checkpoint_is_a_folder_or_a_file_of_a_finished_run(
    config: FinetuneConfig, run: Path, tmp_path: Path
) -> None:
    assert read_checkpoint(run) == read_checkpoint(run / "checkpoints" / "last.ckpt")
    with pytest.raises(ConfigError, match="no such file: give the folder of a run that `fit` has finished"):
        finetune(config, run=tmp_path / "nowhere")
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "tokenizer.json").unlink()  # as `fit` leaves it before its end
    with pytest.raises(ConfigError, match="tokenizer="):
        finetune(config, run=copy)
    shutil.copy(run / "tokenizer.json", copy)
    torch.save({"weights": 1}, copy / "checkpoints" / "last.ckpt")
    with pytest.raises(ConfigError, match="is not a checkpoint of `fit`"):
        finetune(config, run=copy)
    (copy / "checkpoints" / "last.ckpt").write_text("no checkpoint")
    with pytest.raises(ConfigError, match="is not a checkpoint of `fit`"):
        finetune(config, run=copy)


def test_seeds_of_one_pretraining_are_told_from_other_pretrainings(run: Path, pretrained: Callable[..., Path]) -> None:
    one = read_checkpoint(run)
    seed = read_checkpoint(pretrained(seed=1))
    longer = read_checkpoint(pretrained(optim=OptimConfig(steps=4)))
    assert one.pretraining == seed.pretraining != longer.pretraining
    assert len({one.sha256, seed.sha256, longer.sha256}) == 3


# --- the command ---


def test_the_command_runs_the_papers_table(
    config: FinetuneConfig, run: Path, pretrained: Callable[..., Path], tmp_path: Path, trainings: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All eight tasks, with the seeds averaged, and nothing a second time."""
    data = tmp_path / "glue"
    for name in GROUPS["glue/all"]:
        write_local(data / name.removeprefix("glue/"), name.removeprefix("glue/"), "jsonl")
    arguments = [
        "finetune", "--checkpoint", str(run), str(pretrained(seed=1)), "--task", "glue/all",
        "--data_dir", str(data), "--seeds", "0", "--epochs", "1", "--batch_size", "24", "--threads", "1",
        "--progress_bar", "false", "--accelerator", "cpu", "--out_dir", config.out_dir,
    ]
    main(arguments)
    printed = capsys.readouterr().out
    assert len(trainings) == 8 * 2
    lines = (Path(config.out_dir) / "glue" / "table.md").read_text().splitlines()
    assert lines[0].split(" | ")[4:] == [
        "MNLI-m", "MNLI-mm", "SST-2", "STS-B", "RTE", "QNLI", "QQP", "MRPC", "CoLA", "mean",
        "mean (crammed) |",
    ]
    assert len(lines) == 4
    assert lines[2].startswith("| sas | pretrained | 2 |")
    assert lines[2].count("±") == 11
    for told in ("glue/cola: sas (pretrained, seed 1), seed 0: matthews", "table.md"):
        assert told in printed
    main(arguments)
    assert len(trainings) == 8 * 2
    main([*arguments, "--task", "glue/rte", "--data_dir", str(data / "rte"), "--from_scratch", "both"])
    assert len(trainings) == 8 * 2 + 1  # the fresh one; both checkpoints would give the same
    assert "from scratch" in (Path(config.out_dir) / "glue" / "rte" / "table.md").read_text()


def test_a_group_takes_no_tasks_files_for_anothers(config: FinetuneConfig, run: Path, tmp_path: Path) -> None:
    """RTE, MRPC, STS-B and WNLI have the same columns."""
    data = write_local(tmp_path / "glue", "rte", "csv")
    with pytest.raises(ConfigError, match="has no split 'train' of glue/mnli"):
        run_suite(replace(config, task="glue/all", data_dir=str(data)), checkpoints=[run], seeds=[0])


def test_the_table_of_an_interrupted_command_has_what_is_finished(
    config: FinetuneConfig, run: Path, tmp_path: Path
) -> None:
    write_local(tmp_path / "glue" / "mnli", "mnli", "csv")
    with pytest.raises(ConfigError, match="has no split 'train' of glue/sst2"):
        run_suite(
            replace(config, task="glue/all", data_dir=str(tmp_path / "glue")), checkpoints=[run], seeds=[0, 1]
        )
    head, _, row, guess = (Path(config.out_dir) / "glue" / "table.md").read_text().splitlines()
    cells = dict(zip(head.split("|")[1:-1], row.split("|")[1:-1], strict=True))
    assert "±" in cells[" MNLI-m "]
    assert cells[" SST-2 "].strip() == cells[" mean "].strip() == ""
    assert guess.count(".") == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--task", "glue/x"], "error: task='glue/x': choose one of glue/mnli"),
        (["--task", "glue/rte", "--seeds", "1", "1"], r"error: seeds=\[1, 1\]: give different numbers"),
        (["--task", "glue/rte", "--from_scratch", "perhaps"], "perhaps"),
        (["--task", "glue/rte", "--data_dir", "nowhere"], "error: data_dir='nowhere': has no split 'train'"),
        (["--task", "glue/rte", "--precision", "bf16-mixed"], "error: precision='bf16-mixed'"),
    ],
)
def test_mistakes_end_the_command_with_one_line(
    arguments: list[str], told: str, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(SystemExit) as ended:
        main(["finetune", "--checkpoint", str(run), *arguments, "--accelerator", "cpu"])
    assert re.search(told, f"{ended.value.code}{capsys.readouterr().err}")


def test_ctrl_c_ends_with_a_word_on_how_to_go_on(
    config: FinetuneConfig, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: LitClassifier, *arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LitClassifier, "on_train_batch_end", interrupt)
    with pytest.raises(SystemExit, match="Interrupted: the same command"):
        main(["finetune", "--checkpoint", str(run), "--task", config.task, "--data_dir", str(config.data_dir),
              "--accelerator", "cpu", "--progress_bar", "false", "--out_dir", config.out_dir])
    assert not list(Path(config.out_dir).rglob("result.json"))


def test_the_progress_bar_shows_run_and_score(
    config: FinetuneConfig, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(replace(config, progress_bar=True), run=run, seed=4)
    printed = "".join(capsys.readouterr())
    assert "glue/sst2: sas, seed 0, seed 4, epoch 2/2" in printed
    assert re.search(r"loss=0\.\d{3}, accuracy=0\.\d{3}", printed)


def test_one_run_is_pretrained_or_not(config: FinetuneConfig, run: Path) -> None:
    with pytest.raises(ConfigError, match="from_scratch='both': a single run is one or the other"):
        finetune(replace(config, from_scratch="both"), run=run)


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["finetune", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for told in ("--checkpoint", "glue/all", "Share of the steps", "Finished fine-tunings are not repeated",
                 "as a control"):
        assert told in text
