"""The summary: tables, planted effects, the contract of its files, and what it must not import."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import scipy.stats
from planted_studies import train
from rich.console import Console

from ablations.analysis.effects import effects
from ablations.analysis.tables import read, rows_table, tuned_table
from ablations.analysis.worker_time import worker_time, worker_time_sentence
from ablations.design.design import MOST_NAMED
from ablations.design.space import grid
from ablations.report.columns import axis_columns
from ablations.report.formats import markdown, to_json
from ablations.report.plots import pareto_front
from ablations.report.styles import MARKERS, PALETTE, style
from ablations.report.summary import summarise
from ablations.report.tables import tuned_matrix
from lit_simplified.config import PRESETS, SWITCHES, RunConfig
from lit_simplified.files import write_atomically

CONTRACT = [
    *SWITCHES, "preset", "n_seeds", "val_loss_mean", "val_loss_std", "params", "tokens_per_second", "speed_ratio",
    "speed_ratio_low", "speed_ratio_high", "peak_memory_mb", "state",
]


def planted(config: RunConfig) -> float | None:
    """A loss with known effects; naive_skipless diverges; what seed and learning rate add is the same for all."""
    block = config.model.block
    if block == PRESETS["naive_skipless"]:
        return None
    loss = 3.0 + 0.01 * config.seed + 100 * abs(config.optim.learning_rate - 3e-3)
    loss += 0.3 * (not block.attention_skip) * (block.layout == "sequential")
    loss += 0.2 * (not block.mlp_skip) * (block.layout == "sequential")
    loss -= 0.1 * (block.attention == "shaped")
    return loss + 0.05 * (block.value == "identity") + 0.02 * (block.norm == "none")


def fill(
    folder: Path, *, loss: Callable[[RunConfig], float | None] = planted, size: str = "smoke", **options: Any
) -> optuna.Study:
    """A study as `run` would leave it, with the losses of a function; no loss is a diverged cell."""
    def outcome(config: RunConfig, execution: int) -> tuple[str, Any]:
        value = loss(config)
        return ("complete", value) if value is not None else ("diverged", "nan")

    study = train(folder, outcome=outcome, **options)
    study.set_user_attr("spec", {**study.user_attrs["spec"], "scale": size})
    study.set_user_attr("corpus", {"python": "3.11"})
    return study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> optuna.Study:
    return fill(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def summary(study: optuna.Study, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder with the files, and what a terminal of 110 columns showed."""
    folder, printed = tmp_path_factory.mktemp("out"), StringIO()
    summarise(study, folder=folder, console=Console(file=printed, width=110))
    return folder, printed.getvalue()


@pytest.fixture
def written(summary: tuple[Path, str]) -> Path:
    return summary[0]


def test_the_files_keep_to_the_contract(written: Path) -> None:
    with (written / "summary.csv").open() as file:
        header, *rows = list(csv.reader(file))
    place = CONTRACT.index("preset") + 1
    assert header[: len(CONTRACT) + 1] == [*CONTRACT[:place], "value + projection", *CONTRACT[place:]]
    assert len(rows) == len(grid())
    values = json.loads((written / "summary.json").read_text(), parse_constant=pytest.fail)  # NaN is not JSON
    assert len({tuple(row[name] for name in SWITCHES) for row in values}) == len(grid())
    [sas] = [row for row in values if row["preset"] == "sas"]
    assert (sas["state"], sas["n_seeds"], sas["params"], sas["val_loss_std"]) == ("complete", 1, 41_000, None)
    assert sas["val_loss_mean"] == pytest.approx(3.0 + 0.3 - 0.1 + 0.05)
    assert (sas["speed_ratio"], sas["peak_memory_mb"], sas["tokens_per_second"]) == (1.2, 3.0, 6e3)  # of the speed pass
    [naive] = [row for row in values if row["preset"] == "naive_skipless"]
    assert (naive["state"], naive["n_seeds"], naive["val_loss_mean"]) == ("diverged", 0, None)
    assert values[-1] == naive


def test_a_line_per_trial_with_its_executions(written: Path) -> None:
    lines = [json.loads(line) for line in (written / "trials.jsonl").read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(len(grid())))
    assert {line["state"] for line in lines} == {"complete", "diverged"}
    for line in lines:
        assert set(line) >= {"number", "cell", "state", "params", "val_loss", "executions"}
        assert set(line["params"]) >= {*SWITCHES, "seed"}
        [execution] = line["executions"]
        assert set(execution) == {"start", "end", "worker", "outcome"}
        assert execution["outcome"] == line["state"]


