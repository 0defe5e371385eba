"""Mutual exclusion between processes, and between machines: locks that end with their holder.

A file lock is the operating system's and goes with its process however that ends. Machines that share a database server
and no file exclude each other by PostgreSQL's advisory locks, which go with the connection.
"""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

import sqlalchemy
from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError


class DatabaseLock(AbstractContextManager["DatabaseLock"]):
    """An advisory lock of PostgreSQL, between all machines that use the server."""

    def __init__(self, engine: sqlalchemy.Engine, name: str) -> None:
        self.engine = engine
        self.key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
        self.connection: sqlalchemy.Connection | None = None

    def __enter__(self) -> DatabaseLock:
        try:
            # Without a transaction, which would keep the server from cleaning up while something is measured.
            self.connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            self.connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": self.key})
        except BaseException as error:  # Ctrl-C: the lock may have been granted
            self._drop()
            if isinstance(error, sqlalchemy.exc.SQLAlchemyError):
                raise StorageInternalError(f"no lock from the database: {error}") from error  # as all of Optuna's
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.connection is None:
            return
        try:
            freed = self.connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:key)"), {"key": self.key})
            if freed.scalar():
                self.connection.close()
                self.connection = None
        except sqlalchemy.exc.SQLAlchemyError:
            pass  # the server went away, and the lock with it
        finally:
            self._drop()

    def _drop(self) -> None:
        """End the session, and with it the lock, whatever state it is in."""
        connection, self.connection = self.connection, None
        if connection is not None:
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
