"""Two tasks out of the docstrings of this machine's Python: to which library one belongs, and what it describes.

They need no network, and their texts are English. The recipe `prose` says which files are read, and its splits by path
hold here as well: who pretrains on its training split and fine-tunes on these examples is scored on modules of which
neither has seen a line.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import platform
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from lit_simplified.config import ConfigError
from lit_simplified.datamodules import prose
from lit_simplified.datamodules.corpus import choose_split
from lit_simplified.datamodules.prose import Passage, passages
from lit_simplified.datamodules.reading import given_path, read_texts
from lit_simplified.datamodules.recipe import Recipe, load_recipe
from lit_simplified.datamodules.sources import list_files
from lit_simplified.files import write_text

Split = Literal["train", "validation"]

RECIPE = "prose"
CARD = "card.json"
LIBRARIES = 14
"""Classes of `docstrings`: the libraries with the most examples."""
WORDS = (5, 80)
"""Fewest and most words of an example."""
ALIASES = {
    "huggingface_hub": ("hugging", "hf", "hub"), "numpy": ("np",), "pandas": ("pd",), "sklearn": ("scikit",),
    "stdlib": ("python", "cpython"), "torch": ("aten",),
}
"""What else a library is called."""
KINDS = ("class", "function", "method", "module", "property")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


@dataclass(frozen=True)
class Docstring:
    """An example, before it is known whether it is kept."""

    text: str
    label: str
    split: Split
    path: str
    name: str

    @property
    def order(self) -> tuple[bytes, str, str]:
        """A fixed order that favours no part of the alphabet."""
        return hashlib.sha256(self.text.encode()).digest(), self.path, self.name


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What tells one of the tasks from the other."""

    label: Callable[[str, Passage], str]
    """The class of a passage of a file."""
    sentences: int
    """First sentences that are the text."""
    most: dict[Split, int]
    """Examples per class and split."""
    classes: int
    """Classes that are kept, those with the most examples."""
    names: Callable[[list[str]], re.Pattern[str]]
    """From the classes to what names one of them: docstrings with such a word are dropped."""


def library(path: str) -> str:
    """`stdlib`, or the top-level package: the second part of `installed/torch/nn/functional.py`."""
    first, *rest = path.split("/")
    return first if first == "stdlib" or not rest else rest[0].removesuffix(".py")


def library_names(libraries: list[str]) -> re.Pattern[str]:
    """Long names anywhere (`to_sympy`), short ones as words (`rich`, not `enrich`)."""
    names = [alias for name in libraries for alias in (name, *ALIASES.get(name, ()))]
    patterns = (re.escape(name) if len(name) > 4 else rf"\b{re.escape(name)}\b" for name in sorted(names))
    return re.compile("|".join(patterns), re.IGNORECASE)


def kind_names(kinds: list[str]) -> re.Pattern[str]:
    """The kinds as words, with their plurals: `methods`, `properties`, but not `classify`."""
    return re.compile(rf"\b(?:{'|'.join(sorted(kinds))}|properties)(?:s|es)?\b", re.IGNORECASE)


# Few training examples: with 200 per class a pretrained model is well ahead of one from scratch, with 1500 hardly.
RULES = {
    "docstrings": Rules(
        label=lambda path, _: library(path), sentences=3, most={"train": 200, "validation": 300}, classes=LIBRARIES,
        names=library_names,
    ),
    "docstrings/kind": Rules(
        label=lambda _, passage: passage.kind, sentences=1, most={"train": 500, "validation": 500},
        classes=len(KINDS), names=kind_names,
    ),
}


def prepare_docstrings(task: str, *, cache_dir: Path) -> Path:
    """The folder with the task's train.jsonl, validation.jsonl and data card, made unless the cache holds it.

    Raises:
        ConfigError: a recipe that cannot be read, or with too little in it.
    """
    from filelock import FileLock

    recipe = load_recipe(RECIPE)
    files = list_files(recipe, count=False)
    # The rules are part of the key: by their source, since there is no version to forget.
    rules = "".join(Path(str(module)).read_text(encoding="utf-8") for module in (prose.__file__, __file__))
    key = hashlib.sha256(f"{rules}\0{recipe.digest}\0{files.fingerprint()[0]}".encode()).hexdigest()[:12]
    cache = given_path(str(cache_dir), field="cache_dir").absolute() / "docstrings"
    folder = cache / f"{recipe.name}-{key}"
    if not _intact(folder):
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(cache / f".{folder.name}.lock"):
                if not _intact(folder):
                    _build(recipe, files.files, folder)
        except OSError as error:
            remedy = f"cannot be used ({error}): give another folder, or make room in it"
            raise ConfigError("cache_dir", str(cache_dir), remedy) from error
    return folder / _folder(task)


def _intact(folder: Path) -> bool:
    """Whether a folder has the examples of all tasks as they were written."""
    try:
        for part in (folder / _folder(task) for task in RULES):
            card = json.loads((part / CARD).read_text(encoding="utf-8"))
            if card["sha256"] != _digests(part):
                return False
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return True


def _digests(folder: Path) -> dict[str, str]:
    return {
        split: hashlib.sha256((folder / f"{split}.jsonl").read_bytes()).hexdigest() for split in ("train", "validation")
    }