def test_planted_effects_are_found(study: optuna.Study) -> None:
    record = read(study)
    found = effects(record, rows_table(record))
    loss = found[(found.measure == "loss") & (found.kind == "main")].set_index("term")
    expected = {"attention_skip": 0.3, "mlp_skip": 0.2, "attention": -0.1, "value + projection": 0.05, "norm": 0.02,
                "layout": -0.25}
    assert loss.estimate.to_dict() == pytest.approx(expected)
    assert (loss.drop("layout").n_left_out == 1).all()  # naive_skipless
    speed = found[(found.measure == "speed") & (found.kind == "main")].set_index("term").estimate
    assert speed.to_dict() == pytest.approx({
        "attention_skip": 1, "mlp_skip": 1, "layout": 1, "attention": 1, "value + projection": 1.2, "norm": 1.1,
    })


def test_each_row_is_shown_at_its_best_learning_rate(tmp_path: Path) -> None:
    def loss(config: RunConfig) -> float | None:
        rate, seed, name = config.optim.learning_rate, config.seed, config.model.block
        if name == PRESETS["sas"] and rate == 1e-2 and seed == 1:
            return None  # the best mean, but not to be trusted
        best = {PRESETS["pre_ln"]: 3e-3, PRESETS["sas"]: 1e-2}[name]
        return 3.0 + (rate != best) + 0.1 * seed

    study = fill(tmp_path, loss=loss, presets=("pre_ln", "sas"), seeds=(0, 1), learning_rates=(1e-3, 3e-3, 1e-2))
    table = rows_table(read(study)).set_index("preset")
    assert table.learning_rate.to_dict() == {"pre_ln": 3e-3, "sas": 1e-3}
    assert table.loc["pre_ln", "val_loss_mean"] == pytest.approx(3.05)
    assert table.loc["pre_ln", "val_loss_std"] == pytest.approx(0.1 / math.sqrt(2))
    matrix = tuned_matrix(tuned_table(read(study)), title="lr").set_index("row")
    assert list(matrix.columns) == ["lr 0.001", "lr 0.003", "lr 0.01"]
    assert matrix.loc["pre_ln", "lr 0.003"] == "3.0500 ± 0.0707"
    printed = StringIO()
    summarise(study, folder=tmp_path / "out", console=Console(file=printed, width=160))
    assert "validation loss by learning rate" in printed.getvalue()
    assert "| pre_ln | 4.0500" in (tmp_path / "out" / "learning_rates.md").read_text()


def test_the_document_says_what_is_fixed_and_what_is_left_out(written: Path) -> None:
    text = (written / "summary.md").read_text()
    for words in ("scale and task: smoke, clm", "corpus digest: abc", f"seeds: 0 ({len(grid())} rows)",
                  "1 row: naive_skipless. Reason: diverged (seed 0).", "The order of the rows means nothing",
                  "| 1 | 3.2500 |", "effects.png", "## Effects", "Simple effects", "1 left out",
                  "**Which parts of the transformer block are needed", "source: He & Hofmann", "baseline: pre_ln",
                  "16 of 64 combinations cannot be built", "layout: sequential, parallel (model.block.layout)"):
        assert words in text, words


def test_the_plots_are_there_and_not_empty(written: Path) -> None:
    for name in ("loss_by_step", "loss_by_time", "loss_by_speed", "effects"):
        image = (written / f"{name}.png").read_bytes()
        assert image.startswith(b"\x89PNG")
        assert len(image) > 20_000
    assert not [path for path in written.iterdir() if path.name.startswith(".")]


def test_an_unfinished_study_can_be_summarised(tmp_path: Path) -> None:
    study = train(tmp_path, presets=("pre_ln",), stop_after=0, speed=False)
    printed = StringIO()
    summarise(study, folder=tmp_path, console=Console(file=printed, width=160))
    assert json.loads((tmp_path / "summary.json").read_text()) == []
    assert "interim" in printed.getvalue()
    assert "no training run has finished yet" in printed.getvalue()


def test_the_front_holds_what_no_row_beats_in_both(study: optuna.Study) -> None:
    table = rows_table(read(study)).dropna(subset="val_loss_mean").assign(pace=lambda rows: rows.speed_ratio)
    front = pareto_front(table)
    assert 0 < len(front) < len(table)
    for row in table.itertuples():
        beaten = (front.speed_ratio >= row.speed_ratio) & (front.val_loss_mean <= row.val_loss_mean)
        assert beaten.any()
    for row in front.itertuples():
        better = (table.speed_ratio > row.speed_ratio) & (table.val_loss_mean < row.val_loss_mean)
        assert not better.any()


