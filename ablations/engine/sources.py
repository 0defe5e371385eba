"""A digest of the code that trains: cells of a study are comparable only where the same code computed them.

It covers every module of `lit_simplified` that `fit` reaches through imports. Comments, docstrings and layout do not
count, and neither does what only watches a run (`inspection`), which changes no number. The syntax tree that is hashed
is that of a minor version of Python: another one has another digest of the same code.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PACKAGE, ENTRY, WATCHERS = "lit_simplified", "lit_simplified.train", "lit_simplified.inspection"


@cache
def sources_digest() -> str:
    """The digest of the modules that `fit` reaches, as they are on disk."""
    text = hashlib.sha256()
    for name, tree in sorted(_reached().items()):
        text.update(f"{name}\n{ast.dump(_WithoutDocstrings().visit(tree))}\n".encode())
    return text.hexdigest()[:16]


def reached_modules() -> tuple[str, ...]:
    """The names of the modules that the digest covers."""
    return tuple(sorted(_reached()))


def _reached() -> dict[str, ast.Module]:
    found: dict[str, ast.Module] = {}
    waiting = [ENTRY]
    while waiting:
        name = waiting.pop()
        if name not in found and (file := _file(name)) is not None:
            found[name] = ast.parse(file.read_text(encoding="utf-8"))
            waiting += _imported(found[name])
    return found


def _file(name: str) -> Path | None:
    """The source of a module of the package; None of another, of a name inside a module, and of the watchers."""
    if name.split(".")[0] != PACKAGE or name == WATCHERS or name.startswith(f"{WATCHERS}."):
        return None
    root = find_spec(PACKAGE)
    assert root is not None
    assert root.origin is not None
    path = Path(root.origin).parent.joinpath(*name.split(".")[1:])
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _imported(tree: ast.Module) -> Iterator[str]:
    """Whatever may be a module among the imports of one, wherever they stand; and the packages above it."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:end]) for end in range(2, len(parts) + 1))


class _WithoutDocstrings(ast.NodeTransformer):
    """Takes out every statement that is a constant."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node
