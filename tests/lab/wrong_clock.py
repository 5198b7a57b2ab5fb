"""Programs whose wall clock is wrong, by libfaketime; their monotonic clock is the machine's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.lab.backends import provide


def wrong_clock(offset: str) -> Mapping[str, str]:
    """Return the environment of a program whose clock is ``offset`` wrong, such as ``+70d``."""
    library = provide("faketime", "libfaketime", _find, "libfaketime")
    return {
        "LD_PRELOAD": library,
        "FAKETIME": offset,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }


def _find() -> str | None:
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    return str(found[0]) if found else None
