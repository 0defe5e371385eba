"""Types and ranges of fields: declared for every field, exact, and the same for all configurations."""

from __future__ import annotations

import dataclasses
import math
import typing
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.trainer.connectors.accelerator_connector import _PRECISION_INPUT

from ablations.design.config import StudyConfig
from lit_simplified.config import (
    BlockConfig,
    ConfigError,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainerConfig,
    from_dict,
    run_id,
    to_dict,
)
from lit_simplified.config.checks import Range, check_fields, find_unplain
from lit_simplified.config.types import full_hints, options_of
from lit_simplified.config.words import ACCELERATORS, PRECISIONS, STRATEGIES
from lit_simplified.datamodules.recipe import Exclusion, Filters, HubSource, Recipe, Shares
from lit_simplified.finetuning import FinetuneConfig

REQUIRED: dict[type, dict[str, Any]] = {
    FinetuneConfig: {"task": "docstrings"}, Recipe: {"kind": "stdlib"}, Exclusion: {"globs": ("a",), "reason": "b"},
    HubSource: {"repository": "a", "revision": "b"},
}
CONFIGURATIONS = (
    RunConfig, ModelConfig, BlockConfig, DataConfig, OptimConfig, TrainerConfig, FinetuneConfig, StudyConfig, Recipe,
    Exclusion, Filters, HubSource, Shares,
)
FIELDS = [(cls, entry.name) for cls in CONFIGURATIONS for entry in dataclasses.fields(cls)]
NEVER = (math.nan, math.inf, -math.inf, b"auto", object(), "\ud800", "a\0", 10**5000, [object()], {"a": object()})


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=[f"{cls.__name__}.{name}" for cls, name in FIELDS])
def test_every_field_refuses_what_it_cannot_hold(cls: type, name: str) -> None:
    for option in options_of(full_hints(cls)[name]):
        assert option not in (int, float), "declare a range: Annotated[int, Range(...)]"
    unfit = [value for value in NEVER if (cls, name) != (StudyConfig, "figures")]
    for value in unfit:
        with pytest.raises(ConfigError) as refused:
            cls(**{**REQUIRED.get(cls, {}), name: value})
        assert refused.value.field.split(".")[-1] == name or name in refused.value.field
        assert len(str(refused.value)) < 2000


@pytest.mark.parametrize(("hint", "fit", "unfit"), [
    (Annotated[int, Range(1, 8)], (1, 8, np.int64(3)), (0, 9, 1.0, True, "1", None, np.float64(2), np.bool_(1))),
    (Annotated[float, Range(0, below=1)], (0, 0.0, np.float32(0.5)), (1, 1.0, -1e-9, False, "0", np.float32("nan"))),
    (Annotated[float, Range(above=0, most=1)] | None, (1e-300, 1, None), (0, -0.0, 1.1)),
    (Annotated[int, Range(-1, 4, but=(0,))], (-1, 1), (0, -2)),
    (bool, (True, False, np.bool_(True)), (0, 1, "true", None)),
    (str, ("a", np.str_("é")), ("", " ", "\t", "a\nb", "\ud800", "a\0", 1, None, b"a", Path("a"), "x" * 1001)),
    (tuple[str, ...], ((), ("a", "b")), (["a"], ("",), "ab", ("a", 1))),
    (typing.Literal["a", "b"], ("a",), ("c", ["a"], None, np.array(["a", "b"]))),
    (dict[str, Any], ({}, {"a": [1, {"b": None}]}), ({1: 2}, {"a": (1,)}, {"a": math.inf}, {"class_path": 1}, [])),
])
def test_types_and_ranges_are_exact(hint: Any, fit: tuple[Any, ...], unfit: tuple[Any, ...]) -> None:
    made = dataclasses.make_dataclass(
        "Made", [("field", hint)], namespace={"__post_init__": lambda self: check_fields(self, "made")}
    )
    for value in fit:
        found = made(value).field
        assert found == value
        assert type(found).__module__ != "numpy"
    for value in unfit:
        with pytest.raises(ConfigError, match=r"^made\.field"):
            made(value)


def test_the_smallest_cases() -> None:
    for build, told in (
        (lambda: ModelConfig(embedding_rms=math.nan), "model.embedding_rms=nan: give a number from 1e-06 to 1000.0"),
        (lambda: ModelConfig(init_std=math.inf), "model.init_std=inf"),
        (lambda: BlockConfig(mlp_ratio=math.inf), "block.mlp_ratio=inf: give a number above 0, up to 1000.0"),
        (lambda: ModelConfig(context=2**63 - 1), "model.context=9223372036854775807"),
        (lambda: ModelConfig(depth=2**63 - 1), "model.depth=9223372036854775807: give a whole number from 1 to 10000"),
        (lambda: ModelConfig(width=2**31 - 1), "model.width=2147483647"),
        (lambda: ModelConfig(width=2**20, heads=3), "model.heads=3: must divide width=1048576: one of [1, 2, 4, "),
        (lambda: TrainerConfig(devices=0), "trainer.devices=0"),
        (lambda: TrainerConfig(accelerator=False), "trainer.accelerator=False: choose one of auto, cpu"),
        (lambda: TrainerConfig(precision=" "), "trainer.precision=' '"),
        (lambda: TrainerConfig(options={"a": [{"class_path": "os.system"}]}), "trainer.options.a[0]={'class_path'"),
        (lambda: OptimConfig(steps=10**9, batch_ramp=0.5), "optim.batch_ramp=0.5: of 1000000000 steps"),
        (lambda: RunConfig(model=None), "model=None: give a ModelConfig"),
        (lambda: from_dict(RunConfig, {"model": None}), "model=None: give a mapping"),
        (lambda: from_dict(FinetuneConfig, {}), "FinetuneConfig.task=None: is missing"),
        (lambda: from_dict(RunConfig, {1: 2, "x": 3}), "RunConfig.1=2"),
    ):
        with pytest.raises(ConfigError) as refused:
            build()
        assert str(refused.value).startswith(told)


def test_scalars_of_numpy_make_the_run_that_plain_ones_make() -> None:
    plain = RunConfig(optim=OptimConfig(learning_rate=0.5, steps=3), seed=7)
    numpy = RunConfig(optim=OptimConfig(learning_rate=np.float32(0.5), steps=np.int64(3)), seed=np.uint8(7))
    assert (numpy, run_id(numpy), to_dict(numpy)) == (plain, run_id(plain), to_dict(plain))


def test_plain_data_are_searched_without_end() -> None:
    endless: list[Any] = []
    endless.append(endless)
    wide: list[Any] = []
    for _ in range(20):
        wide = [wide] * 10
    for value, said in ((endless, "nested more than"), (wide, "more than")):
        found = find_unplain({"a": value})
        assert found is not None
        assert said in found[2]
    with pytest.raises(ConfigError, match=r"trainer\.options=\{'a': \[\[\["):
        TrainerConfig(options={"a": wide})


def test_the_words_are_those_that_lightning_takes() -> None:
    accepted = {str(word) for group in typing.get_args(_PRECISION_INPUT) for word in typing.get_args(group)}
    assert set(PRECISIONS) == accepted
    assert {*StrategyRegistry.available_strategies(), "auto"} == set(STRATEGIES)
    assert {*AcceleratorRegistry.available_accelerators(), "auto", "gpu"} == set(ACCELERATORS)
