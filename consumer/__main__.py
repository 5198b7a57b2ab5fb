"""``fabric-consumer``: moves records from Kafka into PostgreSQL until it is told to stop.

Exit codes: 0 told to stop; 1 a defect; 2 something the operator can put right, said in one sentence
on standard error; 130 ended by Ctrl-C.
"""

from __future__ import annotations

import logging
import time
from typing import NoReturn

import typer
from aiohttp import web

from consumer.config import PREFIX, Config
from consumer.kafka_source import KafkaSource
from consumer.metrics import Figures
from ledger.batch_writer import BatchOptions, BatchWriter
from ledger.housekeeping import Housekeeper
from ledger.tables import LedgerTables
from runtime import logs, output
from runtime.errors import BackendError
from runtime.flags import about_settings, takes_settings
from runtime.output import Failure
from runtime.run import Signals, run, unless_stopped
from runtime.settings import SettingsError
from runtime.version import VERSION
from runtime.waiting import reached
from sql.connect import migrate, open_database

log = logging.getLogger("fabric.consumer")

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog=about_settings(PREFIX))
@takes_settings(Config, PREFIX)
def consume(settings: Config) -> int:
    """Move heartbeats and ledger entries from the bus into the store, in batches.

    Each batch is one transaction, and only then is it settled with the bus: nothing is lost when
    this, the store or the bus is killed. Several may run; they share the work. The first Ctrl-C or
    SIGTERM lets it finish the batch in hand, the second does not.
    """
    logs.configure(settings.log_level, json=settings.log_json)
    return run(lambda signals: _serve(settings, signals))


async def _serve(settings: Config, signals: Signals) -> None:
    await unless_stopped(signals, _consume(settings))
    log.info("stopped")


async def _consume(settings: Config) -> None:
    wait = settings.wait_for_backends
    database = await reached(lambda: open_database(settings.store), wait=wait)
    try:
        applied = await migrate(database, time.time())
        if applied:
            log.info("store brought up to date", extra={"migrations": ", ".join(applied)})
        source = await reached(
            lambda: KafkaSource.open(settings.bus, group=settings.group), wait=wait
        )
        try:
            await _work(settings, LedgerTables(database), source)
        finally:
            await source.close()
    finally:
        await database.close()


async def _work(settings: Config, tables: LedgerTables, source: KafkaSource) -> None:
    housekeeper = Housekeeper(
        tables,
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
    writer = BatchWriter(source, tables, housekeeper, options)
    runner = web.AppRunner(
        Figures(writer, source).application(), handle_signals=False, access_log=None
    )
    await runner.setup()
    try:
        port = await _listen(runner, settings)
        log.info("ready", extra={"version": VERSION, "metrics": port})
        await writer.run()
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, settings: Config) -> int:
    """The number of the port; the real one, also where 0 was asked for."""
    site = web.TCPSite(runner, settings.host, settings.port)
    try:
        await site.start()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Failure(
            f"port {settings.port} on {settings.host} can't be opened ({reason}): "
            "set port to another number (0 takes any free one), or host to another address."
        ) from None
    return int(runner.addresses[0][1])


def main() -> NoReturn:
    output.main(app, "fabric-consumer", {SettingsError: output.WRONG, BackendError: output.WRONG})


if __name__ == "__main__":
    main()
