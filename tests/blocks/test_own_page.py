"""docs/own-block.md: its code and its commands are run as they stand, from file to checkpoint."""

from __future__ import annotations

import glob
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
import yaml

import lit_simplified
from ablations.__main__ import main as study
from lit_simplified import BlockConfig, ModelConfig, fit
from lit_simplified.__main__ import main
from lit_simplified.blocks import own as loading
from lit_simplified.blocks.check import check_own
from lit_simplified.config import CHOICES, DataConfig, own
from lit_simplified.scales import run_of

PAGE = (Path(lit_simplified.__file__).parent.parent / "docs" / "own-block.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL)
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the file of the page in it, and a process that has named none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own, "_ALLOWED", {})
    monkeypatch.setattr(loading, "_MODULES", {})
    (tmp_path / "mine.py").write_text(PYTHON[0])
    return tmp_path


def command(start: str) -> list[str]:
    """The arguments of the command that starts so, with the shell's patterns filled in."""
    line = next(line for line in COMMANDS if line.startswith(f"python -m {start}"))
    words = shlex.split(line)[3:]
    return [word for given in words for word in (sorted(glob.glob(given)) if "*" in given else [given])]


def test_the_page_has_what_it_promises() -> None:
    assert PYTHON[0].startswith("# mine.py\n")
    assert [line.split()[2:4] for line in COMMANDS] == [
        ["lit_simplified", "fit"], ["ablations", "run"], ["lit_simplified", "generate"],
    ]
    for field, (_, offered) in zip(("attention", "norm", "activation", "own"), loading.OFFERED.items(), strict=True):
        signature = f"Class(*, {', '.join(offered)})" if offered else "Class()"
        assert re.search(rf"^\| `{field}` \|.*`{re.escape(signature)}`", PAGE, flags=re.MULTILINE)
    assert set(loading.OFFERED) - {"own"} == {name for name, switch in CHOICES.items() if switch.own}


def test_the_code_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    for text in PYTHON:
        exec(compile(text, "docs/own-block.md", "exec"), {"__name__": "page"})
    assert "(mixing): LinearAttention()" in capsys.readouterr().out
    written = next(yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml")
    assert BlockConfig(**written["model"]["block"]) == BlockConfig(attention="mine.py:LinearAttention")


@pytest.mark.parametrize("causal", [True, False])
def test_the_class_of_the_page_holds_in_both_tasks(causal: bool) -> None:
    check_own(ModelConfig(block=BlockConfig(attention="mine.py:LinearAttention"), causal=causal))


def test_the_refusal_of_the_page_is_real(folder: Path) -> None:
    (folder / "mine.py").write_text(PYTHON[0].replace(" if self.causal", " if not self.causal"))
    with pytest.raises(lit_simplified.ConfigError) as refused:
        check_own(ModelConfig(block=BlockConfig(attention="mine.py:LinearAttention")))
    shown = next(text for text in re.findall(r"```\n(error: .*?)```", PAGE, flags=re.DOTALL))
    digest = re.compile(r"@[0-9a-f]{12}'")
    assert digest.sub("@'", " ".join(shown.split())) == digest.sub("@'", f"error: {refused.value}")


def test_the_commands_of_the_page_run(
    corpus: DataConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--data.recipe", corpus.recipe, "--data.cache_dir", corpus.cache_dir, "--trainer.accelerator", "cpu"]
    main([*command("lit_simplified fit"), *small, "--trainer.progress_bar", "false"])
    assert "results/runs/seq-skips-LinearAttention-vL-pL-rms-s0-" in capsys.readouterr().out
    monkeypatch.setattr(own, "_ALLOWED", {})
    with pytest.warns(UserWarning, match="takes no cache"):
        main(command("lit_simplified generate"))
    assert capsys.readouterr().out.startswith("def ")


@pytest.mark.slow
def test_the_study_of_the_page_runs(corpus: DataConfig) -> None:
    small = [f"data.recipe={corpus.recipe}", f"data.cache_dir={corpus.cache_dir}", "trainer.accelerator=cpu"]
    assert study([*command("ablations run"), "--no-speed", "--workers", "1", "--set", *small]) == 0
    [summary] = Path("results").glob("*/summary.csv")
    found = pd.read_csv(summary)
    assert sorted(found.label) == ["attention mine.py:LinearAttention", "pre_ln"]
    assert set(found.state) == {"complete"}


def test_the_example_learns(corpus: DataConfig) -> None:
    from dataclasses import replace

    run = run_of("smoke")
    block = BlockConfig(attention="mine.py:LinearAttention")
    trainer = replace(run.trainer, accelerator="cpu", progress_bar=False, tensorboard=False, inspect_every=0)
    result = fit(replace(run, model=replace(run.model, block=block), data=corpus, trainer=trainer))
    assert result.curve[-1].val_loss < result.curve[0].val_loss
