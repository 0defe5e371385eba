"""Mutual exclusion between processes, and between machines: locks that end with their holder.

A file lock is the operating system's and goes with its process however that ends. Machines that share a database server
and no file exclude each other by PostgreSQL's advisory locks, which go with the connection.
"""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType

import sqlalchemy
from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError

from ablations.engine.errors import LockedError, StudyError
from ablations.engine.redact import redact

GATE_PATIENCE = 60.0
"""Seconds that one waits for a lock which is held for moments only."""
IDLE_PATIENCE = 60.0
"""Seconds after which a database ends the session of who holds its lock without a word."""


class FileGate(AbstractContextManager["FileGate"]):
    """A file lock that is waited for with a bound: a holder that was stopped (Ctrl-Z) would else stall all others.

    The same object may be entered again by the thread that holds it.

    Args:
        path: the file.
        what: it guards, for the message.
        patience: seconds until others give up.
    """

    def __init__(self, path: Path, *, what: str, patience: float = GATE_PATIENCE) -> None:
        self.path, self.what, self.patience = path, what, patience
        self._lock = FileLock(path, is_singleton=False)

    def __enter__(self) -> FileGate:
        acquire(self._lock, what=self.what, patience=self.patience)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


def acquire(lock: FileLock, *, what: str, patience: float = GATE_PATIENCE) -> None:
    """Take a lock that is held for moments only.

    Args:
        lock: the lock.
        what: it guards, for the message.
        patience: seconds.

    Raises:
        StudyError: the lock cannot be used.
        LockedError: somebody has held it for as long. The message names the process, and says how to go on.
    """
    try:
        lock.acquire(timeout=patience, poll_interval=0.01)
    except Timeout:
        raise LockedError(
            f"{what} has been locked for {patience:.0f} s by {holder_of(Path(lock.lock_file))}. Let it go on "
            "(kill -CONT) or end it (kill -9), and give the same command again: nothing is lost"
        ) from None
    except OSError as error:
        raise StudyError(f"{what}: its lock {lock.lock_file} cannot be taken ({error.strerror or error}). Make its "
                         "folder writable, or give another with --out or --storage") from error


def holder_of(path: Path) -> str:
    """The process that holds a file lock, in words, as far as this machine knows."""
    try:
        inode = os.stat(path).st_ino
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" not in line]
        pid = next(line[4] for line in lines if line[5].endswith(f":{inode}"))
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (OSError, StopIteration, IndexError):
        return "a process that cannot be seen from here, of another machine maybe"
    return f"process {pid} ({'stopped: ' if state in 'Tt' else ''}{redact(' '.join(command.split()))[:120]})"


class DatabaseLock(AbstractContextManager["DatabaseLock"]):
    """An advisory lock of PostgreSQL, between all machines that use the server. It is held for moments only: the server
    ends the session of a holder that was stopped, and the lock with it."""

    def __init__(self, engine: sqlalchemy.Engine, name: str) -> None:
        self.engine, self.name = engine, name
        self.key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
        self.connection: sqlalchemy.Connection | None = None

    def __enter__(self) -> DatabaseLock:
        try:
            # Without a transaction, which would keep the server from cleaning up while something is measured.
            self.connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            self._bound(self.connection)
            self.connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": self.key})
        except BaseException as error:  # Ctrl-C: the lock may have been granted
            self._drop()
            if isinstance(error, sqlalchemy.exc.OperationalError) and "lock timeout" in str(error):
                raise LockedError(
                    f"{self.name} has been locked in the database for {2 * GATE_PATIENCE:.0f} s by {self._holder()}. "
                    "Let it go on (kill -CONT) or end it (kill -9), and give the same command again: nothing is lost"
                ) from error
            if isinstance(error, sqlalchemy.exc.SQLAlchemyError):
                raise StorageInternalError(f"no lock from the database: {error}") from error  # as all of Optuna's
            raise
        return self

    def _bound(self, connection: sqlalchemy.Connection) -> None:
        """Bound this wait, and how long this session may hold the lock without a word (PostgreSQL 14 and newer)."""
        connection.execute(sqlalchemy.text(f"SET lock_timeout = {2e3 * GATE_PATIENCE:.0f}"))
        with suppress(sqlalchemy.exc.ProgrammingError):
            connection.execute(sqlalchemy.text(f"SET idle_session_timeout = {1e3 * IDLE_PATIENCE:.0f}"))

    def _holder(self) -> str:
        asked = ("SELECT application_name, client_addr FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE "
                 "locktype = 'advisory' AND granted AND (classid::bigint << 32) + objid::bigint = :key")
        try:
            with self.engine.connect() as connection:
                found = connection.execute(sqlalchemy.text(asked), {"key": self.key}).first()
        except sqlalchemy.exc.SQLAlchemyError:
            found = None
        return "a session that the server does not name" if found is None else (
            f"process {found.application_name} (from {found.client_addr or 'the server itself'})")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The session ends with the lock, and with it the bounds that it was given.
        self._drop()

    def _drop(self) -> None:
        """End the session, and with it the lock, whatever state it is in."""
        connection, self.connection = self.connection, None
        if connection is not None:
            with suppress(sqlalchemy.exc.SQLAlchemyError):  # the server went away, and the lock with it
                connection.invalidate()
            connection.close()


class RunLock(AbstractContextManager["RunLock"]):
    """Held by the one `run` that trains a study on this machine; tells a second one the process that holds it."""

    def __init__(self, folder: Path, study: str) -> None:
        name = folder / f"{study}.run.{socket.gethostname()}"
        self.lock = FileLock(f"{name}.lock", is_singleton=False)
        self.holder = Path(f"{name}.pid")  # not in the lock file, which every attempt to take it empties

    def __enter__(self) -> RunLock:
        self.lock.acquire(blocking=False)
        self.holder.write_text(str(os.getpid()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.holder.unlink(missing_ok=True)
        self.lock.release()

    def pid(self) -> str:
        """The process that holds it, or a question mark."""
        try:
            return self.holder.read_text() or "?"
        except OSError:
            return "?"


def is_free(lock: FileLock) -> bool:
    """Whether nobody holds a lock. A lock that cannot be tried counts as held."""
    try:
        lock.acquire(blocking=False)
    except (Timeout, OSError):
        return False
    lock.release()
    return True
