"""How many single-bit flips in a checkpoint go unnoticed: `python tests/helpers/checkpoint_damage.py [FLIPS]` (400).

Trains a tiny model, flips one random bit of its checkpoint at a time, gives the file to every reader, and prints what
became of it: refused (an error for people, or, on resume, a file moved aside), silent (read as if it were sound), or
crashed (any other exception).
"""

from __future__ import annotations

import io
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from dataclasses import replace
from pathlib import Path

from lit_simplified import PRESETS, ConfigError, ModelConfig, RunConfig, fit
from lit_simplified.config import DataConfig, OptimConfig, TrainerConfig
from lit_simplified.finetuning.checkpoint import read_checkpoint
from lit_simplified.generate import generate
from lit_simplified.inspection.subjects import Request, list_subjects


class StopError(Exception):
    """Ends a training in the middle."""


def tiny(folder: Path) -> RunConfig:
    """A run of a second, on a corpus in a folder."""
    (folder / "corpus").mkdir()
    for number in range(60):
        lines = [f"def function_{number}_{j}(value):\n    return value * {number + j}\n" for j in range(25)]
        (folder / "corpus" / f"module_{number}.py").write_text("\n".join(lines))
    recipe = folder / "tiny.yaml"
    recipe.write_text(f"kind: files\ndescription: functions\npaths: [{folder / 'corpus'}]\ninclude: ['*.py']\n")
    return RunConfig(
        model=ModelConfig(block=PRESETS["sas"], depth=2, width=16, heads=2, vocab_size=300, context=16),
        data=DataConfig(recipe=str(recipe), cache_dir=str(folder / "cache"), batch_size=4, val_windows=4,
                        test_windows=4),
        optim=OptimConfig(steps=4), out_dir=str(folder / "runs"),
        trainer=TrainerConfig(accelerator="cpu", val_every=4, checkpoint_every=3, progress_bar=False, threads=1,
                              tensorboard=False),
    )


def interrupted(config: RunConfig) -> Path:
    """The checkpoint of a run that ended at its first validation."""
    def end(point: object) -> None:
        raise StopError

    with suppress(StopError):
        fit(config, on_validation=end)
    [file] = Path(config.out_dir).glob("*/checkpoints/last.ckpt")
    return file


def resume(run: Path, config: RunConfig) -> None:
    """Continue an unfinished copy of a run, which trains one more step; what is moved aside counts as refused."""
    (run / "result.json").unlink()
    fit(replace(config, out_dir=str(run.parent)))
    if (run / "checkpoints" / "last.ckpt.damaged").exists():
        raise ConfigError("checkpoint", str(run), "moved aside")


def readers(config: RunConfig) -> dict[str, Callable[[Path], object]]:
    """All that reads a checkpoint, given a run's folder."""
    return {
        "generate": lambda run: generate(run, prompt="def ", tokens=1),
        "signal": lambda run: [subject.build() for subject in list_subjects(Request(checkpoints=[run]))],
        "finetune": lambda run: read_checkpoint(run).weights(),
        "fit, resumed": lambda run: resume(run, config),
    }


def flip(content: bytes, bit: int) -> bytes:
    """The content with one bit changed."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def outcome(read: Callable[[Path], object], run: Path) -> str:
    """What became of a file."""
    try:
        with redirect_stderr(io.StringIO()):
            read(run)
    except ConfigError:
        return "refused"
    except Exception:  # whatever a reader did not foresee
        return "crashed"
    return "silent"


def count(flips: int, *, seed: int = 0) -> dict[str, Counter[str]]:
    """Outcomes by reader."""
    with tempfile.TemporaryDirectory() as name:
        config = tiny(Path(name))
        run = Path(fit(config).run_dir)
        content = interrupted(replace(config, out_dir=str(Path(name, "middle")))).read_bytes()
        copy = Path(name, "copies", run.name)
        draws = random.Random(seed)
        bits = [draws.randrange(8 * len(content)) for _ in range(flips)]
        found = {}
        for reader, read in readers(config).items():
            outcomes: Counter[str] = Counter()
            for bit in bits:
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(run, copy)
                (copy / "checkpoints" / "last.ckpt").write_bytes(flip(content, bit))
                outcomes[outcome(read, copy)] += 1
            found[reader] = outcomes
        return found


if __name__ == "__main__":
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    print(f"{total} single-bit flips of a checkpoint")
    for reader, outcomes in count(total).items():
        print(f"{reader:<14}" + "".join(f"{outcomes[kind]:>6} {kind}" for kind in ("refused", "silent", "crashed")))
