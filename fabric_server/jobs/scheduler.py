"""Scheduling of jobs: how many to claim of each lane, and when to retry.  Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from random import Random

from fabric_server.dialects import errors
from fabric_server.jobs.internal_request import InternalResponse
from fabric_server.storage.jobs import Lane

MIN_WAIT, MAX_WAIT = 1.0, 30.0
"""Seconds until a job that found no capacity is tried again."""
VARIANT_WAIT = 5.0
"""Seconds until a job is tried again whose weights no connected node has."""
MAX_BACKED_OFF = 1024
"""Keys that are remembered as backed off."""


class Scheduler:
    """Limits the jobs and batch lines that run at once, and shares the room among lanes.

    A lane is the queue of one account's jobs, or of one batch's lines.
    """

    def __init__(self, *, max_jobs: int, max_lines: int, rng: Random) -> None:
        self._max_jobs = max_jobs
        self._max_lines = max_lines
        self._rng = rng
        self._round = 0
        self._backed_off: dict[str, float] = {}
        """Keys none of whose jobs is claimed, until the time given: they would be refused."""

    def room(self, running: Mapping[str, int], *, lines: bool) -> int:
        """Count the jobs, or lines, that may be claimed while ``running`` are, by kind."""
        if lines:
            return self._max_lines - running["line"]
        return self._max_jobs - running["job"]

    def has_room(self, running: Mapping[str, int]) -> bool:
        """Return whether any job or line may be claimed."""
        return bool(self.room(running, lines=False) or self.room(running, lines=True))

    def share(self, lanes: Sequence[Lane], running: Mapping[str, int]) -> list[tuple[Lane, int]]:
        """Return how many jobs to claim of each lane, so that none starves the others."""
        shares = []
        self._round += 1
        for lines in (False, True):
            some = [lane for lane in lanes if bool(lane.batch) is lines]
            room = self.room(running, lines=lines)
            if not some or room <= 0:
                continue
            first = self._round % len(some)
            some = (some[first:] + some[:first])[:room]
            shares += [(lane, max(1, room // len(some))) for lane in some]
        return shares

    def backed_off(self, now: float) -> Collection[str]:
        """Return the ids of the keys none of whose jobs is claimed now."""
        self._backed_off = {k: until for k, until in self._backed_off.items() if until > now}
        return self._backed_off

    def retry_at(self, key_id: str, response: InternalResponse, now: float) -> float:
        """Return when to retry a job that found no capacity, and back off its key until then.

        Without the back-off, all jobs of the key are claimed, refused and put back as fast as the
        store can.
        """
        least = VARIANT_WAIT if response.code == errors.VARIANT_NOT_FOUND else MIN_WAIT
        wait = min(max(response.retry_after or least, least), MAX_WAIT)
        limited = response.code == errors.RATE_LIMITED
        self._back_off(key_id, now + (wait if limited else MIN_WAIT))
        if not limited:
            wait *= 0.75 + self._rng.random() / 2  # spread, or all come back at once
        return now + wait

    def _back_off(self, key_id: str, until: float) -> None:
        if key_id in self._backed_off or len(self._backed_off) < MAX_BACKED_OFF:
            self._backed_off[key_id] = max(until, self._backed_off.get(key_id, 0.0))
