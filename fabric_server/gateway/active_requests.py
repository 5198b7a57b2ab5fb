"""The requests under way on this server: listed, counted, and ended from outside."""

from __future__ import annotations

import asyncio

from fabric_server.auth.keys import Key
from fabric_server.auth.rate_limits import AT_ONCE_RETRY
from fabric_server.dialects import errors
from fabric_server.proxy.request_record import RequestRecord


class ActiveRequests:
    def __init__(self) -> None:
        self._by_id: dict[str, RequestRecord] = {}
        self._by_key: dict[str, set[RequestRecord]] = {}
        """By the ids of their keys."""
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def count(self) -> int:
        return len(self._by_id)

    def add(self, record: RequestRecord) -> None:
        self._by_id[record.request.id] = record
        self._idle.clear()
        key_id = record.key.id
        if key_id in self._by_key:
            self._by_key[key_id].add(record)
        else:
            self._by_key[key_id] = {record}

    def check(self, key: Key) -> None:
        """Raise ApiError (429) if more of the key's requests are under way than it may have."""
        most = key.requests_at_once
        if most is not None and len(self._by_key.get(key.id, ())) > most:
            raise errors.too_many_at_once(most, AT_ONCE_RETRY)

    def at_limit(self, key: Key) -> bool:
        """Return whether one more request of the key would be more than it may have."""
        most = key.requests_at_once
        return most is not None and len(self._by_key.get(key.id, ())) >= most

    def remove(self, record: RequestRecord) -> None:
        record.task = None  # cancelled, it has a traceback with this record: a reference circle
        del self._by_id[record.request.id]
        if not self._by_id:
            self._idle.set()
        records = self._by_key[record.key.id]
        records.discard(record)
        if not records:
            del self._by_key[record.key.id]

    def list(self) -> list[RequestRecord]:
        """Return the requests under way, the oldest first."""
        return sorted(self._by_id.values(), key=lambda record: record.request.arrived)

    def find(self, request_id: str) -> RequestRecord | None:
        """Return a request by its id; None when it is not under way."""
        return self._by_id.get(request_id)

    def cancel_key(self, key_id: str) -> None:
        """End all requests of a key that has been revoked or disabled."""
        for record in tuple(self._by_key.get(key_id, ())):
            record.cancel(errors.key_withdrawn())

    def ids(self, most: int) -> str:
        """Return the ids of the oldest requests, ``most`` of them, for a log line."""
        return " ".join(record.request.id for record in self.list()[:most])

    async def end_all(self, seconds: float) -> bool:
        """Cancel all requests, and wait until they have ended; return False when some have not in
        time, which is a defect."""
        for record in self.list():
            if record.task is not None:
                record.task.cancel()
        try:
            async with asyncio.timeout(seconds):
                await self.wait_idle()
        except TimeoutError:
            return False
        return True

    async def wait_idle(self) -> None:
        """Wait until no request is under way."""
        await self._idle.wait()
