"""The rows of a study: each combination of levels that can be built as a configuration, with its id and its label."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ablations.design.axes import Axis, apply, text_of
from ablations.design.design import Row
from ablations.design.designs import Asked
from lit_simplified.config import ConfigError, RunConfig, block_id, digest, preset_of

FEW_BLOCK_AXES = 2
"""Axes of the block up to which a row that is no named block is called by its levels."""


@dataclass(frozen=True)
class Base:
    """What the levels of the axes change."""

    template: RunConfig
    fixed: Mapping[str, Any]
    """Fields of the block that every row has, whatever its named block."""

    def at(self, axes: Iterable[Axis], combination: Mapping[str, str]) -> RunConfig:
        """The run of a combination."""
        return apply(self.template, [axis.level(combination[axis.name]) for axis in axes], fixed=self.fixed)


def write_rows(asked: Asked, base: Base) -> tuple[list[Row], dict[str, RunConfig], list[str]]:
    """Rows, their configurations by id, and in words what was left out or is one with another."""
    rows: dict[str, Row] = {}
    configs: dict[str, RunConfig] = {}
    refused: Counter[str] = Counter()
    merged: list[str] = []
    before = asked.around
    for combination in asked.combinations:
        config = _built(asked, combination, base, refused=refused)
        if config is None:
            continue
        row = _row(asked, combination, config, before=before, step=len(rows))
        if row.id in rows and rows[row.id].digest == row.digest:
            merged.append(f"{_words(asked.axes, combination)} is {rows[row.id].label}")
            continue
        row = row if row.id not in rows else replace(row, id=f"{row.id}-{row.digest}")
        rows[row.id], configs[row.id] = row, config
        before = combination if asked.ordered else before
    if not rows:
        raise ConfigError("compare", [axis.name for axis in asked.axes], "no combination of these levels can be built: "
                          f"{next(iter(refused))}")
    return _labelled(list(rows.values())), configs, _notes(asked, refused, merged)


def _built(
    asked: Asked, combination: Mapping[str, str], base: Base, *, refused: Counter[str]
) -> RunConfig | None:
    """The run of a combination; None, with the reason counted, where it cannot be built."""
    try:
        return base.at(asked.axes, combination)
    except ConfigError as error:
        if asked.whole:
            raise ConfigError("design", _words(asked.axes, combination), "the design needs this row, which cannot be "
                              f"built ({error}). Make fields that only go together one axis") from error
        refused[str(error)] += 1
        return None


def _notes(asked: Asked, refused: Counter[str], merged: Sequence[str]) -> list[str]:
    notes = []
    if refused and asked.ordered:
        notes.append(f"steps of the path that are taken together with the next, as they cannot be built on their own: "
                     f"{sum(refused.values())} ({'; '.join(refused)})")
    elif refused:
        notes.append(f"{sum(refused.values())} of {len(asked.combinations)} combinations cannot be built and are left "
                     f"out: {'; '.join(list(refused)[:3])}")
    if merged:
        more = f"; and {len(merged) - 5} more" if len(merged) > 5 else ""
        notes.append(f"{len(merged)} combinations build a run that is there already: {'; '.join(merged[:5])}{more}")
    return notes


def _words(axes: Iterable[Axis], combination: Mapping[str, str]) -> str:
    return ", ".join(f"{axis.title}={combination[axis.name]}" for axis in axes)


def _row(
    asked: Asked, combination: Mapping[str, str], config: RunConfig, *, before: Mapping[str, str] | None,
    step: int,
) -> Row:
    block = config.model.block
    others = [(axis, combination[axis.name]) for axis in asked.axes if not axis.of_block]
    identity = block_id(block) + "".join(f"-{safe(axis.title)}{safe(label)}" for axis, label in others)
    label = _label(asked.axes, combination, config)
    changed = [axis for axis in asked.axes if before is not None and combination[axis.name] != before[axis.name]]
    if changed:
        what = ", ".join(_part(axis, combination[axis.name]) for axis in changed)
        label = f"{step}. {what}" if asked.ordered else what
    return Row(identity, label, dict(combination), row_digest(config), preset_of(block))


def row_digest(config: RunConfig) -> str:
    """Stands for what decides the result of a row's runs, whatever their seed and folders."""
    return digest(config, changes={
        "seed": 0, "out_dir": "", "data.cache_dir": "", "data.num_workers": 0, "trainer.accelerator": "",
        "trainer.devices": 1, "trainer.threads": None,
    })


def _label(axes: Sequence[Axis], combination: Mapping[str, str], config: RunConfig) -> str:
    """The named block, else its levels where these are few, and the level of every other axis."""
    of_block = [axis for axis in axes if axis.of_block]
    parts = [_part(axis, combination[axis.name]) for axis in of_block]
    name = preset_of(config.model.block)
    if name and of_block:
        parts = [name]
    elif len(parts) > FEW_BLOCK_AXES:
        parts = [block_id(config.model.block)]
    return ", ".join([*parts, *(_part(axis, combination[axis.name]) for axis in axes if not axis.of_block)])


def _part(axis: Axis, label: str) -> str:
    return label if axis.named else f"{axis.title} {label}"


def _labelled(rows: list[Row]) -> list[Row]:
    """The rows with labels that tell them apart: by id where two are called the same."""
    counts = Counter(row.label for row in rows)
    return [row if counts[row.label] == 1 else replace(row, label=row.id) for row in rows]


def safe(value: Any) -> str:
    """A value in an id, which is a name of files and elements of a page, too."""
    return re.sub(r"[^A-Za-z0-9.+_-]+", "_", text_of(value))
