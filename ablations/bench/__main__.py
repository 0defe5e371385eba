"""The command line of the benchmark: `python -m ablations.bench`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from tqdm import tqdm

from ablations.bench.measure import Comparison, measure, unmeasured
from ablations.bench.plan import plan, select
from ablations.bench.presets import BENCH_PRESETS, bench_preset
from ablations.bench.results import BenchRecord, findings, text_table
from ablations.timing import peak
from ablations.timing.machine import describe_machine, versions
from ablations.timing.memory import available_bytes
from ablations.timing.step import torch_threads
from lit_simplified.config import ConfigError, TrainerConfig
from lit_simplified.hardware import keep_freed_memory, refuse_emulated_precision

COMMAND = "python -m ablations.bench"
PEER_PACKAGES = ("transformers", "x-transformers", "litgpt")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
OTHERS = {"report": "ablations.bench.report_scale", "engine": "ablations.bench.engine"}
"""Benchmarks of the suite itself, by the first word of the command; they need what a bare machine lacks."""
DESCRIPTION = """\
Time blocks, peers and the explicit (T, T) formula side by side, training step and inference.

Two models live at a time and are timed in paired rounds, P X X P (P the baseline), in bursts of steps long enough for
the clock. A round gives a ratio of speeds, above 1 where X is faster; the rounds give its median and 95 % interval. A
matrix product in every round gives the peak for the MFU. FLOPs are those of the matrix products, causal attention
counted as half. Run nothing else meanwhile."""
EPILOGUE = f"""\
groups:
  blocks     every named block against pre_ln; pre_ln against itself shows the noise
  terms      sas_p with shaped against softmax attention: what the identity and the centring cost a block
  explicit   pre_ln, sas, sas_p against the (T, T) formula of the same block, with the same weights
  peers      our Pre-LN (LayerNorm, GELU) against transformers, x-transformers, torch and litgpt
  length     time and memory against T, 128 to 8192, at the same tokens per step (preset long)
  decode     tokens per second of generation, with its cache against without

examples:
  {COMMAND}                                        preset small, all groups
  {COMMAND} --preset paper --only blocks peers --no-plots
  {COMMAND} --preset small --only sas_p --rounds 15
  {COMMAND} --preset long --threads 1
  {COMMAND} --preset crammed --device cuda --precision bf16-mixed --compile
  {COMMAND} --preset paper --list                  what would be measured
  {COMMAND} report --cells 500 2000 10000          how summary and report grow with a study

Results go to --out as bench.csv, bench.json, bench.md and plots; they are written after every comparison. Peers are
measured where they are installed: `make bench` installs them, or
  python -m pip install -c constraints.txt -e '.[bench]' && python -m pip install --no-deps litgpt"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the benchmark."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=DESCRIPTION, epilog=EPILOGUE, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    sizes = "; ".join(f"{name}: {preset.text}" for name, preset in BENCH_PRESETS.items())
    parser.add_argument("--preset", default="small", choices=list(BENCH_PRESETS),
                        help=f"the size (default: small). {sizes}")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME",
                        help="measure only these: groups, blocks, peers, lengths, or patterns such as 'peers/*'")
    parser.add_argument("--no-peers", action="store_true", help="leave out the other libraries")
    parser.add_argument("--together", action="store_true",
                        help="run peers and the explicit formula in this process, with the memory management of `fit`, "
                        "instead of in processes of their own with the C library's (on CUDA, they always run here)")
    parser.add_argument("--rounds", type=_at_least(1), default=7, metavar="N",
                        help="paired rounds per comparison (default: 7; below 6 the interval is the range)")
    parser.add_argument("--limit", type=float, default=180, metavar="SECONDS",
                        help="start no further round of a comparison after this time, once two are made "
                        "(default: 180)")
    parser.add_argument("--burst", type=float, default=0.3, metavar="SECONDS",
                        help="minimum length of a burst, which sets its number of steps (default: 0.3)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"],
                        help="auto: cuda where there is one")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true"],
                        help="default: bf16-mixed on CUDA, 32-true on a CPU")
    parser.add_argument("--threads", type=_at_least(1), metavar="N",
                        help="CPU threads of torch (default: torch's choice)")
    parser.add_argument("--compile", nargs="*", choices=COMPILE_MODES, metavar="MODE",
                        help="measure everything again with both sides compiled, in these modes of torch.compile "
                        f"({', '.join(COMPILE_MODES)}; default: default)")
    parser.add_argument("--clip", type=float, default=1.0, metavar="NORM",
                        help="maximum gradient norm, for all models; 0: no clipping (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and tokens (default: 0)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: results/bench/PRESET-DATE")
    parser.add_argument("--no-plots", action="store_true", help="write no plots")
    parser.add_argument("--list", action="store_true", help="list what would be measured, and measure nothing")
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text}: give a number of at least {least}")
        return value

    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit status: 0, 1 where a comparison failed, 2 for a wrong flag."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in OTHERS:
        found: int = import_module(OTHERS[words[0]]).main(words[1:])
        return found
    given = build_parser().parse_args(arguments)
    try:
        device = choose_device(given.device)
        given.precision = choose_precision(given.precision, device=device)
        comparisons = _comparisons(given, device=device)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.list:
        print("\n".join(c.key + (f"  (skipped: {c.skip})" if c.skip else "") for c in comparisons))
        return 0
    keep_freed_memory()  # as `fit` does
    command = shlex.join([*COMMAND.split(), *(sys.argv[1:] if arguments is None else arguments)])
    with torch_threads(given.threads or torch.get_num_threads()):
        record = BenchRecord(
            folder=given.out or default_folder(given.preset), about=about(given, device, command=command)
        )
        finished = _measure_all(comparisons, record, given, device=device)
    _show(record, plots=not given.no_plots)
    return 130 if not finished else int(any(row.error for row in record.rows))


