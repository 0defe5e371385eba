"""Fine-tuning in its parts: examples from the hub's layout and from files, metrics, sequences, the classifier."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from glue import COLUMNS, rows, splits, write_hub, write_local, write_rows
from scipy import stats
from sklearn import metrics as sklearn_metrics

from lit_simplified import PRESETS, ConfigError, ModelConfig, Transformer
from lit_simplified.datamodules.tokenizer import train_tokenizer
from lit_simplified.finetuning import GROUPS, TASKS, FinetuneConfig
from lit_simplified.finetuning.batches import (
    Batch,
    BatchSet,
    LengthBatches,
    collate,
    encode_examples,
    sequence,
)
from lit_simplified.finetuning.checkpoint import TokenizerFile
from lit_simplified.finetuning.examples import Examples, Place, load_examples, locate
from lit_simplified.finetuning.metrics import constant_guess, decide, measure, score
from lit_simplified.finetuning.model import SequenceClassifier, with_dropout
from lit_simplified.finetuning.tasks import Metric, TextTask


def of_files(name: str, folder: Path, tmp_path: Path) -> Any:
    config = FinetuneConfig(task=name, data_dir=str(folder), cache_dir=str(tmp_path / "cache"))
    task = TASKS[name]
    return load_examples(task, locate(task, config), cache_dir=config.cache_dir)


# --- tasks ---


def test_the_tasks_are_glues_and_the_group_is_the_papers_table() -> None:
    assert {name.removeprefix("glue/") for name in TASKS if name.startswith("glue/")} == set(COLUMNS)
    for name, (columns, classes) in COLUMNS.items():
        task = TASKS[f"glue/{name}"]
        assert (task.columns, task.classes, task.configuration) == (columns, classes, name)
        assert set(task.splits) <= set(splits(name))
        assert re.fullmatch("[0-9a-f]{40}", str(task.revision))  # a commit, which does not move
    titles = [title for name in GROUPS["glue/all"] for _, title in TASKS[name].validation]
    assert titles == ["MNLI-m", "MNLI-mm", "SST-2", "STS-B", "RTE", "QNLI", "QQP", "MRPC", "CoLA"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"task": "glue/sst"}, "task='glue/sst': choose one of glue/mnli"),
        ({"from_scratch": "yes"}, "from_scratch='yes': give true or false, or both"),
        ({"epochs": 0}, "epochs=0: give a whole number from 1 to 1000000"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"warmup": 1.0}, "warmup=1.0: give a number from 0 to below 1"),
        ({"dropout": -0.1}, "dropout=-0.1"),
        ({"schedule": "step"}, "schedule='step': choose one of linear"),
        ({"head": "max"}, "head='max': choose one of mean, cramming"),
        ({"max_examples": 0}, "max_examples=0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"task": "docstrings", "data_dir": "d"}, "data_dir='d': docstrings is made from"),
    ],
)
def test_a_setting_that_cannot_serve_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        FinetuneConfig(**{"task": "glue/sst2", **change})


# --- examples ---


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hub(tmp_path_factory.mktemp("glue"))


@pytest.mark.parametrize("name", COLUMNS)
def test_every_task_of_glue_is_read_from_the_hubs_layout(name: str, hub: Path, tmp_path: Path) -> None:
    task = replace(TASKS[f"glue/{name}"], repository=str(hub))
    place = locate(task, FinetuneConfig(task=task.name))
    data = load_examples(task, place, cache_dir=str(tmp_path))
    assert place.files == ()
    assert tuple(data.splits) == task.splits
    columns, classes = COLUMNS[name]
    for split, examples in data.splits.items():
        expected = rows(name, split)
        assert examples.texts == [tuple(row[column] for column in columns) for row in expected]
        assert examples.labels == [row["label"] for row in expected]
    assert data.classes == classes


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("name", COLUMNS)
def test_every_task_of_glue_is_read_from_files(name: str, form: str, hub: Path, tmp_path: Path) -> None:
    """Parquet files as they are on the hub, from the folder of all tasks; the others from a task's own."""
    folder = hub if form == "parquet" else write_local(tmp_path / "own", name, form)
    data = of_files(f"glue/{name}", folder, tmp_path)
    for split, examples in data.splits.items():
        expected = rows(name, split)
        assert examples.labels == pytest.approx([row["label"] for row in expected], abs=1e-6)
        assert examples.texts == [tuple(row[column] for column in COLUMNS[name][0]) for row in expected]


