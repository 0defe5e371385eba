"""Reports of large studies: what is shown is bounded and what is not is counted; work grows with the study."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from planted_studies import planted, train
from rich.console import Console
from statsmodels.stats.multitest import multipletests

from ablations.analysis import pairs, tables
from ablations.analysis.findings import find
from ablations.analysis.intervals import holm
from ablations.bench import __main__ as bench
from ablations.bench.report_scale import make_study
from ablations.report import limits, plots, styles, summary
from ablations.report.html import findings, page, provenance, ranking, write_report
from ablations.report.html import plots as drawings
from ablations.report.summary import summarise
from lit_simplified.config import RunConfig

ASKED = {"compare": {"block": ["pre_ln", "sas", "sas_p"], "model.depth": [1, 2], "optim.warmup": [0.1, 0.2]}}


def test_a_small_study_is_shown_whole_and_a_large_one_says_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcome(config: RunConfig, execution: int) -> tuple[str, Any]:
        return ("failed", "out of memory") if config.seed and config.model.depth > 1 else planted(config, execution)

    study = train(tmp_path, study=ASKED, seeds=(0, 1), outcome=outcome)
    whole = write_report(study, folder=tmp_path).read_text(encoding="utf-8")
    assert not re.search(r"The first [\d,]+ of|are shown: the first|are drawn, evenly|are in colour", whole)
    for module, name, most in (
        (ranking, "MOST_ROWS", 4), (ranking, "MOST_RUNS", 1), (limits, "MOST_OTHERS", 3), (styles, "MOST_COLOURED", 2),
        (page, "MOST_LINES", 3), (findings, "MOST_LINES", 2), (findings, "MOST_PAIRED", 5), (pairs, "MOST_PAIRED", 6),
        (provenance, "MOST_LINES", 3), (summary, "MOST_LINES", 3), (drawings, "MOST_EFFECTS", 3),
    ):
        monkeypatch.setattr(module, name, most)
    monkeypatch.setattr(summary, "draw_all", lambda found, folder: [])  # slow, and drawn by other tests
    printed = StringIO()
    found, _ = summarise(study, folder=tmp_path, console=Console(file=printed, width=200))
    text = re.sub(r"\s+", " ", write_report(study, folder=tmp_path).read_text(encoding="utf-8"))
    assert text.count("<tbody id=") in (4, 5, 6)  # the first four, and the two that have a colour
    for said in (
        f"{text.count('<tbody id=')} of 12 rows are shown", "The first 1 of 2 runs; all are in trials.jsonl",
        "5 of 12 rows are drawn", "2 of the 12 named rows are in colour", "The first 3 of 6 cells",
        "interactions; all are in effects.csv", "effects; all are in effects.csv", "The first 3 of 12 rows",
        "6 of the 12 named rows are set against each other", "The first 5 of 6 named rows; all are in pairwise.csv",
        "5 of 6 lines are drawn",
    ):
        assert said in text, said
    assert "The first 3 of 12 rows; all are in summary.csv." in printed.getvalue()
    assert len(found.rows) == len(pd.read_csv(tmp_path / "summary.csv")) == 12  # the files hold everything
    assert len(found.pairs) == 6 * 5 // 2


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> Iterator[list[int]]:
    """How often a function of a module is called."""
    real, calls = getattr(module, name), [0]

    def call(*given: Any, **options: Any) -> Any:
        calls[0] += 1
        return real(*given, **options)

    with monkeypatch.context() as patched:
        patched.setattr(module, name, call)
        yield calls


def test_a_configuration_is_read_once_for_all_its_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(tmp_path, cells=120, shape="seeds")
    with counted(monkeypatch, tables, "from_dict") as parsed, counted(monkeypatch, tables, "preset_of") as named:
        record = tables.read(study)
    assert len(record.cells) == 20 * len(record.design.rows)
    assert parsed == [len(record.design.rows)]
    assert named[0] <= parsed[0]
    assert sorted(record.cells.seed.unique()) == list(range(20))


@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_holm_corrects_as_statsmodels_does(count: int) -> None:
    p = np.round(np.random.default_rng(count).random(count) ** 3, 3)  # some of them equal
    assert np.array_equal(holm(p), multipletests(p, method="holm")[1] if count else p)


@pytest.mark.slow
def test_plots_and_page_of_thousands_of_cells_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, sizes = {}, {}
    for cells in (1000, 4000):
        folder = tmp_path / str(cells)
        study = make_study(folder, cells=cells)
        with counted(monkeypatch, tables, "from_dict") as parsed, counted(monkeypatch, plots, "_style") as artists:
            summarise(study, folder=folder, console=Console(file=StringIO(), width=110))
        assert parsed[0] == len(find(study).record.design.rows)
        drawn[cells] = artists[0]
        sizes[cells] = write_report(study, folder=folder).stat().st_size
    assert drawn[4000] <= 6 * (styles.MOST_COLOURED + 1)  # by step, time and speed, and along three axes
    assert sizes[4000] < 5_000_000
    assert sizes[4000] < 1.5 * sizes[1000]


@pytest.mark.slow
def test_the_benchmark_prints_how_reports_grow(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["report", "--cells", "40", "120"]) == 0
    printed = capsys.readouterr().out
    assert "page (MB)" in printed
    assert "exponent" in printed
