"""The command `judge`: planted effects and their verdicts, exit statuses, JSON, names, plans and mistakes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from synthetic import Loss, plan_of, record_of, stored

from ablations.__main__ import main
from ablations.analysis.judge import AGAINST, INCONCLUSIVE, SETTLED, Judgement, claim_about, judge
from ablations.design.cells import StudyPlan
from ablations.flags import build_parser
from ablations.report.judge import judgement_json, print_judgement, to_settle
from lit_simplified.config import ConfigError, RunConfig, preset_of

PAGE = Path(__file__).parents[3] / "docs" / "judge.md"
SHIFTS = {"pre_ln": 0.0, "parallel": 0.0, "sas": 0.2, "sas_p": 0.004}
Claim = dict[str, Any]
CLAIMS: tuple[Claim, ...] = (
    {"left": "sas", "is": "worse", "right": "pre_ln"}, {"left": "parallel", "is": "level", "right": "pre_ln"},
    {"left": "sas", "is": "level", "right": "pre_ln"}, {"left": "sas", "is": "better", "right": "pre_ln"},
    {"left": "sas_p", "is": "worse", "right": "pre_ln", "margin": 0.05},
    {"left": "sas", "is": "faster", "right": "pre_ln"}, {"left": "sas", "is": "fewer", "right": "pre_ln"},
)
WORSE, LEVEL, NOT_LEVEL, BETTER, SMALL, FASTER, FEWER = CLAIMS


def planted(sd: float = 0.008) -> Loss:
    """Row and seed give each run far more than its own noise does."""
    rng = np.random.default_rng(6)
    return lambda config: 4 + 0.05 * math.sin(config.seed) + SHIFTS[preset_of(config.model.block)] + rng.normal(0, sd)


def plan(*claims: Claim, seeds: int = 8) -> StudyPlan:
    return plan_of({"compare": {"block": list(SHIFTS)}, "seeds": seeds, "claims": list(claims)})


def judged(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    status = main(["judge", *words, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found.get("status", 0) == status
    return status, found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a recorded study with all claims."""
    where = tmp_path_factory.mktemp("study")
    stored(where, plan(*CLAIMS), planted(), speed=dict.fromkeys(("pre_ln", "sas"), (1.0, 0.9, 1.1)))
    return str(where)