def test_classes_by_name_are_those_of_their_numbers(tmp_path: Path) -> None:
    """F1 counts the class 1: names must not be numbered by the alphabet."""
    for split in ("train", "validation"):
        named = [{**row, "label": COLUMNS["mrpc"][1][row["label"]]} for row in rows("mrpc", split)]
        write_rows(tmp_path / f"{split}.csv", named)
    data = of_files("glue/mrpc", tmp_path, tmp_path)
    assert data.splits["train"].labels == [row["label"] for row in rows("mrpc", "train")]


def test_text_in_files_stays_what_it_is(tmp_path: Path) -> None:
    """Neither a word that pandas takes for a missing value, nor a number, nor quotation marks are changed."""
    texts = ["null", "007", 'he said "no", twice', "NA", "", "two\nlines", "naïve — 🙂"]
    for split in ("train", "validation"):
        write_rows(tmp_path / f"{split}.csv", [{"sentence": text, "label": i % 2} for i, text in enumerate(texts)])
    data = of_files("glue/sst2", tmp_path, tmp_path)
    assert data.splits["train"].texts == [(text,) for text in texts]
    with (tmp_path / "train.csv").open("r+b") as stream:  # as a spreadsheet writes it
        content = stream.read()
        stream.seek(0)
        stream.write(b"\xef\xbb\xbf" + content)
    assert of_files("glue/sst2", tmp_path, tmp_path).splits["train"].texts == [(text,) for text in texts]


def test_a_missing_text_is_empty_and_true_is_one(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_rows(tmp_path / f"{split}.jsonl", [
            {"sentence": None, "label": True}, {"sentence": "a", "label": False}, {"sentence": "b", "label": True},
        ])
    data = of_files("glue/sst2", tmp_path, tmp_path)
    assert data.splits["validation"] == Examples([("",), ("a",), ("b",)], [1, 0, 1])


@pytest.mark.parametrize(
    ("name", "label", "told"),
    [
        ("sst2", -1, r"glue/sst2: train=.-1.: is not a label: give one of negative, positive, or 0 to 1.*hides"),
        ("sst2", 2, "'2': is not a label"),
        ("sst2", "good", "'good': is not a label"),
        ("sst2", 0.5, "'0.5': is not a label"),
        ("stsb", -1.0, r"-1.0: is not a label: give a number from 0 to 5"),
        ("stsb", 5.1, "5.1: is not a label"),
        ("stsb", "much", "'much': is not a label"),
        ("stsb", None, "None: is not a label"),
    ],
)
def test_a_label_that_the_task_does_not_have_is_refused(name: str, label: Any, told: str, tmp_path: Path) -> None:
    write_local(tmp_path, name, "jsonl")
    write_rows(tmp_path / "train.jsonl", [{**rows(name, "train")[0], "label": label}])
    with pytest.raises(ConfigError, match=told):
        of_files(f"glue/{name}", tmp_path, tmp_path)


def test_files_that_lack_something_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data_dir=.*has no split 'train' of glue/rte: put one of train\.jsonl"):
        of_files("glue/rte", tmp_path, tmp_path)
    write_local(tmp_path, "rte", "csv")
    (tmp_path / "validation.csv").rename(tmp_path / "dev.csv")
    with pytest.raises(ConfigError, match="has no split 'validation'"):
        of_files("glue/rte", tmp_path, tmp_path)
    write_local(tmp_path, "rte", "jsonl")
    with pytest.raises(ConfigError, match=r"'train' more than once: keep one of train\.csv, train\.jsonl"):
        of_files("glue/rte", tmp_path, tmp_path)
    other = write_local(tmp_path / "other", "qqp", "csv")
    with pytest.raises(ConfigError, match="'sentence1': no such column; there are question1, question2, label, idx"):
        of_files("glue/mrpc", other, tmp_path)
    (other / "train.csv").write_text("question1,question2,label\n")
    with pytest.raises(ConfigError, match="glue/qqp: train=0: has no example"):
        of_files("glue/qqp", other, tmp_path)
    (other / "train.csv").unlink()
    (other / "train.jsonl").write_text("not json\n")
    with pytest.raises(ConfigError, match=r"train\.jsonl': cannot be read"):
        of_files("glue/qqp", other, tmp_path)


def test_without_a_network_the_remedies_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    task = TASKS["glue/rte"]
    place = locate(task, FinetuneConfig(task=task.name))
    with pytest.raises(ConfigError, match=r"nyu-mll/glue, rte, split 'train'.*--data-dir.*--task docstrings"):
        load_examples(task, place, cache_dir=str(tmp_path))


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_told_with_the_same_remedies(tmp_path: Path) -> None:
    """Nobody listens there. Slow, since the hub's own library tries again five times and waits in between."""
    code = (
        "import sys; from lit_simplified.finetuning import TASKS, FinetuneConfig\n"
        "from lit_simplified.finetuning.examples import load_examples, locate\n"
        "task = TASKS['glue/rte']\n"
        "load_examples(task, locate(task, FinetuneConfig(task=task.name)), cache_dir=sys.argv[1])\n"
    )
    online = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HOME": str(tmp_path / "hub"), **online},
    )
    assert "thrown while requesting" in done.stderr, "it did not even try"
    told = done.stderr.splitlines()[-1]
    assert re.search(r"ConfigError.*nyu-mll/glue, rte, split 'train'.*--data-dir.*--task docstrings", told)


