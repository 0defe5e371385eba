"""The cache of packed corpora: right, shared between processes, and rebuilt when it is damaged or out of date."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_simplified.config import ConfigError, DataConfig
from lit_simplified.datamodules import packing, unigram
from lit_simplified.datamodules import tokenizer as tokenizer_module
from lit_simplified.datamodules.packing import PreparedCorpus, count_windows, format_card, prepare
from lit_simplified.datamodules.tokenizer import load_tokenizer
from lit_simplified.datamodules.unigram import unigram_losses

VOCAB = 300


def write_corpus(folder: Path, documents: int = 40) -> DataConfig:
    """A folder of texts with a recipe; files that look old, so that their fingerprint is trusted."""
    draw = random.Random(0)
    (folder / "text").mkdir(parents=True)
    for number in range(documents):
        lines = [" ".join(draw.choices(["alpha", "beta", "gamma", "delta", "eps"], k=6)) for _ in range(10)]
        (folder / "text" / f"{number:03d}.txt").write_text("\n".join(lines))
    (folder / "mine.yaml").write_text("kind: files\npaths: [text]\n")
    return DataConfig(recipe=str(folder / "mine.yaml"), cache_dir=str(folder / "cache"))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    monkeypatch.setattr(packing, "RACY_NS", 0)
    config = write_corpus(tmp_path)
    time.sleep(0.02)  # past the resolution of the file system's clock
    return config


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one with every build."""
    return counted(monkeypatch, "_build")


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    calls: list[str] = []
    function = getattr(packing, name)

    def wrapper(*arguments: object, **options: object) -> object:
        calls.append(name)
        return function(*arguments, **options)

    monkeypatch.setattr(packing, name, wrapper)
    return calls


def test_tokens_are_the_documents_in_order(data: DataConfig) -> None:
    prepared = prepare(data, vocab_size=VOCAB)
    tokenizer = load_tokenizer(prepared.tokenizer_file)
    texts = {path.name: path.read_text() for path in sorted((Path(data.recipe).parent / "text").iterdir())}
    found: list[str] = []
    for split in ("train", "validation", "test"):
        ids = prepared.tokens(split)
        assert isinstance(ids, np.memmap)
        assert ids.dtype == np.uint16
        assert not ids.flags.writeable
        assert prepared.card["splits"][split]["tokens"] == len(ids)
        ends = np.flatnonzero(ids == 0)
        decoded = [tokenizer.decode(part[:-1].tolist()) for part in np.split(np.asarray(ids), ends + 1)[:-1]]
        positions = [list(texts.values()).index(text) for text in decoded]
        assert positions == sorted(positions)
        found += decoded
    assert sorted(found) == sorted(texts.values())


def test_tokenizer_is_trained_on_the_train_split_only(data: DataConfig) -> None:
    before = prepare(data, vocab_size=VOCAB)
    tokenizer_bytes = before.tokenizer_file.read_bytes()
    held_out = [e for e in sorted((Path(data.recipe).parent / "text").iterdir()) if split_of(e.name) != "train"]
    assert held_out
    for path in held_out:
        path.write_text("zzzzqqqq " * 200)
    after = prepare(data, vocab_size=VOCAB)
    assert after.folder != before.folder
    assert after.tokenizer_file.read_bytes() == tokenizer_bytes


def split_of(key: str) -> str:
    from lit_simplified.datamodules.corpus import choose_split
    from lit_simplified.datamodules.recipe import Shares

    return choose_split(key, Shares())


def test_large_vocabularies_take_four_bytes(data: DataConfig) -> None:
    assert prepare(data, vocab_size=65_535).card["dtype"] == "uint16"
    prepared = prepare(data, vocab_size=65_536)
    assert prepared.card["dtype"] == "uint32"
    assert prepared.tokens("test").dtype == np.uint32
    assert prepared.tokens("test").max() < prepared.card["vocabulary"]


def test_windows_fit() -> None:
    assert [count_windows(n, context=4, extra=1) for n in (0, 4, 5, 8, 9)] == [0, 0, 1, 1, 2]
    assert [count_windows(n, context=4, extra=0) for n in (0, 3, 4, 8)] == [0, 0, 1, 2]


