"""Small copies of GLUE for the tests: the hub's columns, types and splits, in the hub's layout or as local files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # configuration -> text columns, class names (none: the label is a float32 from 0 to 5), as on the hub
    "cola": (("sentence",), ("unacceptable", "acceptable")),
    "sst2": (("sentence",), ("negative", "positive")),
    "mrpc": (("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "qqp": (("question1", "question2"), ("not_duplicate", "duplicate")),
    "stsb": (("sentence1", "sentence2"), ()),
    "mnli": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "qnli": (("question", "sentence"), ("entailment", "not_entailment")),
    "rte": (("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "wnli": (("sentence1", "sentence2"), ("not_entailment", "entailment")),
}
SIZES = {"train": 24, "validation": 9, "test": 5}


def splits(name: str) -> dict[str, int]:
    """The hub's splits, with the examples that a small copy has."""
    if name != "mnli":
        return SIZES
    return {"train": 24, "validation_matched": 9, "validation_mismatched": 7, "test_matched": 5, "test_mismatched": 4}


def rows(name: str, split: str) -> list[dict[str, Any]]:
    """Examples whose label is told by their words; those of a test split are hidden, as GLUE's."""
    columns, classes = COLUMNS[name]
    random = np.random.default_rng(sum(map(ord, name + split)))
    found: list[dict[str, Any]] = []
    for number in range(splits(name)[split]):
        label: float = number % len(classes) if classes else float(np.float32(round(random.uniform(0, 5), 3)))
        words = [f"function value {int(label)} len {random.integers(90)}" * (1 + number % 3) for _ in columns]
        hidden = -1 if classes else -1.0
        texts = dict(zip(columns, words, strict=True))
        found.append({**texts, "label": hidden if split.startswith("test") else label, "idx": number})
    return found


def write_hub(folder: Path, names: tuple[str, ...] = tuple(COLUMNS)) -> Path:
    """A repository like nyu-mll/glue: parquet files per configuration, and the card that lists them."""
    from datasets import ClassLabel, Dataset, Features, Value

    configs = []
    for name in names:
        columns, classes = COLUMNS[name]
        label = ClassLabel(names=list(classes)) if classes else Value("float32")
        features = Features({**{c: Value("string") for c in columns}, "label": label, "idx": Value("int32")})
        files = []
        for split in splits(name):
            path = folder / name / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            Dataset.from_list(rows(name, split), features=features).to_parquet(path)
            files.append({"split": split, "path": f"{name}/{split}-*"})
        configs.append({"config_name": name, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    return folder


def write_local(folder: Path, name: str, form: str) -> Path:
    """The splits of a task as `train.csv` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits(name):
        write_rows(folder / f"{split}.{form}", rows(name, split))
    return folder


def write_rows(path: Path, examples: list[dict[str, Any]]) -> None:
    """Rows as CSV, TSV or JSON lines, by the suffix."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in examples))
        return
    options: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(examples[0]), **options)
        writer.writeheader()
        writer.writerows(examples)
