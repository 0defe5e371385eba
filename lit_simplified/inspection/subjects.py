"""The models that are compared for signal propagation, and the tokens that they all read.

Shapes: B batch, T positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_simplified.checkpoint import checkpoint_file, load_model, read_config
from lit_simplified.config import (
    PRESETS,
    BlockConfig,
    ConfigError,
    DataConfig,
    ModelConfig,
    RunConfig,
    describe,
    digest,
    get_field,
    parse_assignments,
    preset,
    preset_of,
    set_fields,
)
from lit_simplified.config.types import hints
from lit_simplified.datamodules import prepare
from lit_simplified.datamodules.datamodule import Windows, spread
from lit_simplified.model import Transformer
from lit_simplified.objectives import build_objective

BLOCKS = (
    "pre_ln", "parallel", "naive_skipless", "v_skipinit", "sas", "sas,mlp_skip=false", "sas_p", "sas_p_no_norm",
)
"""The block kinds that are compared unless others are named."""
BASE = RunConfig(model=ModelConfig(depth=48, width=128, heads=4, context=128, vocab_size=1024))
"""The default model and data."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure. The defaults are those of the command line."""

    blocks: Sequence[str] | None = None
    """Presets, each optionally changed, `sas,mlp_skip=false`. None: the block of `base`, and `BLOCKS` without one."""
    checkpoints: Sequence[Path] = ()
    """Trained models in place of blocks: run folders, or checkpoint files in them."""
    base: RunConfig | None = None
    """A run whose model and data are taken. None: `BASE`."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """What differs from it: `depth`, `width`, `heads`, `context`, `vocab_size`, `recipe`, `cache_dir`, `task`."""
    sequences: int = 4
    """Windows of the validation split."""
    seeds: Sequence[int] | None = None
    """Initialisations of each block kind. None: 0, 1, 2."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One model: a block kind at a seed, or a checkpoint."""

    label: str
    config: RunConfig
    checkpoint: Path | None = None

    def build(self) -> Transformer:
        """The model, to be evaluated, with gradients."""
        if self.checkpoint is not None:
            return load_model(self.checkpoint)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return Transformer(self.config.model).eval()


