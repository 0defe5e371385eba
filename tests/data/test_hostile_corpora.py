"""Corpora of any content: each is read with a card that counts what was dropped, or refused in one line."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_simplified.__main__ import main
from lit_simplified.config import ConfigError, DataConfig
from lit_simplified.datamodules import packing, reading, sources, tokenizer
from lit_simplified.datamodules.packing import format_card, prepare
from lit_simplified.datamodules.reading import LARGEST, Unusable, given_path, paragraphs, read_rows, read_texts
from lit_simplified.datamodules.tokenizer import encode, load_tokenizer, train_tokenizer, train_wordpiece

DEEP = '{"text": "a", "more": ' + "[" * 100_000 + "]" * 100_000 + "}\n"
LARGE = "word " * (LARGEST // 5 + 1)
Make = Callable[[Path], object]


def text(name: str, content: str | bytes) -> Make:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def nuls(folder: Path) -> None:
    (folder / "x.bin").touch()
    os.truncate(folder / "x.bin", 1 << 40)  # sparse: a terabyte that takes no room


def foreign_name(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")).write_text("a text of its own")


def failing_file(folder: Path) -> None:
    (folder / "broken.txt").symlink_to("/proc/self/mem")  # opens, but cannot be read from its beginning


def garbage(folder: Path) -> None:
    draw = random.Random(0)
    (folder / "x.parquet").write_bytes(b"PAR1" + draw.randbytes(1000) + b"PAR1")


COUNTED: list[tuple[str, Make, dict[str, Any], str]] = [
    ("empty rows", text("x.jsonl", ""), {}, "1 documents, 0 bytes: empty"),
    ("blank lines", text("x.txt", "\n \n"), {"text_unit": "line"}, "1 documents, 0 bytes: empty"),
    ("a large text", text("x.txt", LARGE), {}, f"1 documents, {len(LARGE):,} bytes: larger than 4 MiB"),
    ("a large line", text("x.txt", f"a\n{LARGE}\nb\n"), {"text_unit": "line"}, "1 documents, .*: larger than 4 MiB"),
    ("a large paragraph", text("x.txt", f"a\n\n{LARGE}\n\nb"), {"text_unit": "paragraph"}, ": larger than 4 MiB"),
    ("a large row", text("x.jsonl", json.dumps({"text": LARGE})), {}, "1 documents, .*: larger than 4 MiB"),
    ("NUL bytes only", nuls, {}, r"1 documents, 1,099,511,627,776 bytes: binary \(it has NUL bytes\)"),
    ("NUL bytes as lines", nuls, {"text_unit": "line"}, "1 documents, .*: binary"),
    ("a NUL byte late", text("x.txt", "a" * 100_000 + "\0"), {}, "1 documents, 100,001 bytes: binary"),
    ("a NUL byte in a row", text("x.jsonl", '{"text": "a\\u0000b"}'), {}, "1 documents, 3 bytes: binary"),
    ("rows in UTF-16", text("x.jsonl", '{"text": "a"}\n'.encode("utf-16")), {}, "1 documents, .*: binary"),
    ("a surrogate", text("x.jsonl", '{"text": "a\\ud800"}'), {}, "1 documents, 2 bytes: not UTF-8"),
    ("a row in Latin-1", text("x.jsonl", b'{"text": "caf\xe9"}\n'), {}, "1 documents, .*: not UTF-8"),
    ("a line in Latin-1", text("x.txt", b"caf\xe9\nau lait"), {"text_unit": "line"}, "1 documents, 4 bytes: not UTF-8"),
    ("a name in Latin-1", foreign_name, {}, "left out +1 files: a name that is not UTF-8"),
    ("a file that fails", failing_file, {}, "unreadable +1 files and folders, the first .*broken.txt: Input/output"),
    ("no space", text("x.txt", "abcdefghij" * 40_000), {}, r"total +41 +"),
]
REFUSED: list[tuple[str, Make, dict[str, Any], str]] = [
    ("a bad pattern", text("x", ""), {"include": ["**", "[z-a]"]}, r"mine.yaml: include='\[z-a\]': is not a pattern"),
    ("a bad exclusion", text("x", ""), {"exclude": [{"globs": ["[z-a]"], "reason": "r"}]}, r"exclude\[0\]: globs='"),
    ("nothing left", text("x", ""), {"include": ["*.none"]}, "the corpus is too small: the train split"),
    ("deep JSON", text("x.jsonl", DEEP), {}, r"x.jsonl': cannot be read as json: line 1 is nested too deeply"),
    ("deep array", text("x.json", f"[{DEEP}]"), {}, r"x.json': cannot be read as json: entry 0 is nested too deeply"),
    ("no JSON", text("x.jsonl", '{"text": "a"}\n{"text":\n'), {}, "line 2 is not JSON .*: write one object a line"),
    ("no object", text("x.jsonl", "[1]\n"), {}, "entry 0 is 1, and not an object"),
    ("half an array", text("x.json", '[{"text": "a"}'), {}, "the array ends after entry 0"),
    ("a long number", text("x.jsonl", '{"text": ' + "9" * 5000 + "}"), {}, "line 1 is not JSON"),
    ("not text", text("x.jsonl", '{"text": [[' + "1," * 5000 + "1]]}"), {}, r"row 0 of x.jsonl is not text: \[\[1, 1"),
    ("no parquet", garbage, {}, r"x.parquet': cannot be read as parquet"),
    ("a NUL in a path", text("x", ""), {"paths": ["a\0b"]}, r"paths.0.='a\\x00b': give text .*of printable"),
    ("a surrogate in a path", text("x", ""), {"paths": ["\ud800"]}, "paths.*: give text .*of printable"),
    ("nobody's home", text("x", ""), {"paths": ["~nobody-at-all/x"]}, "paths='~nobody-at-all/x': is not a usable path"),
    ("a long path", text("x", ""), {"paths": ["x" * 5000]}, "paths.*: give text .*at most 1,000"),
    ("a pipe", lambda folder: os.mkfifo(folder / "pipe"), {"paths": ["text/pipe"]}, "neither a folder nor a file"),
    ("a failing path", failing_file, {"paths": ["text/broken.txt"]}, "left out: .'unreadable, as /proc/.*mem: Input"),
    ("half a character", text("x", ""), {"description": "\ud800"}, "description='.*': give text, of printable"),
    ("a NUL in a repository", text("x", ""), {"kind": "hub", "sources": [{"repository": "a\0b", "revision": "c"}]},
     r"repository='a\\x00b': give text .*of printable"),
]  # fmt: skip


def written(folder: Path, make: Make, values: dict[str, Any]) -> DataConfig:
    """A corpus of forty good texts and one other file."""
    (folder / "text").mkdir()
    for number in range(40):
        content = f"Text number {number} is about alpha, beta and gamma.\n" * 3
        (folder / "text" / f"{number:03d}.txt").write_text(content)
    make(folder / "text")
    recipe = {"kind": "files", "paths": ["text"], **values}
    (folder / "mine.yaml").write_text(yaml.safe_dump({k: v for k, v in recipe.items() if k != "paths" or v}))
    return DataConfig(recipe=str(folder / "mine.yaml"), cache_dir=str(folder / "cache"))


def card(data: DataConfig) -> str:
    return format_card(prepare(data, vocab_size=280).card)


@pytest.mark.parametrize(("make", "values", "words"), [case[1:] for case in COUNTED], ids=[c[0] for c in COUNTED])
def test_what_is_dropped_is_counted(tmp_path: Path, make: Make, values: dict[str, Any], words: str) -> None:
    text = card(written(tmp_path, make, values))
    assert re.search(words, text), text
    assert "tokens" in text


@pytest.mark.parametrize(("make", "values", "words"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_cannot_be_read_is_refused_in_one_line(
    tmp_path: Path, make: Make, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        card(written(tmp_path, make, values))
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).encode()


def test_the_command_shows_the_card_or_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = written(tmp_path, nuls, {})
    flags = ["data", "--recipe", data.recipe, "--cache-dir", data.cache_dir, "--vocab-size", "280"]
    main(flags)
    assert "1 documents, 1,099,511,627,776 bytes: binary (it has NUL bytes)" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"^error: data.recipe='~nobody-at-all': is not a usable path .*$"):
        main([*flags, "--recipe", "~nobody-at-all"])


@pytest.mark.parametrize(("changes", "words"), [
    ({"recipe": "a\0b"}, r"data.recipe='a\\x00b': give text .*of printable"),
    ({"cache_dir": "\udce9"}, r"data.cache_dir='\\udce9': give text .*of printable"),
    ({"cache_dir": "/dev/null/x"}, "data.cache_dir='/dev/null/x': cannot be used"),
    ({"tokenizer": "~nobody-at-all"}, "data.tokenizer='~nobody-at-all': is not a usable path"),
])  # fmt: skip
def test_unusable_paths(tmp_path: Path, changes: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        card(replace(written(tmp_path, text("x", ""), {}), **changes))


def test_unreadable_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the corpus they are counted; the corpus itself must be readable. (Root may read what nobody may.)"""
    data = written(tmp_path, lambda folder: (folder / "closed").mkdir(), {})
    closed, scandir = tmp_path / "text" / "closed", os.scandir

    def guarded(path: Any) -> Any:
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert re.search(r"unreadable +1 files and folders, the first .*closed: Permission denied", card(data))
    closed = tmp_path / "text"
    with pytest.raises(ConfigError, match=r"paths='.*text': cannot be read .*Permission denied"):
        card(data)


