"""Secrets: in no form of a database's address do they reach a terminal, a file or a study."""

from __future__ import annotations

import re

import pytest

from ablations.engine.lookup import find_study
from ablations.engine.redact import redact, redact_command
from ablations.engine.storage import StudyError, open_storage

SECRETS = (
    "postgresql://me:SECRET@host:5432/db", "postgresql://me:a/SECRET@host/db", "postgresql://me:SEC RET@host/db",
    "postgresql://me:SEC\tRET@host/db", "postgresql://me:SEC\nRET@host/db", "postgresql://me:p@SECRET@host/db",
    "postgresql://me:SECRET#@host/db", "postgresql://me:?SECRET@host/db", "postgresql://me:a:SECRET@host/db",
    "postgresql://me%3ASECRET@host/db", "postgresql://:SECRET@host/db", "postgresql://host:SECRET/db",
    "postgresql://me@host/db?password=SECRET", "postgresql://me@host/db?sslmode=a&sslpassword=SECRET",
    "postgresql://me@host/db?password=a&SECRET", "postgresql://me@host/db?password=a@SECRET",
    "postgresql://me@host/db?PASSWORD=SECRET", "postgresql://me@host/db?passfile=SECRET&sslkey=SECRET",
    "postgresql://me@host/db?host=a?password=SECRET", "postgresql+psycopg://me:SECRET@[::1]/db",
    "postgresql:///me:SECRET@host/db", "postgresql:/me:SECRET@host/db", "postgresql:me:SECRET@host/db",
    "POSTGRESQL://me:SECRET@host/db", "mysql://me:SECRET@host/db", "postgresql://me:SECRET@host/db#study",
    "postgresql://me:SECRET@host/db password=SECRET", "host=h user=me password=SECRET",
    "host=h password = 'SEC RET' user=me", "sqlite:///x.db?password=SECRET", "postgresql://me:'SECRET\"@host/db",
)


@pytest.mark.parametrize("storage", SECRETS)
def test_no_secret_is_printed_or_kept(storage: str) -> None:
    for text in (redact(storage), redact(f"--storage={storage}"), redact_command(["run", "--storage", storage])):
        assert not re.search("SECRET|SEC|RET|p@", text), text
    for call in (open_storage, find_study):
        if "://" in storage and not storage.startswith("sqlite"):
            with pytest.raises(StudyError) as caught:
                call(storage.replace("host", "127.0.0.1:1"))
            assert not re.search("SECRET|SEC|RET", str(caught.value))


def test_what_is_no_secret_stays() -> None:
    assert redact("postgresql://me:a/b@host:5432/db") == "postgresql://me:***@host:5432/db"
    url = "postgresql://me@host:5432/db?password=x&sslmode=a"
    assert redact(url) == "postgresql://me@host:5432/db?password=***&sslmode=a"
    typed = ["run", "--storage", "postgresql://me:x@host/db?password=y", "--study", "s", "--set", "optim.steps=3"]
    hidden = "run --storage 'postgresql://me:***@host/db?password=***' --study s --set optim.steps=3"
    assert redact_command(typed) == hidden
    for harmless in ("postgresql://me@host:5432/db", "results/s/journal.log", "sqlite:////tmp/me@x/study.db",
                     "postgresql+psycopg://me@host/db#study", "postgresql://me@/db?host=/var/run/postgresql"):
        assert redact(harmless) == harmless
