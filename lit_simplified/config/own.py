"""Parts of your own: a position of a switch, or a whole block, that names a Python file and a class in it.

A spec is `FILE.py:CLASS`. When a configuration is built it becomes `FILE.py:CLASS@DIGEST`, so that a run's identity has
the file's content in it. Whoever writes a spec without a digest has named the file, and its code may run in this
process. A configuration from a checkpoint, a run's folder or a study has digests, and names nothing: its code runs only
after `allow`. Imports no torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lit_simplified.config.errors import ConfigError

if TYPE_CHECKING:
    from lit_simplified.config.schema import BlockConfig, RunConfig

FIELDS = ("attention", "norm", "activation", "own")
"""The fields of `BlockConfig` that may name a part of your own."""
DIGITS = 12
"""Hexadecimal digits of a digest: the first of the SHA-256 of the file's bytes."""
_FORM = re.compile(rf"(?P<file>.+\.py):(?P<name>[^:@]*)(?:@(?P<digest>[0-9a-f]{{{DIGITS}}}))?")
_ALLOWED: dict[str, Path] = {}
"""The files that were named in this process, by the digest of what they held then."""
_RECORDED: ContextVar[bool] = ContextVar("recorded", default=False)


@dataclass(frozen=True)
class Spec:
    """A class in a file."""

    file: str
    name: str
    digest: str = ""
    """Empty in what a user writes."""

    def __str__(self) -> str:
        return f"{self.file}:{self.name}@{self.digest}" if self.digest else f"{self.file}:{self.name}"

    @property
    def short(self) -> str:
        """The class in letters that are safe in names of files and in HTML."""
        return re.sub(r"[^A-Za-z0-9_]", "_", self.name)


def parse(text: object) -> Spec | None:
    """The spec that a text is, or None for another value, e.g. a position of the table."""
    found = _FORM.fullmatch(text) if isinstance(text, str) else None
    return Spec(Path(found["file"]).as_posix(), found["name"], found["digest"] or "") if found else None


def with_digest(spec: Spec, *, field: str) -> str:
    """The spec with the digest of its file, which counts as naming the file if it had none.

    Args:
        spec: what stands in the configuration.
        field: what the error calls the field.

    Raises:
        ConfigError: no such file, or a name that no class can have.
    """
    if not spec.name.isidentifier():
        raise ConfigError(field, str(spec), f"{spec.name!r} is no name of a class: write FILE.py:CLASS")
    if spec.digest:
        return str(spec)
    if _RECORDED.get():
        raise ConfigError(field, str(spec), "a recorded configuration has the digest of the file, FILE.py:CLASS@DIGEST:"
                          " this one was not written by `fit`, and its file is not loaded")
    return str(Spec(spec.file, spec.name, _allow(Path(spec.file), field=field, value=str(spec))))


@contextmanager
def recorded() -> Iterator[None]:
    """While a configuration is rebuilt from a record: what it says names no file, and has a digest."""
    token = _RECORDED.set(True)
    try:
        yield
    finally:
        _RECORDED.reset(token)


def allow(spec_or_path: str | Path) -> None:
    """Let the code of a file run in this process, as it is now. Relative paths count from the current folder.

    Args:
        spec_or_path: the file, or a spec, of which the file is taken.

    Raises:
        ConfigError: no such file.
    """
    spec = parse(str(spec_or_path))
    _allow(Path(spec.file if spec else spec_or_path), field="own", value=str(spec_or_path))


def _allow(path: Path, *, field: str, value: str) -> str:
    """Remember a file as named; return the digest of its content."""
    path = path.absolute()
    try:
        digest = digest_bytes(path.read_bytes())
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror)
        raise ConfigError(field, value, f"{path}: {reason}. Give the path of a Python file of your own, absolute or "
                          "from the folder where you start") from error
    _ALLOWED[digest] = path
    return digest


def digest_bytes(content: bytes) -> str:
    """The digest of a file with this content."""
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def named_file(spec: Spec) -> Path | None:
    """The file of a spec as it was named in this process: with its content, or else under its path or name."""
    same = (Path(spec.file).absolute(), Path(spec.file).name)
    others = [path for path in _ALLOWED.values() if path == same[0] or path.name == same[1]]
    return _ALLOWED.get(spec.digest, others[-1] if others else None)


def specs_of(block: BlockConfig) -> dict[str, Spec]:
    """The parts of your own that a block has, by field."""
    found = {name: parse(getattr(block, name)) for name in FIELDS}
    return {name: spec for name, spec in found.items() if spec is not None}


def own_files(config: RunConfig) -> tuple[str, ...]:
    """The files that a run names, as another process on this machine can `allow` them."""
    specs = specs_of(config.model.block).values()
    return tuple(dict.fromkeys(str(named_file(spec) or Path(spec.file).absolute()) for spec in specs))


def refuse_unnamed(block: BlockConfig) -> None:
    """Refuse a block with code from a file that was not named in this process.

    Raises:
        ConfigError: with what to add to the command.
    """
    for name, spec in specs_of(block).items():
        refuse_unnamed_spec(spec, field=f"block.{name}")


def refuse_unnamed_spec(spec: Spec, *, field: str) -> None:
    """`refuse_unnamed` for one part."""
    if named_file(spec) is None:
        raise ConfigError(field, str(spec), "what was recorded does not run the code of a file by itself: name the "
                          f"file again, with --own {spec.file} (in Python: lit_simplified.config.allow)")
