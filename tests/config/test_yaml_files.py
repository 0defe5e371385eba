"""YAML files of any content, as configuration, study and recipe: refused in a line, at once, with nothing imported."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from configurations import deadline

from ablations.__main__ import main as ablations
from lit_simplified.__main__ import main as lit_simplified
from lit_simplified.config import ConfigError
from lit_simplified.config.safe_yaml import DEEPEST, LARGEST, MOST_VALUES, parse_yaml

LEVELS = "abcdefghij"
BOMB = "a: &a [x, x]\n" + "".join(f"{name}: &{name} [{', '.join([f'*{LEVELS[at]}'] * 10)}]\n"
                                  for at, name in enumerate(LEVELS[1:]))
MERGED = BOMB.replace("[x, x]", "{x: 1}").replace(": &", ": &").replace("[*", "{<<: [*").replace("]\n", "]}\n")
ANY: dict[str, tuple[str | bytes | int, str]] = {
    # what a file holds (a number: that many bytes of 0) -> a part of the error, whatever the file is meant to be
    "alias bomb": (BOMB, f"more than {MOST_VALUES} values with what aliases stand for in line"),
    "bomb of merges": (MERGED, f"more than {MOST_VALUES} values"),
    "alias in itself": ("question: &a [*a]", "the alias 'a' stands in what it names in line 1"),
    "100 MB": (100 * 2**20, f"{100 * 2**20} bytes: at most {LARGEST} bytes are read"),
    "many values": ("[" + "1," * (LARGEST // 4) + "]", f"more than {MOST_VALUES} values"),
    "many keys": ("".join(f"k{number}: 1\n" for number in range(MOST_VALUES)), "more than"),
    "deep list": ("a: " + "[" * 5000, f"more than {DEEPEST} levels of lists and mappings in line 1"),
    "deep mapping": ("{a: " * 5000, f"more than {DEEPEST} levels"),
    "deep lines": ("".join(" " * at + "a:\n" for at in range(1000)), f"more than {DEEPEST} levels"),
    "latin-1": ("question: Größe".encode("latin-1"), "is no text in UTF-8 (byte 12)"),
    "UTF-16": ("question: x".encode("utf-16"), "is no text in UTF-8 (byte 0)"),
    "binary": (bytes(range(256)), "is no text in UTF-8"),
    "zeros": (100, "special characters are not allowed"),
    "tab": ("set:\n\tseed: 1", "found character '\\t'"),
    "open bracket": ("[1", "is no YAML that can be read"),
    "no date": ("seed: 2024-13-45", "month must be in 1..12"),
    "digits": ("seed: 0x" + "f" * 50_000, "seed"),
    "key twice": ("seeds: 1\nseeds: 2", "the key 'seeds' stands twice in line 2"),
    "key of a list": ("[a]: 1", "a key that is a list or a mapping in line 1"),
    "key of null": ("null: 1", "None"),
    "key of a number": ("7: 1", "7"),
    "tag": ("a: !!python/name:planted.X", "the tag 'tag:yaml.org,2002:python/name:planted.X' in line 1"),
    "class": ("a: {class_path: planted.X}", "the key 'class_path' in line 1"),
    "class deeper": ("trainer: {options: {callbacks: [{class_path: planted.X}]}}", "the key 'class_path'"),
    "two documents": ("{}\n---\n{}", "another document"),
    "list": ("- 1", "mapping"),
    "text": ("planted.X", "mapping"),
    "nothing": ("", "mapping"),
    "unknown key": ("wird: 1", "wird"),
}
FIT = {
    "preset: [sas]": "preset=['sas']: give text", "scale: {a: 1}": "scale={'a': 1}: give text", "preset: 3": "preset=3",
    "task: {a: 1}": "task={'a': 1}", "model: null": "model=None", "model: 3": "model=3", "model: planted.X": "model=",
    "trainer: /dev/zero": "trainer='/dev/zero'", "model: {block: planted.X}": "model.block='planted.X'",
    "config: other.yaml": "no such field", "optim: {steps: [1]}": "optim.steps", "optim: {steps: 1.5}": "steps",
    "optim: {steps: .nan}": "steps", "optim: {learning_rate: .inf}": "learning_rate=inf", "seed: -1": "seed=-1",
    "trainer: {options: {a: .nan}}": "trainer.options.a=nan", "trainer: {options: {1: 2}}": "options",
    "trainer: {devices: 0}": "trainer.devices=0", "trainer: {precision: ' '}": "trainer.precision=' '",
    "data: {recipe: [a]}": "recipe", "model: {block: {own: [1]}}": "own", "model: {depth: 20000}": "model.depth=20000",
    "out_dir: ''": "out_dir",
}
STUDY = {
    "compare: 3": "compare=3", "compare: {model.depth: 3}": "levels as a list", "compare: {block: [[1]]}": "preset=",
    "compare: {model.depth: {together: 3}}": "together", "compare: {model.depth: [.nan, 1]}": "depth",
    "compare: {size: {1: 2}}": "give the fields of the level", "claims: [3]": "claims[0]=3",
    "claims: {a: 1}": "claims=",
    "claims: [{left: 1, is: [better], right: 2}]": "is=['better']", "seeds: .nan": "seeds=nan", "seeds: [-1]": "seeds",
    "claims: [{left: 1, is: better, right: 2, margin: .inf}]": "margin=inf", "design: [full]": "design=['full']",
    "set: {trainer.options: {a: 2024-01-01}}": "trainer.options", "set: {seed: x}": "seed", "set: {1: 2}": "'1'",
    "scale: {a: 1}": "scale={'a': 1}", "figures: [{a: {}}]": "figures", "task: [clm]": "task",
    "tune: {optim.learning_rate: [.inf]}": "learning_rate", "baseline: {block: [1]}": "preset='[1]'",
    "source: 1": "source=1",
    "design: {rows: 3}": "rows", "design: {fraction: x}": "x",
    "design: {rows: [[1]]}": "rows", "set: {trainer.options: {a: {class_path: planted.X}}}": "class_path",
    "compare: {block: [pre_ln, sas]}\nbaseline: {block: {a: 1}}": "block", "seeds: 99999999999": "seeds",
}
RECIPE = {
    "kind: [files]": "kind=['files']", "kind: stdlib\nshares: null": "shares=None",
    "kind: stdlib\nfilters: 3": "filters=3",
    "kind: stdlib\nmax_bytes: .inf": "max_bytes=inf", "kind: stdlib\nmax_documents: true": "max_documents=True",
    "kind: files\npaths: [null]": "paths[0]=None", "kind: stdlib\nname: x": "is taken from the file",
    "kind: stdlib\nfilters: {max_digit_share: .nan}": "max_digit_share=nan",
    "kind: stdlib\ninclude: {a: 1}": "include=",
    "kind: stdlib\nexclude: [x]": "exclude[0]='x'", "kind: hub\nsources: [{repository: a}]": "revision",
    "kind: files\npaths: ['']": "paths[0]=''",
}


def fit(path: Path) -> None:
    lit_simplified(["fit", "--config", str(path)])


def data(path: Path) -> None:
    lit_simplified(["data", "--recipe", str(path), "--cache-dir", str(path.parent / "cache")])


def study(path: Path) -> None:
    sys.exit(ablations(["run", str(path), "--scale", "smoke", "--dry-run", "--out", str(path.parent / "out")]))


COMMANDS = {"fit": fit, "data": data, "study": study}
ONCE = ("many values", "many keys")
"""What takes a second, and the same one whatever reads it."""
FOR_ALL = [(command, name) for command in COMMANDS for name in ANY if command == "fit" or name not in ONCE]
ROWS = [
    *(pytest.param(command, *ANY[name], marks=() if command == "fit" and name not in ONCE else pytest.mark.slow)
      for command, name in FOR_ALL),
    *(("fit", text, told) for text, told in FIT.items()), *(("study", text, told) for text, told in STUDY.items()),
    *(("data", text, told) for text, told in RECIPE.items()),
]
NAMES = [*(f"{command}-{name}" for command, name in FOR_ALL), *FIT, *STUDY, *RECIPE]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a module in it that nothing may import."""
    (tmp_path / "planted.py").write_text("class X: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("command", "content", "told"), ROWS, ids=NAMES)
def test_any_file_is_refused_in_a_line(
    command: str, content: str | bytes | int, told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error, memory = refusal(COMMANDS[command], write(folder / "given.yaml", content), capsys)
    assert "error: " in error
    assert told in error
    assert len(error.splitlines()) < 12
    assert "planted" not in sys.modules
    assert memory < 2**30
    assert sorted(path.name for path in folder.iterdir()) == ["given.yaml", "planted.py"]  # nothing was begun


def write(path: Path, content: str | bytes | int) -> Path:
    if isinstance(content, int):
        with path.open("wb") as stream:
            stream.truncate(content)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(command: Callable[[Path], None], path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, int]:
    """What a command says of a file, and the bytes that its process grew by; any other exception is raised."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with deadline(), pytest.raises(SystemExit) as ended:
        command(path)
    assert ended.value.code not in (None, 0)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return re.sub(r"\s+", " ", f"{ended.value.code}: {capsys.readouterr().err}"), grown * 1024


def test_files_that_are_no_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS.values():
        for path in (folder, folder / "nowhere", Path("/dev/zero"), Path("x" * 5000), Path("~nobody-here/x")):
            assert "error: " in refusal(command, path, capsys)[0]


def test_the_usual_is_read_as_ever() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: [1e-3, 2.5, null, yes]}\nc: *a", field="f") == {
        "a": {"x": 1}, "b": {"x": 1, "y": ["1e-3", 2.5, None, True]}, "c": {"x": 1},
    }
    with pytest.raises(ConfigError, match=r"f='a: b: c'"):
        parse_yaml("a: b: c", field="f")
