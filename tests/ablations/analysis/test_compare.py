"""Two studies compared: what is worse or better is found, what is not is not, and what changed is said."""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from rich.console import Console
from synthetic import Loss, plan_of, record_of
from synthetic import stored as store

from ablations.analysis.changes import COMPARISON_COLUMNS, compare, differences, verdict_changes
from ablations.analysis.tables import StudyRecord
from ablations.engine import lookup
from ablations.engine.storage import JOURNAL, StudyError, open_storage
from ablations.report import compare as module
from ablations.report.compare import compare_studies, condition_lines, outcome_lines
from lit_simplified.config import PRESETS, RunConfig, preset_of

NAMES = ("pre_ln", "parallel", "sas", "sas_p")
RATE = "optim.learning_rate"


def study(
    loss: Loss, *, names: tuple[str, ...] = NAMES, seeds: list[int] | int = 5, rates: tuple[float, ...] = (),
    **more: Any,
) -> StudyRecord:
    tune = {RATE: list(rates)} if rates else {}
    return record_of(plan_of({"compare": {"block": list(names)}, "seeds": seeds, "tune": tune}), loss, **more)


def noisy(seed: int, *, sd: float = 0.02, shift: Callable[[Any], float] = lambda block: 0.0) -> Loss:
    """Losses that share what their seed gives them, with noise of each run's own."""
    rng = np.random.default_rng(seed)
    return lambda config: 4 + config.seed + shift(config.model.block) + rng.normal(0, sd)


def by_name(table: pd.DataFrame) -> pd.DataFrame:
    return table.set_index("preset")


