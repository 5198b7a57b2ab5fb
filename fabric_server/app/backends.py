"""The back ends of a server: store, cache and bus, opened from the URLs in its settings."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Self

from fabric_server.config import Config
from fabric_server.retention_policy import policy_of
from fabric_server.storage.connect import OpenBus, open_bus, open_cache, open_store
from fabric_server.storage.interfaces import Cache
from fabric_server.storage.retention import RetentionKeeper
from fabric_server.storage.revocations import Revocations
from fabric_server.storage.spool.orphans import move_orphaned_spools
from fabric_server.storage.store import SqlStore
from ledger.batch_writer import BatchOptions, BatchWriter, Source
from ledger.housekeeping import Housekeeper
from runtime.background import BackgroundTasks
from runtime.outage import Outage, Outages
from runtime.waiting import retry_until_reachable

KAFKA_BATCHES = BatchOptions(batch_size=5_000, batch_seconds=0.5)
"""Kafka's broker spends more on each batch than on the records in it."""
OFFLINE_HEARTBEATS = 4
"""A node counts as offline after so many missed heartbeats."""


_WITHOUT_STORE = (
    "keys that were used in the last minutes work, and ledger entries wait on this machine; keys "
    "that can't be read get 503, and neither nodes register nor jobs begin, nor is anything changed"
)
_WITHOUT_CACHE = "keys are looked up in the store; nothing is refused"
_WITHOUT_KAFKA = "requests go on; ledger entries and heartbeats wait in the spool"
_REMEDY = "start it, or correct what the reason names; this server goes on by itself then"


class Backends:
    """Store, cache and bus, and the writer from the bus to the store or Kafka."""

    def __init__(
        self, config: Config, store: SqlStore, cache: Cache, bus: OpenBus, *, first: bool = True
    ) -> None:
        """``first``: this process does the housekeeping, unless a consumer does."""
        self._first = first
        self.store = store
        self.cache = cache
        self.bus = bus.bus
        self.outages = Outages(
            Outage("the store", meanwhile=_WITHOUT_STORE, remedy=_REMEDY),
            Outage("the cache", meanwhile=_WITHOUT_CACHE, remedy=_REMEDY),
        )
        self._bus_outage = Outage("Kafka", meanwhile=_WITHOUT_KAFKA, remedy=_REMEDY)
        self.retention = RetentionKeeper(
            store.database, policy_of(config), outage=self.outages.store
        )
        self.revocations = Revocations(store.database, cache, outages=self.outages)
        self._open_bus = bus
        self._spool_limit = config.spool_limit
        if bus.sink is None:
            offline = OFFLINE_HEARTBEATS * config.heartbeat_seconds
            days = config.keep_heartbeats_days
            housekeeper = Housekeeper(
                store,
                keep_heartbeats_days=days,
                offline_seconds=offline,
                outage=self.outages.store,
            )
            self.writer = BatchWriter(
                bus.bus, store, housekeeper if first else None, outage=self.outages.store
            )
        else:  # fabric-consumer writes the store, and does the housekeeping
            self.writer = BatchWriter(
                bus.bus, bus.sink, options=KAFKA_BATCHES, outage=self._bus_outage
            )

    @classmethod
    async def open(cls, config: Config, *, first: bool = True, beside_others: bool = False) -> Self:
        """Open all three, or none.  Raises ``BackendError``, which says what to do.

        With ``beside_others``, other processes may have spools in the same directory: workers, or
        the predecessor, also if it drains already.

        With ``wait_for_backends``, an unreachable one is tried until it answers.
        """
        wait = config.wait_for_backends
        async with AsyncExitStack() as opened:
            store = await retry_until_reachable(lambda: open_store(config.store_url), wait=wait)
            opened.push_async_callback(store.close)
            cache = await retry_until_reachable(lambda: open_cache(config.cache), wait=wait)
            opened.push_async_callback(cache.close)
            bus = await retry_until_reachable(
                lambda: open_bus(
                    config.bus,
                    directory=config.data / "spool",
                    limit=config.spool_limit,
                    beside_others=beside_others,
                ),
                wait=wait,
            )
            opened.pop_all()
        backends = cls(config, store, cache, bus, first=first)
        await backends.revocations.begin()
        return backends

    def start_tasks(self, tasks: BackgroundTasks) -> None:
        """Start the work of the back ends."""
        tasks.start("ledger_writer", self.writer.run)
        if self._first:
            tasks.start("retention", self.retention.run)
        tasks.start("revocations", self.revocations.run)
        spool = self._open_bus.spool
        if spool is not None:
            # Other servers' spools in this directory may still hold records.
            tasks.start(
                "orphaned_spools",
                lambda: move_orphaned_spools(spool, self._spool_limit, self._orphan_writer),
            )

    def _orphan_writer(self, source: Source) -> BatchWriter:
        options = BatchOptions(batch_size=KAFKA_BATCHES.batch_size)
        sink = self._open_bus.sink
        if sink is None:
            sink, outage = self.store, self.outages.store
        else:
            outage = self._bus_outage
        return BatchWriter(source, sink, options=options, outage=outage, part="orphaned records")

    async def close(self) -> None:
        """Close the bus, which writes what it still holds, then the cache and the store."""
        await self._open_bus.close()
        for outage in (*self.outages, self._bus_outage):
            outage.close()
        await self.cache.close()
        await self.store.close()