def test_planted_effects_are_judged_and_what_is_open_is_planned(folder: str, capsys: Any) -> None:
    status, found = judged(capsys, folder)
    by_claim = {claim["claim"]: claim for claim in found["claims"]}
    outcomes = {name: (claim["outcome"], claim["remedy"]) for name, claim in by_claim.items()}
    assert outcomes == {
        "sas is worse than pre_ln": (SETTLED, "nothing"), "parallel is level with pre_ln": (SETTLED, "nothing"),
        "sas is level with pre_ln": (AGAINST, "nothing"), "sas is better than pre_ln": (AGAINST, "nothing"),
        "sas_p is worse than pre_ln": (INCONCLUSIVE, "seeds"),
        "sas trains faster than pre_ln": (INCONCLUSIVE, "rounds"),
        "sas has fewer parameters than pre_ln": (AGAINST, "nothing"),
    }
    assert (status, found["outcome"], found["scale"]) == (1, AGAINST, "small")
    assert found["alpha"] == 0.05 / 5
    small = by_claim["sas_p is worse than pre_ln"]
    assert 8 < small["seeds_needed"] <= 1000
    assert small["low"] < 0 < small["estimate"] < small["high"]
    assert small["sd"] == pytest.approx(max(small["own_sd"], found["noise"][0]["pair_sd"]))
    [noise] = found["noise"]
    assert noise["low"] < 0.008 < noise["high"]
    assert (noise["quantity"], noise["degrees"], noise["rows"], noise["runs"]) == ("val_loss", 21, 4, 32)
    [of] = found["shown"]
    assert of["seeds"] == 8
    assert 0.007 < of["difference"] < 0.02
    assert main(["judge", folder]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert f"{small['seeds_needed']} seeds" in text
    assert "more rounds of the speed pass" in text
    assert "2 settled, 3 against, 2 inconclusive; status 1" in text


@pytest.mark.parametrize(("claims", "status"), [
    ((WORSE, LEVEL), 0), ((WORSE, NOT_LEVEL, SMALL), 1), ((WORSE, SMALL), 2), ((), 2),
])
def test_the_exit_status_is_that_of_all_claims(claims: Sequence[Claim], status: int) -> None:
    found = judge(record_of(plan(*claims), planted()))
    assert found.status == status
    printed = shown(found)
    assert f"status {status}" in printed
    assert ("has no claims" in printed) == (not claims)


def shown(found: Judgement) -> str:
    out = StringIO()
    print_judgement(found, console=Console(file=out, width=200))
    return " ".join(out.getvalue().split())


def test_too_many_seeds_are_said_to_be_hopeless() -> None:
    """Noise that cancels out leaves no difference to be shown."""
    def loss(config: RunConfig) -> float:
        return 4 + 0.1 * (-1) ** config.seed * (preset_of(config.model.block) == "parallel")

    found = judge(record_of(plan({**WORSE, "left": "parallel"}, seeds=4), loss))
    assert (found.status, found.claims[0].remedy) == (2, "hopeless")
    assert "would take more than 1,000 seeds" in shown(found)


def test_a_claim_about_rows_without_a_run_or_with_one_seed_is_inconclusive() -> None:
    record = record_of(plan(WORSE), planted())
    without = judge(replace(record, cells=record.cells[record.cells.preset != "sas"]))
    assert "no finished cell of sas" in without.claims[0].why
    assert (without.status, without.claims[0].remedy, without.claims[0].n_seeds) == (2, "other", 0)
    single = record.cells[(record.cells.preset != "sas") | (record.cells.seed == 0)]
    found = judge(replace(record, cells=single))
    assert (found.status, found.claims[0].remedy, found.claims[0].seeds_needed) == (2, "seeds", 2)
    alone = judge(replace(record, cells=record.cells[record.cells.seed == 0]))
    assert (alone.status, alone.claims[0].remedy, alone.shown) == (2, "other", ())
    assert "unknown" in shown(alone)
    assert json.loads(judgement_json(alone))["noise"][0]["sd"] is None


def test_a_verdict_that_something_else_keeps_back_is_not_sent_for_seeds() -> None:
    """A seed of the row that is called better diverged: more of them would not tell."""
    def loss(config: RunConfig) -> Any:
        lost = config.seed == 0 and preset_of(config.model.block) == "pre_ln"
        return "diverged" if lost else whole(config)

    whole = planted()
    [claim] = judge(record_of(plan(WORSE), loss)).claims
    assert (claim.outcome, claim.remedy, claim.seeds_needed) == (INCONCLUSIVE, "other", None)
    assert "diverged" in to_settle(claim)


def test_two_rows_are_named_by_label_id_or_block(folder: str, capsys: Any) -> None:
    names = ("sas", "seq-noattnskip-shaped-vI-pI-rms")
    for name in names:
        status, found = judged(capsys, folder, "--left", name, "--right", "pre_ln", "--is", "worse")
        assert (status, [claim["claim"] for claim in found["claims"]]) == (0, ["sas is worse than pre_ln"])
    status, found = judged(capsys, folder, "--left", "parallel", "--right", "pre_ln", "--seeds", "3", "30")
    assert [of["seeds"] for of in found["shown"]] == [3, 30]
    assert (status, found["claims"][0]["margin"], found["claims"][0]["relation"]) == (0, 0.023, "level")
    assert judged(capsys, folder, "--left", "parallel", "--right", "pre_ln", "--margin", "0.001")[0] == 2


def test_a_block_that_several_rows_have_is_named_by_label() -> None:
    design = plan_of({"compare": {"block": ["sas", "pre_ln"], "model.depth": [2, 4]}, "seeds": 2}).design
    with pytest.raises(ConfigError, match="2 rows have this block; choose one by its label: sas, depth 2; sas, depth"):
        claim_about(design, left="sas", right="pre_ln, depth 2")
    assert claim_about(design, left="sas, depth 2", right="pre_ln, depth 2").sentence == \
        "sas, depth 2 is level with pre_ln, depth 2"


@pytest.mark.parametrize(("words", "expected"), [
    (["--left", "sass", "--right", "pre_ln"], "--left='sass': the study has no such row; the nearest are sas"),
    (["--left", "sas", "--right", "sas"], "--right='sas': this is the row on the left"),
    (["--left", "sas"], "--right"), (["--is", "level"], "--is='level'"),
    (["--assume-sd", "0.01", "--left", "sas", "--right", "pre_ln"], "--assume-sd"),
])
def test_mistakes_are_answered_with_the_remedy(words: list[str], expected: str, folder: str, capsys: Any) -> None:
    assert main(["judge", folder, *words, "--json"]) == 2
    printed = capsys.readouterr()
    assert expected in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("words", [["--margin", "0"], ["--margin", "nan"], ["--seeds", "1"], ["--assume-sd", "inf"]])
def test_numbers_that_are_none_are_refused(words: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["judge", "grid", *words])
    assert words[0] in capsys.readouterr().err


def test_a_question_without_a_record_is_told_how_to_be_planned(capsys: Any) -> None:
    assert main(["judge", "grid"]) == 2
    assert "add --assume-sd" in capsys.readouterr().err


def test_at_scale_smoke_losses_have_no_verdict() -> None:
    found = judge(record_of(plan(WORSE, NOT_LEVEL, SMALL, seeds=3), planted(), spec={"scale": "smoke", "task": "clm"}))
    assert found.status == 2
    assert {claim.outcome for claim in found.claims} == {INCONCLUSIVE}
    assert all("smoke" in to_settle(claim) and claim.seeds_needed is None for claim in found.claims)


def test_a_plan_needs_no_record(capsys: Any) -> None:
    assert main(["judge", "--assume-sd", "0.0115", "--seeds", "3", "8"]) == 0
    assert re.search(r"8 +0\.0188 +0\.0187 +95%", capsys.readouterr().out)
    _, planned = judged(capsys, "grid", "--assume-sd", "0.0115", "--margin", "0.05")
    needed = {(claim["relation"], claim["gap"]): claim["seeds_needed"] for claim in planned["claims"]}
    assert needed == {("level", 0.05): 5, ("worse", 0.05): 5, ("better", 0.05): 5, ("faster", None): None,
                      ("fewer", None): None}
    assert planned["alpha"] == 0.05 / 8
    _, usual = judged(capsys, "grid", "--assume-sd", "0.0115")
    assert {claim["seeds_needed"] for claim in usual["claims"]} == {11, None}
    assert [of["seeds"] for of in planned["shown"]] == [3, 5, 8, 12]
    assert planned["pair_sd"] == pytest.approx(0.0115 * math.sqrt(2))


def test_the_page_explains_every_key_of_the_json(folder: str, capsys: Any) -> None:
    keys: set[str] = set()

    def collect(value: Any) -> None:
        for content in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            collect(content)
        keys.update(value if isinstance(value, dict) else ())

    for words in ((folder,), ("grid", "--assume-sd", "0.0115")):
        collect(judged(capsys, *words)[1])
    text = PAGE.read_text()
    assert not [key for key in keys if f"`{key}`" not in text]
    commands = re.findall(r"^python -m ablations (judge.*?) *(?:#.*)?$", text, flags=re.M)
    assert len(commands) == 5
    for command in commands:
        build_parser().parse_args(command.split())
