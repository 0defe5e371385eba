"""Configurations of any content, and what becomes of them: the strategies and the judge of the property tests."""

from __future__ import annotations

import contextlib
import io
import math
import signal
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from hypothesis import strategies as st

from lit_simplified.__main__ import NOT_OF_RUN, build_parser, with_preset
from lit_simplified.config import (
    BlockConfig,
    ConfigError,
    RunConfig,
    from_dict,
    parse_assignments,
    run_id,
    set_fields,
    to_dict,
)
from lit_simplified.config.types import options_of, paths
from lit_simplified.model import Transformer

SECONDS = 20
"""For one configuration; one that takes longer hangs."""
TINY = {
    "model": {"depth": 2, "width": 16, "heads": 2, "vocab_size": 32, "context": 8},
    "trainer": {"accelerator": "cpu", "progress_bar": False},
}
FIELDS = dict(paths(RunConfig))
GROUPS = ("model", "model.block", "data", "optim", "trainer")
ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
BOMB: list[Any] = ["x"]
for _ in range(30):
    BOMB = [BOMB] * 10
EXTREME: tuple[Any, ...] = (
    math.nan, math.inf, -math.inf, -1, -0.0, 0, 2**31 - 1, 2**63 - 1, -(2**63), 10**400, 10**5000, 1e308, -1e308,
    5e-324, 1e-40, 1e38, 0.5, 1.0, 7.0, "", " ", "\n", "x", "1", "nan", "auto", "\ud800", "a\0b", "é" * 5000,
    "../" * 400,
    "FILE.py:CLASS", "null", "true", b"", b"auto", None, True, False, [], [1], {}, {"a": 1}, {1: 2}, {"a": {1, 2}}, (),
    {"class_path": "os.system"}, {"a": [{"class_path": "os.system"}]}, {"a": math.nan}, {"a": "\ud800"}, {"a": BOMB},
    ENDLESS, object(), BlockConfig(), Path("x"), np.float32("nan"), np.float64(1.5), np.int64(3), np.bool_(True),
    np.array([1, 2]), np.str_("x"), torch.tensor(3),
)
TEXTS: tuple[str, ...] = (
    "nan", "inf", "-.inf", ".nan", "-1", "0", "2147483647", "9223372036854775807", "9" * 5000, "1e308", "1e999",
    "1e-320", "", " ", "x", "null", "true", "False", "0.5", "7.0", "7", "[1]", "[", "{", "{a: 1}", "{a: .nan}",
    "{1: 2}",
    "&a [*a]", "{class_path: os.system}", "os.system", "\ud800", "é" * 500, "../" * 400, "FILE.py:CLASS",
    "!!python/name:os.system", "b'x'", "0x10", "1_0", "1:30", "2024-01-01", "'", '"', "a: b: c", "- x", "\t", "%",
    "@", "`", "=", "--seed",
)


def usual(hint: Any) -> tuple[Any, ...]:
    """Values that a field of a type may well have."""
    found: list[Any] = []
    for option in options_of(hint):
        found += typing.get_args(option) if typing.get_origin(option) is Literal else ()
        found += {int: [1, 2, 3, 4, 8], float: [0.1, 0.5, 0.9, 1e-3, 1, 2.0, 100.0, -1.0], bool: [True, False],
                  str: ["auto", "x", "32-true"], type(None): [None]}.get(option, [])
    return tuple(found) or ({"limit_val_batches": 1},)


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    """Some fields, or whole groups of them, with values of any kind."""
    names = draw(st.lists(st.sampled_from([*FIELDS, *GROUPS]), min_size=1, max_size=4, unique=True))
    return {name: draw(st.one_of(st.sampled_from(EXTREME), st.sampled_from(usual(FIELDS.get(name, dict)))))
            for name in names}


