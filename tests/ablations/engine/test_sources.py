"""The digest of the code that trains: it changes with what computes a result, and with nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

import lit_simplified
from ablations.engine import sources


@pytest.fixture
def digest_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[str], str]], str]:
    """The digest after a change of a module in a copy of the package."""
    original, copy = Path(lit_simplified.__file__).parent, tmp_path / "lit_simplified"
    monkeypatch.setattr(sources, "find_spec", lambda name: ModuleSpec(name, None, origin=str(copy / "__init__.py")))

    def change(module: str, edit: Callable[[str], str]) -> str:
        shutil.copytree(original, copy, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        text = (copy / module).read_text()
        assert edit(text) != text or module == "train.py"
        (copy / module).write_text(edit(text))
        return sources.sources_digest.__wrapped__()

    return change


def test_the_digest_is_that_of_the_code_that_computes(digest_of: Callable[[str, Callable[[str], str]], str]) -> None:
    before = digest_of("train.py", str)
    assert before == sources.sources_digest()
    for module, old, new in (
        ("blocks/mlp.py", "return self.", "return 0 * self."), ("optim.py", "1.0", "1.5"),
        ("datamodules/datamodule.py", "def __init__", "def __init__ "),
    ):
        changed = digest_of(module, lambda text, old=old, new=new: text.replace(old, new))
        assert (changed != before) == (module != "datamodules/datamodule.py"), module
    for module in ("generate.py", "inspection/plots.py", "finetuning/__init__.py"):
        assert digest_of(module, lambda text: f"{text}\nANOTHER = 1\n") == before, module
    assert digest_of("blocks/mlp.py", lambda text: f"{text}\n# a comment\n") == before
    assert digest_of("model.py", lambda text: text.replace('"""', '"""And more. ', 1)) == before


def test_what_trains_is_reached() -> None:
    reached = set(sources.reached_modules())
    assert {f"lit_simplified.{name}" for name in (
        "train", "model", "module", "objectives", "optim", "blocks.factory", "blocks.attention", "config.presets",
        "datamodules.packing", "datamodules.tokenizer",
    )} <= reached
    assert not any(name.startswith("lit_simplified.inspection") for name in reached)
