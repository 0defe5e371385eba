"""`python -m ablations.viewers.tensorboard`: TensorBoard on the runs of the study that was written to last, or another.

Flags that are not named here go to TensorBoard.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ablations.engine.lookup import RESULTS, RUNS, runs_of
from ablations.engine.storage import StudyError

KEPT = "scalars=1000000,images=1000000,histograms=1000000"
"""Points per series: all of them, where TensorBoard would draw samples. (With 0, its pages show none.)"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Become TensorBoard; return an exit status only where that cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m ablations.viewers.tensorboard", description=__doc__.split("\n")[0],
        epilog=__doc__.split("\n\n")[1], allow_abbrev=False,
    )
    parser.add_argument("--study", help=f"the study's folder in {RESULTS}; {RUNS}: the single runs of `fit` "
                                        "(default: the one that was written to last)")
    parser.add_argument("--all", action="store_true", help="all studies and runs, named STUDY/runs/RUN")
    parser.add_argument("--port", type=int, help="of the server on this machine (default: 6006, or a free one near it)")
    parser.add_argument("--host", default="localhost", metavar="ADDR",
                        help="where to listen (default: localhost). Another, e.g. 0.0.0.0, lets "
                             "everyone who reaches this machine read all runs: no password is asked")
    given, others = parser.parse_known_args(arguments)
    try:
        folder = runs_of(given.study)
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    folder = RESULTS if given.all else folder
    port = [] if given.port is None else ["--port", str(given.port)]
    print(f"{folder}: TensorBoard will print its address in a few seconds (Ctrl-C ends it)", flush=True)
    host = [] if "--bind_all" in others else ["--host", given.host]  # it takes one of them
    command = ["-m", "tensorboard.main", "--logdir", str(folder), "--samples_per_plugin", KEPT, *host, *port, *others]
    os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    sys.exit(main())