def test_the_digest_of_files_is_that_of_their_content(tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        return locate(TASKS["glue/rte"], FinetuneConfig(task="glue/rte", data_dir=str(folder))).digest

    one, two = write_local(tmp_path / "one", "rte", "csv"), write_local(tmp_path / "two", "rte", "csv")
    assert digest(one) == digest(two)
    write_rows(two / "validation.csv", rows("rte", "validation")[1:])
    assert digest(one) != digest(two)


def test_fewer_examples_are_always_the_same(tmp_path: Path) -> None:
    folder = write_local(tmp_path, "sst2", "jsonl")
    task = TASKS["glue/sst2"]
    place = locate(task, FinetuneConfig(task=task.name, data_dir=str(folder)))
    whole = load_examples(task, place, cache_dir=str(tmp_path)).splits
    few = load_examples(task, place, cache_dir=str(tmp_path), max_examples=6).splits
    fewer = load_examples(task, place, cache_dir=str(tmp_path), max_examples=5).splits
    assert len(few["train"].texts) == len(few["train"].labels) == 6
    assert few["validation"] == whole["validation"]
    assert set(fewer["train"].texts) < set(few["train"].texts)
    assert few["train"].texts != whole["train"].texts[:6]  # by a hash, not from the beginning
    pairs = list(zip(whole["train"].texts, whole["train"].labels, strict=True))
    assert [pair for pair in pairs if pair[0] in few["train"].texts] == list(
        zip(few["train"].texts, few["train"].labels, strict=True)
    )


# --- metrics ---


def task_with(*metrics: Metric, regression: bool = False) -> TextTask:
    return TextTask(
        name="t", columns=("a",), metrics=metrics, validation=(("validation", "T"),),
        label_range=(0.0, 5.0) if regression else None,
    )


CLASSIFICATION = {
    "accuracy": sklearn_metrics.accuracy_score, "f1": sklearn_metrics.f1_score,
    "matthews": sklearn_metrics.matthews_corrcoef,
}


@pytest.mark.parametrize("metric", CLASSIFICATION)
@pytest.mark.parametrize("predicted", ["random", "good", "all 0", "all 1", "equal"])
def test_binary_metrics_are_sklearns(metric: Metric, predicted: str) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(101, generator=generator) < 0.3).long()
    random = (torch.rand(101, generator=generator) < 0.5).long()
    predictions = {
        "random": random, "good": torch.where(torch.rand(101, generator=generator) < 0.8, labels, random),
        "all 0": 0 * labels, "all 1": 0 * labels + 1, "equal": labels,
    }[predicted]
    expected = CLASSIFICATION[metric](labels.numpy(), predictions.numpy())
    assert measure(task_with(metric), predictions, labels, classes=2)[metric] == pytest.approx(expected, abs=1e-6)