class TestCache:
    def test_nothing_is_read_again(
        self, data: DataConfig, builds: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reads = counted(monkeypatch, "collect")
        first = prepare(data, vocab_size=VOCAB)
        assert prepare(data, vocab_size=VOCAB) == first
        assert (len(builds), len(reads)) == (1, 1)

    def test_another_vocabulary_is_another_entry(self, data: DataConfig) -> None:
        first, second = prepare(data, vocab_size=VOCAB), prepare(data, vocab_size=VOCAB + 20)
        assert first.folder != second.folder
        assert first.card["corpus_digest"] == second.card["corpus_digest"]

    def test_a_touched_file_is_read_but_not_built(
        self, data: DataConfig, builds: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = prepare(data, vocab_size=VOCAB)
        reads = counted(monkeypatch, "collect")
        os.utime(Path(data.recipe).parent / "text" / "000.txt")
        assert prepare(data, vocab_size=VOCAB) == first
        assert (len(builds), len(reads)) == (1, 1)

    def test_changed_text_of_the_same_size_and_time_is_seen(self, data: DataConfig, builds: list[str]) -> None:
        first = prepare(data, vocab_size=VOCAB)
        path = Path(data.recipe).parent / "text" / "000.txt"
        stat = path.stat()
        path.write_text(path.read_text().swapcase())
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        second = prepare(data, vocab_size=VOCAB)
        assert second.card["corpus_digest"] != first.card["corpus_digest"]
        assert len(builds) == 2

    def test_fresh_files_are_not_trusted_to_stay(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        reads = counted(monkeypatch, "collect")
        config = write_corpus(tmp_path)
        assert prepare(config, vocab_size=VOCAB) == prepare(config, vocab_size=VOCAB)
        assert len(reads) == 2

    def test_moved_cache_serves(self, data: DataConfig, tmp_path: Path, builds: list[str]) -> None:
        prepare(data, vocab_size=VOCAB)
        shutil.move(data.cache_dir, tmp_path / "elsewhere")
        moved = DataConfig(recipe=data.recipe, cache_dir=str(tmp_path / "elsewhere"))
        prepared = prepare(moved, vocab_size=VOCAB)
        assert prepared.card["card"] == str(prepared.card_file)
        assert len(builds) == 1

    def test_leftovers_of_a_killed_build_are_removed(self, data: DataConfig) -> None:
        leftover = Path(data.cache_dir, f".building-mine-v{VOCAB}-killed")
        leftover.mkdir(parents=True)
        (leftover / "spool").write_text("half")
        prepare(data, vocab_size=VOCAB)
        assert not list(Path(data.cache_dir).glob(".building*"))


class TestTokenizers:
    def test_bpe_keeps_the_folders_it_had(self, data: DataConfig) -> None:
        """Another name would build every corpus anew."""
        prepared = prepare(data, vocab_size=VOCAB)
        recipe, digest = prepared.card["recipe_digest"], prepared.card["corpus_digest"]
        key = hashlib.sha256(f"1\0{recipe}\0{digest}\0{VOCAB}".encode()).hexdigest()[:12]
        assert prepared.folder.name == f"mine-v{VOCAB}-{key}"
        assert prepared.card["tokenizer"] == "bpe"

    def test_wordpiece_is_trained_once(self, data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        trainings = []
        train = tokenizer_module.train_wordpiece

        def counted_train(*arguments: Any, **options: Any) -> Any:
            trainings.append(options)
            return train(*arguments, **options)

        monkeypatch.setattr(tokenizer_module, "train_wordpiece", counted_train)
        wordpiece = replace(data, tokenizer="wordpiece")
        first = prepare(wordpiece, vocab_size=VOCAB)
        assert first.folder != prepare(data, vocab_size=VOCAB).folder
        kept = list(Path(data.cache_dir, "tokenizers").glob("*.json"))
        assert [path.read_bytes() for path in kept] == [first.tokenizer_file.read_bytes()]
        sha256 = hashlib.sha256(kept[0].read_bytes()).hexdigest()
        assert first.card["files"]["tokenizer.json"]["sha256"] == sha256
        assert f"wordpiece, SHA-256 {sha256}" in format_card(first.card)

        shutil.rmtree(first.folder)
        second = prepare(wordpiece, vocab_size=VOCAB)
        assert second.card["files"] == first.card["files"]
        assert len(trainings) == 1
        prepare(wordpiece, vocab_size=VOCAB + 20)
        assert len(trainings) == 2

    def test_a_damaged_wordpiece_is_not_replaced_silently(self, data: DataConfig) -> None:
        wordpiece = replace(data, tokenizer="wordpiece")
        prepared = prepare(wordpiece, vocab_size=VOCAB)
        shutil.rmtree(prepared.folder)
        kept, = Path(data.cache_dir, "tokenizers").glob("*.json")
        kept.write_text("{")
        with pytest.raises(ConfigError, match=r"Restore the file, or delete it"):
            prepare(wordpiece, vocab_size=VOCAB)
        assert kept.read_text() == "{"

    def test_a_file_decides_the_tokens_by_its_content(
        self, data: DataConfig, tmp_path: Path, builds: list[str]
    ) -> None:
        file = tmp_path / "own.json"
        tokenizer_module.train_tokenizer(["beta gamma " * 9], vocab_size=280).save(str(file))
        own = replace(data, tokenizer=str(file))
        first = prepare(own, vocab_size=VOCAB)
        assert first.tokenizer_file.read_bytes() == file.read_bytes()
        assert (first.card["tokenizer"], first.card["vocabulary"]) == ("file", load_tokenizer(file).get_vocab_size())
        shutil.move(file, tmp_path / "moved.json")
        assert prepare(replace(data, tokenizer=str(tmp_path / "moved.json")), vocab_size=VOCAB) == first
        assert len(builds) == 1
        with pytest.raises(ConfigError, match=r"data.tokenizer='.*own.json': choose bpe or wordpiece, or"):
            prepare(own, vocab_size=VOCAB)
        tokenizer_module.train_tokenizer(["gamma delta " * 9], vocab_size=280).save(str(file))
        assert prepare(own, vocab_size=VOCAB).folder != first.folder

    def test_cards_from_before_there_was_a_choice_are_shown(self, data: DataConfig) -> None:
        card = prepare(data, vocab_size=VOCAB).card
        del card["tokenizer"]
        assert "tokenizer   bpe, SHA-256" in format_card(card)


def truncate(prepared: PreparedCorpus) -> None:
    os.truncate(prepared.folder / "train.bin", 100)


def flip_a_bit(prepared: PreparedCorpus) -> None:
    flip(prepared.folder / "validation.bin", 50)


def flip_a_bit_of_the_tokenizer(prepared: PreparedCorpus) -> None:
    flip(prepared.tokenizer_file, 700)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def alter_the_card(prepared: PreparedCorpus) -> None:
    card = json.loads(prepared.card_file.read_text())
    card["splits"]["train"]["tokens"] += 1
    prepared.card_file.write_text(json.dumps(card))


def cut_the_card(prepared: PreparedCorpus) -> None:
    os.truncate(prepared.card_file, 30)


def remove_a_file(prepared: PreparedCorpus) -> None:
    (prepared.folder / "test.bin").unlink()


@pytest.mark.parametrize(
    "damage", [truncate, flip_a_bit, flip_a_bit_of_the_tokenizer, alter_the_card, cut_the_card, remove_a_file]
)
def test_damage_is_found_and_mended(
    data: DataConfig, builds: list[str], caplog: pytest.LogCaptureFixture, damage: Callable[[PreparedCorpus], None]
) -> None:
    before = prepare(data, vocab_size=VOCAB)
    contents = {path.name: path.read_bytes() for path in before.folder.iterdir()}
    damage(before)
    with caplog.at_level(logging.WARNING):
        after = prepare(data, vocab_size=VOCAB)
    assert [record.message for record in caplog.records if "damaged" in record.message]
    assert {path.name: path.read_bytes() for path in after.folder.iterdir()} == contents
    assert len(builds) == 2
    assert after == before
    assert [p.name for p in Path(data.cache_dir).iterdir() if p.name.startswith(".building")] == []


def test_a_change_in_the_middle_of_a_large_file_is_seen(tmp_path: Path) -> None:
    """A file of any size is checked whole, not at its ends."""
    large, size = tmp_path / "train.bin", 257 << 20
    large.touch()
    os.truncate(large, size)  # sparse: takes no room
    before = packing._checksum(large)
    with large.open("r+b") as stream:
        stream.seek(size // 2)
        stream.write(b"x")
    assert packing._checksum(large) != before


def test_two_processes_build_once(tmp_path: Path) -> None:
    write_corpus(tmp_path, documents=60)
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time\n"
        "from lit_simplified.config import DataConfig\n"
        "from lit_simplified.datamodules import packing\n"
        "build = packing._build\n"
        "def slow(*arguments, **options):\n"
        "    print('built')\n"
        "    build(*arguments, **options)\n"
        "    time.sleep(0.5)\n"
        "packing._build = slow\n"
        f"data = DataConfig(recipe={str(tmp_path / 'mine.yaml')!r}, cache_dir={str(tmp_path / 'cache')!r})\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        f"print(packing.prepare(data, vocab_size={VOCAB}).folder)\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, str(script)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:  # all at once, when all are up
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert sum(output.count("built") for output in outputs) == 1
    assert len({output[-1] for output in outputs}) == 1


def test_too_small_a_corpus_is_refused_with_the_numbers(tmp_path: Path) -> None:
    config = write_corpus(tmp_path, documents=1)
    with pytest.raises(ConfigError, match=r"data.recipe='mine'.*split has no document .kept: .*text_unit"):
        prepare(config, vocab_size=VOCAB)
    (tmp_path / "text" / "000.txt").write_text("")
    with pytest.raises(ConfigError, match=r"'train': 0.*left out: .'empty': 1"):
        prepare(config, vocab_size=VOCAB)
    assert not [path for path in Path(config.cache_dir).iterdir() if path.is_dir()]


def test_the_card_tells_what_it_is(data: DataConfig) -> None:
    (Path(data.recipe).parent / "text" / "blank.txt").write_text("  \n")
    prepared = prepare(data, vocab_size=VOCAB)
    text = format_card(prepared.card)
    for words in (
        prepared.card["corpus_digest"], str(prepared.card_file), f"Python {sys.version.split()[0]}",
        f"{len(prepared.tokens('train')):,}", "1 documents, 3 bytes: empty", f"{prepared.card['vocabulary']} tokens",
    ):
        assert words in text
    assert prepared.card["total"]["documents"] == 40


def test_the_card_has_the_loss_of_token_frequencies(data: DataConfig, builds: list[str]) -> None:
    """By hand, on what was packed; old cards get it when they are opened, without another build."""
    prepared = prepare(data, vocab_size=VOCAB)
    train, other = (np.asarray(prepared.tokens(split)) for split in ("train", "validation"))
    seen = np.array([1 + int((train == token).sum()) for token in range(prepared.card["vocabulary"])])
    expected = -np.log(seen / seen.sum())[other].mean()
    known = [prepared.card["splits"][split]["unigram_loss"] for split in ("train", "validation", "test")]
    assert known[1] == pytest.approx(expected, abs=1e-12)
    assert f"{known[1]:.4f}" in format_card(prepared.card)

    old = {name: value for name, value in prepared.card.items() if name != "card"}
    old["splits"] = {split: {name: value for name, value in part.items() if name != "unigram_loss"}
                     for split, part in old["splits"].items()}
    packing._write_card(prepared.folder, old)
    assert "unigram loss" in format_card({**old, "card": ""})
    again = prepare(data, vocab_size=VOCAB)
    assert [part["unigram_loss"] for part in again.card["splits"].values()] == known
    assert json.loads(again.card_file.read_text())["splits"] == prepared.card["splits"] == again.card["splits"]
    assert builds == ["_build"]


def test_unigram_losses_are_counted_in_pieces_and_beyond_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {"train": np.array([0, 1, 1, 7], dtype=np.uint16), "validation": np.array([7, 2], dtype=np.uint16)}
    whole = unigram_losses(splits, vocabulary=4)
    assert whole["validation"] == pytest.approx(-np.log([2 / 12, 1 / 12]).mean())
    monkeypatch.setattr(unigram, "CHUNK", 3)
    assert unigram_losses(splits, vocabulary=4) == whole
