"""Clean English out of Python source: every rule on a case by hand, and the whole of the standard library."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from lit_simplified.datamodules.corpus import Corpus, choose_split, collect
from lit_simplified.datamodules.prose import Passage, clean, is_english, passages
from lit_simplified.datamodules.recipe import RECIPES, Recipe, load_recipe
from lit_simplified.datamodules.sources import list_files

KEPT = "This is the sentence that has to stay."


def found(source: str, *, path: str = "module.py") -> list[tuple[str, str, str]]:
    return [(passage.kind, passage.name, passage.text) for passage in passages(dedent(source), path=path)]


class TestDocstrings:
    def test_each_kind_with_its_qualified_name_in_source_order(self) -> None:
        source = '''
            """What the module is for."""

            # The reason why this is done here.
            class Outer(Base):
                """What the class is for."""

                def method(self):
                    """What the method is for."""
                    def inner():
                        """What the inner function is for."""

                @functools.cached_property
                def size(self):
                    """The size of the whole thing."""

                @size.setter
                def size(self, value):
                    """Set the size of the thing."""

                class Nested:
                    """What the nested class is for."""

            if sys.platform:
                async def function():
                    """What the function is for."""
        '''
        assert found(source) == [
            ("module", "", "What the module is for."),
            ("comment", "", "The reason why this is done here."),
            ("class", "Outer", "What the class is for."),
            ("method", "Outer.method", "What the method is for."),
            ("function", "Outer.method.inner", "What the inner function is for."),
            ("property", "Outer.size", "The size of the whole thing."),
            ("property", "Outer.size", "Set the size of the thing."),
            ("class", "Outer.Nested", "What the nested class is for."),
            ("function", "function", "What the function is for."),
        ]

    def test_docstrings_given_to_what_is_written_in_c(self) -> None:
        source = """
            add_docstr(torch.abs, '''
            abs(input, *, out=None) -> Tensor

            Computes the absolute value of each of the elements.
            ''')
            numpy.lib.add_newdoc("numpy", "ndarray", ("size", '''
                The number of elements in the array.
            '''))
            print("The number of elements in the array.\\n")
        """
        assert found(source) == [
            ("function", "torch.abs", "Computes the absolute value of each of the elements."),
            ("function", "numpy.ndarray.size", "The number of elements in the array."),
        ]

    @pytest.mark.parametrize("source", ["def f(:\n    'The name of it.'\n", "print 'The name of it'", "\0", "(" * 9999])
    def test_what_does_not_parse_gives_nothing(self, source: str) -> None:
        assert found(source) == []

    def test_warnings_of_the_parser_are_not_ours(self, recwarn: pytest.WarningsRecorder) -> None:
        assert found("'''The name\\d of the \\q file.'''\n# 1if the value is not there then we go\n")
        assert not recwarn.list

    def test_topics_of_pydoc_are_one_each(self) -> None:
        source = "topics = {'if': 'The \"if\" statement is used for execution:\\n\\n   if_stmt ::= \"if\"\\n'"
        source += ",\n 'pass': 'It is a null operation and so nothing happens.'}\n"
        assert found(source, path="stdlib/pydoc_data/topics.py") == [
            ("topic", "if", 'The "if" statement is used for execution:'),
            ("topic", "pass", "It is a null operation and so nothing happens."),
        ]
        assert found(source) == [], "any other module's dicts are no topics"


class TestComments:
    def test_consecutive_lines_are_one_passage(self) -> None:
        source = """
            x = 1
            # It is not possible to know
            # the size before the end.
            #
            # So we have to guess it.
            y = 2  # It is at the end of the line.
            # The last one is not used.
        """
        first = "It is not possible to know the size before the end.\n\nSo we have to guess it."
        assert found(source) == [("comment", "", first), ("comment", "", "The last one is not used.")]

    @pytest.mark.parametrize(
        "string",
        ["'''\n# The line is in a string.\n'''",
         "f'''\n# The line is in {a} string.\n'''", "b'''\n# The line is in it.\n'''",
         "'a \\\n# The line is in a string.'", "print('''\n# The line is in a string.\n''')",
         "{'''\n# The line is in a string\n'''}"],
    )  # fmt: skip
    def test_lines_of_strings_are_none(self, string: str) -> None:
        assert found(f"# The first one is a comment.\nx = {string}\n# The second one is a comment.\n") == [
            ("comment", "", "The first one is a comment."), ("comment", "", "The second one is a comment."),
        ]  # fmt: skip

    def test_strings_of_decorators_defaults_patterns_and_handlers(self) -> None:
        text = "'''\n# The line is in a string.\n'''"
        source = f"@decorate({text})\ndef f(a={text}): pass\nmatch f({text}):\n    case {text}: pass\n"
        source += f"try: pass\nexcept E[{text}]: pass\n# The only one is this.\n"
        assert found(source) == [("comment", "", "The only one is this.")]

    def test_form_feeds_and_other_line_ends(self) -> None:
        assert found("x = 1\r\n\f\r\n# The first one is here.\r\ny = '''\r\n# The line is in it.\r\n'''") == [
            ("comment", "", "The first one is here.")
        ]

    @pytest.mark.parametrize(
        "line",
        ["#!/usr/bin/env is the name of the file", "# -*- coding of the file is utf -*-", "# noqa: it is not of it",
         "# type: ignore that it is not the same", "# pragma: no cover for what is not it",
         "# pylint: disable as it is not used", "# other: ignore that it is not the same",
         "# for it in the_list: print(it, not_in_it)", "# ----------------",
         "# return not a and (b or c) or the if a else d", "# value = the_name if it is not None else by_the",
         "# Public", "# Copyright by the authors of the file and of it"],
    )  # fmt: skip
    def test_marks_code_rules_and_licences_are_left_out(self, line: str) -> None:
        assert found(f"{line}\nx = 1\n") == []
        assert found(f"# {KEPT}\nx = 1\n") == [("comment", "", KEPT)]

    def test_a_licence_goes_with_all_its_paragraphs(self) -> None:
        assert found("# Copyright 2020 by them.\n#\n# You may do what you like with it.\nimport x\n") == []

    def test_marks_of_work_to_do_are_taken_off(self) -> None:
        assert found("# TODO(me): This is not done as it should be.\n") == [
            ("comment", "", "This is not done as it should be.")
        ]
        assert found("# The value of DEBUG is not used for it.\n")[0][2] == "The value of DEBUG is not used for it."


def reduced(*parts: str) -> list[str]:
    return clean("\n\n".join(dedent(part).strip("\n") for part in parts))


class TestMarkup:
    @pytest.mark.parametrize(
        "text",
        [
            ">>> x = the_first(of_the, list)\nthe output is not of any use to us",
            "::\n\n    the code is not for us to read\n\n    it is not for you",
            ".. code-block:: python\n   :linenos:\n\n   the code is not for us to read",
            ".. math:: the sum of all of the parts\n\n   is the same as it",
            ".. [1] The author of the book, and where it is.\n   It is of the year.",
            ".. _the name of a target: and what it is for",
            ".. a comment in it that is not for the reader\n   and the rest of it",
            "```python\nthe code is not for us to read\n```",
            ":type x: int or the name of a class that is one",
            "====  ====\nthe a  of the table is it\n====  ====\nthe b  of the table is it\n====  ====",
            "+---+---+\n| the name of it | is in the table |\n+---+---+",
            "The Name of the Section\n=======================",
            "See Also\n--------\nother : The one that is not as this one is.",
            "References\n----------\nThe author of the book and the name of it.",
            "Example:\n    This is how it is to be used by all.",
            "x : int, optional",
            "Licensed under the terms of the one and the other.",
            "abs(input, *, out=None) -> Tensor",
            "{0} is the name of the file that is in {1}",
            "alpha beta gamma delta epsilon zeta eta theta iota",
            "|the name of it | the other of them |",
            "This is the algorithm of [1]_, and not that of the others.",
        ],
    )
    def test_is_left_out(self, text: str) -> None:
        assert reduced(KEPT, text) == [KEPT]
        assert reduced(text, f"Notes\n-----\n{KEPT}") == [KEPT]

    def test_code_after_two_colons_is_left_out_and_one_colon_stays(self) -> None:
        text = """
            The name of the file is given as in::

                the code is not for us to read

                nor is the rest of it

            and so it is with the others.
        """
        assert reduced(text) == ["The name of the file is given as in:", "and so it is with the others."]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("It is ``None`` if the :class:`~a.b.Cls` is in `x`.", "It is None if the Cls is in x."),
            ("As in :func:`the one <a.b>`, and in `that <u>`_ of them.", "As in the one, and in that of them."),
            ("It is **not** what *you* want it to be [1]_.", "It is not what you want it to be."),
            ("See the [page](http://a.b/c) of it for what is in it.", "See the page of it for what is in it."),
            ("The |name| of it is not what it was.", "The name of it is not what it was."),
            ("It is the first line\nof two lines   of it.", "It is the first line of two lines of it."),
            (".. note:: This is to be kept in mind by all.", "This is to be kept in mind by all."),
            (".. deprecated:: 1.2\n    Use the other one of them.", "Use the other one of them."),
            (".. versionchanged:: 3.4 It is not the same as before.", "It is not the same as before."),
            (":param int x: The size of the first of them.\n    It is not used.",
             "The size of the first of them. It is not used."),
            (":returns: The size of the first of them.", "The size of the first of them."),
            ("* the first of the two things to do\n  and no other", "the first of the two things to do and no other"),
            ("3.1. the first of the two things to do", "the first of the two things to do"),
            ("name -- what the first of them is called", "what the first of them is called"),
        ],
    )  # fmt: skip
    def test_is_reduced_to_its_text(self, text: str, expected: str) -> None:
        assert clean(text) == [expected]

    def test_numpy_sections(self) -> None:
        text = """
            Compute the sum of the parts.

            Parameters
            ----------
            x, y : array_like of the shape of it, optional
                The first of the two arrays. It is not
                changed by it.

                It may be the same as the other.
            out : ndarray
                The place for the result of it.

            Returns
            -------
            total : float
                The sum of all of the parts.

            Notes
            -----
            It is as fast as it can be.

            Examples
            --------
            This is how it is to be used by all.

            >>> f(1)
            2
        """
        assert reduced(text) == [
            "Compute the sum of the parts.", "The first of the two arrays. It is not changed by it.",
            "It may be the same as the other.", "The place for the result of it.", "The sum of all of the parts.",
            "It is as fast as it can be.",
        ]  # fmt: skip

    def test_google_sections(self) -> None:
        text = """
            Compute the sum of the parts.

            Args:
                x (int or tuple(int, int)): The first of the two numbers.
                    It is not changed by it.
                *others: The rest of them, if there are any.

            Returns:
                Tensor: The sum of all of the parts.

            Raises:
                ValueError: If there is not one of them.

            It is as fast as it can be.
        """
        assert reduced(text) == [
            "Compute the sum of the parts.", "The first of the two numbers. It is not changed by it.",
            "The rest of them, if there are any.", "The sum of all of the parts.", "If there is not one of them.",
            "It is as fast as it can be.",
        ]  # fmt: skip

    def test_a_sentence_goes_on_in_a_line_of_another_indent(self) -> None:
        assert clean("It is a note.\n\nIt is the first line of it\n   and this is the second.")[1:] == [
            "It is the first line of it and this is the second."
        ]
        assert clean("It is a note.\n\nIt is the whole of it.\n   And this is the second one.")[1:] == [
            "It is the whole of it.", "And this is the second one.",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Return the name of the file.", True), ("Return it.", False), ("of the last of them", False),
        ("x = the_first(of_the, list) if not in it", False), ("See https://a.b/c for the rest of it.", False),
        ("int, float, str, bool, list, tuple, dict", False), ("The sum is \\alpha of the beta of it.", False),
        ("of the rest (and so on) of it) is not there", False), ("The 12 of 34 in 56 by 78 at 90 is", False),
    ],
)  # fmt: skip
def test_english(text: str, expected: bool) -> None:
    assert is_english(text) is expected


def write_recipe(folder: Path, **values: Any) -> Recipe:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"kind": "prose", **values}))
    return load_recipe(str(path))


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python installation of a handful of files."""
    files = {
        "lib/same.py": f'"""{KEPT}\n\nThe first of the two is here."""\n',
        "lib/pydoc_data/topics.py": "topics = {'a': 'It is a topic of the one.', 'b': 'It is a topic of the other.'}\n",
        "lib/site-packages/other.py": "'''It is not part of the library.'''\n",
        "site/same.py": f'"""{KEPT.upper()}\n\nThe second of the two is here."""\n',
        "site/empty.py": "x = 1\n", "site/broken.py": "def\n",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    paths = {"stdlib": "lib", "purelib": "site", "platlib": "site"}
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / paths[name]))
    return tmp_path