def test_the_card_counts_what_was_dropped_last(tmp_path: Path) -> None:
    """The same kept documents are the same corpus, whatever else is there: but the counts are those of now."""
    data = written(tmp_path, text("x.txt", " "), {})
    first = card(data)
    (tmp_path / "text" / "y.txt").write_bytes(b"\0")
    second = card(data)
    assert "binary" not in first
    assert "1 documents, 1 bytes: binary" in second
    assert re.findall("SHA-256 .*", first) == re.findall("SHA-256 .*", second)


@pytest.mark.parametrize("content", ["[]", '{"corpus_digest": 3}', "[" * 100_000, '{"corpus_digest": "\\ud800"}'])
def test_damaged_records_and_cards_are_built_anew(
    tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "RACY_NS", -(10**12))
    data = written(tmp_path, text("x.txt", " "), {})
    before = prepare(data, vocab_size=280)
    for damaged in (before.card_file, *Path(data.cache_dir, "digests").iterdir()):
        damaged.write_text(content)
        assert prepare(data, vocab_size=280) == before


def test_paragraphs_are_those_of_the_expression(tmp_path: Path) -> None:
    draw = random.Random(0)
    for _ in range(200):
        content = "".join(draw.choices(["a", "b c", "\n", "\n", "\n\n", " ", "\t", "\r\n", "\f"], k=draw.randrange(30)))
        (tmp_path / "x").write_bytes(content.encode())
        expected = [part for part in re.split(r"\n[ \t\r]*\n", content) if part.strip()]
        assert list(read_texts(tmp_path / "x", unit="paragraph")) == (expected or [""])
        expected = [part for part in re.split(r"\r?\n", content) if part.strip()]
        assert list(read_texts(tmp_path / "x", unit="line")) == (expected or [""])