def choose_device(name: str) -> torch.device:
    """The device of a name. Raises `ConfigError` where it is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device", name, "torch sees no CUDA device: use cpu, or install a CUDA build of torch")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def choose_precision(name: str | None, *, device: torch.device) -> str:
    """The precision, or the device's default. Raises `ConfigError` for bfloat16 on a CPU that would emulate it."""
    name = name or ("32-true" if device.type == "cpu" else "bf16-mixed")
    refuse_emulated_precision(name, accelerator=device.type, field="--precision")
    return name


def default_folder(preset: str) -> Path:
    """A folder of this minute under results/bench."""
    return Path("results") / "bench" / f"{preset}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def about(given: argparse.Namespace, device: torch.device, *, command: str) -> dict[str, object]:
    """Machine, versions, date, command and conditions."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "preset": given.preset, "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "command": command,
        "machine": describe_machine(), "versions": versions(*PEER_PACKAGES),
        "conditions": {
            "device": device.type, "precision": given.precision, "threads": torch.get_num_threads(),
            "rounds": given.rounds, "limit": given.limit, "burst": given.burst, "clip": given.clip, "seed": given.seed,
            "matmul": peak.SIDES[device.type], "load at the start": load,
            "float32 products": torch.get_float32_matmul_precision(),
        },
    }


def _comparisons(given: argparse.Namespace, *, device: torch.device) -> list[Comparison]:
    trainer = TrainerConfig(accelerator=device.type, precision=given.precision, threads=given.threads)
    compiled = [] if given.compile is None else (given.compile or ["default"])
    found = plan(
        bench_preset(given.preset).on(device.type), trainer=trainer, seed=given.seed, clip=given.clip or None,
        peers=not given.no_peers, own_process=not given.together and device.type == "cpu",
        available=available_bytes(device), compiled=compiled,
    )
    return select(found, only=given.only)


def _measure_all(
    comparisons: Sequence[Comparison], record: BenchRecord, given: argparse.Namespace, *, device: torch.device
) -> bool:
    """Measure and write one after the other; whether it came to the end."""
    for comparison in comparisons:
        if comparison.skip:
            record.skipped.append({"key": comparison.key, "reason": comparison.skip})
            print(f"skipped {comparison.key}: {comparison.skip}", file=sys.stderr)
    todo = [comparison for comparison in comparisons if not comparison.skip]
    record.write()
    try:
        matmul = peak.matmul_for(device, precision=given.precision)
        with tqdm(total=len(todo) * given.rounds, unit="round", disable=not sys.stderr.isatty()) as bar:
            for done, comparison in enumerate(todo):
                bar.set_description(comparison.key)
                _measure_one(comparison, record, given, matmul=matmul, bar=bar)
                bar.update((done + 1) * given.rounds - bar.n)
    except KeyboardInterrupt:
        print(f"\nInterrupted; {len(record.rows)} of {len(todo)} comparisons are in {record.folder}", file=sys.stderr)
        return False
    return True


def _measure_one(
    comparison: Comparison, record: BenchRecord, given: argparse.Namespace, *, matmul: peak.Matmul, bar: tqdm[None]
) -> None:
    try:
        row = measure(
            comparison, rounds=given.rounds, seconds=given.burst, matmul=matmul, limit=given.limit, on_round=bar.update
        )
        train, inference = (f"{ratio:.2f}" if ratio else "-" for ratio in (row.train_ratio, row.inference_ratio))
        text = f"training {train}, inference {inference}"
    except Exception as error:  # whatever another library or the compiler raises must not lose the other rows
        row = unmeasured(comparison, error=f"{type(error).__name__}: {error}"[:500])
        text = row.error
    record.rows.append(row)
    record.write()
    bar.write(f"{comparison.key}: {text}", file=sys.stderr)


def _show(record: BenchRecord, *, plots: bool) -> None:
    """The table and the findings on the terminal, the plots where matplotlib is."""
    print("\n".join([text_table(record.rows), "", *findings(record.rows)]))
    if plots and find_spec("matplotlib") is None:
        print("no plots: matplotlib is not installed (python -m pip install matplotlib)", file=sys.stderr)
    elif plots:
        from ablations.bench.plots import draw_all

        draw_all(record.rows, folder=record.folder)
    print(f"written: {record.folder / 'bench.md'} and the files beside it")


if __name__ == "__main__":
    sys.exit(main())
