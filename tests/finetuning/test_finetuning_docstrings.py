"""The tasks made of docstrings, on a small tree of packages: what is kept, what is dropped, and where it goes."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_simplified import ConfigError
from lit_simplified.datamodules.corpus import choose_split
from lit_simplified.datamodules.recipe import Shares
from lit_simplified.finetuning import TASKS, FinetuneConfig, docstrings
from lit_simplified.finetuning.docstrings import (
    RULES,
    Docstring,
    first_sentences,
    kind_names,
    library,
    library_names,
    prepare_docstrings,
    select,
)
from lit_simplified.finetuning.examples import load_examples, locate

TOPICS = {"stdlib": "open file", "installed/numpy": "sorted array", "installed/sympy": "symbolic integral"}
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def module(topic: str, number: int) -> str:
    """A module whose docstrings are all different; some words tell the package."""
    words = f"{NUMBERS[number // 10]} {NUMBERS[number % 10]}"
    return f'''
"""The tools that are used for the {topic} of sort {words}."""

# a comment that is in no docstring, on the {topic} and {words}

class Thing:
    """A holder for the {topic} that is called {words}. It has more to say. And a third thing. And a fourth."""

    def change(self):
        """Changes the {topic} in place, by {words}."""

    @property
    def size(self):
        """The size of the {topic}, {words} of them."""

def make():
    """Makes the {topic} out of {words}, with numpy or not."""

def short():
    """Gives back the size."""
'''


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixty modules as the recipe `prose` names them."""
    root = tmp_path / "tree"
    for package, topic in TOPICS.items():
        (root / package).mkdir(parents=True)
        for number in range(20):
            (root / package / f"m{number}.py").write_text(module(topic, number))
    recipe = tmp_path / "tree.yaml"
    recipe.write_text(yaml.safe_dump({"kind": "files", "paths": [str(root)], "include": ["**/*.py"]}))
    monkeypatch.setattr(docstrings, "RECIPE", str(recipe))
    return root