def test_large_paragraphs_are_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LARGEST", 9)
    (tmp_path / "x").write_bytes(b"12345678\n\n123\n5678\n\n\n1234567890123\n\nb")
    with (tmp_path / "x").open("rb") as stream:
        found = [part.size if isinstance(part, Unusable) else part for part in paragraphs(stream)]
    assert found == [b"12345678", b"123\n5678", 14, b"b"]


def test_rows_of_arrays_and_lines_are_the_same(tmp_path: Path) -> None:
    rows = [{"text": "a", "n": [1, {"b": None}]}, {"text": "\u4f60 ]["}, {}]
    (tmp_path / "x.json").write_text("\ufeff [\n " + " ,\n".join(map(json.dumps, rows)) + "\n ] ")
    (tmp_path / "x.jsonl").write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)))
    (tmp_path / "y.json").write_text("[ ]")
    assert list(read_rows(tmp_path / "x.json", columns=["text"])) == rows
    assert list(read_rows(tmp_path / "x.jsonl", columns=["text"])) == rows
    assert list(read_rows(tmp_path / "y.json", columns=["text"])) == []


def test_training_takes_time_in_proportion_to_a_text_without_spaces() -> None:
    """With the whole text as one piece 200 kB took ten seconds and more, and four times that for twice the length."""
    started = time.process_time()
    for train in (train_tokenizer, train_wordpiece):
        train(["getsetlineitemkey" * 12_000], vocab_size=600)
    assert time.process_time() - started < 3


