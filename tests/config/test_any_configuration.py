"""Whatever its fields hold, a configuration is refused by field, or it is a model that computes finite numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from configurations import Flags, assignments, changes, from_assignments, from_python, outcome
from hypothesis import HealthCheck, example, given, settings

RIGHT = ("refused", "built", "large")
OFTEN = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), max_examples=1000)
SELDOM = settings(OFTEN, derandomize=True)
FLAGS = Flags()


@settings(SELDOM, max_examples=60)
@example({"model.block.attention": "skipinit", "model.block.alpha": 3})
@example({"model.block.attention": "shaped", "model.block.gamma": 0})
@given(changes())
def test_from_python(values: dict[str, Any]) -> None:
    assert outcome(from_python, values) in RIGHT


@settings(SELDOM, max_examples=30)
@given(assignments())
def test_from_assignments(values: Mapping[str, str]) -> None:
    assert outcome(from_assignments, values) in RIGHT


@settings(SELDOM, max_examples=15)
@example({"model": "\ud800"})
@example({"trainer": "a\0b"})
@example({"model": "9" * 5000})
@example({"model": "{1: 2}"})
@given(assignments())
def test_from_flags(values: Mapping[str, str]) -> None:
    assert outcome(FLAGS, values) in RIGHT


@pytest.mark.slow
@OFTEN
@given(changes())
def test_many_from_python(values: dict[str, Any]) -> None:
    assert outcome(from_python, values) in RIGHT


@pytest.mark.slow
@settings(OFTEN, max_examples=500)
@given(assignments())
def test_many_from_assignments(values: Mapping[str, str]) -> None:
    assert outcome(from_assignments, values) in RIGHT


@pytest.mark.slow
@settings(OFTEN, max_examples=500)
@given(assignments())
def test_many_from_flags(values: Mapping[str, str]) -> None:
    assert outcome(FLAGS, values) in RIGHT
