"""What a module or a command may do without: reading results needs no torch, a model nothing but torch.

Two processes do it all, one after the other in each, and tell after every step what is loaded by then. What a step
must not load, those before it must not load either, so that none can hide what a later one brings.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_inspection_plots import snapshot
from test_search import execute, make_plan, stay_here
from test_summary import fill

ROOT = Path(__file__).parents[1]
MACHINERY = {"torch", "lightning", "pytorch_lightning", "datasets", "tokenizers"}
ABSENT = ("optuna", "scipy", "pandas", "matplotlib", "rich", "filelock", "jsonargparse", "tokenizers", "datasets")
STUDY = "from ablations.__main__ import main; assert main([{!r}, *'--study s --out study'.split()]) == 0"
SEARCH = "search --results --scale smoke --study s --storage search/journal.log --out search"
LIGHT: dict[str, tuple[str, set[str]]] = {
    # step -> what is done, and what is not loaded for it
    "the configuration": ("import lit_simplified.config", {"torch", "lightning", "numpy"}),
    "fine-tuning's configuration": (
        "import lit_simplified.finetuning as f; f.FinetuneConfig(task='glue/all')",
        {"torch", "lightning", "datasets", "torchmetrics"},
    ),
    "inspect": (
        "from lit_simplified.__main__ import main; main(['inspect', 'run'])",
        {"torch", "lightning", "tensorboard", "matplotlib.pyplot"},
    ),
    "status": (STUDY.format("status"), MACHINERY),
    "summary": (STUDY.format("summary"), MACHINERY),
    "report": (STUDY.format("report"), MACHINERY),
    "judge": ("from ablations.__main__ import main; assert main(['judge', 'study']) == 1", MACHINERY),
    "search --results": (
        f"from ablations.__main__ import main; assert main({SEARCH.split()!r}) == 0", MACHINERY
    ),
}
BARE: dict[str, tuple[str, set[str]]] = {
    "the model": (
        "import lit_simplified.model, lit_simplified.objectives, lit_simplified.optim",
        {"optuna", "datasets", "tokenizers", "matplotlib", "pandas", "lightning"},
    ),
    "the benchmark": (
        "from ablations.bench.__main__ import main; assert main(['--list', '--device', 'cpu']) == 0", set()
    ),
}
RUN = """
import json, pathlib, sys, traceback
found = {}
for name, code in json.loads(sys.argv[1]).items():
    try:
        exec(code, {})
        error = ""
    except BaseException:
        error = traceback.format_exc()
    found[name] = {"error": error, "modules": list(sys.modules)}
pathlib.Path(sys.argv[2]).write_text(json.dumps(found))
"""
AS_ON_A_BARE_MACHINE = f"""
import builtins
real = builtins.__import__
def bare(name, scope=None, *rest, **options):
    own = scope and scope.get("__name__", "").split(".")[0] in ("ablations", "lit_simplified")
    if own and name.split(".")[0] in {ABSENT!r}:
        raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    return real(name, scope, *rest, **options)
builtins.__import__ = bare
"""


def run_steps(steps: dict[str, tuple[str, set[str]]], *, folder: Path, before: str = "") -> tuple[dict[str, Any], str]:
    """What every step loaded or how it failed, and what they all printed."""
    told = folder / "told.json"
    codes = json.dumps({name: code for name, (code, _) in steps.items()})
    done = subprocess.run(
        [sys.executable, "-c", before + RUN, codes, str(told)], capture_output=True, text=True, cwd=folder, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(told.read_text()), done.stdout


def check_step(found: dict[str, Any], absent: set[str]) -> None:
    assert not found["error"], found["error"]
    assert "lit_simplified" in found["modules"]
    assert not absent & set(found["modules"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a snapshot, a study and a search, for the commands that read them."""
    folder = tmp_path_factory.mktemp("light")
    snapshot(50).save(folder / "run")
    for name in ("study", "search"):
        (folder / name).mkdir()
    fill(folder / "study", presets=("pre_ln", "sas"), seeds=(0, 1))
    with pytest.MonkeyPatch.context() as patched:
        stay_here(patched)
        execute(make_plan(folder / "search", trials=3, final_seeds=1))
    return folder


@pytest.fixture(scope="module")
def light(folder: Path) -> tuple[dict[str, Any], str]:
    return run_steps(LIGHT, folder=folder)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    return run_steps(BARE, folder=tmp_path_factory.mktemp("bare"), before=AS_ON_A_BARE_MACHINE)


@pytest.mark.parametrize("step", LIGHT)
def test_reading_loads_neither_torch_nor_lightning(step: str, light: tuple[dict[str, Any], str]) -> None:
    check_step(light[0][step], LIGHT[step][1])


def test_the_commands_have_done_their_work(folder: Path, light: tuple[dict[str, Any], str]) -> None:
    for file in ("run/inspection/signals.png", "study/summary.md", "study/report.html", "search/search.md"):
        assert (folder / file).exists(), file
    assert "4/4 cells" in light[1]
    assert "final runs, on fresh seeds" in light[1]


@pytest.mark.parametrize("step", BARE)
def test_a_bare_machine_needs_torch_and_lightning_alone(step: str, bare: tuple[dict[str, Any], str]) -> None:
    """What is not torch's or lightning's may be missing: the project imports nothing of it before it is used."""
    check_step(bare[0][step], BARE[step][1])
    assert "blocks/sas_p/pre_ln" in bare[1]
