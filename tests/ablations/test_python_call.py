"""`run_study` from a script, a prompt or standard input: workers do not run the caller's program again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAND_IN = """
from types import SimpleNamespace
from test_run import finished

def fit(config, *, on_validation):
    return finished(config, on_validation=on_validation)

def prepare(data, *, vocab_size):
    return SimpleNamespace(card={"corpus_digest": "abc"})
"""
SCRIPT = """
from ablations import load_study, results, run_study
from stand_in import fit, prepare

print("begun")
keys = {"question": "Which norm?", "compare": {"model.block.norm": ["rms", "layer", "none"]}, "seeds": 2}
found = run_study(load_study(keys), name="s", scale="smoke", speed=False, workers=2, fit=fit, prepare=prepare)
assert list(found.rows.columns[:3]) == ["layout", "attention_skip", "mlp_skip"]
assert len(found.rows) == 3 and len(found.cells) == 6 and len(results("s").rows) == 3
assert set(found.curves.label) == set(found.rows.label)
assert set(found.effects[found.effects.kind == "main"].change) == {"rms -> layer", "rms -> none"}
assert found.claims.empty
"""


@pytest.mark.parametrize("how", ["script", pytest.param("standard input", marks=pytest.mark.slow)])
def test_a_program_without_a_guard_runs_once(how: str, tmp_path: Path) -> None:
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    (tmp_path / "script.py").write_text(SCRIPT)
    paths = [ROOT, ROOT / "tests/helpers", ROOT / "tests/ablations/engine", tmp_path]
    done = subprocess.run(
        [sys.executable, "script.py" if how == "script" else "-"], cwd=tmp_path, capture_output=True, text=True,
        input=None if how == "script" else SCRIPT, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    logs = "".join(path.read_text() for path in tmp_path.glob("results/s/logs/*"))
    assert (done.stdout + logs).count("begun") == 1
