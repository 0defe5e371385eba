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
import pytest
import scipy.stats
from rich.console import Console
from test_run import make_plan

from ablations.analysis.effects import effects
from ablations.analysis.tables import blocks_table, learning_rates_table, read
from ablations.analysis.usage import usage
from ablations.analysis.usage import words as usage_words
from ablations.design.scales import SCALES
from ablations.design.space import block_id, grid
from ablations.engine.queue import Queue
from ablations.engine.run import plan_cells, task_of
from ablations.engine.storage import create_study
from ablations.report.formats import markdown, to_json
from ablations.report.plots import pareto_front
from ablations.report.summary import summarise
from ablations.report.tables import rates_matrix
from lit_simplified.config import PRESETS, SWITCHES, BlockConfig, RunConfig, from_dict
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


def speed_of(block: BlockConfig) -> float:
    return 1.1 ** (block.norm == "none") * 1.2 ** (block.value == "identity")


def fill(folder: Path, *, loss: Callable[[RunConfig], float | None] = planted, **axes: Any) -> optuna.Study:
    """A study as `run` would leave it, without the training."""
    plan = make_plan(folder, **axes)
    study = create_study(plan.storage, name="s", spec={"scale": "smoke", "task": "clm", "corpus": "abc"})
    queue = Queue(study, storage=plan.storage, folder=folder)
    queue.enqueue([task_of(plan, cell) for cell in plan.cells])
    while (claim := queue.claim()) is not None:
        value = loss(from_dict(RunConfig, claim.config))
        curve = [
            {"step": s, "tokens": 256 * s, "seconds": s / 10, "train_loss": 6.0, "val_loss": (value or 6) + 1 / s}
            for s in (10, 20)
        ]
        result = {"val_loss": value, "parameters": 41_000, "tokens_per_second": 1e4, "peak_memory_mb": 300.0,
                  "seconds": 2.0, "validation_seconds": 0.5,
                  "test": {"loss": value, "perplexity": 20.0} if value else {}}
        state = "complete" if value is not None else "diverged"
        queue.finish(claim, state=state, value=value, reason="" if value else "nan", curve=curve, result=result)
    blocks = {cell.block for cell in plan.cells}
    study.set_user_attr("speed", {
        block_id(b): {"ratio": speed_of(b), "low": 0.9 * speed_of(b), "high": 1.1 * speed_of(b),
                      "tokens_per_second": 5e3 * speed_of(b), "peak_memory_mb": 3.0} for b in blocks
    })
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
    assert header[: len(CONTRACT)] == CONTRACT
    assert len(rows) == 48
    values = json.loads((written / "summary.json").read_text(), parse_constant=pytest.fail)  # NaN is not JSON
    assert len({tuple(row[name] for name in SWITCHES) for row in values}) == 48
    [sas] = [row for row in values if row["preset"] == "sas"]
    assert (sas["state"], sas["n_seeds"], sas["params"], sas["val_loss_std"]) == ("complete", 1, 41_000, None)
    assert sas["val_loss_mean"] == pytest.approx(3.0 + 0.3 - 0.1 + 0.05)
    assert (sas["speed_ratio"], sas["peak_memory_mb"], sas["tokens_per_second"]) == (1.2, 3.0, 6e3)  # of the speed pass
    [naive] = [row for row in values if row["preset"] == "naive_skipless"]
    assert (naive["state"], naive["n_seeds"], naive["val_loss_mean"]) == ("diverged", 0, None)
    assert values[-1] == naive


def test_a_line_per_trial_with_its_executions(written: Path) -> None:
    lines = [json.loads(line) for line in (written / "trials.jsonl").read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(48))
    assert {line["state"] for line in lines} == {"complete", "diverged"}
    for line in lines:
        assert set(line) >= {"number", "cell", "state", "params", "val_loss", "executions"}
        assert set(line["params"]) >= {*SWITCHES, "seed"}
        [execution] = line["executions"]
        assert set(execution) == {"start", "end", "worker", "outcome"}
        assert execution["outcome"] == line["state"]