def test_identical_studies_are_within_noise() -> None:
    record = study(noisy(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare(record, record)
    assert list(found.columns) == list(COMPARISON_COLUMNS)
    assert set(found.verdict) == {"within noise"}
    assert (found.difference == 0).all()
    assert (found.p_holm == 1).all()
    single = study(noisy(0), seeds=[0])
    assert set(compare(single, single).verdict) == {"inconclusive"}  # nothing tells how large the noise is


def test_a_planted_shift_is_found_with_its_sign_and_size() -> None:
    def shift(block: Any) -> float:
        return 0.2 * (block == PRESETS["sas"]) - 0.3 * (block == PRESETS["parallel"])

    found = by_name(compare(study(noisy(1)), study(noisy(2, shift=shift))))
    assert found.verdict.to_dict() == {
        "parallel": "better", "sas": "worse", "pre_ln": "within noise", "sas_p": "within noise"}
    assert found.loc["sas", "difference"] == pytest.approx(0.2, abs=0.05)
    assert found.loc["sas", "low"] < 0.2 < found.loc["sas", "high"]
    assert found.loc["sas", "n_seeds"] == 5
    assert list(found.index[:2]) == ["parallel", "sas"]  # the surest first


@pytest.mark.slow
def test_chance_changes_few_rows() -> None:
    """50 comparisons of four rows without a change: Holm keeps those with any verdict near 5 %."""
    before = study(noisy(0))
    rng, alarms = np.random.default_rng(4), 0
    gc.freeze()  # statsmodels' multipletests collects garbage each time; none of ours is old
    for _ in range(50):
        cells = before.cells.assign(val_loss=before.cells.val_loss + rng.normal(0, 0.02, len(before.cells)))
        alarms += compare(before, replace(before, cells=cells)).verdict.isin(("worse", "better")).any()
    gc.unfreeze()
    assert alarms <= 7


def test_single_seeds_borrow_the_noise_of_rows_with_several() -> None:
    """Four rows have five seeds, two have one: 16 degrees of freedom for those."""
    def join(first: StudyRecord, second: StudyRecord) -> StudyRecord:
        return replace(first, cells=pd.concat([first.cells, second.cells], ignore_index=True))

    alone = ("sas_p_no_norm", "naive_skipless")
    before = join(study(noisy(1)), study(lambda c: 5.0, names=alone, seeds=[0]))
    after = join(study(noisy(2)), study(
        lambda c: 5.005 + 0.5 * (c.model.block == PRESETS["naive_skipless"]), names=alone, seeds=[0]))
    found = by_name(compare(before, after))
    assert found.loc["naive_skipless", "verdict"] == "worse"
    assert found.loc["sas_p_no_norm", "verdict"] == "within noise"
    samples = [own.to_numpy() for _, own in (after.cells.val_loss - before.cells.val_loss).groupby(before.cells.preset)]
    pooled = math.sqrt(np.mean([sample.var(ddof=1) for sample in samples if len(sample) > 1]))
    reach = 2.1199 * pooled  # t with 16 degrees of freedom
    assert found.loc["naive_skipless", "high"] - 0.505 == pytest.approx(reach, rel=1e-4)
    assert "one seed" in found.loc["naive_skipless", "why"]


def test_runs_that_repeat_exactly_show_any_difference() -> None:
    before = study(lambda c: 4.0 + c.seed)
    after = study(lambda c: 4.0 + c.seed + 1e-3 * (c.model.block == PRESETS["sas"]))
    assert by_name(compare(before, after)).verdict.to_dict() == {
        "sas": "worse", **dict.fromkeys(("pre_ln", "parallel", "sas_p"), "within noise")}


def test_pairs_are_taken_at_the_best_tuned_value_before() -> None:
    def loss(config: RunConfig) -> float:
        return 4.0 + 0.1 * config.seed + (config.optim.learning_rate != 3e-3)

    before = study(loss, seeds=[0, 1], rates=(1e-3, 3e-3))
    after = study(lambda c: loss(c) - 3 * (c.optim.learning_rate == 1e-3), seeds=[1, 0], rates=(1e-3, 3e-3, 1e-2))
    found = compare(before, after)
    assert set(found.tuned) == {"0.003"}
    assert found.difference.to_list() == pytest.approx([0.0] * 4)


def test_rows_of_one_study_and_states_that_changed_are_named() -> None:
    before = study(noisy(1), names=("pre_ln", "sas"), seeds=[0, 1])
    after = study(lambda c: "diverged" if c.model.block == PRESETS["sas"] else 4.0, names=("pre_ln", "sas", "sas_p"),
                  seeds=[0, 1])
    found = by_name(compare(before, after))
    assert found.loc["sas", "states"] == (
        "seed 0, tuned 0.01: complete -> diverged; seed 1, tuned 0.01: complete -> diverged")
    assert found.loc["sas", "label"] == "sas"
    assert found.loc["sas", "verdict"] == "inconclusive"
    assert found.loc["sas_p", "why"] == "only in after"
    assert by_name(compare(after, before)).loc["sas_p", "why"] == "only in before"


def test_speeds_differ_if_their_intervals_do_not_overlap() -> None:
    first = {"pre_ln": (1.0, 0.98, 1.02), "sas": (1.1, 1.05, 1.15), "parallel": (1.1, 1.05, 1.15)}
    second = {"pre_ln": (1.01, 0.99, 1.03), "sas": (1.3, 1.25, 1.35), "parallel": (1.0, 0.98, 1.02)}
    found = by_name(compare(study(noisy(1), speed=first), study(noisy(2), speed=second)))
    assert found.speed_verdict.to_dict() == {
        "pre_ln": "within noise", "sas": "better", "parallel": "worse", "sas_p": "inconclusive"}
    assert found.loc["sas", ["speed_before", "speed_after"]].to_list() == [1.1, 1.3]


def test_what_differs_between_the_settings_is_listed() -> None:
    before = study(noisy(1), spec={"optim": {"steps": 100}, "corpus": "a"}, machines=[{"versions": {"torch": "1"}}])
    after = study(noisy(1), spec={"optim": {"steps": 200}, "corpus": "a"}, machines=[{"versions": {"torch": "2"}}])
    assert differences(before, after) == [("optim.steps", 100, 200), ("machine.versions.torch", "1", "2")]
    assert differences(before, before) == []


def test_the_lines_say_what_differs_and_how_many_rows_changed() -> None:
    assert condition_lines([]) == ["Settings, corpus and machine are the same in both."]
    lines = condition_lines([("corpus", "a", "b"), ("optim.steps", 1, 2)])
    assert lines[-1] == "Their losses do not measure the same thing, because corpus differs."
    fast = {"sas": (1.3, 1.25, 1.35)}
    table = compare(study(noisy(1), names=("pre_ln", "sas"), speed={"sas": (1.1, 1.05, 1.15)}),
                    study(noisy(1), speed=fast))
    assert outcome_lines(table) == [
        "loss: 0 worse, 0 better, 2 within noise, 2 inconclusive", "only in after: parallel, sas_p",
        "sas: speed better, 1.100 -> 1.300"]


TWO = plan_of({"compare": {"block": ["pre_ln", "sas"]}, "seeds": 2})


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two studies on disk: after the change, sas is worse by 0.5 in both of its seeds."""
    def loss(shift: float) -> Callable[[RunConfig], float]:
        return lambda config: 4.0 + 0.1 * config.seed + shift * (config.model.block == PRESETS["sas"])

    folders = tuple(tmp_path_factory.mktemp(name) for name in ("before", "after"))
    for folder, shift in zip(folders, (0.0, 0.5), strict=True):
        store(folder, TWO, loss(shift))
    return folders[0], folders[1]


def test_two_studies_on_disk(stored: tuple[Path, Path], tmp_path: Path) -> None:
    printed = StringIO()
    table = compare_studies(str(stored[0]), str(stored[1] / JOURNAL), folder=tmp_path,
                            console=Console(file=printed, width=110))
    assert by_name(table).verdict.to_dict() == {"sas": "worse", "pre_ln": "within noise"}
    counted = "loss: 1 worse, 0 better, 1 within noise, 0 inconclusive"
    for words in ("are the same in both", "+0.5000", counted):
        assert words in printed.getvalue(), words
    assert pd.read_csv(tmp_path / "comparison.csv").verdict.to_list() == ["worse", "within noise"]
    text = (tmp_path / "comparison.md").read_text()
    assert "| sas | 2 | 4.0500 | +0.5000 [+0.5000, +0.5000] |" in text


def test_other_corpora_are_warned_about(stored: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def read(study: Any) -> StudyRecord:
        record = original(study)
        number = calls.pop()
        return replace(record, attrs={**record.attrs, "spec": {**record.attrs["spec"], "corpus": f"c{number}"}})

    original, calls, printed = module.read, [2, 1], StringIO()
    monkeypatch.setattr(module, "read", read)
    compare_studies(str(stored[0]), str(stored[1]), folder=None, console=Console(file=printed, width=160))
    assert "differs: corpus: 'c1' before, 'c2' after" in printed.getvalue()
    assert "do not measure the same thing, because corpus differs" in printed.getvalue()
    assert printed.getvalue().index("differs: corpus") < printed.getvalue().index("pre_ln")  # first of all


def test_a_study_is_found_by_name_path_or_url(
    stored: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = Console(file=StringIO())
    monkeypatch.setattr(lookup, "RESULTS", stored[0].parent)
    table = compare_studies(stored[0].name, f"{stored[1]}#s", folder=None, console=nowhere)
    assert len(table) == 2
    with pytest.raises(StudyError, match=r"no such study under .*Studies there: .*before"):
        compare_studies("nothing", stored[0].name, folder=None, console=nowhere)
    with pytest.raises(StudyError, match="Add the name of one: URL#STUDY"):
        compare_studies(f"sqlite:///{tmp_path}/x.db", stored[0].name, folder=None, console=nowhere)
    with pytest.raises(StudyError, match="no journal there"):
        compare_studies(str(tmp_path), stored[0].name, folder=None, console=nowhere)
    store(tmp_path, TWO, lambda config: 4.0)
    open_storage(str(tmp_path)).create_new_study([optuna.study.StudyDirection.MINIMIZE], "other")
    with pytest.raises(StudyError, match=r"holds 2 studies \(.*other.*#STUDY"):
        compare_studies(str(tmp_path), stored[0].name, folder=None, console=nowhere)


def test_verdicts_that_turned_are_told_from_those_that_were_settled(tmp_path: Path) -> None:
    claims = [{"left": "sas", "is": relation, "right": right} for relation, right in (
        ("worse", "pre_ln"), ("worse", "parallel"), ("worse", "sas_p"), ("fewer", "pre_ln"))]

    def losses(**gaps: float) -> Loss:
        """By how much a block is below sas; its seeds differ by 0.001."""
        return lambda config: 4 - gaps.get(preset_of(config.model.block), 0.0) + config.seed * (
            1e-3 if preset_of(config.model.block) == "sas" else 2e-3)

    def study_of(loss: Loss, **keys: Any) -> Any:
        return plan_of({"compare": {"block": list(NAMES)}, "seeds": 4, "claims": claims, **keys}), loss

    before = record_of(*study_of(losses(pre_ln=0.1, parallel=0.1, sas_p=0.0)))
    after = record_of(*study_of(losses(pre_ln=-0.1, parallel=0.1, sas_p=0.1)))
    found = verdict_changes(before, after)
    assert list(found.change) == ["turned", "same", "settled", "same"]
    assert list(found.before[:2]) == ["holds", "holds"]
    assert found.after[0] == "does not hold"
    assert module.turned_line(found) == "verdicts of 4 claims: 1 turned, 1 settled, 0 unsettled, 2 same"
    assert list(verdict_changes(after, before).change) == ["turned", "same", "unsettled", "same"]
    fewer = record_of(*study_of(losses(), claims=claims[:1]))
    assert len(verdict_changes(before, fewer)) == 1
    for name, (plan, loss) in {"a": study_of(losses(pre_ln=0.1)), "b": study_of(losses(pre_ln=-0.1))}.items():
        (tmp_path / name).mkdir()
        store(tmp_path / name, plan, loss)
    compare_studies(str(tmp_path / "a"), str(tmp_path / "b"), folder=tmp_path, console=Console(file=StringIO()))
    text = (tmp_path / "comparison.md").read_text()
    assert "verdicts of 4 claims: 1 turned" in text.partition("## Claims")[2]
