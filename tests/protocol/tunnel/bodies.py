"""Bodies whose bytes tell their place, for tests that count every byte."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from hypothesis import strategies as st

from protocol.tunnel.base import Role

PERIOD = 65_521  # prime, so that a piece taken from the wrong place shows
BLOB = Random(0).randbytes(PERIOD) * 64
SIZES = st.sampled_from([1, 7, 1000, 16_372, 16_373, 70_000, 300_000])
LARGEST = 300_000
WHICH = st.integers(0, 1000)
ROLES = st.sampled_from(list(Role))


@dataclass(eq=False)
class Flow:
    """A body on its way: what was given to one side, and how much has come out at the other."""

    base: int
    given: int = 0
    got: int = 0
    consumed: int = 0
    ended: bool = False
    end_heard: bool = False

    def more(self, count: int) -> bytes:
        start = (self.base + self.given) % PERIOD
        self.given += count
        return BLOB[start : start + count]

    def check(self, data: bytes) -> None:
        start = (self.base + self.got) % PERIOD
        assert data == BLOB[start : start + len(data)], "lost, doubled or out of order"
        self.got += len(data)
        assert self.got <= self.given
