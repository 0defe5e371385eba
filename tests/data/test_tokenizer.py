"""The tokenizer: deterministic, lossless, and deaf to special tokens spelled out in a text."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lit_simplified.config import ConfigError
from lit_simplified.datamodules.tokenizer import (
    SPECIAL_TOKENS,
    UNKNOWN,
    choose_tokenizer,
    encode,
    load_tokenizer,
    train_tokenizer,
    train_wordpiece,
)


def documents() -> list[str]:
    draw = random.Random(0)
    names = [f"{draw.choice(['get', 'set', 'on'])}_{draw.choice(['line', 'item', 'key'])}{n}" for n in range(80)]
    body = "    for {a} in self.{b}:\n        if {a} is not None:\n            yield {b}({a})\n"
    return ["".join(body.format(a=draw.choice(names), b=draw.choice(names)) for _ in range(20)) for _ in range(30)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(documents(), vocab_size=340).save(str(path))
    return path


def test_equal_documents_give_equal_bytes_in_another_process(file: Path, tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_tokenizer import documents;"
        "from lit_simplified.datamodules.tokenizer import train_tokenizer as t;"
        "t(documents(), vocab_size=340).save(sys.argv[2])"
    )
    other = tmp_path / "other.json"
    environment = {**os.environ, "RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    here = Path(__file__).parent
    command = [sys.executable, "-c", script, str(here), str(other)]
    subprocess.run(command, check=True, env=environment, cwd=here.parents[1])
    assert hashlib.sha256(other.read_bytes()).digest() == hashlib.sha256(file.read_bytes()).digest()


def test_special_tokens_come_first(file: Path) -> None:
    tokenizer = load_tokenizer(file)
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2]
    assert SPECIAL_TOKENS == ("<|end|>", "<|pad|>", "<|mask|>")
    assert tokenizer.get_vocab_size() == 340


@pytest.mark.parametrize(
    "text",
    ["\tif x:\r\n\t\treturn  1\r\n", " leading and trailing \n\n", "caf\u00e9 \u4f60\u597d \U0001f600\u200d\U0001f680",
     "\x00\x7f\ufeff", "a<|end|>b<|mask|><|pad|>"],
)  # fmt: skip
def test_round_trip(file: Path, text: str) -> None:
    tokenizer = load_tokenizer(file)
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert min(ids) > 2, "text was taken for a special token"


def test_encode_closes_each_document(file: Path) -> None:
    tokenizer = load_tokenizer(file)
    texts = ["one", "two words", "three\nshort\nlines"]
    parts = list(encode(texts, tokenizer=tokenizer, chunk=4))
    assert [size for size, _ in parts] == [12, 17]
    ids = np.concatenate([part for _, part in parts])
    assert np.count_nonzero(ids == 0) == 3
    assert ids[-1] == 0
    ends = np.flatnonzero(ids == 0)
    documents = [part[part != 0].tolist() for part in np.split(ids, ends + 1)[:-1]]
    assert [tokenizer.decode(document) for document in documents] == texts


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.vocab_size=258: give at least 259"):
        train_tokenizer(documents(), vocab_size=258)
    assert train_tokenizer(documents(), vocab_size=259).get_vocab_size() == 259


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wordpiece") / "tokenizer.json"
    train_wordpiece(documents(), vocab_size=160).save(str(path))
    return path


class TestWordPiece:
    def test_special_tokens_and_size(self, wordpiece: Path) -> None:
        tokenizer = load_tokenizer(wordpiece)
        assert [tokenizer.token_to_id(token) for token in (*SPECIAL_TOKENS, UNKNOWN)] == [0, 1, 2, 3]
        assert UNKNOWN == "<|unk|>"
        assert tokenizer.get_vocab_size() == 160
        choose_tokenizer(str(wordpiece), vocab_size=160)

    def test_case_accents_and_unknown_characters(self, wordpiece: Path) -> None:
        tokenizer = load_tokenizer(wordpiece)
        assert tokenizer.encode("SELF.Get_Lin\u00e9").ids == tokenizer.encode("self . get_line").ids
        assert tokenizer.decode(tokenizer.encode("for self").ids) == "for self"
        assert tokenizer.encode("\u4f60").ids == [3]

    def test_special_tokens_spelled_out_are_text(self, wordpiece: Path) -> None:
        tokenizer = load_tokenizer(wordpiece)
        assert min(tokenizer.encode("a<|end|>b<|mask|><|pad|>").ids) > 2

    def test_documents_are_closed(self, wordpiece: Path) -> None:
        (_, ids), = encode(["for self", "in self"], tokenizer=load_tokenizer(wordpiece))
        assert np.count_nonzero(ids == 0) == 2
        assert ids[-1] == 0

    def test_too_small_a_vocabulary_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"model.vocab_size=20: give at least \d+"):
            train_wordpiece(documents(), vocab_size=20)


class TestChoice:
    def test_kinds_and_keys(self, file: Path, tmp_path: Path) -> None:
        assert [choose_tokenizer(name, vocab_size=9).key for name in ("bpe", "wordpiece")] == ["", "wordpiece"]
        choice = choose_tokenizer(str(file), vocab_size=340)
        assert (choice.kind, choice.content) == ("file", file.read_bytes())
        copy = tmp_path / "copy.json"
        copy.write_bytes(file.read_bytes())
        assert choose_tokenizer(str(copy), vocab_size=1000) == choice
        train_tokenizer(documents(), vocab_size=330).save(str(copy))
        assert choose_tokenizer(str(copy), vocab_size=340).key != choice.key

    def test_a_file_that_will_not_do_is_refused(self, file: Path, tmp_path: Path) -> None:
        from tokenizers import Tokenizer, models

        with pytest.raises(ConfigError, match=r"data.tokenizer='bpee': choose bpe or wordpiece, or give the path"):
            choose_tokenizer("bpee", vocab_size=340)
        with pytest.raises(ConfigError, match=r"model.vocab_size=339: give at least 340"):
            choose_tokenizer(str(file), vocab_size=339)
        (tmp_path / "text.json").write_text("{}")
        with pytest.raises(ConfigError, match=r"text.json'?: is not a tokenizer.json"):
            choose_tokenizer(str(tmp_path / "text.json"), vocab_size=340)
        Tokenizer(models.BPE(vocab={"a": 0, "<|pad|>": 1, "end": 2}, merges=[])).save(str(tmp_path / "other.json"))
        with pytest.raises(ConfigError, match=r"no token that ends a document: add .*<\|end\|>, <\|endoftext\|>"):
            choose_tokenizer(str(tmp_path / "other.json"), vocab_size=340)
        pieces = [("a", 0.0), ("<|end|>", 0.0), ("b", -1.0)]
        Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False)).save(str(tmp_path / "unigram.json"))
        with pytest.raises(ConfigError, match=r"kind Unigram must have .* at the ids 0, 1, 2"):
            choose_tokenizer(str(tmp_path / "unigram.json"), vocab_size=340)

    @pytest.mark.parametrize(
        "specials", [["<|endoftext|>"], ["<s>", "<pad>", "</s>", "<mask>"], ["[UNK]", "[SEP]", "[PAD]", "[MASK]"]],
    )
    @pytest.mark.parametrize("last", [True, False])
    def test_special_tokens_of_a_file_may_be_anywhere(self, specials: list[str], last: bool, tmp_path: Path) -> None:
        """As other tools save them: under other names, first or last in the vocabulary, some of them missing."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

        theirs = Tokenizer(models.BPE())
        theirs.pre_tokenizer, theirs.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=320, special_tokens=[] if last else specials, show_progress=False, initial_alphabet=alphabet)
        theirs.train_from_iterator(documents(), trainer)
        theirs.add_special_tokens(specials)
        end = next(name for name in specials if name in ("<|endoftext|>", "</s>", "[SEP]"))
        theirs.post_processor = processors.TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, theirs.token_to_id(end))])
        theirs.save(str(tmp_path / "theirs.json"))

        choice = choose_tokenizer(str(tmp_path / "theirs.json"), vocab_size=340)
        file = tmp_path / "ours.json"
        file.write_bytes(choice.content)
        ours, theirs = load_tokenizer(file), load_tokenizer(tmp_path / "theirs.json")
        names = [ours.id_to_token(number) for number in range(3)]
        known = {"<pad>", "[PAD]", "<mask>", "[MASK]"} & set(specials)
        assert names[0] == end
        assert set(names[1:]) == (known or {"<|pad|>", "<|mask|>"})
        assert sorted(ours.get_vocab().values()) == list(range(ours.get_vocab_size()))
        assert ours.get_vocab_size() == theirs.get_vocab_size() + len({"<|pad|>", "<|mask|>"} & set(names))
        for text in (*documents()[:3], f"a {end} b <|pad|>", "\U0001f600 é"):
            encoded = theirs.encode(text, add_special_tokens=False)
            assert ours.encode(text).tokens == encoded.tokens
            assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text
        ids = np.concatenate([part for _, part in encode([f"x {end}", "y"], tokenizer=ours)])
        assert (ids == 0).nonzero()[0].tolist() == [len(ours.encode(f"x {end}").ids), len(ids) - 1]
        with pytest.raises(ConfigError, match=rf"model.vocab_size=300: give at least {ours.get_vocab_size()}"):
            choose_tokenizer(str(tmp_path / "theirs.json"), vocab_size=300)

    def test_truncation_and_padding_of_a_file_are_switched_off(self, file: Path, tmp_path: Path) -> None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.enable_truncation(3)
        tokenizer.enable_padding(length=50)
        tokenizer.save(str(tmp_path / "cut.json"))
        text = documents()[0]
        assert load_tokenizer(tmp_path / "cut.json").encode(text).ids == load_tokenizer(file).encode(text).ids
