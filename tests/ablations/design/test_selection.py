"""Tuned values that are chosen on seeds of their own: which cells a study asks for, given how others have ended."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablations.design.cells import Cell, StudyPlan
from ablations.design.config import parse_study, read_study, write_study
from ablations.design.design import from_plain, merge, to_plain
from ablations.design.plan import plan_study
from ablations.design.scales import scale
from ablations.design.selection import Found, Outcome, best
from ablations.design.stages import FIRST_SEED, JUDGE, SELECT
from lit_simplified.config import ConfigError, preset_of

RATE = "optim.learning_rate"
World = Callable[[Cell], Outcome]


def planned(**keys: Any) -> StudyPlan:
    return plan_study(parse_study(keys), scale=scale("small"))


def train(plan: StudyPlan, world: World, *, ended: dict[str, Outcome] | None = None) -> tuple[list[Cell], list[int]]:
    """All cells in the order in which they are asked for, and how many each round asks."""
    ended, order, rounds = {} if ended is None else ended, list[Cell](), list[int]()
    while new := [cell for cell in plan.cells(ended) if cell.id not in ended]:
        ended.update({cell.id: world(cell) for cell in new})
        order += new
        rounds.append(len(new))
        assert len(rounds) < 20
    return order, rounds


def loss(cell: Cell) -> Outcome:
    """Best at 0.01; later blocks of a list are no better."""
    return Outcome("complete", 4 + abs(math.log(cell.config.optim.learning_rate / 0.01)) + cell.seed / 1e4)


BLOCKS = {"compare": {"block": ["pre_ln", "sas", "sas_p"]}, "seeds": 3, "select": 1}


def test_tuned_values_are_chosen_on_seeds_that_do_not_judge() -> None:
    cells, rounds = train(planned(**BLOCKS, tune={RATE: [5e-3, 1e-2, 2e-2]}), loss)
    assert rounds == [9, 9]
    assert {(cell.stage, cell.seed) for cell in cells[:9]} == {(SELECT, FIRST_SEED)}
    assert Counter(cell.seed for cell in cells[9:]) == {0: 3, 1: 3, 2: 3}
    assert {(cell.stage, cell.config.optim.learning_rate) for cell in cells[9:]} == {(JUDGE, 1e-2)}


@pytest.mark.parametrize("bad", ["collapsed", "diverged"])
def test_a_value_that_a_judging_seed_spoils_gives_way_to_the_next(bad: str) -> None:
    def world(cell: Cell) -> Outcome:
        spoilt = cell.config.optim.learning_rate == 1e-2 and cell.seed == 2 and cell.row.startswith("par")
        return Outcome(bad, 5.97) if spoilt else loss(cell)

    plan = planned(**BLOCKS, tune={RATE: [5e-3, 1e-2, 4e-2]})
    cells, rounds = train(plan, world)
    assert rounds == [9, 9, 3]
    assert {(preset_of(cell.config.model.block), cell.config.optim.learning_rate) for cell in cells[18:]} == {
        ("sas_p", 5e-3)}


def test_a_row_that_nothing_trains_is_judged_once() -> None:
    def world(cell: Cell) -> Outcome:
        return Outcome("collapsed", 5.98) if cell.row.startswith("par") else loss(cell)

    plan = planned(**BLOCKS, tune={RATE: [5e-3, 1e-2, 4e-2]})
    _, rounds = train(plan, world)
    assert rounds == [9, 9]


def test_where_every_value_is_spoilt_the_one_that_trains_most_stands() -> None:
    def found(*states: str, loss: float) -> Found:
        return Found([Outcome(state, loss) for state in states])

    assert best([found("diverged", "complete", loss=4.0), found("diverged", "diverged", loss=math.nan)]) == 0
    assert best([found("complete", "diverged", loss=4.1), found("complete", "diverged", loss=4.0)]) == 1
    assert best([found("collapsed", loss=3.0), found("complete", loss=5.0)]) == 1
    assert best([found("failed", loss=math.nan), found("complete", loss=5.0)]) == 1


def test_further_seeds_are_judged_at_the_value_that_was_chosen() -> None:
    ended: dict[str, Outcome] = {}
    train(planned(**BLOCKS, tune={RATE: [5e-3, 1e-2]}), loss, ended=ended)
    more, rounds = train(planned(**{**BLOCKS, "seeds": [7, 8]}, tune={RATE: [5e-3, 1e-2]}), loss, ended=ended)
    assert rounds == [6]
    assert {(cell.seed, cell.config.optim.learning_rate) for cell in more} == {(7, 1e-2), (8, 1e-2)}


def test_without_anything_to_choose_all_is_asked_at_once() -> None:
    plan = planned(**BLOCKS)
    assert not plan.design.selects
    assert train(plan, loss)[1] == [9]
    everywhere = planned(**{**BLOCKS, "select": 0}, tune={RATE: [5e-3, 1e-2]})
    assert train(everywhere, loss)[1] == [18]
    assert len(everywhere.likely()) == 18


def test_nothing_is_judged_before_all_that_choose_have_ended() -> None:
    plan = planned(**BLOCKS, tune={RATE: [5e-3, 1e-2]})
    first = plan.cells()
    ended = {cell.id: loss(cell) for cell in first[:-1]}
    assert plan.cells(ended) == first


def test_seeds_that_choose_cannot_judge() -> None:
    with pytest.raises(ConfigError, match=r"seeds.*1000.*choose"):
        planned(**{**BLOCKS, "seeds": [0, FIRST_SEED]}, tune={RATE: [5e-3, 1e-2]})


def test_the_seeds_are_kept_with_the_design_and_may_not_change() -> None:
    design = planned(**BLOCKS, tune={RATE: [5e-3, 1e-2]}).design
    assert from_plain(to_plain(design)) == design
    plain = to_plain(design)
    del plain["selects"]
    assert from_plain(plain).selects == ()  # of an older version
    other = planned(**{**BLOCKS, "select": 2}, tune={RATE: [5e-3, 1e-2]}).design
    with pytest.raises(ConfigError, match="chosen its tuned values on 1 seeds"):
        merge(design, other)
    assert merge(planned(**BLOCKS).design, design).selects == design.selects


@pytest.mark.parametrize("select", [-1, True, 1.5, "two"])
def test_a_number_of_seeds_that_is_none_is_refused(select: Any) -> None:
    with pytest.raises(ConfigError, match=r"select.*from 0"):
        parse_study({"compare": {"block": ["pre_ln"]}, "select": select})


def test_the_number_is_kept_in_the_file(tmp_path: Path) -> None:
    for select in (0, 1, 2):
        study = parse_study({**BLOCKS, "select": select})
        path = tmp_path / "study.yaml"
        path.write_text(write_study(study))
        assert read_study(path) == replace(study, name="study")
