"""Hyperparameter search."""

from __future__ import annotations

import argparse

from rich.console import Console


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The flags of `search`."""


def search(given: argparse.Namespace, *, console: Console) -> int:
    raise NotImplementedError
