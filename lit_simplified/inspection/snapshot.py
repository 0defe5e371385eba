"""A snapshot of the inside of a model at one training step, and its file.

Shapes: T positions, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lit_simplified.config import ConfigError
from lit_simplified.files import write_atomically

FOLDER = "inspection"
"""The folder of the snapshots, inside the run's."""
Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Snapshot:
    """Measurements at one step. The keys of all mappings are TensorBoard's tags."""

    step: int
    """Optimiser steps done."""
    scalars: Mapping[str, float] = field(default_factory=dict)
    """`gains/block_00/alpha` (mean over heads), `ratio/block_00/value`, `signal/block_00/cosine` ..."""
    heads: Mapping[str, Array] = field(default_factory=dict)
    """Gains per head, (H,): `gains/block_00/alpha` ..."""
    weights: Mapping[str, Array] = field(default_factory=dict)
    """Attention matrices A, (T, T): `attention/block_00/head_00` ..."""
    mixing: Mapping[str, Array] = field(default_factory=dict)
    """What multiplies the values there, alpha*I + beta*A - gamma*C, (T, T); equal to A for softmax attention."""

    def save(self, run: Path) -> Path:
        """Write it to the run's folder; return the file."""
        file = run / FOLDER / f"step_{self.step:08}.npz"
        # One array for all scalars: hundreds of files in the archive would take longer to write than all the rest.
        arrays = {"tags": np.array(list(self.scalars)), "values": np.array(list(self.scalars.values()), dtype=float)}
        for kind in ("heads", "weights", "mixing"):
            arrays |= {f"{kind}:{tag}": np.asarray(value) for tag, value in getattr(self, kind).items()}
        write_atomically(file, lambda path: np.savez_compressed(path, allow_pickle=False, **arrays))
        return file

    @classmethod
    def load(cls, file: Path) -> Snapshot:
        """Read one back.

        Raises:
            ConfigError: a damaged file; its archive has a CRC of every array.
        """
        try:
            return cls._load(file)
        except Exception as error:  # a damaged archive makes numpy and `zipfile` raise almost anything
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError("run", str(file), f"is no snapshot, or damaged: delete it ({text})") from error

    @classmethod
    def _load(cls, file: Path) -> Snapshot:
        kinds: dict[str, dict[str, Array]] = {"heads": {}, "weights": {}, "mixing": {}}
        with np.load(file, allow_pickle=False) as saved:
            scalars = dict(zip(saved["tags"].tolist(), saved["values"].tolist(), strict=True))
            for name in saved.files:
                if ":" in name:
                    kind, tag = name.split(":", 1)
                    kinds[kind][tag] = saved[name]
        return cls(int(file.stem.removeprefix("step_")), scalars, **kinds)


def load_snapshots(run: Path) -> list[Snapshot]:
    """All snapshots of a run, by step.

    Raises:
        ConfigError: there are none, or one is damaged.
    """
    files = sorted((run / FOLDER).glob("step_*.npz"))
    if not files:
        raise ConfigError(
            "run", str(run), "no snapshots in it: give the folder of a run that was trained with trainer.inspect_every "
            "above 0"
        )
    return [Snapshot.load(file) for file in files]