def test_rows_with_several_seeds_have_intervals(tmp_path: Path) -> None:
    losses = {0: 3.0, 1: 3.3, 2: 3.1}
    table = rows_table(read(fill(tmp_path, loss=lambda config: losses[config.seed], presets=("pre_ln", "sas"),
                                   seeds=(0, 1, 2))))
    assert list(table.columns[: len(CONTRACT)]) == CONTRACT
    values = [*losses.values()]
    low, high = scipy.stats.t.interval(0.95, 2, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert table.val_loss_low.to_list() == pytest.approx([low] * 2)
    assert table.val_loss_high.to_list() == pytest.approx([high] * 2)
    assert rows_table(read(fill(tmp_path / "one", presets=("pre_ln",)))).val_loss_low.isna().all()


def test_rows_are_compared_and_claims_judged(tmp_path: Path) -> None:
    def loss(config: RunConfig) -> float | None:
        return 4.0 + 0.2 * config.seed + 0.5 * (config.model.block == PRESETS["v_skipinit"])

    asked = {
        "question": "Does it work?", "source": "Somebody, Fig. 1",
        "compare": {"block": ["pre_ln", "sas", "v_skipinit"]},
        "claims": [{"left": "v_skipinit", "is": "worse", "right": "pre_ln", "name": "Fig. 1",
                    "paper": "clearly | worse"},
                   {"left": "sas", "is": "level", "right": "pre_ln", "name": "Fig. 1"}],
    }
    printed = StringIO()
    found, written = summarise(fill(tmp_path, loss=loss, study=asked, seeds=(0, 1), size="small"), folder=tmp_path,
                               console=Console(file=printed, width=110))
    text = (tmp_path / "summary.md").read_text()
    for words in ("## Claims", "Source: Somebody, Fig. 1.", "Written down: 20", "| Fig. 1 | sas is level with pre_ln |",
                  "clearly \\| worse", "| pre_ln | v_skipinit | -0.500 [-0.500, -0.500] | 2 |", "## Rows in pairs"):
        assert words in text, words
    with (tmp_path / "claims.csv").open() as file:
        claims = {row["claim"]: row["verdict"] for row in csv.DictReader(file)}
    assert claims == {"v_skipinit is worse than pre_ln": "holds", "sas is level with pre_ln": "holds"}
    assert len((tmp_path / "pairwise.csv").read_text().splitlines()) == 1 + 3
    assert "v_skipinit is worse than pre_ln" in printed.getvalue()
    assert len(found.rows) == 3
    assert all(path.exists() for path in written)


def test_a_terminal_of_110_columns_shows_every_row_in_one_line(summary: tuple[Path, str]) -> None:
    lines = summary[1].splitlines()
    for name in ("seq-skips-softmax-vI-pI-none", "attention_skip x value + projection", "sas is level with pre_ln"):
        row = next(number for number, line in enumerate(lines) if line.startswith(name))
        assert not lines[row + 1].startswith(" "), lines[row : row + 2]  # nothing is folded beneath
    assert max(map(len, lines)) <= 110


def test_learning_rates_are_drawn_and_an_edge_is_warned_about(tmp_path: Path) -> None:
    def loss(config: RunConfig) -> float | None:
        return 4.0 - config.optim.learning_rate

    printed = StringIO()
    _, written = summarise(fill(tmp_path, loss=loss, presets=("pre_ln", "sas"), learning_rates=(1e-3, 1.0)),
                        folder=tmp_path, console=Console(file=printed, width=160))
    assert tmp_path / "learning_rates.png" in written
    assert "best at the highest learning_rate, 1 (2 of them still gain there): pre_ln; sas" in printed.getvalue()
    assert "Extend the axis upwards" in (tmp_path / "summary.md").read_text()


def test_how_the_workers_spent_their_time(study: optuna.Study) -> None:
    record = read(study)
    assert worker_time(record) is None  # no worker signed
    [name] = {trial["executions"][-1]["worker"] for trial in record.trials}
    workers = {name: {"start": "2026-01-01T00:00:00+00:00", "end": "2026-01-01T00:03:20+00:00", "machine": "m"},
               "other:1": {"start": "2026-01-01T00:00:00+00:00", "end": "2026-01-01T00:00:40+00:00", "machine": "m"}}
    record = replace(record, attrs={**record.attrs, "workers": workers})
    trained = len(grid()) - 1  # one diverged
    assert worker_time(record) == {"workers": 2, "lifetime": 240.0, "training": 2.0 * trained,
                                   "validation": 0.5 * trained, "share": pytest.approx(2.5 * trained / 240)}
    assert worker_time_sentence(record) == "workers: 2, together 4:00, of which 49% in training and validation steps"
    other = replace(record, attrs={**record.attrs, "workers": {"other:1": workers["other:1"]}})
    assert worker_time(other) is None  # the cells are none of its


def test_a_file_that_fails_to_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("file.txt", "old")]


