"""A side of a comparison in a process of its own, with the C library's memory management in place of that of `fit`.

What `keep_freed_memory` sets holds for a whole process, so the side that runs as its users run it needs another one.
The two never work at the same time.
"""

from __future__ import annotations

import traceback
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

from ablations.bench.subjects import Subject, compiling
from ablations.timing.rounds import Mode
from ablations.timing.step import build_with_peak_memory


class SubprocessSide:
    """A `Step` in another process, as far as a comparison needs it; the two talk through a pipe.

    Args:
        subject: what the process builds and warms up; it can be pickled.
        compiled: a mode of torch.compile, or None.
        threads: CPU threads of torch.

    Raises:
        RuntimeError: an error in that process, with its traceback.
    """

    def __init__(self, subject: Subject, *, compiled: str | None, threads: int) -> None:
        context = get_context("spawn")  # a forked process would inherit what is set here
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, subject, compiled, threads), daemon=True)
        self._process.start()
        other.close()
        self.tokens = subject.tokens
        self.memory: float | None
        self.memory, self.parameters = self._receive()

    def time(self, steps: int, mode: Mode = "train") -> float:
        """Seconds that some steps take in the other process."""
        self._connection.send((steps, mode))
        return float(self._receive())

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(timeout=10)
        self._process.kill()

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"the process of this side ended with exit code {self._process.exitcode}") from None
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer


def _serve(connection: Connection, subject: Subject, compiled: str | None, threads: int) -> None:
    """The main function of the process: build, then time steps on request until the pipe is closed."""
    torch.set_num_threads(threads)
    try:
        with compiling(compiled):
            step, memory = build_with_peak_memory(lambda: subject.build(compiled))
            connection.send((memory, step.parameters))
            while True:
                connection.send(step.time(*connection.recv()))
    except (EOFError, KeyboardInterrupt):
        return
    except Exception:  # whatever another library raises is raised again by the parent
        connection.send(traceback.format_exc()[-400:])
