"""Fixtures of several test modules."""

from __future__ import annotations

import os

# Before anything is imported, which reads them then; processes that tests start inherit them. No test waits for the
# hub, and none uses a second core, which another process of the tests has. Where a test asks for more threads all the
# same, those that wait for each other sleep: on a machine that does something else too, they would take for ever.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")  # of torch and numpy

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import yaml
from postgres import REQUIRE, NoServerError, Server, server

from lit_simplified.config import DataConfig, RunConfig

if TYPE_CHECKING:
    from lit_simplified import RunResult


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take for ever on a machine that does something else too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A PostgreSQL server of the tests' own. Whoever stops it starts it again."""
    with ExitStack() as stack:
        try:
            started = stack.enter_context(server())
        except NoServerError as error:
            if os.environ.get(REQUIRE) == "1":
                raise
            pytest.skip(str(error))
        yield started


@pytest.fixture
def postgres(postgres_server: Server) -> str:
    """The address of a new and empty database in a PostgreSQL server."""
    return postgres_server.create_database()


@pytest.fixture(params=["journal", "postgres"])
def shared_storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new study of many processes may be kept."""
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres"))
    return str(tmp_path / "journal.log")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """A folder of small Python files as a corpus, and a cache of its own."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(60):
        lines = [f"def function_{i}_{j}(value):\n    return value * {i + j} + len('{i * j}')\n" for j in range(25)]
        (folder / f"module_{i}.py").write_text("\n".join(lines))
    recipe = folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump({
        "kind": "files", "description": "generated functions", "paths": [str(folder)], "include": ["*.py"],
    }))
    return DataConfig(
        recipe=str(recipe), cache_dir=str(folder / "cache"), batch_size=4, val_windows=16, test_windows=16
    )


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[RunConfig], RunResult]:
    """Trains a configuration for whoever asks first, for tests that only read what a run leaves."""
    from lit_simplified import fit

    folder = tmp_path_factory.mktemp("finished")
    known: dict[str, RunResult] = {}

    def finish(config: RunConfig) -> RunResult:
        name = repr(replace(config, out_dir="runs"))
        if name not in known:
            # A folder each: runs that differ only in what is kept of them have the same name, and are trained once.
            known[name] = fit(replace(config, out_dir=str(folder / str(len(known)))))
        return known[name]

    return finish
