"""The running consumer: its database, its source, and the writer between them."""

from __future__ import annotations

import asyncio
import logging
import time
from random import SystemRandom

from aiohttp import web

from consumer.config import Config
from consumer.kafka_source import KafkaSource
from consumer.metrics import Metrics
from ledger.batch_writer import BatchOptions, BatchWriter
from ledger.housekeeping import Housekeeper
from ledger.tables import LedgerTables
from runtime.background import BackgroundTasks, in_own_task
from runtime.errors import NoStore
from runtime.outage import Outage
from runtime.output import Failure
from runtime.run import Signals, unless_stopped
from runtime.version import VERSION
from runtime.waiting import retry_until_reachable
from sql.connect import migrate, open_database
from sql.database import Database

log = logging.getLogger("fabric.consumer")


async def serve(settings: Config, signals: Signals) -> None:
    """Move records until a signal comes.

    Raises ``BackendError`` or ``Failure``, which say what to do.
    """
    await unless_stopped(signals, _consume(settings))
    log.info("stopped")


async def _consume(settings: Config) -> None:
    wait = settings.wait_for_backends
    database = await retry_until_reachable(lambda: _open_store(settings), wait=wait)
    try:
        applied = await migrate(database, time.time())
        if applied:
            log.info("store brought up to date", extra={"migrations": ", ".join(applied)})
        source = await retry_until_reachable(
            lambda: KafkaSource.open(settings.bus, group=settings.group), wait=wait
        )
        try:
            await _work(settings, LedgerTables(database), source)
        finally:
            await in_own_task(source.close())
    finally:
        await in_own_task(database.close())


async def _open_store(settings: Config) -> Database:
    """Open the server's store; one that no server has made would take records that nobody reads."""
    try:
        return await open_database(settings.store, create=False)
    except NoStore as error:
        raise NoStore(f"{error}: start the server first, or set store as it has it") from None


_WITHOUT_STORE = "records wait in Kafka, and reports lag behind"
_REMEDY = "start it, or correct what the reason names; this program goes on by itself then"


async def _work(settings: Config, tables: LedgerTables, source: KafkaSource) -> None:
    outage = Outage("the store", meanwhile=_WITHOUT_STORE, remedy=_REMEDY)
    housekeeper = Housekeeper(
        tables,
        outage=outage,
        keep_heartbeats_days=settings.keep_heartbeats_days,
        offline_seconds=settings.offline_seconds,
        max_rows=settings.batch_most,
    )
    options = BatchOptions(
        batch_size=settings.batch_size,
        max_batch=settings.batch_most,
        batch_seconds=settings.batch_timeout,
        leave_rest=True,
    )
    writer = BatchWriter(source, tables, housekeeper, options, outage)
    tasks = BackgroundTasks(SystemRandom())
    runner = web.AppRunner(
        Metrics(writer, source, tasks).application(), handle_signals=False, access_log=None
    )
    await runner.setup()
    try:
        port = await _listen(runner, settings)
        log.info("ready", extra={"version": VERSION, "metrics": port})
        tasks.start("ledger_writer", writer.run)
        await asyncio.Event().wait()  # until it is cancelled
    finally:
        await tasks.stop()
        outage.close()
        await runner.cleanup()


async def _listen(runner: web.AppRunner, settings: Config) -> int:
    """Open the port; return its number, also if the setting is 0."""
    site = web.TCPSite(runner, settings.host, settings.port)
    try:
        await site.start()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Failure(
            f"can't listen on {settings.host}, port {settings.port} ({reason}): "
            "set port to another number (0 takes any free one), or host to another address."
        ) from None
    return int(runner.addresses[0][1])