def _folder(task: str) -> str:
    return {"docstrings": "library", "docstrings/kind": "kind"}[task]


def _build(recipe: Recipe, files: dict[str, Path], folder: Path) -> None:
    """Write all tasks in one go, and move them to `folder` in one step."""
    found = list(_with_progress(_read_all(files), total=len(files), title=f"reading docstrings ({recipe.name})"))
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as scratch:
        new = Path(scratch, "new")
        for name, rules in RULES.items():
            _write(name, rules, _examples(rules, recipe, found), new / _folder(name), recipe)
        if folder.exists():  # damaged
            os.replace(folder, Path(scratch, "damaged"))
        os.replace(new, folder)


def _examples(rules: Rules, recipe: Recipe, found: Iterable[tuple[str, list[Passage]]]) -> list[Docstring]:
    examples = []
    for path, parts in found:
        # The language model's test split is as unseen as its validation split.
        split: Split = "train" if choose_split(path, recipe.shares) == "train" else "validation"
        for passage in parts:
            text = first_sentences(passage.text, rules.sentences)
            examples.append(Docstring(text, rules.label(path, passage), split, path, passage.name))
    return examples


def first_sentences(text: str, count: int) -> str:
    """The first sentences of the first paragraph."""
    return " ".join(SENTENCE_END.split(text.split("\n\n")[0])[:count])


def select(examples: list[Docstring], rules: Rules) -> tuple[list[Docstring], dict[str, int]]:
    """The examples that are kept, in a fixed order, and how many were dropped for which reason."""
    dropped: Counter[str] = Counter()
    fewest, most = WORDS
    fitting = [example for example in examples if fewest <= len(example.text.split()) <= most]
    dropped[f"not of {fewest} to {most} words"] = len(examples) - len(fitting)
    copies = Counter(_letters(example.text) for example in fitting)
    unique = [example for example in fitting if copies[_letters(example.text)] == 1]
    dropped["text occurs more than once"] = len(fitting) - len(unique)
    # Classes by what is there in training, before names are dropped, which depends on the classes.
    sizes = Counter(example.label for example in unique if example.split == "train")
    classes = sorted(sizes, key=lambda label: (-sizes[label], label))[: rules.classes]
    large = [example for example in unique if example.label in classes]
    dropped["of a smaller class"] = len(unique) - len(large)
    names = rules.names(classes)
    unnamed = [example for example in large if not names.search(example.text)]
    dropped["names a class"] = len(large) - len(unnamed)
    kept: defaultdict[tuple[str, Split], list[Docstring]] = defaultdict(list)
    for example in sorted(unnamed, key=lambda example: example.order):
        if len(kept[example.label, example.split]) < rules.most[example.split]:
            kept[example.label, example.split].append(example)
    chosen = sorted((example for part in kept.values() for example in part), key=lambda example: example.order)
    dropped["above the most per class"] = len(unnamed) - len(chosen)
    return chosen, dict(dropped)


def _letters(text: str) -> str:
    return "".join(filter(str.isalpha, text)).casefold()


def _write(name: str, rules: Rules, examples: list[Docstring], folder: Path, recipe: Recipe) -> None:
    chosen, dropped = select(examples, rules)
    counts: dict[str, dict[str, int]] = {}
    for split in ("train", "validation"):
        part = [example for example in chosen if example.split == split]
        counts[split] = dict(sorted(Counter(example.label for example in part).items()))
        if len(counts[split]) < 2:
            raise ConfigError(
                "task", name, f"the recipe {recipe.name} leaves {len(counts[split])} class(es) in the {split} split, "
                "where two are needed: add files to it",
            )
        write_text(folder / f"{split}.jsonl", "".join(json.dumps(asdict(example)) + "\n" for example in part))
    commonest = min(counts["train"], key=lambda label: (-counts["train"][label], label))
    write_text(folder / CARD, json.dumps({
        "task": name, "recipe": recipe.name, "recipe_digest": recipe.digest, "python": platform.python_version(),
        "examples": {split: sum(part.values()) for split, part in counts.items()}, "classes": counts,
        "dropped": dropped,
        "majority_score": counts["validation"].get(commonest, 0) / sum(counts["validation"].values()),
        "sha256": _digests(folder),
    }, indent=2))


# --- reading: a minute of one core, so on all of them ---

MANY = 200
"""Files from which on other processes help."""


def _read_all(files: dict[str, Path]) -> Iterator[tuple[str, list[Passage]]]:
    """The docstrings of each file, in the order of the files."""
    processes = min(os.cpu_count() or 1, 8)
    if processes == 1 or len(files) < MANY:
        yield from map(_read, files.items())
        return
    # Not forked: this process may have threads of torch's.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_read, files.items(), chunksize=20)


def _read(file: tuple[str, Path]) -> tuple[str, list[Passage]]:
    """What documents something in a file, without comments and pydoc's topics; nothing of what is no source."""
    key, path = file
    try:
        sources = [text for text in read_texts(path) if isinstance(text, str)]
    except OSError:
        return key, []
    return key, [part for source in sources for part in passages(source, path=key) if part.kind in KINDS]


def _with_progress(
    found: Iterable[tuple[str, list[Passage]]], *, total: int, title: str
) -> Iterator[tuple[str, list[Passage]]]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(found, title, total=total, console=console, transient=True, disable=not console.is_terminal)
