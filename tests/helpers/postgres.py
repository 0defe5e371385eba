"""A PostgreSQL server for the tests: its own cluster in a temporary folder, reached through a Unix socket alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import sqlalchemy

REQUIRE = "REQUIRE_POSTGRES"
"""Set to 1 where a missing server is an error rather than a reason to skip."""
GUARDED = "guarded"
"""A user who needs the password `right`; all others get in without."""
_PROGRAMS = ("initdb", "pg_ctl", "postgres")
_NUMBERS = count()


class NoServerError(RuntimeError):
    """No PostgreSQL here; the message says what was looked for."""


@dataclass(frozen=True)
class Server:
    """A running server of one's own."""

    programs: Path
    folder: Path
    user: str | None
    """Who runs it; None: who runs the tests."""

    def url(self, database: str, *, login: str = "postgres") -> str:
        """The address of a database, as Optuna takes it."""
        return f"postgresql://{login}@/{database}?host={self.folder}"

    def create_database(self) -> str:
        """A new and empty database; returns its address."""
        name = f"test{next(_NUMBERS)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, statement: str) -> list[Any]:
        """Run a statement outside of any transaction."""
        engine = sqlalchemy.create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                result = connection.execute(sqlalchemy.text(statement))
                return list(result) if result.returns_rows else []
        finally:
            engine.dispose()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        # No fsync: nothing here is to outlive the machine. No TCP: no port can be taken.
        options = f"-F -c listen_addresses= -c unix_socket_directories={self.folder} -c max_connections=200"
        self._control("start", "-w", "-t", "60", "-l", str(self.folder / "log"), "-o", options)

    def stop(self, *, mode: str = "fast") -> None:
        """End it and cut off whoever is connected. `immediate` leaves what was not written yet."""
        self._control("stop", "-w", "-m", mode)

    def _control(self, *arguments: str) -> None:
        run(self.programs / "pg_ctl", "-D", str(self.folder / "data"), *arguments, user=self.user)


@contextmanager
def server() -> Iterator[Server]:
    """A server for as long as the block lasts.

    Raises:
        NoServerError: PostgreSQL is not installed, or there is no user who may run it.
    """
    programs, user = find_programs(), find_user()
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path has at most 107 bytes
    try:
        if user is not None:
            shutil.chown(folder, user)
        options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "-N"]
        run(programs / "initdb", "-D", str(folder / "data"), *options, user=user)
        access = folder / "data" / "pg_hba.conf"
        access.write_text(f"local all {GUARDED} scram-sha-256\n" + access.read_text())
        started = Server(programs, folder, user)
        started.start()
        try:
            started.execute(f"CREATE ROLE {GUARDED} LOGIN SUPERUSER PASSWORD 'right'")
            yield started
        finally:
            started.stop(mode="immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def find_programs() -> Path:
    """The folder of PostgreSQL's programs: on the PATH, where Debian puts them, or where `pg_config` says."""
    candidates = [Path(found).parent for found in [shutil.which("initdb")] if found]
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -float(path.parent.name))
    if shutil.which("pg_config"):
        candidates.append(Path(subprocess.check_output(["pg_config", "--bindir"], text=True).strip()))
    for folder in candidates:
        if all((folder / program).exists() for program in _PROGRAMS):
            return folder
    raise NoServerError("no PostgreSQL server is installed (initdb, pg_ctl, postgres); on Debian: "
                        "apt-get install postgresql")


def find_user() -> str | None:
    """Who runs the server: it refuses to be run by root. None: we ourselves."""
    if os.geteuid() != 0:
        return None
    import pwd

    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise NoServerError("we are root, who may not run PostgreSQL, and there is neither a user postgres nor nobody")


def run(program: Path, *arguments: str, user: str | None) -> None:
    """Run one of PostgreSQL's programs; what it said is shown where it failed."""
    as_user: dict[str, Any] = {} if user is None else {"user": user, "extra_groups": []}
    with tempfile.TemporaryFile() as said:  # a pipe would be held open by the server that it starts
        status = subprocess.run([str(program), *arguments], stdout=said, stderr=said, cwd="/", check=False, **as_user)
        said.seek(0)
        if status.returncode:
            raise NoServerError(f"{program.name} {' '.join(arguments)} failed:\n{said.read().decode(errors='replace')}")
