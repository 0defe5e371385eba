"""The claims of a study file as statements about rows of the study, by their ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ablations.design.axes import BLOCK, Level, apply
from ablations.design.claims import QUANTITIES, RELATIONS, Claim
from ablations.design.config import StudyConfig
from ablations.design.design import StudyDesign
from ablations.design.rows import Base
from lit_simplified.config import ConfigError, RunConfig, checked_fields


@dataclass(frozen=True)
class Known:
    """What a claim is resolved with."""

    design: StudyDesign
    configs: Mapping[str, RunConfig]
    base: Base


def find_row(configs: Mapping[str, RunConfig], config: RunConfig) -> str:
    return next((name for name, known in configs.items() if known == config), "")


def resolve_claims(config: StudyConfig, known: Known, *, partial: bool) -> tuple[list[Claim], list[str]]:
    """The claims about rows of the study, and in words how many were left out."""
    wanted = [claim for claim in config.claims if claim.get("task") in (None, known.base.template.task)]
    found, without = [], 0
    for index, claim in enumerate(wanted):
        try:
            found.append(_claim(claim, index, known))
        except ConfigError:
            if not partial:
                raise
            without += 1
    other = len(config.claims) - len(wanted)
    notes = [f"{other} claims are about the other task and are left out"] if other else []
    return found, [*notes, f"{without} claims are about rows that are not trained here"] if without else notes


def _claim(claim: Mapping[str, Any], index: int, known: Known) -> Claim:
    left, right = (side_of(claim[side], f"claims[{index}]: {side}", known) for side in ("left", "right"))
    relation = RELATIONS[claim["is"]]
    quantity = str(claim.get("in") or relation.quantity)
    by_id = known.design.by_id
    sentence = relation.sentence.format(left=by_id[left].label, right=by_id[right].label)
    sentence += f" in {QUANTITIES[quantity]}" if quantity != relation.quantity else ""
    return Claim(left, claim["is"], right, quantity, sentence, str(claim.get("paper") or ""), claim.get("margin"),
                 str(claim.get("name") or ""))


def side_of(side: Any, where: str, known: Known) -> str:
    """The row that a claim speaks of, by id: a named block, or levels and fields; the rest is the baseline's.

    Raises:
        ConfigError: the study has no such row.
    """
    given = {BLOCK: side} if isinstance(side, str) else side
    if not isinstance(given, Mapping):
        raise ConfigError(where, side, "give a named block, or {AXIS: LEVEL, ...}")
    design, configs = known.design, known.configs
    by_name = {axis.name: axis for axis in design.axes}
    start = known.base.template if BLOCK in given else configs[design.baseline]
    base = design.by_id[design.baseline].levels
    others = [axis for axis in design.axes if axis.name not in given and not (BLOCK in given and axis.of_block)]
    levels = [axis.level(base[axis.name]) for axis in others if axis.name in base]
    levels += [by_name[name].level(value) if name in by_name else Level(str(value), _fields(name, value, where))
               for name, value in given.items()]
    found = find_row(configs, apply(start, levels, fixed=known.base.fixed))
    if not found:
        names = ", ".join(row.label for row in design.rows[:12])
        raise ConfigError(where, side, f"the study has no such row; it has {names}" + ", ..." * (len(configs) > 12))
    return found


def _fields(name: str, value: Any, where: str) -> dict[str, Any]:
    return {BLOCK: str(value)} if name == BLOCK else checked_fields(RunConfig, {name: value}, where=where)
