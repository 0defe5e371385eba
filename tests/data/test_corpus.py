"""Recipes, sources, filters, splits: what ends up in a corpus, and that it is the same wherever it is collected."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_simplified.config import ConfigError
from lit_simplified.datamodules.corpus import Corpus, NearDuplicates, choose_split, collect
from lit_simplified.datamodules.recipe import RECIPES, Recipe, Shares, load_recipe
from lit_simplified.datamodules.sources import list_files


def write_recipe(folder: Path, stem: str = "mine", **values: Any) -> Recipe:
    path = folder / f"{stem}.yaml"
    path.write_text(yaml.safe_dump(values))
    return load_recipe(str(path))


def prose(seed: int, lines: int = 20) -> str:
    draw = random.Random(seed)
    words = [f"{draw.choice('bdfgklmnprst')}{draw.choice('aeiou')}{draw.choice('bdglmnrst')}" for _ in range(300)]
    return "".join(" ".join(draw.choices(words, k=8)) + "\n" for _ in range(lines))


def folder_of_texts(folder: Path, count: int) -> Path:
    for number in range(count):
        path = folder / f"part{number % 3}" / f"{number:03d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(prose(number))
    return folder


def collected(recipe: Recipe, tmp_path: Path) -> dict[str, Any]:
    with Corpus(spool=tmp_path / "spool") as corpus:
        collect(recipe, corpus, cache_dir=tmp_path / "hub")
        texts = {split: list(corpus.texts(split)) for split in ("train", "validation", "test")}
        keys = {split: [entry.key for entry in corpus.of(split)] for split in ("train", "validation", "test")}
        result = {**corpus.counts(), "texts": texts, "keys": keys, "digest": corpus.digest}
    assert not (tmp_path / "spool").exists()
    return result


def everything(result: dict[str, Any]) -> list[str]:
    return [text for texts in result["texts"].values() for text in texts]


class TestRecipe:
    def test_every_recipe_of_the_project_loads(self) -> None:
        names = {path.stem for path in RECIPES.glob("*.yaml")}
        assert names == {
            "stdlib", "installed", "prose", "folder", "codeparrot", "pile", "c4", "wikitext", "bookcorpus"
        }  # fmt: skip
        assert {load_recipe(name).kind for name in names} == {"stdlib", "installed", "prose", "files", "hub"}

    def test_unknown_name_lists_the_known_ones(self) -> None:
        names = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
        with pytest.raises(ConfigError, match=rf"data.recipe='stdlip': choose one of {names}, or give the path"):
            load_recipe("stdlip")

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"kind": "stdlib", "excludes": []}, r"mine.yaml: excludes=\[\]: unknown key; the keys are kind"),
            ({"kind": "stdlib", "filters": {"min_chars": 3}}, r"filters: min_chars=3: unknown key"),
            ({"kind": "stdlib", "exclude": [{"globs": ["a"]}]}, r"exclude\[0\]: reason=None: is missing"),
            ({"kind": "stdlib", "include": "*.py"}, r"include='\*.py': must be a list"),
            ({"kind": "stdlib", "max_bytes": "many"}, r"max_bytes='many': give a whole number from 1 to \d+, or null"),
            ({"kind": "web"}, r"kind='web': choose one of stdlib, installed, prose, files, hub"),
            ({"kind": "stdlib", "name": "x"}, r"name='x': is taken from the file"),
            ({"kind": "files"}, r"recipe.paths=\(\)"),
            ({"kind": "stdlib", "shares": {"train": 90}}, r"recipe.shares=.*sum to 100"),
            ({"kind": "stdlib", "filters": {"near_duplicates": 8}}, r"near_duplicates=8"),
            ({"kind": "hub", "sources": [{"repository": "a/b", "revision": "c", "splits": ["train"]}]}, "'validation'"),
            ({"kind": "hub", "sources": [{"repository": "a", "revision": "c", "rows_per_document": 0}]}, "=0: give "),
        ],
    )
    def test_a_wrong_recipe_names_field_value_and_remedy(
        self, tmp_path: Path, values: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            write_recipe(tmp_path, **values)

    def test_digest_is_of_what_decides_the_corpus(self, tmp_path: Path) -> None:
        base = write_recipe(tmp_path, kind="stdlib")
        assert write_recipe(tmp_path, "other", kind="stdlib", description="x").digest == base.digest
        assert write_recipe(tmp_path, kind="stdlib", max_bytes=9).digest != base.digest

    def test_digest_of_a_hub_recipe_is_that_from_before_there_were_configurations(self, tmp_path: Path) -> None:
        assert load_recipe("codeparrot").digest == "d94ae38951b8ab3aefdae80257f8ad58d9be7fa5a18a99ddaf751fd235096d40"
        source = {"repository": "a/b", "revision": "c"}
        variants = [source, {**source, "config": "en"}, {**source, "rows_per_document": 2}]
        digests = [write_recipe(tmp_path, kind="hub", sources=[variant]).digest for variant in variants]
        assert len(set(digests)) == 3
        written_out = {**source, "config": None, "rows_per_document": 1}
        assert write_recipe(tmp_path, kind="hub", sources=[written_out]).digest == digests[0]


class TestFiles:
    def test_missing_path_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=re.escape(str(tmp_path / "nowhere"))):
            list_files(write_recipe(tmp_path, kind="files", paths=["nowhere"]))

    def test_patterns_and_reasons(self, tmp_path: Path) -> None:
        for name in ("a.py", "a.txt", "x/tests/b.py", "tests/c.py", "enc/__init__.py", "enc/d.py", "enc/sub/e.py"):
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("text")
        (tmp_path / "root" / "broken.py").symlink_to(tmp_path / "nothing")
        recipe = write_recipe(
            tmp_path, kind="files", paths=["root"], include=["**/*.py"],
            exclude=[{"globs": ["**/tests/**"], "reason": "tests"}, {"globs": ["enc/[!_]*"], "reason": "tables"}],
        )  # fmt: skip
        listing = list_files(recipe)
        assert list(listing.files) == ["a.py", "enc/__init__.py", "enc/sub/e.py"]
        assert listing.excluded == {"tests": 2, "tables": 1}
        assert list_files(recipe, count=False).files == listing.files

    def test_the_result_does_not_depend_on_the_file_system(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder_of_texts(tmp_path / "here" / "text", 30)
        (tmp_path / "here" / "text" / "copy.txt").write_text(prose(7) + "one more line\n")
        filters = {"near_duplicates": 0.8}
        first = collected(write_recipe(tmp_path / "here", kind="files", paths=["text"], filters=filters), tmp_path)
        os.rename(tmp_path / "here", tmp_path / "there")
        walk = os.walk
        monkeypatch.setattr(os, "walk", lambda top, **_: ((a, b, c[::-1]) for a, b, c in list(walk(top))[::-1]))
        second = collected(write_recipe(tmp_path / "there", kind="files", paths=["text"], filters=filters), tmp_path)
        assert first["documents"]["kept"] == 30
        assert first == second

    def test_splits_are_disjoint_and_follow_the_path(self, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path, kind="files", paths=[str(folder_of_texts(tmp_path / "text", 60))])
        before = collected(recipe, tmp_path)
        keys = before["keys"]
        assert sum(map(len, keys.values())) == 60 == len(set().union(*keys.values()))
        assert all(keys.values())
        (tmp_path / "text" / "000.txt").write_text(prose(1000))
        after = collected(recipe, tmp_path)
        assert after["digest"] != before["digest"]
        assert {k: [key for key in v if key != "000.txt"] for k, v in after["keys"].items()} == keys

    def test_digest_follows_content(self, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path, kind="files", paths=[str(folder_of_texts(tmp_path / "text", 5))])
        before = collected(recipe, tmp_path)["digest"]
        path = tmp_path / "text" / "part0" / "003.txt"
        path.write_text(path.read_text().swapcase())
        assert collected(recipe, tmp_path)["digest"] != before

    def test_two_roots_with_equal_names(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "a.txt").write_text(name)
        result = collected(write_recipe(tmp_path, kind="files", paths=["one", "two"]), tmp_path)
        assert sorted(everything(result)) == ["one", "two"]

    def test_filters_count_per_reason(self, tmp_path: Path) -> None:
        (tmp_path / "text").mkdir()
        contents = {
            "latin": "caf\xe9 au lait".encode("latin-1"), "short": b"tiny", "digits": b"0123456789 abcdefgh",
            "wide": b"x" * 60, "blank": b" \n\n \n", "good": b"def f(x):\n    return x\n",
        }  # fmt: skip
        for name, content in contents.items():
            (tmp_path / "text" / name).write_bytes(content)
        filters = {"min_characters": 10, "max_digit_share": 0.3, "max_line_characters": 50}
        result = collected(write_recipe(tmp_path, kind="files", paths=["text"], filters=filters), tmp_path)
        assert everything(result) == ["def f(x):\n    return x\n"]
        assert result["documents"]["dropped_after_reading"] == {
            "not UTF-8": {"documents": 1, "bytes": 12}, "fewer than 10 characters": {"documents": 1, "bytes": 4},
            "more than 30% digits": {"documents": 1, "bytes": 19}, "empty": {"documents": 1, "bytes": 5},
            "a line of more than 50 characters": {"documents": 1, "bytes": 60},
        }  # fmt: skip

    def test_limits_are_kept_and_not_alphabetical(self, tmp_path: Path) -> None:
        folder_of_texts(tmp_path / "text", 30)
        ten = collected(write_recipe(tmp_path, kind="files", paths=["text"], max_documents=10), tmp_path)
        assert ten["documents"]["kept"] == 10
        assert ten["documents"]["ended_by_limit"]
        assert {key[:5] for keys in ten["keys"].values() for key in keys} == {"part0", "part1", "part2"}
        size = collected(write_recipe(tmp_path, kind="files", paths=["text"], max_bytes=3000), tmp_path)
        assert 2000 < sum(part["bytes"] for part in size["splits"].values()) <= 3000

    @pytest.mark.parametrize(("unit", "documents"), [("document", 1), ("paragraph", 2), ("line", 3)])
    def test_units_of_text(self, tmp_path: Path, unit: str, documents: int) -> None:
        (tmp_path / "one.txt").write_bytes(b"first\r\nsecond\r\n\r\nthird\r\n")
        result = collected(write_recipe(tmp_path, kind="files", paths=["one.txt"], text_unit=unit), tmp_path)
        assert result["documents"]["kept"] == documents


class TestRows:
    @pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
    def test_rows_are_documents(self, tmp_path: Path, suffix: str) -> None:
        texts = [f"row {n}: caf\u00e9\r\n\ttab \U0001f600" for n in range(40)]
        write_rows(tmp_path / f"rows.{suffix}", texts, column="body")
        recipe = write_recipe(tmp_path, kind="files", paths=[f"rows.{suffix}"], text_field="body")
        assert sorted(everything(collected(recipe, tmp_path))) == sorted(texts)

    def test_missing_column_lists_the_columns(self, tmp_path: Path) -> None:
        write_rows(tmp_path / "rows.jsonl", ["a"], column="body")
        with pytest.raises(ConfigError, match=r"text_field='text': rows.jsonl has the columns repo_name, body"):
            collected(write_recipe(tmp_path, kind="files", paths=["rows.jsonl"]), tmp_path)

    def test_text_that_is_not_text_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "rows.jsonl").write_text('{"text": 3}\n')
        with pytest.raises(ConfigError, match=r"row 0 of rows\.jsonl is not text: 3"):
            collected(write_recipe(tmp_path, kind="files", paths=["rows.jsonl"]), tmp_path)

    def test_broken_file_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "rows.parquet").write_text("not parquet")
        with pytest.raises(ConfigError, match=r"rows.parquet'?: cannot be read as parquet"):
            collected(write_recipe(tmp_path, kind="files", paths=["rows.parquet"]), tmp_path)

    def test_a_row_keeps_its_split_when_others_come_before_it(self, tmp_path: Path) -> None:
        texts = [f"document number {n}" for n in range(50)]
        recipe = write_recipe(tmp_path, kind="files", paths=["rows.jsonl"])
        write_rows(tmp_path / "rows.jsonl", texts, column="text")
        before = {split: set(kept) for split, kept in collected(recipe, tmp_path)["texts"].items()}
        write_rows(tmp_path / "rows.jsonl", ["a new one", *texts], column="text")
        after = {split: set(kept) - {"a new one"} for split, kept in collected(recipe, tmp_path)["texts"].items()}
        assert before == after
        assert all(before.values())


def write_rows(path: Path, texts: list[str], *, column: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"repo_name": "owner/name", column: text} for text in texts]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_configurations(
    folder: Path, *names: str, file: str = "{}-*", parts: tuple[str, ...] = ("train", "validation", "test")
) -> None:
    """The head of a dataset's page that says which files its configurations have, as on the hub."""
    configurations = [
        {"config_name": name, "data_files": [{"split": part, "path": f"{name}/{file.format(part)}"} for part in parts]}
        for name in names
    ]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configurations})}---\n# About it\n")


