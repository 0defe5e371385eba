"""Parts of your own: the class that a spec names, loaded from a file that was named in this process, and built.

What a class is given depends on the field that names it:

    attention    Class(*, heads, width, causal)                  forward(query, key, value, context)  3 x (B, H, T, K)
    norm         Class(*, width, eps)                            forward(x, context)                  (B, T, D)
    activation   Class()                                         forward(x)                           (B, T, M)
    own          Class(*, width, heads, index, depth, causal)    forward(x, context)                  (B, T, D)

A constructor may take fewer keywords. `context` has a default, as in the project's own parts.

Shapes: B batch, T positions, D width, H heads, K head width (D = H*K), M hidden width of the MLP.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from lit_simplified.config import ConfigError
from lit_simplified.config.own import Spec, digest_bytes, named_file, parse, refuse_unnamed_spec

OFFERED: Mapping[str, tuple[str, ...]] = {
    "attention": ("heads", "width", "causal"), "norm": ("width", "eps"), "activation": (),
    "own": ("width", "heads", "index", "depth", "causal"),
}
"""The keywords that a constructor may take, by field."""
_MODULES: dict[str, ModuleType] = {}
"""The files that were executed, by digest: a file that changes later changes nothing of a run that has begun."""


def load_class(spec: str, *, field: str = "own") -> type[nn.Module]:
    """The class of a spec with a digest, from its file, which is executed once.

    Args:
        spec: `FILE.py:CLASS@DIGEST`, as a configuration holds it.
        field: of `BlockConfig`, for errors and for what the class is.

    Raises:
        ConfigError: a file that was not named in this process, or has another content now; one that raises; no such
            class in it, or one that is no `nn.Module`.
    """
    parsed = parse(spec)
    if parsed is None or not parsed.digest:
        raise ConfigError(f"block.{field}", spec, "write FILE.py:CLASS; the configuration adds the file's digest")
    refuse_unnamed_spec(parsed, field=f"block.{field}")
    module = _MODULES.get(parsed.digest) or _execute(parsed, field=field)
    found = getattr(module, parsed.name, None)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        known = [name for name, value in vars(module).items()
                 if inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__ == module.__name__]
        told = f"its modules are {', '.join(known)}" if known else "it has none: write class NAME(nn.Module)"
        what = "is no nn.Module" if found is not None else "is not there"
        raise ConfigError(f"block.{field}", spec, f"{parsed.name} {what} in {parsed.file}: {told}")
    return found


def _execute(spec: Spec, *, field: str) -> ModuleType:
    """The module of a file whose content has the digest of the spec, under a private name."""
    path = named_file(spec) or Path(spec.file)
    content = path.read_bytes() if path.is_file() else None
    if content is None or (digest := digest_bytes(content)) != spec.digest:
        told = "is gone" if content is None else f"has changed since (digest {spec.digest} then, {digest} now)"
        raise ConfigError(f"block.{field}", str(spec), f"{path} {told}: restore it, or start anew with the file as it "
                          f"is, {field}={spec.file}:{spec.name}")
    name = f"_lit_simplified_own_{spec.digest}"
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))  # type: ignore[arg-type]
    sys.modules[name] = module  # as dataclasses and pickle look there
    try:
        with blaming(spec, field=field):
            # What was read for the digest, not what the file holds a moment later.
            exec(compile(content, str(path), "exec"), module.__dict__)
    except ConfigError:
        del sys.modules[name]
        raise
    _MODULES[spec.digest] = module
    return module


def build_own(spec: str, *, field: str, **offered: Any) -> Any:
    """A part of your own for a field, from those of the offered keywords that its constructor takes.

    Raises:
        ConfigError: as `load_class`; a constructor that requires something else, or raises.
    """
    cls, parsed = load_class(spec, field=field), parse(spec)
    assert parsed is not None
    given = {name: offered[name] for name in _taken(cls, parsed, field=field)}
    with blaming(parsed, field=field):
        return cls(**given)


def _taken(cls: type[nn.Module], spec: Spec, *, field: str) -> list[str]:
    """The offered keywords that a constructor takes."""
    offered, taken = OFFERED[field], []
    if cls.__init__ is nn.Module.__init__:  # which takes anything, and then refuses it
        return []
    for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
        if parameter.kind is parameter.VAR_KEYWORD:
            return list(offered)
        if parameter.name in offered and parameter.kind is not parameter.POSITIONAL_ONLY:
            taken.append(parameter.name)
        elif parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL:
            told = f"of {', '.join(offered)}" if offered else "nothing"
            raise ConfigError(f"block.{field}", str(spec), f"the constructor of {spec.name} requires "
                              f"{parameter.name!r}, which it is not given: take some {told}, by keyword, or set a "
                              "default")
    return taken


@contextmanager
def blaming(spec: Spec, *, field: str) -> Iterator[None]:
    """Report what the code of a file raises as a `ConfigError` with the line in it."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        path = str(named_file(spec) or spec.file)
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = error.lineno if isinstance(error, SyntaxError) and error.filename == path else (lines or [None])[-1]
        where = f"{path}, line {line}" if line else path
        raise ConfigError(f"block.{field}", str(spec), f"{spec.name} raises {type(error).__name__}: "
                          f"{' '.join(str(error).split())} ({where})") from error
