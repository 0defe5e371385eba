"""What is raised for a configuration that cannot be built."""

from __future__ import annotations

import reprlib

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 4, 300, 300
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxfrozenset = 20


class ConfigError(ValueError):
    """A configuration that cannot be built: says which field, which value, and what to do."""

    def __init__(self, where: str, value: object, remedy: str) -> None:
        super().__init__(f"{where}={shown(value)}: {remedy}")
        self.field, self.value, self.remedy = where, value, remedy


def shown(value: object) -> str:
    """A value in a line, however large or broken it is."""
    try:
        return repr(value) if isinstance(value, str) and len(value) <= _SHORT.maxstring else _SHORT.repr(value)
    except Exception:  # a number too long to print, an object whose `repr` fails
        return f"<{type(value).__name__}>"
