"""The paper's Table 1: what stands in it, and that one command makes it."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest

from ablations import table1
from ablations.__main__ import build_parser, main
from ablations.analysis.tables import read, rows_table
from ablations.engine.checkpoints import run_name
from ablations.engine.run import StudyRun, queued_cell
from ablations.engine.storage import keep_design
from ablations.study import Options, plan_run
from lit_simplified.config import ConfigError, DataConfig, Task, preset
from lit_simplified.finetuning.table import Score


def run_in(
    folder: Path, *, blocks: tuple[str, ...] = ("pre_ln", "sas"), width: int = 32, task: Task = "mlm"
) -> StudyRun:
    """The study of `table1`, as the command plans it."""
    return plan_run(Options(
        study={"question": "The paper's Table 1", "compare": {"block": list(blocks)}}, name="t", out=folder,
        scale="smoke", task=task, seeds=(0, 1), learning_rates=(1e-3, 1e-2), select=0, workers=1, keep="all",
        assignments=("trainer.accelerator=cpu", "trainer.tensorboard=false", f"model.width={width}"),
    ))


def study_of(run: StudyRun, losses: Mapping[tuple[str, int, float], float | str]) -> optuna.Study:
    """A study as `train_study` leaves it, with checkpoints of the complete cells on this disk."""
    study = optuna.create_study()
    keep_design(study, run.plan.design)
    for cell in run.cells:
        queued = queued_cell(run, cell)
        loss = losses[run.plan.design.by_id[cell.row].preset, cell.seed, cell.config.optim.learning_rate]
        complete = not isinstance(loss, str)
        trial = optuna.trial.create_trial(
            state=optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.FAIL,
            value=loss if complete else None,  # type: ignore[arg-type]
            user_attrs={**queued.attrs, "state": "complete" if complete else loss, "executions": [],
                        "result": {"val_loss": loss, "parameters": 5} if complete else {}},
        )
        study.add_trial(trial)
        if complete:
            file = run.folder / "runs" / run_name(trial) / "checkpoints" / "last.ckpt"
            file.parent.mkdir(parents=True)
            file.touch()
    return study


LOSSES = {
    ("pre_ln", 0, 1e-3): 3.0, ("pre_ln", 1, 1e-3): 3.2, ("pre_ln", 0, 1e-2): 5.0, ("pre_ln", 1, 1e-2): 5.0,
    ("sas", 0, 1e-3): 4.0, ("sas", 1, 1e-3): 4.0, ("sas", 0, 1e-2): 3.5, ("sas", 1, 1e-2): 3.7,
}


def test_each_block_is_fine_tuned_from_its_best_learning_rate(tmp_path: Path) -> None:
    study = study_of(run_in(tmp_path), LOSSES)
    losses = rows_table(read(study))
    found = table1.checkpoints(study, losses=losses, folder=tmp_path)
    trials = {run_name(trial): trial.user_attrs["cell"] for trial in study.trials}
    assert sorted(trials[path.name] for path in found) == [
        f"seq-{kind}-s{seed}-lr{rate}" for kind, rate in (("noattnskip-shaped-vI-pI-layer", "0.01"),
                                                          ("skips-softmax-vL-pL-layer", "0.001")) for seed in (0, 1)
    ]
    (found[0] / "checkpoints" / "last.ckpt").unlink()  # of another machine
    assert len(table1.checkpoints(study, losses=losses, folder=tmp_path)) == 3


def test_a_block_that_diverged_has_its_state_in_place_of_a_loss(tmp_path: Path) -> None:
    study = study_of(run_in(tmp_path), {key: "diverged" if key[0] == "sas" else loss for key, loss in LOSSES.items()})
    losses = rows_table(read(study))
    table = table1.assemble(["pre_ln", "sas"], losses=losses, scores={}, sizes={})
    shown = table1.table_as_text(table).set_index("block")
    assert shown.loc["pre_ln", "val loss"] == "3.1000 ± 0.1414"
    assert shown.loc["sas", "val loss"] == "diverged"
    runs = table1.checkpoints(study, losses=losses, folder=tmp_path)
    assert len(runs) == 2  # of pre_ln alone


SIZES = {
    "pre_ln": {"params": 1000, "params_ratio": 1.0, "train_ratio": 1.01, "train_low": 0.9, "train_high": 1.1,
               "inference_ratio": 1.0, "inference_low": 1.0, "inference_high": 1.0, "peak_memory_mb": 12.34},
    "sas": {"params": 840, "params_ratio": 0.84, "train_ratio": 1.2, "train_low": 1.1, "train_high": 1.3,
            "inference_ratio": 1.25, "inference_low": 1.2, "inference_high": 1.3, "peak_memory_mb": None},
}


def test_the_table_holds_what_was_measured_beside_what_the_paper_says() -> None:
    scores = {"pre_ln": Score(81.25, 0.31, 3, 0), "sas": Score(80.0, None, 1, 2), "sas_p": Score(None, None, 0, 3)}
    table = table1.assemble(["pre_ln", "sas", "sas_p"], losses=None, scores=scores, sizes=SIZES)
    assert list(table.columns) == list(table1.COLUMNS)
    shown = table1.table_as_text(table)
    assert list(shown.columns) == ["block", "score", "parameters", "training", "inference", "MiB", "paper: score",
                                   "paper: params", "paper: speed"]
    assert list(shown.score) == ["81.2 ± 0.3 (3)", "80.0 (1, 2 diverged)", "diverged"]
    assert list(shown.parameters)[:2] == ["1,000 (1.00)", "840 (0.84)"]
    assert list(shown.training)[:2] == ["1.010 [0.900, 1.100]", "1.200 [1.100, 1.300]"]
    assert list(shown.MiB) == ["12.3", "", ""]
    assert list(shown["paper: speed"]) == ["1.00", "1.09", "1.16"]


def test_the_papers_numbers_are_those_of_its_table() -> None:
    assert {name: row[2] for name, row in table1.PAPER.items()} == {
        "pre_ln": 1.0, "parallel": 1.05, "v_skipinit": 0.95, "sas": 1.09, "sas_p": 1.16, "sas_p_no_norm": 1.2}
    assert [row[0] for row in table1.PAPER.values()] == [78.9, 78.5, 78.0, 78.4, 78.3, None]
    assert [row[1] for row in table1.PAPER.values()] == ["120M"] * 3 + ["101M"] * 3


def test_the_flags_choose_task_and_rate(tmp_path: Path) -> None:
    def wanted(*flags: str, width: int = 32) -> table1.Table1:
        given = build_parser().parse_args(["table1", "--out", str(tmp_path), *flags])
        return table1.plan_of(given, run_in(tmp_path, blocks=tuple(table1.PAPER), width=width, task=given.task))

    assert wanted().finetuning.task == "docstrings"  # type: ignore[union-attr]
    assert wanted().finetuning.learning_rate == 1e-3  # type: ignore[union-attr]
    assert wanted(width=512).finetuning.learning_rate == 1.5e-4  # type: ignore[union-attr]
    assert wanted("--finetune-lr", "1e-2").finetuning.learning_rate == 1e-2  # type: ignore[union-attr]
    assert wanted("--finetune", "none").finetuning is None
    assert wanted("--finetune", "glue/all").finetuning.task == "glue/all"  # type: ignore[union-attr]
    assert tuple(wanted().blocks) == tuple(table1.PAPER)
    assert wanted().blocks["sas"].model.block == preset("sas", task="mlm")
    with pytest.raises(ConfigError, match="masked"):
        wanted("--task", "clm")


def labelled(folder: Path) -> Path:
    """SST-2 in small: the class is whether a word is there."""
    folder.mkdir()
    for split, count in (("train", 64), ("validation", 32)):
        rows = [{"sentence": f"value {i} {'good' if i % 2 else 'bad'}", "label": i % 2, "idx": i} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.slow
@pytest.mark.timed
def test_one_command_trains_fine_tunes_and_measures(
    corpus: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags: list[str] = [
        "table1", "--scale", "smoke", "--presets", "pre_ln", "sas_p", "--seeds", "0", "--workers", "1", "--rounds", "2",
        "--out", str(out), "--finetune", "glue/sst2", "--data-dir", str(labelled(tmp_path / "sst2")),
        "--finetune-epochs", "1", "--set", f"data.recipe={corpus.recipe}", f"data.cache_dir={corpus.cache_dir}",
        "data.val_windows=8", "data.test_windows=8", "trainer.accelerator=cpu", "trainer.tensorboard=false",
        "model.vocab_size=300",
    ]
    assert main(flags) == 0
    [first, second] = csv.DictReader((out / "table1.csv").read_text().splitlines())
    assert (first["block"], second["block"]) == ("pre_ln", "sas_p")
    for row in (first, second):
        assert 0 <= float(row["score"]) <= 100
        assert float(row["val_loss"]) > 0
        assert float(row["train_ratio"]) > 0
        assert float(row["inference_ratio"]) > 0
        assert float(row["peak_memory_mb"]) > 0
        assert (float(row["n_scores"]), row["state"]) == (1, "complete")
    assert float(second["params_ratio"]) < 1 == float(first["params_ratio"])
    caption = json.loads((out / "table1.json").read_text())["caption"]
    assert "not the size of the paper" in caption
    assert "glue/sst2" in caption
    assert "| pre_ln |" in (out / "table1.md").read_text()
    capsys.readouterr()

    runs = sorted((out / "finetune").rglob("result.json"))
    stamps = {path: path.stat().st_mtime_ns for path in runs}
    assert main(flags) == 0  # nothing is trained again
    assert {path: path.stat().st_mtime_ns for path in sorted((out / "finetune").rglob("result.json"))} == stamps
    assert math.isfinite(float(pd.read_csv(out / "table1.csv").score[0]))


def test_without_training_there_are_speed_and_parameters_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags: list[Any] = ["table1", "--scale", "smoke", "--no-training", "--presets", "pre_ln", "sas", "--rounds", "2",
                        "--out", str(tmp_path), "--set", "trainer.accelerator=cpu"]
    assert main(flags) == 0
    rows = json.loads((tmp_path / "table1.json").read_text())["rows"]
    assert [row["score"] for row in rows] == [None, None]
    assert rows[1]["params"] < rows[0]["params"]
    assert all(row["train_low"] <= row["train_ratio"] <= row["train_high"] for row in rows)
    assert "Training and inference" in capsys.readouterr().out