class TestHub:
    def codeparrot(self, folder: Path, **train: Any) -> Recipe:
        """The project's own recipe, but with local copies in the place of the two repositories."""
        values = yaml.safe_load((RECIPES / "codeparrot.yaml").read_text())
        for source in values["sources"]:
            source["repository"] = f"./{source['repository'].split('/')[1]}"
        values["sources"][1].update(train)
        return write_recipe(folder, **values)

    def test_schema_of_the_papers_corpus(self, tmp_path: Path) -> None:
        shared = prose(1)
        valid = [shared, *(prose(n) for n in range(100, 130))]
        write_rows(tmp_path / "codeparrot-ds-valid" / "validation-0.parquet", valid, column="content")
        train = [shared + "one more line\n", *(prose(n) for n in range(200, 230))]
        write_rows(tmp_path / "codeparrot-ds-train" / "data" / "train-0.parquet", train, column="content")
        result = collected(self.codeparrot(tmp_path), tmp_path)
        assert sorted(result["texts"]["train"]) == sorted(train[1:]), "a near-copy of a validation document stayed"
        assert sorted(result["texts"]["validation"] + result["texts"]["test"]) == sorted(valid)
        assert result["texts"]["validation"]
        assert result["texts"]["test"]
        limited = collected(self.codeparrot(tmp_path, max_documents=5), tmp_path)
        assert limited["texts"]["train"] == train[1:6]
        assert limited["documents"]["ended_by_limit"]

    def local(self, folder: Path, name: str) -> Recipe:
        """A recipe of the project, but with local copies in the place of the repositories."""
        values = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
        for source in values["sources"]:
            source["repository"] = f"./{source['repository'].split('/')[1]}"
        return write_recipe(folder, **values)

    def test_wikitext_has_configurations_and_lines_for_rows(self, tmp_path: Path) -> None:
        lines = {part: ["", f" = {part} = \n", "", *(f" {line} \n" for line in prose(n, 300).splitlines())]
                 for n, part in enumerate(("train", "validation", "test"))}  # fmt: skip
        for part, texts in lines.items():
            write_rows(tmp_path / "wikitext" / "wikitext-103-raw-v1" / f"{part}-0.parquet", texts, column="text")
            write_rows(tmp_path / "wikitext" / "wikitext-2-raw-v1" / f"{part}-0.parquet", ["small"], column="text")
        write_configurations(tmp_path / "wikitext", "wikitext-103-raw-v1", "wikitext-2-raw-v1")
        result = collected(self.local(tmp_path, "wikitext"), tmp_path)
        assert {part: "".join(texts) for part, texts in result["texts"].items()} == {
            part: "".join(text or "\n" for text in texts) for part, texts in lines.items()
        }
        assert {part: len(texts) for part, texts in result["texts"].items()} == dict.fromkeys(lines, 4)

    def test_c4_halves_its_validation_set(self, tmp_path: Path) -> None:
        for part, first in (("train", 0), ("validation", 100)):
            texts = [prose(first + n) for n in range(30)]
            write_rows(tmp_path / "c4" / "en" / f"c4-{part}.0.jsonl", texts, column="text")
        write_configurations(tmp_path / "c4", "en", file="c4-{}.*.jsonl", parts=("train", "validation"))
        result = collected(self.local(tmp_path, "c4"), tmp_path)
        assert result["texts"]["train"] == [prose(n) for n in range(30)]
        held_out = result["texts"]["validation"] + result["texts"]["test"]
        assert sorted(held_out) == sorted(prose(n) for n in range(100, 130))
        assert result["texts"]["validation"]
        assert result["texts"]["test"]

    def test_pile_cuts_its_splits_from_the_training_set(self, tmp_path: Path) -> None:
        texts = [prose(n) for n in range(300)]
        write_rows(tmp_path / "pile-uncopyrighted" / "train" / "00.jsonl", [*texts, texts[0] + "more\n"], column="text")
        for name in ("val", "test"):
            write_rows(tmp_path / "pile-uncopyrighted" / f"{name}.jsonl", ["not read"], column="text")
        result = collected(self.local(tmp_path, "pile"), tmp_path)
        assert sorted(everything(result)) == sorted(texts)
        assert 0 < len(result["texts"]["validation"]) < 20 > len(result["texts"]["test"]) > 0

    @pytest.mark.skipif(importlib.util.find_spec("zstandard") is not None, reason="zstandard is installed")
    def test_a_missing_decompressor_is_named(self, tmp_path: Path) -> None:
        import pyarrow

        path = tmp_path / "pile-uncopyrighted" / "train" / "00.jsonl.zst"
        path.parent.mkdir(parents=True)
        with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(json.dumps({"text": "a", "meta": {}}).encode())
        with pytest.raises(ConfigError, match="pip install zstandard"):
            collected(self.local(tmp_path, "pile"), tmp_path)

    def test_bookcorpus_puts_sentences_together(self, tmp_path: Path) -> None:
        sentences = prose(1, lines=5050).splitlines()
        write_rows(tmp_path / "bookcorpus" / "train-0.parquet", sentences, column="text")
        values = yaml.safe_load((RECIPES / "bookcorpus.yaml").read_text())
        values["sources"][0]["repository"] = "./bookcorpus"
        result = collected(write_recipe(tmp_path, **values), tmp_path)
        assert sorted(text.count("\n") for text in everything(result)) == [50] + [100] * 50
        assert sorted("".join(everything(result)).splitlines()) == sorted(sentences)

    def test_an_unknown_configuration_is_named(self, tmp_path: Path) -> None:
        write_rows(tmp_path / "wikitext" / "other" / "train-0.parquet", ["a"], column="text")
        write_configurations(tmp_path / "wikitext", "other", parts=("train",))
        with pytest.raises(ConfigError, match=r"'wikitext-103-raw-v1'.*Available: \['other'\]"):
            collected(self.local(tmp_path, "wikitext"), tmp_path)

    def test_revision_column_and_streaming_are_passed_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import datasets

        calls = []

        def load_dataset(path: str, **options: Any) -> list[dict[str, str]]:
            calls.append((path, options.get("name"), options["revision"], options["split"], options["streaming"]))
            return [{"content": prose(n + 100 * len(calls)), "text": prose(n)} for n in range(3)]

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        assert collected(load_recipe("codeparrot"), tmp_path)["documents"]["kept"] == 6
        assert calls == [
            ("huggingface-course/codeparrot-ds-valid", None, "main", "validation", True),
            ("huggingface-course/codeparrot-ds-train", None, "main", "train", True),
        ]
        calls.clear()
        collected(load_recipe("c4"), tmp_path)
        commit = load_recipe("c4").sources[0].revision
        assert calls == [("allenai/c4", "en", commit, part, True) for part in ("validation", "train")]

    @pytest.mark.parametrize("name", ["codeparrot", "pile", "c4", "wikitext", "bookcorpus"])
    def test_offline_names_the_repository_and_the_alternatives(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        import datasets
        import huggingface_hub

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        recipe = load_recipe(name)
        with pytest.raises(ConfigError) as caught:
            collected(recipe, tmp_path)
        first = recipe.sources[0]
        for words in (
            first.repository, first.revision, first.config or "default", "Connect to the hub", "data.recipe=prose",
            "data.recipe=stdlib", "data.recipe=installed", "folder.yaml",
        ):  # fmt: skip
            assert words in str(caught.value)


class TestSplit:
    def test_shares(self) -> None:
        drawn = [choose_split(f"file{n}.py", Shares()) for n in range(4000)]
        assert 0.77 < drawn.count("train") / 4000 < 0.83
        assert 0.08 < drawn.count("test") / 4000 < 0.12

    def test_golden(self) -> None:
        """The split of a path may never change: results on old and new versions would not compare."""
        names = ("abc.py", "argparse.py", "asyncio/base_events.py", "os.py", "pathlib.py", "typing.py", "xdrlib.py")
        expected = ["train", "train", "train", "test", "test", "train", "validation"]
        assert [choose_split(name, Shares()) for name in names] == expected

    def test_part_of_the_splits(self) -> None:
        drawn = {choose_split(str(n), Shares(), splits=("validation", "test")) for n in range(50)}
        assert drawn == {"validation", "test"}


class TestNearDuplicates:
    def test_small_changes_are_seen_and_others_are_not(self) -> None:
        base, other = prose(1, lines=200), prose(2, lines=200)
        for changed, expected in ((5, True), (120, False)):
            seen = NearDuplicates(0.8)
            assert not seen.seen(base)
            lines, others = base.splitlines(), other.splitlines()
            assert seen.seen("\n".join(others[:changed] + lines[changed:])) is expected

    def test_spacing_and_order_do_not_matter(self) -> None:
        seen = NearDuplicates(0.99)
        assert not seen.seen("a = 1\nb = 2\n")
        assert seen.seen("\tb =  2\r\n\n   a = 1")
        assert not seen.seen("c = 3\n")


def test_the_standard_library() -> None:
    recipe = load_recipe("stdlib")
    listing = list_files(recipe)
    assert len(listing.files) > 250
    assert {"os.py", "json/decoder.py", "encodings/__init__.py"} <= set(listing.files)
    assert not {"encodings/cp1252.py", "tkinter/__init__.py", "turtle.py"} & set(listing.files)
    assert not any("/tests/" in key or "site-packages" in key for key in listing.files)
    assert listing.files["os.py"] == Path(sysconfig.get_path("stdlib"), "os.py")
    assert list_files(recipe, count=False).files == listing.files
    assert len({choose_split(key, recipe.shares) for key in listing.files}) == 3


def test_installed_distributions() -> None:
    files = list_files(load_recipe("installed"), count=False).files
    assert {"numpy/__init__.py", "yaml/__init__.py"} <= {key.removeprefix("0/").removeprefix("1/") for key in files}
