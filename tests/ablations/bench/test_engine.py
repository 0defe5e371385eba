"""The benchmark of the engine, and its record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ablations.bench.__main__ import main
from ablations.bench.engine import exponents, table

DOCS = Path(__file__).parents[3] / "docs"


def test_the_tables_of_the_page_are_those_of_the_records() -> None:
    page = (DOCS / "scale.md").read_text()
    for name in ("engine", "engine-before"):
        assert table(json.loads((DOCS / "scale" / f"{name}.json").read_text())["found"]) in page


def test_what_is_recorded_is_constant_in_the_number_of_cells() -> None:
    found = json.loads((DOCS / "scale" / "engine.json").read_text())["found"]
    for storage in ("journal", "postgresql"):
        own = [at for at in found if at["storage"] == storage]
        assert [at["cells"] for at in own] == [500, 2000, 10_000]
        assert exponents(own)["cell, ms"] < 0.1
        for at in own:
            [many] = [value for key, value in at.items() if key.startswith("workers_")]
            assert many["states"] == {"complete": at["cells"]}
            assert many["begun"] == {"1": at["cells"]}


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path, shared_storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    storage = shared_storage if "://" in shared_storage else "journal"
    assert main(["engine", "--storage", storage, "--cells", "20", "60", "--workers", "1", "2", "--out",
                 str(tmp_path)]) == 0
    assert "cells a second" in capsys.readouterr().out
    found = json.loads((tmp_path / "engine.json").read_text())["found"]
    assert [at["workers_2"]["states"] for at in found] == [{"complete": 20}, {"complete": 60}]
    assert [at["one"]["cells"] for at in found] == [20, 60]