def read(folder: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def test_the_label_is_the_library_and_the_split_that_of_the_path(tree: Path, tmp_path: Path) -> None:
    folder = prepare_docstrings("docstrings", cache_dir=tmp_path / "cache")
    found = read(folder, "train") + read(folder, "validation")
    assert {example["label"] for example in found} == {"stdlib", "numpy", "sympy"}
    for example in found:
        assert example["label"] in ("stdlib", example["path"].split("/")[1])
        seen = choose_split(example["path"], Shares()) == "train"
        assert example["split"] == ("train" if seen else "validation")
        assert "numpy" not in example["text"]  # what names a library is left out
        assert "comment" not in example["text"]
    assert len(found) == 60 * 4  # of the six in a module one names a library, and one is too short
    assert len({example["text"] for example in found}) == len(found)
    thing = next(e for e in found if e["name"] == "Thing" and e["path"] == "installed/sympy/m7.py")
    assert thing["text"] == (
        "A holder for the symbolic integral that is called zero seven. It has more to say. And a third thing."
    )


def test_the_other_task_asks_for_the_kind(tree: Path, tmp_path: Path) -> None:
    folder = prepare_docstrings("docstrings/kind", cache_dir=tmp_path / "cache")
    found = read(folder, "train") + read(folder, "validation")
    assert Counter(example["label"] for example in found) == {
        "module": 60, "class": 60, "method": 60, "property": 60, "function": 60
    }
    assert {e["text"] for e in found if e["name"] == "Thing" and e["path"] == "stdlib/m12.py"} == {
        "A holder for the open file that is called one two."
    }


def test_the_data_card_counts_what_is_there(tree: Path, tmp_path: Path) -> None:
    folder = prepare_docstrings("docstrings", cache_dir=tmp_path / "cache")
    card = json.loads((folder / "card.json").read_text())
    for split in ("train", "validation"):
        labels = Counter(example["label"] for example in read(folder, split))
        assert card["classes"][split] == labels
        assert card["examples"][split] == labels.total()
    train, scored = card["classes"]["train"], card["classes"]["validation"]
    commonest = max(train.values())
    assert card["majority_score"] in {scored[name] / sum(scored.values()) for name in train if train[name] == commonest}
    assert card["dropped"] == {
        "not of 5 to 80 words": 60, "text occurs more than once": 0, "of a smaller class": 0, "names a class": 60,
        "above the most per class": 0,
    }


def test_the_same_files_give_the_same_examples_and_are_read_once(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = prepare_docstrings("docstrings", cache_dir=tmp_path / "one")
    monkeypatch.setattr(docstrings, "MANY", 1)  # by several processes
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    two = prepare_docstrings("docstrings", cache_dir=tmp_path / "two")
    for name in ("train.jsonl", "validation.jsonl", "card.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(docstrings, "_read_all", None)
        assert prepare_docstrings("docstrings", cache_dir=tmp_path / "one") == one
        assert prepare_docstrings("docstrings/kind", cache_dir=tmp_path / "one").is_dir()
    (tree / "stdlib" / "more.py").write_text('"""A module that was not there before, on the open file."""')
    again = prepare_docstrings("docstrings", cache_dir=tmp_path / "one")
    assert again != one
    assert json.loads((again / "card.json").read_text())["examples"] != json.loads(
        (one / "card.json").read_text())["examples"]


def test_it_is_a_task_like_any_other(tree: Path, tmp_path: Path) -> None:
    config = FinetuneConfig(task="docstrings", cache_dir=str(tmp_path / "cache"))
    task = TASKS[config.task]
    place = locate(task, config)
    data = load_examples(task, place, cache_dir=config.cache_dir)
    assert data.classes == ("numpy", "stdlib", "sympy")
    folder = prepare_docstrings("docstrings", cache_dir=tmp_path / "cache")
    for split, examples in data.splits.items():
        rows = read(folder, split)
        assert examples.texts == [(row["text"],) for row in rows]
        assert [data.classes[int(label)] for label in examples.labels] == [row["label"] for row in rows]
    other = locate(TASKS["docstrings/kind"], replace(config, task="docstrings/kind"))
    assert other.digest != place.digest


def test_a_tree_with_one_library_is_refused(tree: Path, tmp_path: Path) -> None:
    import shutil

    shutil.rmtree(tree / "stdlib")
    shutil.rmtree(tree / "installed" / "numpy")
    with pytest.raises(ConfigError, match=r"task='docstrings': the recipe tree leaves 1 class.*add files"):
        prepare_docstrings("docstrings", cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.jsonl"))


def test_a_file_that_is_not_text_is_passed_over(tree: Path, tmp_path: Path) -> None:
    (tree / "stdlib" / "m3.py").write_bytes(b'"""caf\xe9, and four words more in it"""')
    folder = prepare_docstrings("docstrings", cache_dir=tmp_path / "cache")
    assert not [e for split in ("train", "validation") for e in read(folder, split) if e["path"] == "stdlib/m3.py"]


# --- the rules ---


def example(text: str, label: str = "numpy", split: Any = "train") -> Docstring:
    return Docstring(text, label, split, "installed/a/m.py", "name")


def test_rules_of_choice_by_hand() -> None:
    rules = replace(RULES["docstrings"], classes=2, most={"train": 2, "validation": 1})
    examples = [
        example("one two three four"), example("word " * 81), example("a text that comes two times"),
        example("A text that comes, two times!", "torch"), example("the only one of its class", "scipy"),
        *(example(f"this is the text with {word}") for word in ("an apple", "a pear", "a plum")),
        *(example(f"that is a text with {word}", "sympy") for word in ("an apple", "a pear")),
        *(example(f"unseen is the text with {word}", split="validation") for word in ("an apple", "a pear")),
        example("nobody says to_sympy in a text"),
    ]
    chosen, dropped = select(examples, rules)
    assert dropped == {
        "not of 5 to 80 words": 2, "text occurs more than once": 2, "of a smaller class": 1, "names a class": 1,
        "above the most per class": 2,
    }
    counts = Counter((e.label, e.split) for e in chosen)
    assert counts == {("numpy", "train"): 2, ("sympy", "train"): 2, ("numpy", "validation"): 1}
    assert select(examples[::-1], rules)[0] == chosen


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("stdlib/json/decoder.py", "stdlib"), ("installed/torch/nn/functional.py", "torch"),
        ("installed/six.py", "six"), ("alone.py", "alone.py"),
    ],
)
def test_the_library_of_a_path(path: str, label: str) -> None:
    assert library(path) == label


def test_words_that_give_the_class_away() -> None:
    names = library_names(["numpy", "sklearn", "rich", "stdlib"])
    for text in ("as NumPy does", "the to_numpy method", "an np array", "scikit-learn", "a Rich console", "Python 3"):
        assert names.search(text), text
    for text in ("enrich it", "an input", "of a kind"):
        assert not names.search(text), text
    kinds = kind_names(list(docstrings.KINDS))
    for text in ("This class is", "two Methods", "its properties", "a module-level one", "subclass or class"):
        assert kinds.search(text), text
    for text in ("classify", "functional", "modular", "proper"):
        assert not kinds.search(text), text


def test_first_sentences() -> None:
    text = "Gives e.g. the size. Is it? Yes! No.\n\nAnother paragraph."
    assert first_sentences(text, 1) == "Gives e.g. the size."
    assert first_sentences(text, 3) == "Gives e.g. the size. Is it? Yes!"
    assert first_sentences(text, 9) == "Gives e.g. the size. Is it? Yes! No."
