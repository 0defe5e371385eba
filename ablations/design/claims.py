"""A claim: what somebody says about two rows of a study, written down before the first run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple


class Relation(NamedTuple):
    """What a claim says of its two sides."""

    quantity: str
    """What it is about unless `in` says otherwise."""
    sentence: str
    good: bool | None
    """Whether the left side is the better of the two in this quantity; None: neither is."""


RELATIONS: Mapping[str, Relation] = MappingProxyType({
    "level": Relation("val_loss", "{left} is level with {right}", None),
    "better": Relation("val_loss", "{left} is better than {right}", True),
    "worse": Relation("val_loss", "{left} is worse than {right}", False),
    "faster": Relation("speed", "{left} trains faster than {right}", True),
    "slower": Relation("speed", "{left} trains slower than {right}", False),
    "fewer": Relation("params", "{left} has fewer parameters than {right}", True),
    "more": Relation("params", "{left} has more parameters than {right}", False),
    "smaller": Relation("memory", "{left} needs less memory than {right}", True),
    "larger": Relation("memory", "{left} needs more memory than {right}", False),
})
"""By the word of a study file."""
QUANTITIES: Mapping[str, str] = MappingProxyType({
    "val_loss": "validation loss", "test_loss": "test loss", "bits_per_byte": "bits per byte",
    "speed": "training speed", "params": "parameters", "memory": "peak memory",
})
"""What a claim may be about; `analysis.quantities` measures each."""

LOSSES = ("val_loss", "test_loss", "bits_per_byte")
"""Those that are compared by difference, over seeds."""
ALPHA = 0.05
"""Of a test, and of all tests of a family together."""
MARGIN = 0.023
"""Nats per token: He & Hofmann 2024 call blocks comparable whose losses differ by so much (SAS 1.178, Pre-LN 1.155)."""


@dataclass(frozen=True)
class Claim:
    """A statement about two rows, which are named by their ids."""

    left: str
    relation: str
    right: str
    quantity: str
    sentence: str
    paper: str = ""
    """What the source reports, in its words."""
    margin: float | None = None
    """Losses closer than this many nats (bits per byte, where the claim is in those) are level. None: the suite's own
    margin."""
    name: str = ""
    """Where in the source it stands, e.g. `Fig. 5`."""
    registered: str = ""
    """When the study took it down; before its first run, or after."""