def test_json_has_null_for_what_is_no_number() -> None:
    assert to_json({"a": [math.nan, np.float64(1.5), math.inf], "b": np.int64(2)}) == '{"a": [null, 1.5, null], "b": 2}'


def test_markdown_tables_survive_pipes_and_gaps() -> None:
    import pandas as pd

    text = markdown(pd.DataFrame({"a|b": ["x|y", None], "n": [1.5, math.nan]}))
    assert text.splitlines()[2:] == ["| x\\|y | 1.5 |", "| | |"]


def test_a_numeric_axis_has_its_plot_and_table(tmp_path: Path) -> None:
    asked = {"compare": {"block": ["pre_ln", "sas"], "model.depth": [2, 4, 32]},
             "figures": [{"loss_by_axis": "model.depth"}, "effects"]}
    study = train(tmp_path, study=asked, seeds=(0, 1))
    _, written = summarise(study, folder=tmp_path, console=Console(file=StringIO()))
    pictures = [path.name for path in written if path.suffix == ".png"]
    assert pictures[:2] == ["loss_by_depth.png", "effects.png"]
    text = (tmp_path / "summary.md").read_text()
    assert text.index("(loss_by_depth.png)") < text.index("## Rows") < text.index("(loss_by_step.png)")
    assert "| row | depth 2 | depth 4 | depth 32 |" in text
    assert "compare tokens per second" in text
    points = pd.read_csv(tmp_path / "by_axis.csv")
    assert set(points.line) == {"pre_ln", "sas"}
    assert set(pd.read_csv(tmp_path / "curves.csv").columns) >= {"cell", "row", "seed", "step", "val_loss"}
    assert "depth" in pd.read_csv(tmp_path / "summary.csv").columns


def test_a_study_of_many_rows_has_all_plots(tmp_path: Path) -> None:
    asked = {"compare": {"block": list(PRESETS), "model.depth": [1, 2, 3, 4]},
             "tune": {"optim.learning_rate": [1e-3, 3e-3], "optim.warmup": [0.1, 0.2]}}
    study = train(tmp_path, study=asked)
    found, written = summarise(study, folder=tmp_path, console=Console(file=StringIO()))
    assert len(found.record.design.highlighted) == 4 * len(PRESETS) > MOST_NAMED
    assert {"loss_by_step.png", "loss_by_depth.png", "loss_by_warmup.png", "tuned.csv"} <= {p.name for p in written}
    every = range(len(PALETTE) * len(MARKERS))
    assert len({style(index) for index in every}) == len(every)


def test_a_study_recorded_before_studies_were_files_reads_the_same(study: optuna.Study, tmp_path: Path) -> None:
    old = train(tmp_path, legacy=True)
    found, _ = summarise(old, folder=tmp_path / "old", console=Console(file=StringIO()))
    new, _ = summarise(train(tmp_path / "new"), folder=tmp_path / "new", console=Console(file=StringIO()))
    pd.testing.assert_frame_equal(found.effects, new.effects)
    assert [column.title for column in axis_columns(found.record)] == [
        column.title for column in axis_columns(new.record)]


def test_columns_are_what_varies(tmp_path: Path) -> None:
    skips = {"with": {"model.block.attention_skip": True, "model.block.mlp_skip": True},
             "without": {"model.block.attention_skip": False, "model.block.mlp_skip": False}}
    record = read(train(tmp_path, study={"compare": {"skips": skips, "model.block.norm": ["rms", "layer"]}}))
    norm, further = axis_columns(record)
    assert (norm.title, further.title) == ("norm", "skips")
    assert list(norm.words.items()) == [("rms", "RMSNorm"), ("layer", "LayerNorm")]
    assert set(further.levels.values()) == {"with", "without"}
    named = axis_columns(read(train(tmp_path / "named", presets=("pre_ln", "sas"))))
    assert [(column.title, column.asked) for column in named] == [
        ("attention skip", False), ("attention", False), ("value + projection", False)]


def test_text_in_brackets_is_no_markup_and_breaks_no_table(tmp_path: Path) -> None:
    asked = {"compare": {"[red]": {"[/b]|x\ny": {"model.depth": 2}, "$a_b$": {"model.depth": 3}}}}
    printed = StringIO()
    summarise(train(tmp_path, study=asked), folder=tmp_path, console=Console(file=printed, width=160))
    assert "[/b]" in printed.getvalue()
    lines = (tmp_path / "summary.md").read_text().splitlines()
    head = next(index for index, line in enumerate(lines) if line.startswith("| row |"))
    assert all(line.startswith("|") for line in lines[head : head + 4])