def test_limits_change_no_tokenizer_of_usual_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is that of a training on whole texts, and says nothing of a limit."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    texts = [f"def f_{n}(x):\n    return '{'=' * n}' + x * {n}  # {'-' * 80}\n" for n in range(300)]
    unlimited = Tokenizer(models.BPE())
    unlimited.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    unlimited.decoder = decoders.ByteLevel()
    unlimited.train_from_iterator(["".join(texts)], trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>", "<|pad|>", "<|mask|>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    ))  # fmt: skip
    encodings = [[*unlimited.encode(text).ids, 0] for text in ["".join(texts), "short", ""]]
    monkeypatch.setattr(tokenizer, "LONGEST_PART", 1000)
    trained = train_tokenizer(["".join(texts)], vocab_size=300)
    assert trained.to_str() == unlimited.to_str()
    chunks = [ids for _, ids in encode(["".join(texts), "short", ""], tokenizer=trained, chunk=5000)]
    assert len(chunks) > 2
    assert [i for ids in chunks for i in ids] == [i for ids in encodings for i in ids]


@pytest.mark.parametrize(("model", "words"), [
    ({"max_input_chars_per_word": 10**9}, "give it a max_input_chars_per_word of 256, not 1000000000"),
    ({"unk_token": "none"}, "is not a tokenizer.json of"),
])  # fmt: skip
def test_a_wordpiece_that_would_hang_or_fail_is_refused(tmp_path: Path, model: dict[str, Any], words: str) -> None:
    content = json.loads(train_wordpiece(["some words of a text"] * 9, vocab_size=160).to_str())
    (tmp_path / "t.json").write_text(json.dumps({**content, "model": {**content["model"], **model}}))
    with pytest.raises(ConfigError, match=words):
        load_tokenizer(tmp_path / "t.json")


def test_a_path_that_is_not_there_is_usable(tmp_path: Path) -> None:
    assert given_path(f"{tmp_path}/none/x", field="f") == tmp_path / "none" / "x"
    assert given_path("~", field="f") == Path.home()


def test_folders_may_be_written_in_any_number_of_stars() -> None:
    started = time.process_time()
    assert not sources._matcher(["**/" * 40 + "x"]).fullmatch("a/" * 200 + "b")
    assert time.process_time() - started < 1


LONG = 400 << 20
WORST: dict[str, tuple[str, bytes, dict[str, str]]] = {
    "one line as a text": ("x.txt", b"a", {}),
    "one line as lines": ("x.txt", b"a", {"text_unit": "line"}),
    "one line as paragraphs": ("x.txt", b"a", {"text_unit": "paragraph"}),
    "one line of JSON": ("x.jsonl", b"[", {}),
    "two-byte characters": ("x.txt", b"", {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", WORST)
def test_the_worst_take_less_than_a_gigabyte(tmp_path: Path, case: str) -> None:
    name, content, values = WORST[case]

    def make(folder: Path) -> None:
        with (folder / name).open("wb") as stream:
            if not content:  # the largest text that is kept, of characters that are no merges
                stream.write("".join(map(chr, random.Random(0).choices(range(128, 2000), k=LARGEST // 2))).encode())
            for _ in range(LONG >> 20 if content else 0):
                stream.write(content * (1 << 20))

    script = (
        "import resource, sys\nfrom lit_simplified.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, 'MiB')\n"
    )
    data = written(tmp_path, make, values)
    command = [sys.executable, "-c", script, "data", "--recipe", data.recipe, "--cache-dir", data.cache_dir]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or done.stderr.startswith("error: ")
    assert int(done.stdout.split()[-2]) < 1024