@st.composite
def assignments(draw: st.DrawFn) -> dict[str, str]:
    """Some fields with the text of a value of any kind."""
    names = draw(st.lists(st.sampled_from([*FIELDS, *GROUPS]), min_size=1, max_size=3, unique=True))
    return {name: draw(st.one_of(st.sampled_from(TEXTS), st.sampled_from(usual(FIELDS.get(name, dict))).map(str)))
            for name in names}


def from_python(values: Mapping[str, Any]) -> RunConfig:
    """The tiny run with fields changed, as Python builds it."""
    nested: dict[str, Any] = {group: dict(fields) for group, fields in TINY.items()}
    for path in sorted(values):  # a group before its fields
        *outer, name = path.split(".")
        at: Any = nested
        for group in outer:
            at = at.setdefault(group, {}) if isinstance(at, dict) else {}
        if isinstance(at, dict):
            at[name] = values[path]
    return from_dict(RunConfig, nested)


def from_assignments(values: Mapping[str, str]) -> RunConfig:
    """The tiny run with fields changed, as `--set` does it."""
    given = parse_assignments(RunConfig, [f"{path}={text}" for path, text in values.items()], where="--set")
    return set_fields(from_dict(RunConfig, TINY), given)


class Flags:
    """The tiny run with fields changed, as the flags of `fit` do it."""

    def __init__(self) -> None:
        self.parser = build_parser()

    def __call__(self, values: Mapping[str, str]) -> RunConfig:
        tiny = {f"{group}.{name}": value for group, fields in TINY.items() for name, value in fields.items()}
        flags = [f"--{path}={text}" for path, text in {**tiny, **values}.items()]
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                options = self.parser.parse_args(with_preset(["fit", *flags])).fit.as_dict()
        except SystemExit as ended:  # a `ConfigError` of the parser, which shows what it refuses
            field = next((path for path in values if path.rpartition(".")[2] in said.getvalue()), "nothing")
            raise ConfigError(field, None, f"{ended.code}: {said.getvalue()}") from ended
        return from_dict(RunConfig, {name: value for name, value in options.items() if name not in NOT_OF_RUN})


def outcome(build: typing.Callable[[Any], RunConfig], values: Mapping[str, Any]) -> str:
    """What became of a configuration: `refused`, `built` or `large`, which are right, or what is wrong with it."""
    try:
        with deadline():
            config = build(values)
            written = yaml.safe_load(yaml.safe_dump(to_dict(config)))
            if from_dict(RunConfig, written) != config or not run_id(config):
                return "not what was written"
            return _model_of(config)
    except ConfigError as error:
        return "refused" if _names_field(error) else f"ConfigError without a field: {error}"[:300]
    except TimeoutError:
        return "hang"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]


def _model_of(config: RunConfig) -> str:
    model = config.model
    numbers = model.depth * (8 + 3 * model.block.mlp_ratio) * model.width**2
    numbers += (2 * model.vocab_size + model.context) * model.width + 100 * model.depth
    if 1e6 < numbers < 1e12:
        return "large"  # it may be built, in a minute rather than in a moment
    torch.manual_seed(0)
    built = Transformer(model).eval()
    if numbers > 1e12:
        return "no memory has been refused"
    with torch.no_grad():
        logits = built(torch.arange(min(model.context, 4))[None] % model.vocab_size)
    return "built" if logits.isfinite().all() else "non-finite"


def _names_field(error: ConfigError) -> bool:
    """Whether what an error names is a field, a group of them, or an entry in one."""
    where, _, value = str(error).partition("=")
    named = where.rpartition(": ")[2] if where != "--set" else value.partition("'")[2].partition("'")[0]
    parts = named.replace("[", ".").split(".")
    known = {name for path in FIELDS for name in path.split(".")}
    return bool(known & set(parts)) or parts[0].endswith("Config")


@contextlib.contextmanager
def deadline(seconds: int = SECONDS) -> Iterator[None]:
    """Raise `TimeoutError` in what takes longer."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"{seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