def list_subjects(request: Request) -> list[Subject]:
    """The models of a request, in its order.

    Raises:
        ConfigError: models that cannot be built or compared.
    """
    if request.checkpoints:
        _refuse_beside_checkpoints(request)
        return _trained(request)
    base = changed(request.base or BASE, request.changes)
    if base.model.context < 2:
        raise ConfigError("context", base.model.context, "measures compare tokens: give at least 2 positions")
    if request.blocks is not None:
        kinds = parse_blocks(request.blocks)
    elif request.base is not None:
        kinds = {preset_of(base.model.block) or describe(base.model.block): base.model.block}
    else:
        kinds = parse_blocks(BLOCKS)
    seeds = list(range(3)) if request.seeds is None else list(request.seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError("seeds", seeds, "give different numbers, at least one")
    return [
        Subject(label=label, config=replace(base, seed=seed, model=replace(base.model, block=block)))
        for label, block in kinds.items() for seed in seeds
    ]


def changed(base: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """The run with some fields of its task, its model and its data changed, by the fields' own names."""
    paths = {name: f"{part}.{name}" for part, cls in (("model", ModelConfig), ("data", DataConfig))
             for name in hints(cls)}
    return set_fields(base, {paths.get(name, name): value for name, value in changes.items()})


def parse_blocks(specs: Iterable[str]) -> dict[str, BlockConfig]:
    """Block kinds by their labels: the texts without spaces.

    Raises:
        ConfigError: an unknown preset, field or value, or the same block twice.
    """
    kinds: dict[str, BlockConfig] = {}
    for spec in specs:
        name, *changes = (part.strip() for part in spec.split(","))
        for change in changes:
            if "=" not in change:
                raise ConfigError("blocks", spec, f"write changes as sas,mlp_skip=false: {change!r} has no =")
        block = set_fields(preset(name), parse_assignments(BlockConfig, changes, where="blocks"))
        twin = next((label for label, other in kinds.items() if other == block), None)
        if twin is not None:
            raise ConfigError("blocks", spec, f"is the same block as {twin}: leave one of them out")
        kinds[",".join((name, *changes))] = block
    if not kinds:
        raise ConfigError("blocks", [], f"name at least one of {', '.join(PRESETS)}")
    return kinds


def _refuse_beside_checkpoints(request: Request) -> None:
    other = dict(request.changes)
    other.pop("cache_dir", None)  # where the corpus is kept changes nothing
    other |= {} if request.blocks is None else {"blocks": list(request.blocks)}
    other |= {} if request.seeds is None else {"seeds": list(request.seeds)}
    other |= {} if request.base is None else {"config": "a run's configuration"}
    if other:
        name, value = next(iter(other.items()))
        raise ConfigError(name, value, "a checkpoint has its own block, sizes, task, data and seed: leave this out")


def _trained(request: Request) -> list[Subject]:
    """Subjects of checkpoints: a preset's seeds under its name, others under the names of their folders."""
    found: dict[Path, RunConfig] = {}
    for path in request.checkpoints:
        file = checkpoint_file(path)
        if file in found:
            raise ConfigError("checkpoint", str(path), "named twice: leave one out")
        found[file] = changed(read_config(file), request.changes)
    names = {file: preset_of(config.model.block) or describe(config.model.block) for file, config in found.items()}
    kinds: dict[str, set[str]] = {}
    seeds: dict[str, list[int]] = {}
    for file, config in found.items():
        kinds.setdefault(names[file], set()).add(digest(config, changes={"seed": 0, "out_dir": ""}))
        seeds.setdefault(names[file], []).append(config.seed)
    alike = {name for name in kinds if len(kinds[name]) == 1 and len(set(seeds[name])) == len(seeds[name])}
    subjects = [
        Subject(label=names[file] if names[file] in alike else _folder_name(file), config=config, checkpoint=file)
        for file, config in found.items()
    ]
    if len({(subject.label, subject.config.seed) for subject in subjects}) < len(subjects):
        raise ConfigError("checkpoint", [str(path) for path in found], "their folders have equal names: rename them")
    return subjects


def _folder_name(file: Path) -> str:
    """Of the run; the file's own where it lies in no run."""
    return file.absolute().parent.parent.name if file.parent.name == "checkpoints" else file.stem


def read_windows(subjects: Sequence[Subject], *, sequences: int) -> Tensor:
    """The windows of the validation split that every model reads, evenly spread over it: int64 (B, T + extra).

    Raises:
        ConfigError: too few of them, or models that do not read the same tokens.
    """
    config = subjects[0].config
    for subject in subjects:
        for name in ("model.vocab_size", "model.context", "data.recipe", "task"):
            values = [get_field(each, name) for each in (config, subject.config)]
            if values[0] != values[1]:
                raise ConfigError(
                    name, values, f"{subjects[0].label} and {subject.label} differ, but all must read the same "
                    "tokens: measure them one at a time"
                )
    if sequences < 1:
        raise ConfigError("sequences", sequences, "give at least 1")
    corpus = prepare(config.data, vocab_size=config.model.vocab_size)
    _refuse_other_tokens(subjects, corpus.tokenizer_file)
    windows = Windows(
        corpus, split="validation", context=config.model.context, extra=build_objective(config).extra
    )
    if len(windows) < sequences:
        raise ConfigError(
            "sequences", sequences, f"the validation split of {config.data.recipe} has {len(windows)} windows of "
            f"{config.model.context} tokens: give at most as many, or a smaller context"
        )
    return windows.__getitems__(spread(len(windows), limit=sequences))


def _refuse_other_tokens(subjects: Sequence[Subject], tokenizer: Path) -> None:
    """A corpus that has changed since a model was trained gives another tokenizer: its tokens mean something else."""
    for subject in subjects:
        own = None if subject.checkpoint is None else subject.checkpoint.parent.parent / "tokenizer.json"
        if own is not None and own.is_file() and own.read_bytes() != tokenizer.read_bytes():
            raise ConfigError(
                "checkpoint", str(subject.checkpoint), f"the corpus {subject.config.data.recipe} has changed since "
                "it was trained, and its tokenizer with it: train it again, or restore the corpus"
            )
