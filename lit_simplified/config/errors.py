"""What is raised for a configuration that cannot be built."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that cannot be built: says which field, which value, and what to do."""

    def __init__(self, where: str, value: object, remedy: str) -> None:
        super().__init__(f"{where}={value!r}: {remedy}")
