"""The layers of the design: imports go downwards only, functions and files stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS: dict[str, set[str]] = {
    # package or module -> what of the project it may import
    "lit_simplified.config": set(),
    "lit_simplified.files": set(),
    "lit_simplified.hardware": {"config"},
    "lit_simplified.blocks": {"config"},
    "lit_simplified.model": {"config", "hardware", "blocks"},
    "lit_simplified.run_folder": {"config"},
    "lit_simplified.checkpoint": {"config", "files", "model", "run_folder"},
    "lit_simplified.objectives": {"config", "model"},
    "lit_simplified.optim": {"config"},
    "lit_simplified.datamodules": {"config", "files"},
    "lit_simplified.module": {"config", "hardware", "model", "objectives", "optim"},
    "lit_simplified.signals": {"config", "blocks", "model"},
    "lit_simplified.callbacks": {"checkpoint"},
    "lit_simplified.generate": {"config", "blocks", "checkpoint", "datamodules", "model"},
    "lit_simplified.inspection": {
        "config", "files", "blocks", "model", "objectives", "signals", "datamodules", "module", "checkpoint"
    },
    "lit_simplified.train": {
        "config", "files", "hardware", "blocks", "callbacks", "checkpoint", "module", "datamodules", "inspection",
        "run_folder",
    },
    "lit_simplified.scales": {"config"},
    "lit_simplified.finetuning": {"config", "files", "hardware", "model", "checkpoint", "optim", "datamodules"},
    "lit_simplified.flags": {"config"},
    "lit_simplified.__main__": {
        "config", "flags", "scales", "train", "generate", "datamodules", "inspection", "finetuning"
    },
}
LIGHT = {"lit_simplified.config", "lit_simplified.scales", "lit_simplified.files"}
"""What imports no torch."""
STUDY: dict[str, set[str]] = {
    # of `ablations`: what beyond `LIGHT` each module may use of `lit_simplified`
    "ablations.timing.step": {"lit_simplified.model", "lit_simplified.objectives", "lit_simplified.optim"},
    "ablations.engine.speed": {"lit_simplified.hardware"},
    "ablations.bench.__main__": {"lit_simplified.hardware"},
    "ablations.bench.subjects": {"lit_simplified.model", "lit_simplified.objectives"},
    "ablations.bench.explicit": {"lit_simplified.blocks", "lit_simplified.model", "lit_simplified.objectives"},
    "ablations.bench.peers": {"lit_simplified.objectives"},
    "ablations.bench.decode": {"lit_simplified.model", "lit_simplified.objectives", "lit_simplified.generate"},
    "ablations.engine.run": {"lit_simplified.blocks", "lit_simplified.datamodules", "lit_simplified"},
    "ablations.table1": {"lit_simplified.finetuning", "lit_simplified.hardware"},
    "ablations.engine.worker": {"lit_simplified", "lit_simplified.train"},
}
SUITE: dict[str, set[str]] = {
    # package or module of `ablations` -> what of the suite it may import
    "ablations.timing": set(),  # nor does the benchmark need what a bare machine lacks
    "ablations.bench": {"timing", "design", "engine", "analysis", "report"},  # what measures the suite, when asked to
    "ablations.design": set(),
    "ablations.engine": {"design", "timing"},
    "ablations.analysis": {"design", "engine"},
    "ablations.report": {"design", "engine", "analysis"},
    "ablations.study": {"design", "engine", "analysis", "report"},
    "ablations.search": {"design", "engine", "analysis", "report", "study"},
    "ablations.table1": {"design", "engine", "timing", "analysis", "report", "study"},
    "ablations.viewers": {"engine"},
    "ablations.flags": {"design", "engine", "analysis", "study", "search"},
    "ablations.__main__": {"flags", "design", "engine", "analysis", "report", "study", "search", "table1"},
}
SOURCES = sorted([*ROOT.glob("lit_simplified/**/*.py"), *ROOT.glob("ablations/**/*.py")])


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def layer(module: str) -> str:
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downwards(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    own = {name for name in imports(path) if name.startswith(("lit_simplified", "ablations"))}
    if module == "lit_simplified.__init__":
        return  # re-exports lazily
    if module == "ablations.__init__":
        return  # likewise
    if module.startswith("ablations"):
        outside = {layer(name) for name in own if name.startswith("lit_simplified")}
        assert outside <= LIGHT | STUDY.get(module, set())
        inside = {layer(name) for name in own if name.startswith("ablations")}
        assert inside <= {f"ablations.{name}" for name in SUITE[layer(module)]} | {layer(module)}
        return
    assert not any(name.startswith("ablations") for name in own)
    allowed = {f"lit_simplified.{name}" for name in LAYERS[layer(module)]} | {layer(module)}
    assert {layer(name) for name in own} <= allowed


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_have_at_most_50_lines_and_files_500(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 50, node.name  # type: ignore[operator]


def test_data_holds_no_python() -> None:
    assert not [p for p in ROOT.glob("data/**/*.py") if "cache" not in p.parts]
