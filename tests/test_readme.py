"""What the README promises: its commands parse, its targets and files exist."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ablations.__main__ import build_parser as study_parser
from ablations.bench.__main__ import build_parser as bench_parser
from ablations.bench.measure import from_record
from ablations.bench.results import CELLS
from lit_simplified.__main__ import build_parser, with_preset

ROOT = Path(__file__).parent.parent
SPEED_CELLS = ("name", "against", "T", "train", "inference", "FLOP ratio", "MFU", "MiB", "MiB against")
TEXT = (ROOT / "README.md").read_text()
PAGES = TEXT + (ROOT / "docs" / "crammed.md").read_text()
BLOCKS = re.findall(r"```(?:sh)?\n(.*?)```", PAGES, flags=re.DOTALL)
COMMANDS = sorted({line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines()} - {""})


def arguments(command: str, module: str) -> list[str]:
    return shlex.split(command.replace("-...", "-s0-12345678"))[len(module.split()) :]


def commands(start: str) -> list[str]:
    return [c for c in COMMANDS if c.startswith(start) and ".yaml" not in c]


@pytest.mark.parametrize("command", commands("python -m lit_simplified"))
def test_commands_of_one_model_parse(command: str) -> None:
    build_parser().parse_args(with_preset(arguments(command, "python -m lit_simplified")))


@pytest.mark.parametrize("command", commands("python -m ablations "))
def test_commands_of_a_study_parse(command: str) -> None:
    study_parser().parse_args(arguments(command, "python -m ablations"))


def test_commands_of_the_benchmark_parse() -> None:
    for command in commands("python -m ablations.bench"):
        bench_parser().parse_args(arguments(command, "python -m ablations.bench"))


def test_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z0-9-]+)", TEXT))
    assert {"ablation", "test"} <= named <= targets


def test_files_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_the_map_names_every_module() -> None:
    tree = TEXT.split("## Map")[1].split("\n## ")[0]
    for package in ("lit_simplified", "ablations"):
        for path in (ROOT / package).rglob("*.py"):
            if not path.stem.startswith("__"):
                assert re.search(rf"\b{path.stem}\b", tree), f"{path.relative_to(ROOT)} is missing in the map"


def test_the_results_table_is_that_of_the_recorded_study() -> None:
    """Every row of the table of blocks is a row of the committed summary, to the digit."""
    summary = json.loads((ROOT / "docs/small-clm/summary.json").read_text())
    known = {row["preset"] or row["block"]: row for row in summary}
    table = TEXT.split("## Results")[1].split("\n###")[0]
    lines = re.findall(r"^\| `.*", table, flags=re.MULTILINE)
    assert len(lines) > 10
    for line in lines:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        row = known[name.split("`")[1]]
        assert cells == [
            str(row["n_seeds"]), f"{row['learning_rate']:g}", _between(row, "val_loss", "val_loss_mean", digits=3),
            _between(row, "speed_ratio", "speed_ratio", digits=2), f"{row['params']:,}", f"{row['peak_memory_mb']:.1f}",
        ]


def _between(row: dict[str, Any], name: str, mean: str, *, digits: int) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    interval = "" if low is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{row[mean]:.{digits}f}{interval}"


def test_the_verdicts_are_those_of_the_recorded_study() -> None:
    recorded = list(csv.DictReader((ROOT / "docs/small-clm/claims.csv").open()))
    verdicts = {row["claim"]: row["verdict"] for row in recorded}
    table = TEXT.split("### The paper's claims")[1].split("\n##")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\| .*", table, flags=re.M)]
    shown = {claim: verdict for claim, *_, verdict in lines[2:]}
    assert shown == verdicts


def test_the_speed_table_is_that_of_the_records() -> None:
    """Every row of the table is a row of a committed record, to the digit."""
    known = set()
    for record in ROOT.glob("ablations/records/*/*.json"):
        found = json.loads(record.read_text())
        for row in map(from_record, found["rows"]):
            known.add((found["preset"], *(CELLS[cell](row) for cell in SPEED_CELLS)))
    table = TEXT.split("## Speed")[1].split("\n## ")[0]
    lines = re.findall(r"^\| .*", table, flags=re.MULTILINE)[2:]
    assert len(lines) > 10
    for line in lines:
        preset, *cells, memory = (cell.strip(" `") for cell in line.strip("|").split("|"))
        assert (preset, *cells, *memory.split(" : ")) in known


def test_the_paragraph_on_signals_states_what_was_measured() -> None:
    found = pd.read_csv(ROOT / "docs/signal/signal.csv").groupby(["block", "depth"]).mean()
    text = " ".join(TEXT.split("## Look inside")[1].split("### While it trains")[0].split())
    naive, sas, bare = (found.loc[name] for name in ("naive_skipless", "sas", "sas,mlp_skip=false"))
    cosine = f"{found.loc['pre_ln'].cosine[48]:.3f}"
    assert f"mean cosine of {naive.cosine[0]:.3f}." in text
    assert f"after {(naive.cosine > 0.99).idxmax()} blocks the cosine is above 0.99" in text
    assert f"from {naive.effective_rank[0]:.0f} to {naive.effective_rank[12]:.2f}" in text
    assert f"{sas.cosine[48]:.3f} after 48 blocks with an effective rank of {sas.effective_rank[48]:.0f}" in text
    assert f"{cosine} after 48 blocks. Shaped attention needs" in text
    assert f"{bare.cosine[12]:.3f} after 12 blocks and {bare.cosine[48]:.3f} after 48" in text
    assert f"effective rank of {bare.effective_rank[48]:.1f} is left" in text
