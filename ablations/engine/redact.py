"""Storages and commands as they may be printed and kept."""

from __future__ import annotations

import re


def redact(storage: str) -> str:
    """A storage, or a command that names one, as it may be printed and kept: without the password of its URL."""
    hidden = re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", storage)
    return re.sub(r"([?&]password=)[^&\s'\"]*", r"\1***", hidden)
