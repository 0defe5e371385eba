"""Secrets out of what is printed and kept: passwords and the like in the URLs of databases.

A URL is shown where every part of it is what it seems to be; of all others nothing but the scheme is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from shlex import join
from urllib.parse import quote

import sqlalchemy

from ablations.engine.errors import StudyError

HIDDEN = "***"
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
DATABASE = re.compile(r"((?:postgres|mysql|mariadb|oracle|mssql|sqlite)\w*(?:\+\w+)?):(?!//)(.*@.*)", re.DOTALL)
"""A URL with a slash too few."""
SECRET = re.compile(r"(\w*(?:passw|pwd|secret|token)\w*\s*=)(.*)", re.DOTALL | re.IGNORECASE)
"""In what is no URL: `host=me password=...`, as libpq has it. All that follows is hidden."""
HARMLESS = ("host", "hostaddr", "port", "user", "dbname", "sslmode", "connect_timeout", "application_name")
"""Parameters of a URL that are shown; of all others only the name is, where it is one of those below."""
KNOWN = ("password", "passfile", "sslpassword", "sslkey", "sslcert", "sslrootcert", "options", "service")
PLAIN = re.compile(r"[\w.,:/\[\]%~+-]*")
NAME = re.compile(r"[\w.~+-]*")


def redact(text: str) -> str:
    """A storage, or a word of a command, without secrets."""
    found = URL.search(text)
    if found is None:
        found = DATABASE.search(text)
        if found is not None:
            return f"{text[: found.start()]}{found[1]}:{HIDDEN}"
        return SECRET.sub(rf"\1{HIDDEN}", text)
    return SECRET.sub(rf"\1{HIDDEN}", text[: found.start()]) + _redact_url(found[0], scheme=found[1])


def redact_command(words: Sequence[str]) -> str:
    """A command as it may be typed again, without secrets."""
    return join(map(redact, words))


def check_url(storage: str) -> None:
    """Check that a database's URL is read as it was meant.

    Raises:
        StudyError: it has characters with a meaning of their own, from which a password could end up in an error.
    """
    if redact(storage) == f"{storage.partition('://')[0]}://{HIDDEN}":
        raise StudyError(f"storage={redact(storage)!r}: the URL cannot be read. Give postgresql://USER:PASSWORD@HOST/"
                         "DATABASE, with %40 for @, %2F for /, %3A for : and %20 for a space in the password")


def _redact_url(text: str, *, scheme: str) -> str:
    nothing = f"{scheme}://{HIDDEN}"
    address, _, study = text.partition("#") if "@" not in text.rpartition("#")[2] else (text, "", "")
    try:
        url = sqlalchemy.make_url(address)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return nothing
    if not _is_plain(url) or not NAME.fullmatch(study):
        return nothing
    login = "" if url.username is None else f"{quote(url.username)}{'' if url.password is None else f':{HIDDEN}'}@"
    host = "" if url.host is None else f"[{url.host}]" if ":" in url.host else url.host
    port = "" if url.port is None else f":{url.port}"
    database = "" if url.database is None else f"/{url.database}"
    shown = f"{scheme}://{login}{host}{port}{database}{_parameters(url.query)}"
    return f"{shown}#{study}" if study else shown


def _is_plain(url: sqlalchemy.URL) -> bool:
    """Whether no part of a URL holds what belongs to another, as where a password has an @ in it."""
    name, host, database = url.username or "", url.host or "", url.database or ""
    if url.drivername.startswith("sqlite") and not name and not host:  # a path
        return ":" not in database or "@" not in database
    return bool(NAME.fullmatch(name) and re.fullmatch(r"[\w.%-]*|[0-9a-fA-F:.%]*", host) and NAME.fullmatch(database))


def _parameters(query: Mapping[str, str | tuple[str, ...]]) -> str:
    parts = []
    for name, value in query.items():
        if name in HARMLESS and isinstance(value, str) and PLAIN.fullmatch(value):
            parts.append(f"{name}={value}")
        else:
            parts.append(f"{name}={HIDDEN}" if name.lower() in (*HARMLESS, *KNOWN) else HIDDEN)
    return f"?{'&'.join(dict.fromkeys(parts))}" if parts else ""