def test_metrics_of_several_classes_are_sklearns() -> None:
    generator = torch.Generator().manual_seed(1)
    labels, predictions = torch.randint(4, (2, 200), generator=generator)
    found = measure(task_with("accuracy", "macro_f1", "matthews"), predictions, labels, classes=4)
    assert found == pytest.approx({
        "accuracy": sklearn_metrics.accuracy_score(labels, predictions),
        "macro_f1": sklearn_metrics.f1_score(labels, predictions, average="macro"),
        "matthews": sklearn_metrics.matthews_corrcoef(labels, predictions),
    }, abs=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_correlations_are_scipys(offset: float) -> None:
    """Also with ties, which GLUE's similarities have, and far from 0."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(11, (300,), generator=generator) / 2
    predictions = offset + labels + torch.randn(300, generator=generator).round(decimals=1)
    found = measure(task_with("pearson", "spearman", regression=True), predictions, labels, classes=1)
    assert found["pearson"] == pytest.approx(stats.pearsonr(predictions.double(), labels).statistic, abs=1e-6)
    assert found["spearman"] == pytest.approx(stats.spearmanr(predictions, labels).statistic, abs=1e-6)
    assert score(found) == pytest.approx((found["pearson"] + found["spearman"]) / 2)


@pytest.mark.filterwarnings("error")
def test_a_constant_prediction_has_no_correlation() -> None:
    labels = torch.tensor([0.0, 1.0, 4.5])
    task = task_with("pearson", "spearman", regression=True)
    assert measure(task, torch.full((3,), 2.0), labels, classes=1) == {"pearson": 0.0, "spearman": 0.0}
    assert measure(task, labels, torch.full((3,), 2.0), classes=1) == {"pearson": 0.0, "spearman": 0.0}


def test_what_outputs_and_training_labels_predict() -> None:
    assert decide(torch.tensor([[0.1, 2.0, 1.0], [3.0, 0.0, 0.0]])).tolist() == [1, 0]
    assert decide(torch.tensor([[0.5], [-1.0]])).tolist() == [0.5, -1.0]
    assert int(constant_guess(task_with("accuracy"), torch.tensor([2, 0, 2, 1]))) == 2
    assert float(constant_guess(task_with("pearson", regression=True), torch.tensor([1.0, 2.0]))) == 1.5


# --- sequences ---


def longest_first(texts: list[list[int]], room: int) -> list[int]:
    """The rule, token by token: the longer text loses its last, of equals the second."""
    texts = [[*text] for text in texts]
    while sum(map(len, texts)) > room:
        max(reversed(texts), key=len).pop()
    return [0, *(token for text in texts for token in (*text, 0))]


@pytest.mark.parametrize("room", [1, 2, 5, 6, 11, 40])
def test_sequences_stand_between_ends_and_the_longer_text_is_shortened(room: int) -> None:
    random = np.random.default_rng(room)
    for first, second in random.integers(0, 20, size=(60, 2)):
        a, b = [list(random.integers(3, 99, size=n)) for n in (first, second)]
        assert sequence([a, b], room=room).tolist() == longest_first([a, b], room)
        assert sequence([a], room=room).tolist() == longest_first([a], room)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFile:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(["the value of a function", "len of what is returned"] * 9, vocab_size=290).save(str(path))
    return TokenizerFile("0" * 64, path)


def test_texts_become_sequences(tokenizer: TokenizerFile) -> None:
    from lit_simplified.datamodules import load_tokenizer

    texts = [("the value", "of"), ("", ""), ("a function " * 20, "len"), ("<|end|>", "x")]
    encoded = encode_examples(Examples(texts, [0, 1, 0, 1]), tokenizer=tokenizer, context=16, regression=False)
    read = load_tokenizer(tokenizer.path)
    first = [0, *read.encode("the value").ids, 0, *read.encode("of").ids, 0]
    assert encoded.sequences[0].tolist() == first
    assert encoded.sequences[1].tolist() == [0, 0, 0]
    assert len(encoded.sequences[2]) == 16
    assert encoded.sequences[2][-2:].tolist() == [*read.encode("len").ids, 0][-2:]
    assert (encoded.sequences[3] == 0).sum() == 3  # a text that spells out END does not hold one
    assert encoded.truncated == 1
    assert encoded.labels.dtype == torch.int64
    numbers = encode_examples(Examples([("a",)], [2.5]), tokenizer=tokenizer, context=16, regression=True)
    assert (numbers.labels.dtype, numbers.labels.tolist()) == (torch.float32, [2.5])
    with pytest.raises(ConfigError, match="is too short for 2 texts"):
        encode_examples(Examples(texts, [0, 1, 0, 1]), tokenizer=tokenizer, context=4, regression=False)


def test_batches_are_padded_to_their_longest() -> None:
    batch = collate([np.array([0, 7, 0]), np.array([0, 5, 6, 9, 0])], torch.tensor([1, 0]))
    assert batch.tokens.tolist() == [[0, 7, 0, 1, 1], [0, 5, 6, 9, 0]]
    assert batch.attention_mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert batch.labels.tolist() == [1, 0]


def test_an_epoch_has_every_example_once_in_an_order_of_seed_and_epoch() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, size=1003).tolist()

    def batches(seed: int, epoch: int) -> list[list[int]]:
        return list(LengthBatches(lengths, batch_size=8, seed=seed, epoch=lambda: epoch))

    first = batches(0, 0)
    assert len(first) == len(LengthBatches(lengths, batch_size=8, seed=0)) == 126
    assert sorted(i for batch in first for i in batch) == list(range(1003))
    assert first == batches(0, 0)
    assert first != batches(0, 1) != batches(1, 1)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in first)
    assert padded < 1.1 * sum(lengths)  # at random it would be 1.8 times
    means = [np.mean([lengths[i] for i in batch]) for batch in first]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.3  # not the short ones first


# --- the classifier ---


def classifier(preset: str, *, outputs: int = 3, causal: bool = False, dropout: float = 0.0) -> SequenceClassifier:
    torch.manual_seed(0)
    model = ModelConfig(
        block=replace(PRESETS[preset], query_init="normal"), depth=2, width=16, heads=2, vocab_size=50, context=12,
        causal=causal,
    )
    return SequenceClassifier(Transformer(with_dropout(model, dropout)), outputs=outputs, dropout=dropout).double()


def ragged(generator: torch.Generator) -> list[np.ndarray[Any, Any]]:
    sizes = (3, 12, 7, 4)
    return [torch.randint(3, 50, (size,), generator=generator).numpy().astype(np.int32) for size in sizes]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("preset", PRESETS)
def test_padding_changes_neither_outputs_nor_gradients(preset: str, causal: bool) -> None:
    model = classifier(preset, causal=causal)
    sequences, labels = ragged(torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])

    def gradients(batches: list[Batch]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        outputs = [model(batch.tokens, batch.attention_mask) for batch in batches]
        joined = torch.cat(outputs)
        torch.nn.functional.cross_entropy(joined, labels).backward()
        return joined.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    together = gradients([collate(sequences, labels)])
    alone = gradients([collate([ids], labels[i : i + 1]) for i, ids in enumerate(sequences)])
    assert together[0].shape == (4, 3)
    torch.testing.assert_close(together[0], alone[0], rtol=0, atol=1e-10)
    assert len(together[1]) == len(alone[1])
    for one, other in zip(*(found[1] for found in (together, alone)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_the_head_is_a_layer_with_tanh_over_the_mean_of_the_positions() -> None:
    model = classifier("sas", outputs=2)
    batch = collate(ragged(torch.Generator().manual_seed(1)), torch.zeros(4, dtype=torch.int64))
    hidden = model.encoder.hidden(batch.tokens, batch.attention_mask)
    outputs = model(batch.tokens, batch.attention_mask)
    for row, real, output in zip(hidden, batch.attention_mask, outputs, strict=True):
        mean = row[real].mean(0)
        dense = torch.tanh(mean @ model.dense.weight.T + model.dense.bias)
        torch.testing.assert_close(output, dense @ model.output.weight.T + model.output.bias)
    std = model.encoder.config.resolved_init_std
    assert float(model.dense.weight.detach().std()) == pytest.approx(std, rel=0.15)
    assert not model.dense.bias.any()


@pytest.mark.parametrize("outputs", [1, 3])
def test_the_crammed_head_reads_the_first_position_through_1024_units(outputs: int) -> None:
    """Outputs and gradients in float64, against each sequence alone through the formula."""
    torch.manual_seed(0)
    config = ModelConfig(depth=2, width=16, heads=2, vocab_size=50, context=12, causal=False)
    model = SequenceClassifier(Transformer(config), outputs=outputs, dropout=0.0, head="cramming").double()
    sequences, direction = ragged(torch.Generator().manual_seed(1)), torch.randn(4, outputs, dtype=torch.float64)
    batch = collate(sequences, torch.zeros(4, dtype=torch.int64))
    found = model(batch.tokens, batch.attention_mask)
    (w1, b1), (w2, b2) = ((layer.weight, layer.bias) for layer in (model.dense, model.output))
    assert [tuple(tensor.shape) for tensor in (w1, b1, w2, b2)] == [(1024, 16), (1024,), (outputs, 1024), (outputs,)]
    first = torch.stack([model.encoder.hidden(torch.from_numpy(ids).long()[None])[0, 0] for ids in sequences])
    grown = (2 * (first @ w1.T + b1)).exp()
    expected = (1 - 2 / (grown + 1)) @ w2.T + b2  # tanh
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    trained = [p for p in model.parameters() if p.requires_grad]
    for ours, theirs in zip(*(torch.autograd.grad((x * direction).sum(), trained) for x in (found, expected)),
                            strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    assert float(w1.detach().std()) == pytest.approx(config.resolved_init_std, rel=0.05)
    assert not b1.any()


def test_dropout_is_that_of_the_fine_tuning() -> None:
    model = classifier("sas_p", dropout=0.4)
    probabilities = [part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)]
    assert probabilities == [0.4] * (1 + 2 * 2 + 1)  # embedding, attention and MLP of two blocks, head
    batch = collate(ragged(torch.Generator().manual_seed(1)), torch.zeros(4, dtype=torch.int64))
    assert not torch.equal(model(batch.tokens, batch.attention_mask), model(batch.tokens, batch.attention_mask))
    model.eval()
    assert torch.equal(model(batch.tokens, batch.attention_mask), model(batch.tokens, batch.attention_mask))


def test_an_untied_head_of_the_language_model_is_not_trained() -> None:
    config = ModelConfig(depth=1, width=16, heads=2, vocab_size=50, context=12, causal=False, tied_head=False)
    model = SequenceClassifier(Transformer(config), outputs=2, dropout=0.0)
    idle = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert idle == {"encoder.head.weight"}
    assert model.encoder.embedding.weight.requires_grad


def test_a_batch_set_gives_what_is_asked_for() -> None:
    from lit_simplified.finetuning.batches import Encoded

    encoded = Encoded([np.array([0, i, 0], dtype=np.int32) for i in range(5)], torch.arange(5), 0)
    batch = BatchSet(encoded).__getitems__([3, 1])
    assert batch.tokens[:, 1].tolist() == batch.labels.tolist() == [3, 1]
    assert len(BatchSet(encoded)) == 5


def test_a_place_on_the_hub_names_its_revision() -> None:
    task = TASKS["glue/cola"]
    assert locate(task, FinetuneConfig(task=task.name)) == Place(f"nyu-mll/glue/cola@{task.revision}")