def test_planted_effects_are_found(study: optuna.Study) -> None:
    record = read(study)
    found = effects(record, blocks_table(record))
    loss = found[(found.measure == "loss") & (found.kind == "main")].set_index("term")
    expected = {"attention_skip": 0.3, "mlp_skip": 0.2, "attention": -0.1, "value + projection": 0.05, "norm": 0.02,
                "layout": -0.25}
    assert loss.estimate.to_dict() == pytest.approx(expected)
    assert loss.n_left_out.to_dict() == {name: 0 if name == "layout" else 1 for name in loss.index}  # naive_skipless
    speed = found[(found.measure == "speed") & (found.kind == "main")].set_index("term").estimate
    assert speed.to_dict() == pytest.approx({
        "attention_skip": 1, "mlp_skip": 1, "layout": 1, "attention": 1, "value + projection": 1.2, "norm": 1.1,
    })


def test_each_block_is_shown_at_its_best_learning_rate(tmp_path: Path) -> None:
    def loss(config: RunConfig) -> float | None:
        rate, seed, name = config.optim.learning_rate, config.seed, config.model.block
        if name == PRESETS["sas"] and rate == 1e-2 and seed == 1:
            return None  # the best mean, but not to be trusted
        best = {PRESETS["pre_ln"]: 3e-3, PRESETS["sas"]: 1e-2}[name]
        return 3.0 + (rate != best) + 0.1 * seed

    study = fill(tmp_path, loss=loss, presets=("pre_ln", "sas"), seeds=(0, 1), learning_rates=(1e-3, 3e-3, 1e-2))
    table = blocks_table(read(study)).set_index("preset")
    assert table.learning_rate.to_dict() == {"pre_ln": 3e-3, "sas": 1e-3}
    assert table.loc["pre_ln", "val_loss_mean"] == pytest.approx(3.05)
    assert table.loc["pre_ln", "val_loss_std"] == pytest.approx(0.1 / math.sqrt(2))
    matrix = rates_matrix(learning_rates_table(read(study))).set_index("block")
    assert list(matrix.columns) == ["lr 0.001", "lr 0.003", "lr 0.01"]
    assert matrix.loc["pre_ln", "lr 0.003"] == "3.0500 ± 0.0707"
    printed = StringIO()
    summarise(study, folder=tmp_path / "out", console=Console(file=printed, width=160))
    assert "validation loss by learning rate" in printed.getvalue()
    assert "| pre_ln | 4.0500" in (tmp_path / "out" / "learning_rates.md").read_text()


def test_the_document_says_what_is_fixed_and_what_is_left_out(written: Path) -> None:
    text = (written / "summary.md").read_text()
    for words in ("Scale `smoke`, task `clm`", "corpus digest `abc`", "seeds: 0 (48 blocks)",
                  "1 cells diverged and 0 failed", "the order of the blocks means nothing",
                  "| sas | 1 | 3.2500 |", "effects.png", "## Effects", "Simple effects", "31 blocks, 1 left out"):
        assert words in text, words


def test_the_plots_are_there_and_not_empty(written: Path) -> None:
    for name in ("loss_by_step", "loss_by_time", "loss_by_speed", "effects"):
        image = (written / f"{name}.png").read_bytes()
        assert image.startswith(b"\x89PNG")
        assert len(image) > 20_000
    assert not [path for path in written.iterdir() if path.name.startswith(".")]


def test_an_unfinished_study_can_be_summarised(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, presets=("pre_ln",))
    study = create_study(plan.storage, name="s", spec={"scale": "smoke"})
    queue = Queue(study, storage=plan.storage, folder=tmp_path)
    queue.enqueue([task_of(plan, cell) for cell in plan.cells])
    printed = StringIO()
    summarise(study, folder=tmp_path, console=Console(file=printed, width=160))
    assert json.loads((tmp_path / "summary.json").read_text()) == []
    assert "interim" in printed.getvalue()


def test_the_front_holds_what_no_block_beats_in_both(study: optuna.Study) -> None:
    table = blocks_table(read(study)).dropna(subset="val_loss_mean")
    front = pareto_front(table)
    assert 0 < len(front) < len(table)
    for row in table.itertuples():
        beaten = (front.speed_ratio >= row.speed_ratio) & (front.val_loss_mean <= row.val_loss_mean)
        assert beaten.any()
    for row in front.itertuples():
        better = (table.speed_ratio > row.speed_ratio) & (table.val_loss_mean < row.val_loss_mean)
        assert not better.any()


