"""`python -m ablations.viewers.tensorboard`: TensorBoard on the runs of the study that was written to last, or another.

Flags that are not named here go to TensorBoard.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lit_simplified.config import ConfigError

RESULTS = Path("results")
RUNS = "runs"
"""Of a study's folder: where its runs are. `results/runs` has those of single `fit`s."""
EVENTS = "events.out.tfevents.*"
KEPT = "scalars=1000000,images=1000000,histograms=1000000"
"""Points per series: all of them, where TensorBoard else draws samples. (Of 0 points its pages show none.)"""


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
    given, others = parser.parse_known_args(arguments)
    try:
        folder = runs_of(given.study)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    folder = RESULTS if given.all else folder
    port = [] if given.port is None else ["--port", str(given.port)]
    print(f"{folder}: TensorBoard starts and says its address in some seconds (Ctrl-C ends it)", flush=True)
    command = ["-m", "tensorboard.main", "--logdir", str(folder), "--samples_per_plugin", KEPT, *port, *others]
    os.execv(sys.executable, [sys.executable, *command])


def runs_of(study: str | None) -> Path:
    """The folder with the runs of a study, or of the one that was written to last.

    Raises:
        ConfigError: nothing was written for TensorBoard there.
    """
    written: dict[Path, float] = {}
    for pattern in (f"{RUNS}/*/{EVENTS}", f"*/{RUNS}/*/{EVENTS}"):
        for file in RESULTS.glob(pattern):
            with suppress(FileNotFoundError):  # a run that begins anew clears its folder
                folder = file.parent.parent
                written[folder] = max(file.stat().st_mtime, written.get(folder, 0.0))
    latest = sorted(written, key=lambda folder: written[folder])
    chosen = [folder for folder in latest if study in (None, study_of(folder))]
    if not chosen:
        known = ", ".join(map(study_of, reversed(latest)))
        remedy = f"there are: {known}" if known else "train some first: `make ablation` or `make fit`"
        raise ConfigError("--study", study, f"nothing in {RESULTS} that TensorBoard could show; {remedy}")
    return chosen[-1]


def study_of(folder: Path) -> str:
    """The name by which a folder of runs is chosen."""
    return RUNS if folder == RESULTS / RUNS else folder.parent.name


if __name__ == "__main__":
    sys.exit(main())
