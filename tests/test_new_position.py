"""`docs/extending.md`, followed in a copy of the project: a new norm is a line in the table and a part, no more."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.split("## A position of a switch")[1], flags=re.DOTALL)
TABLE, NORM = "lit_simplified/config/switches.py", "lit_simplified/blocks/norm.py"
IGNORED = shutil.ignore_patterns(".git", ".venv", "results", "cache", "__pycache__", ".*_cache", "docs")

STUDY = '''
"""Trains the grid of the copy with a stand-in, and looks for the new position wherever one would."""

from dataclasses import replace

from stand_in import fit, prepare

from ablations.design.space import grid, grid_plan, row_params
from ablations.engine.storage import open_study
from ablations.report.html import write_report
from ablations.study import Options, execute, plan_run
from lit_simplified.config import PRE_LN, RunConfig
from lit_simplified.inspection.board import block_text, experiment


def main() -> None:
    blocks = grid()
    new = [block for block in blocks if block.norm == "dyt"]
    assert len(blocks) == 3 * len(new), len(blocks)

    run = plan_run(Options(study="grid", scale="smoke", seeds=[0], workers=1))
    found = execute(run, speed=False, fit=fit, prepare=prepare).found
    assert (found.rows.norm == "dyt").sum() == len(new)
    main_effects = found.effects[(found.effects.kind == "main") & (found.effects.measure == "loss")]
    norms = main_effects[main_effects.term == "norm"]
    assert set(norms.change) == {"rms -> dyt", "rms -> none"}, set(norms.change)
    assert norms.estimate.notna().all() and norms.low.notna().all()
    assert (main_effects.n_left_out == 0).all()
    assert found.left_out[found.left_out.measure == "loss"].empty
    change = norms.set_index("change").estimate
    assert abs(change["rms -> dyt"] - 0.25) < 1e-6, change  # what the stand-in gives it

    assert "dyt" in (run.folder / "summary.md").read_text()
    text = write_report(open_study(run.storage, name=run.study), folder=run.folder).read_text()
    assert '<option value="dyt">Dynamic Tanh</option>' in text, "the filter"
    assert "Dynamic Tanh" in text and ">DyT<" in text, "the diagrams"

    config = replace(RunConfig(), model=replace(RunConfig().model, block=replace(PRE_LN, norm="dyt")))
    assert "Dynamic Tanh" in block_text(config)
    assert b"dyt" in experiment().SerializeToString()

    plan = grid_plan()
    offered = {row_params(row, plan.design)["norm"] for row in plan.design.rows}
    assert offered == {"rms", "none", "dyt"}
    print("all of it knows the new position")


if __name__ == "__main__":
    main()
'''

STAND_IN = '''
"""Training in no time: a loss for every block, in which the new norm costs a quarter of a nat."""

from types import SimpleNamespace

from test_run import finished


def fit(config, *, on_validation):
    result = finished(config, on_validation=on_validation)
    block = config.model.block
    loss = 4 + 0.25 * (block.norm == "dyt") + 0.5 * (block.norm == "none") + 0.1 * (block.layout == "parallel")
    return type(result)(**{**vars(result), "val_loss": loss})


def prepare(data, *, vocab_size):
    return SimpleNamespace(card={"corpus_digest": "abc"})
'''


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with what the page says put in, and nothing else."""
    folder = tmp_path_factory.mktemp("project") / "copy"
    shutil.copytree(ROOT, folder, ignore=IGNORED)
    line, part, norms = BLOCKS
    position = next(text for text in line.splitlines() if text.startswith("Position("))
    none = 'Position(name="none", words="no norm"'
    _edit(folder / TABLE, none, f"{position}\n        {none}")
    _edit(folder / NORM, "NORMS: Mapping", f"{part.split('norm.py')[1].strip()}\n\n\nNORMS: Mapping")
    old = re.search(r"^NORMS: .*$", (folder / NORM).read_text(), flags=re.MULTILINE)
    assert old is not None
    head = old.group(0).split(" = ")[0]
    _edit(folder / NORM, old.group(0), f"{head} = {norms.strip().split(' = ')[1]}")
    _edit(folder / NORM, "from torch import Tensor, nn\n", "import torch\nfrom torch import Tensor, nn\n")
    return folder


def _edit(path: Path, before: str, after: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, (path, before)
    path.write_text(text.replace(before, after), encoding="utf-8")


@pytest.mark.slow
def test_two_files_are_touched(copy: Path) -> None:
    changed = [str(path.relative_to(ROOT)) for package in ("lit_simplified", "ablations", "tests")
               for path in (ROOT / package).rglob("*.py")
               if path.read_text(encoding="utf-8") != (copy / path.relative_to(ROOT)).read_text(encoding="utf-8")]
    assert sorted(changed) == sorted([TABLE, NORM])


@pytest.mark.slow
def test_studies_reports_and_tensorboard_know_it(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    (tmp_path / "look.py").write_text(STUDY)
    paths = [copy, copy / "tests/helpers", *copy.glob("tests/ablations/*"), tmp_path]
    done = subprocess.run(
        [sys.executable, "look.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=500,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(map(str, paths)), "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "all of it knows the new position" in done.stdout


@pytest.mark.slow
def test_the_tests_of_all_blocks_pick_it_up(copy: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/blocks/test_blocks.py", "-k", "dyt"],
        cwd=copy, capture_output=True, text=True, check=False, timeout=500,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed.group(1)) > 24  # at least one of each new block of the grid