def test_blocks_with_several_seeds_have_intervals(tmp_path: Path) -> None:
    losses = {0: 3.0, 1: 3.3, 2: 3.1}
    table = blocks_table(read(fill(tmp_path, loss=lambda config: losses[config.seed], presets=("pre_ln", "sas"),
                                   seeds=(0, 1, 2))))
    assert list(table.columns[: len(CONTRACT)]) == CONTRACT
    values = [*losses.values()]
    low, high = scipy.stats.t.interval(0.95, 2, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert table.val_loss_low.to_list() == pytest.approx([low] * 2)
    assert table.val_loss_high.to_list() == pytest.approx([high] * 2)
    assert blocks_table(read(fill(tmp_path / "one", presets=("pre_ln",)))).val_loss_low.isna().all()


def test_named_blocks_are_compared_and_the_papers_claims_judged(tmp_path: Path) -> None:
    def loss(config: RunConfig) -> float | None:
        return 4.0 + 0.2 * config.seed + 0.5 * (config.model.block == PRESETS["v_skipinit"])

    printed = StringIO()
    summarise(fill(tmp_path, loss=loss, presets=("pre_ln", "sas", "v_skipinit"), seeds=(0, 1)), folder=tmp_path,
              console=Console(file=printed, width=110))
    text = (tmp_path / "summary.md").read_text()
    for words in ("## The paper's claims", "That margin is ours", "| sas is level with pre_ln per step |",
                  "No claim about parallel, sas_p, sas_p_no_norm, shaped_orthogonal, naive_skipless is judged",
                  "| pre_ln | v_skipinit | -0.500 [-0.500, -0.500] | 2 |", "This study plans too little of the grid"):
        assert words in text, words
    with (tmp_path / "claims.csv").open() as file:
        claims = {row["claim"]: row["verdict"] for row in csv.DictReader(file)}
    assert claims["v_skipinit is worse than pre_ln per step"] == "holds"
    assert claims["sas is level with pre_ln per step"] == "holds"
    assert len((tmp_path / "pairwise.csv").read_text().splitlines()) == 1 + 3
    assert "v_skipinit is worse than pre_ln per step" in printed.getvalue()
    assert "effects, largest first" not in printed.getvalue()


def test_a_terminal_of_110_columns_shows_every_row_in_one_line(summary: tuple[Path, str]) -> None:
    lines = summary[1].splitlines()
    for name in ("seq-skips-softmax-vI-pI-none", "attention_skip x value + projection", "sas is level with pre_ln"):
        [row] = [number for number, line in enumerate(lines) if line.startswith(name)]
        assert not lines[row + 1].startswith(" "), lines[row : row + 2]  # nothing is folded beneath


def test_learning_rates_are_drawn_and_an_edge_is_warned_about(tmp_path: Path) -> None:
    def loss(config: RunConfig) -> float | None:
        return 4.0 - config.optim.learning_rate

    printed = StringIO()
    written = summarise(fill(tmp_path, loss=loss, presets=("pre_ln", "sas"), learning_rates=(1e-3, 1.0)),
                        folder=tmp_path, console=Console(file=printed, width=160))
    assert tmp_path / "learning_rates.png" in written
    assert "best at the highest learning rate, 1 (2 of them still gain there): pre_ln, sas" in printed.getvalue()
    assert "Extend the axis upwards" in (tmp_path / "summary.md").read_text()


def test_how_the_workers_spent_their_time(study: optuna.Study) -> None:
    record = read(study)
    assert usage(record) is None  # no worker signed
    [name] = {trial["executions"][-1]["worker"] for trial in record.trials}
    workers = {name: {"start": "2026-01-01T00:00:00+00:00", "end": "2026-01-01T00:03:20+00:00", "machine": "m"},
               "other:1": {"start": "2026-01-01T00:00:00+00:00", "end": "2026-01-01T00:00:40+00:00", "machine": "m"}}
    record = replace(record, attrs={**record.attrs, "workers": workers})
    assert usage(record) == {"workers": 2, "lifetime": 240.0, "training": 96.0, "validation": 24.0, "share": 0.5}
    assert usage_words(record) == "workers: 2, together 4:00, of which 50% in training and validation steps"
    other = replace(record, attrs={**record.attrs, "workers": {"other:1": workers["other:1"]}})
    assert usage(other) is None  # the cells are none of its


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
    assert text.splitlines()[2:] == ["| x\\|y | 1.5 |", "|  |  |"]


def test_the_whole_grid_is_planned_at_each_scale_with_a_grid() -> None:
    for name, scale in SCALES.items():
        blocks = {cell.block for cell in plan_cells(scale)}
        assert (blocks == set(grid())) == scale.whole_grid, name
