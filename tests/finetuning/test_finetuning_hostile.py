"""Files of examples that somebody else wrote: what cannot be read whole is refused in one line."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from lit_simplified.config import ConfigError
from lit_simplified.datamodules.reading import LARGEST
from lit_simplified.finetuning.config import FinetuneConfig
from lit_simplified.finetuning.docstrings import CARD, _digests, _intact
from lit_simplified.finetuning.examples import load_examples, locate
from lit_simplified.finetuning.tasks import find_task

GOOD = "".join(json.dumps({"sentence": f"text {n}", "label": n % 2}) + "\n" for n in range(4))
DEEP = "[" * 100_000 + "]" * 100_000
CASES: list[tuple[str, str, bytes, str]] = [
    ("deep JSON", "train.jsonl", f'{{"sentence": "a", "label": 0, "x": {DEEP}}}'.encode(), "nested too deeply"),
    ("a deep label", "train.jsonl", b'{"sentence": "a", "label": ' + b"[" * 99 + b"]" * 99 + b"}", "is not a label"),
    ("a long label", "train.jsonl", b'{"sentence": "a", "label": "' + b"x" * 9999 + b'"}', "is not a label"),
    ("no JSON", "train.jsonl", b"sentence\n", "line 1 is not JSON"),
    ("NUL bytes in JSON", "train.jsonl", b"\0" * 9999, r"row 0 is binary \(it has NUL bytes\), 9,999 bytes: take it"),
    ("NUL bytes in a table", "train.csv", b"sentence,label\na\0,1\n", "line 2 is binary"),
    ("Latin-1", "train.csv", b"sentence,label\ncaf\xe9,1\n", "line 2 is not UTF-8"),
    ("a large line", "train.tsv", b"sentence\tlabel\n" + b"a" * (LARGEST + 1), "line 2 is larger than 4 MiB"),
    ("a large row", "train.jsonl", b'"' + b"a" * LARGEST, "row 0 is larger than 4 MiB"),
    ("a large field", "train.csv", b"sentence,label\n" + b"a" * 200_000 + b",1\n", "after line 1: field larger than"),
    ("an open quote", "train.csv", b'sentence,label\n"a,1\nb,1\n', "unexpected end of data"),
    ("a field too many", "train.csv", b"sentence,label\na,b,1\n", "line 2 has more fields than the header"),
    ("a surrogate", "train.jsonl", b'{"sentence": "\\ud800", "label": 0}', "'row 0': has half of a character"),
    ("nothing", "train.jsonl", b"", "has no examples"),
    ("no parquet", "train.parquet", b"PAR1" + bytes(range(256)) + b"PAR1", "train.parquet': cannot be read"),
]


@pytest.mark.parametrize(("name", "content", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / "validation.jsonl").write_text(GOOD)
    (tmp_path / name).write_bytes(content)
    task, config = find_task("glue/sst2"), FinetuneConfig(task="glue/sst2", data_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=words) as caught:
        load_examples(task, locate(task, config), cache_dir=str(tmp_path / "cache"))
    message = str(caught.value)
    assert len(message) < 1000
    assert len(message.splitlines()) == 1
    assert str(tmp_path / name) in message or "glue/sst2: train" in message


@pytest.mark.parametrize(("folder", "words"), [
    ("~nobody-at-all", "data_dir='~nobody-at-all': is not a usable path"),
    ("a\0b", r"data_dir='a\\x00b': give text .*of printable"),
    ("failing", "data_dir='.*train.jsonl': cannot be read .*Input/output error"),
    ("pipe", "has no split 'train'"),
])  # fmt: skip
def test_unusable_places_are_refused(tmp_path: Path, folder: str, words: str) -> None:
    for name in ("failing", "pipe"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "validation.jsonl").write_text(GOOD)
    (tmp_path / "failing" / "train.jsonl").symlink_to("/proc/self/mem")  # opens, but cannot be read
    os.mkfifo(tmp_path / "pipe" / "train.jsonl")  # reading it would wait for ever
    place = folder if re.search(r"~|\0", folder) else str(tmp_path / folder)
    with pytest.raises(ConfigError, match=words):
        locate(find_task("glue/sst2"), FinetuneConfig(task="glue/sst2", data_dir=place))


def test_damaged_docstrings_are_not_taken_for_whole(tmp_path: Path) -> None:
    for part in ("library", "kind"):
        (tmp_path / part).mkdir()
        for split in ("train", "validation"):
            (tmp_path / part / f"{split}.jsonl").write_text(GOOD)
        (tmp_path / part / CARD).write_text(json.dumps({"sha256": _digests(tmp_path / part)}))
    assert _intact(tmp_path)
    for damaged, content in (("library/train.jsonl", GOOD[:-1]), ("kind/card.json", DEEP), ("kind/card.json", "[]")):
        before = (tmp_path / damaged).read_text()
        (tmp_path / damaged).write_text(content)
        assert not _intact(tmp_path)
        (tmp_path / damaged).write_text(before)
    (tmp_path / "library" / "validation.jsonl").unlink()
    assert not _intact(tmp_path)