def collected(recipe: Recipe, tmp_path: Path) -> tuple[dict[str, tuple[str, str]], str, dict[str, list[int]]]:
    with Corpus(spool=tmp_path / "spool") as corpus:
        collect(recipe, corpus, cache_dir=tmp_path)
        splits = ("train", "validation", "test")
        texts = {e.key: (s, t) for s in splits for e, t in zip(corpus.of(s), corpus.texts(s), strict=True)}  # type: ignore[arg-type]
        return texts, corpus.digest, dict(corpus.dropped)


class TestRecipe:
    EXCLUDE: tuple[dict[str, Any], ...] = ({"globs": ["stdlib/site-packages/**"], "reason": "installed"},)

    def test_documents_keys_splits_and_no_paragraph_twice(self, environment: Path) -> None:
        recipe = write_recipe(environment, include=["**/*.py"], exclude=list(self.EXCLUDE))
        documents, _, dropped = collected(recipe, environment)
        assert {key: text for key, (_, text) in documents.items()} == {
            "installed/same.py": f"{KEPT.upper()}\n\nThe second of the two is here.",
            "stdlib/pydoc_data/topics.py#a": "It is a topic of the one.",
            "stdlib/pydoc_data/topics.py#b": "It is a topic of the other.",
            "stdlib/same.py": "The first of the two is here.",
        }
        assert all(split == choose_split(key, recipe.shares) for key, (split, _) in documents.items())
        assert dropped == {"empty": [3, 0]}

    def test_patterns_tell_the_sources_apart(self, environment: Path) -> None:
        assert set(collected(write_recipe(environment, include=["installed/**/*.py"]), environment)[0]) == {
            "installed/same.py"
        }
        files = list_files(write_recipe(environment, include=["stdlib/*.py"]), count=False).files
        assert files == {"stdlib/same.py": environment / "lib" / "same.py"}

    def test_the_digest_does_not_depend_on_where_python_is(
        self, environment: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe = write_recipe(environment, include=["**/*.py"], exclude=list(self.EXCLUDE))
        before = collected(recipe, environment)[1]
        os.rename(environment / "site", environment / "elsewhere")
        (environment / "plat").mkdir()  # a second place for distributions, as some systems have
        paths = {"stdlib": "lib", "purelib": "elsewhere", "platlib": "plat"}
        monkeypatch.setattr("sysconfig.get_path", lambda name: str(environment / paths[name]))
        assert collected(recipe, environment)[1] == before


def required_packages() -> set[str]:
    """The names to import of all that this project requires, without its extras."""
    requirements = tomllib.loads((RECIPES.parent / "pyproject.toml").read_text())["project"]["dependencies"]
    todo, seen = [Requirement(text) for text in requirements], set()
    while todo:
        requirement = todo.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        todo += [Requirement(text) for text in importlib.metadata.requires(name) or []]
    packages = importlib.metadata.packages_distributions().items()
    return {top for top, owners in packages if any(re.sub(r"[-_.]+", "-", o).lower() in seen for o in owners)}


def test_the_recipe_lists_only_what_the_project_requires() -> None:
    """Else its digest would depend on which extras are installed."""
    include = load_recipe("prose").include
    listed = {pattern.split("/")[1] for pattern in include if pattern.startswith("installed/")}
    assert {"torch", "numpy", "sqlalchemy"} <= listed <= required_packages()
    assert all(re.fullmatch(r"stdlib/\*\*/\*\.py|installed/\w+/\*\*/\*\.py", pattern) for pattern in include)


@pytest.fixture(scope="module")
def library() -> list[Passage]:
    files = list_files(load_recipe("prose"), count=False).files
    sources = {key: path for key, path in files.items() if key.startswith("stdlib/")}
    return [passage for key, path in sources.items() for passage in passages(path.read_text(), path=key)]


def test_the_standard_library_is_english(library: list[Passage]) -> None:
    paragraphs = [paragraph for passage in library for paragraph in passage.text.split("\n\n")]
    assert len(paragraphs) > 10_000
    assert sum(map(len, paragraphs)) > 1_000_000
    for paragraph in paragraphs:
        assert ">>>" not in paragraph
        assert "\n" not in paragraph
        assert sum(map(str.isalpha, paragraph)) > 0.6 * len(paragraph), paragraph
    little = re.compile(r"\b(the|of|to|and|is|in|a|an|for|are|be|it|if|or|by|not|on|with|as|this|that|from)\b", re.I)
    assert sum(little.search(paragraph) is not None for paragraph in paragraphs) > 0.97 * len(paragraphs)


def test_passages_of_the_standard_library(library: list[Passage]) -> None:
    assert {passage.kind for passage in library} >= {"module", "class", "function", "method", "property", "comment"}
    assert all(passage.text == passage.text.strip() and "\n\n\n" not in passage.text for passage in library)


def test_equal_in_another_process() -> None:
    script = (
        "import argparse, hashlib, pathlib;"
        "from lit_simplified.datamodules.prose import passages;"
        "text = pathlib.Path(argparse.__file__).read_text();"
        "print(hashlib.sha256(repr(list(passages(text, path='argparse.py'))).encode()).hexdigest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=RECIPES.parent,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(outputs) == 1


def test_indented_docstrings_of_methods_are_read_as_if_they_were_not() -> None:
    text = "The first line of it.\n\nParameters\n----------\nx : int\n    The size of the first of them.\n"
    assert clean("The first line of it.\n" + indent(text[21:], "        ")) == clean(text)
