"""`python -m ablations.viewers.dashboard`: Optuna's own pages on a study, through this project's storage.

Through it, because what is written on the pages (notes, tags) must take the lock that the study's workers take:
Optuna's journal has another one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ablations.engine.lookup import RESULTS, journal_of
from ablations.engine.redact import redact
from ablations.engine.storage import StudyError, is_url, journal_path, open_storage


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the pages until Ctrl-C; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ablations.viewers.dashboard", description=__doc__.split("\n")[0])
    parser.add_argument("--study", help=f"the study's folder in {RESULTS} (default: the one that was written to last)")
    parser.add_argument("--storage", metavar="S", help="a journal or a database URL in its place")
    parser.add_argument("--port", type=int, default=8080, help="of the server on this machine (default: 8080)")
    parser.add_argument("--host", default="localhost", metavar="ADDR",
                        help="where to listen (default: localhost). Another, e.g. 0.0.0.0, lets "
                             "everyone who reaches this machine change the study: no password is asked")
    given = parser.parse_args(arguments)
    try:
        storage = given.storage or str(journal_of(given.study))
        opened = open_storage(storage, create=False)
        from optuna_dashboard import run_server
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ImportError:
        print("error: optuna-dashboard is not installed: pip install -e '.[dashboard]'", file=sys.stderr)
        return 2
    where = redact(storage) if is_url(storage) else journal_path(storage)
    print(f"{where}: http://{given.host}:{given.port}/ (Ctrl-C ends it)", flush=True)
    try:
        run_server(opened, host=given.host, port=given.port)
    except OSError as error:
        asked = f"--host={given.host} --port={given.port}"
        print(f"error: {asked}: {error}. Give another, e.g. --port {given.port + 1}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
