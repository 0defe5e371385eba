"""Fixtures of several test modules."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from postgres import REQUIRE, NoServerError, Server, server


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
