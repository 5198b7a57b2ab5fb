"""How fast ``fabric-consumer`` moves heartbeats and ledger entries from Kafka into PostgreSQL.

    python -m benchmarks.consumer [RECORDS]

Everything runs on this machine: Kafka, the consumer, and PostgreSQL as it comes, fsync and all.
Kafka is filled first, so that the consumer is what is measured.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import Popen

import asyncpg
import psutil

from fabric_server.storage.kafka import KafkaSink
from ledger.records import HeartbeatRecord, LedgerEntry
from protocol.messages import Gpu, Heartbeat
from tests.lab.kafka_server import KafkaServer
from tests.lab.postgres_server import PostgresServer

RECORDS = 200_000
NODES = 10_000
AT_ONCE = 5_000


def heartbeats(count: int, now: float) -> Iterator[HeartbeatRecord]:
    for number in range(count):
        seq = number // NODES
        heartbeat = Heartbeat(
            seq=seq,
            at=now,
            cpu_percent=12.5,
            memory_bytes=64 * 2**30,
            memory_used_bytes=16 * 2**30,
            disk_bytes=2**40,
            disk_used_bytes=2**39,
            network_in_bytes_per_second=1500.0,
            network_out_bytes_per_second=250_000.0,
            slots=4,
            active=1,
            engines_healthy=1,
            engines=1,
            loaded_models=["llama3.2:3b"],
            gpus=[Gpu("NVIDIA GeForce RTX 4090", 24 * 2**30, 2**33, 50.0, 60.0, 300.0)],
        )
        node = f"node_{number % NODES:016x}"
        yield HeartbeatRecord(node, 1, seq, now + seq * 15.0, heartbeat)


def entries(count: int, now: float) -> Iterator[LedgerEntry]:
    for number in range(count):
        yield LedgerEntry(
            request_id=f"req_{int(now):08x}{number:016x}",
            at=now + number / 1000,
            account=f"account {number % 50}",
            key_id=f"key_{number % 200:016x}",
            node_id=f"node_{number % 100:016x}",
            engine="ollama",
            model=f"model-{number % 10}",
            path="/v1/chat/completions",
            stream=True,
            status=200,
            outcome="ok",
            error=None,
            attempts=1,
            prompt_tokens=100,
            completion_tokens=200,
            queue_ms=0.25,
            first_byte_ms=31.5,
            total_ms=500.125,
            bytes_in=300,
            bytes_out=4000,
        )


async def fill(url: str, beats: Sequence[HeartbeatRecord], ledger: Sequence[LedgerEntry]) -> None:
    sink = await KafkaSink.open(url)
    for at in range(0, max(len(beats), len(ledger)), AT_ONCE):
        await sink.write(beats[at : at + AT_ONCE], ledger[at : at + AT_ONCE])
    await sink.close()


async def warm(bus: str, store: str, count: int) -> None:
    """Moves so many entries all the way, so that everything has done its work before."""
    now = time.time() - 86_400.0
    some = list(entries(count, now))
    await fill(bus, [], some)
    await stored(store, "ledger", count)


async def stored(url: str, table: str, count: int) -> float:
    """Returns when so many rows are there: the time."""
    connection = await asyncpg.connect(url)
    try:
        count_rows = f"SELECT COUNT(*) FROM {table}"
        while await connection.fetchval(count_rows) < count:  # noqa: ASYNC110 - there is no notification
            await asyncio.sleep(0.05)
        return time.perf_counter()
    finally:
        await connection.close()


def cpu_seconds(*pids: int) -> float:
    total = 0.0
    for pid in pids:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            times = one.cpu_times()
            total += times.user + times.system
    return total


async def measure(kind: str, count: int, kafka: KafkaServer, postgres: PostgresServer) -> None:
    now = time.time()
    if kind == "heartbeats":
        await fill(kafka.url, list(heartbeats(count, now)), [])
    else:
        await fill(kafka.url, [], list(entries(count, now)))
    url = postgres.new_database()
    environ = {
        **os.environ,
        "FABRIC_CONSUMER_STORE": url,
        "FABRIC_CONSUMER_BUS": kafka.url,
        "FABRIC_CONSUMER_GROUP": kind,
        "FABRIC_CONSUMER_PORT": "0",
        "FABRIC_CONSUMER_LOG_LEVEL": "warning",
    }
    await _prepare(url, now)
    before = cpu_seconds(postgres.pid)
    command = [sys.executable, "-m", "consumer"]
    consumer = Popen(command, env=environ)  # noqa: ASYNC220 - nothing else runs meanwhile
    try:
        await stored(url, kind, 1)  # it has joined its group, and begins
        begun, first = time.perf_counter(), await _count(url, kind)
        at = await stored(url, kind, count)
        own, theirs = cpu_seconds(consumer.pid), cpu_seconds(postgres.pid) - before
    finally:
        consumer.terminate()
        consumer.wait()
    rate = (count - first) / (at - begun)
    print(
        f"{kind}: {rate:,.0f}/s; CPU for one: consumer {own / count * 1e6:.0f} µs,"
        f" PostgreSQL {theirs / count * 1e6:.0f} µs"
    )


async def _prepare(url: str, now: float) -> None:
    """The schema, and the nodes whose heartbeats these are."""
    from sql.connect import migrate, open_database

    database = await open_database(url)
    await migrate(database, now)
    async with database.transaction() as session:
        await session.execute(
            "INSERT INTO nodes (id, name, public_key_sha256, created_at, epoch, platform, version,"
            " revision) SELECT 'node_' || lpad(to_hex(n), 16, '0'), 'bench', '\\x00', 0, 1, '', '',"
            f" 0 FROM generate_series(0, {NODES - 1}) AS n"
        )
    await database.close()


async def _count(url: str, table: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval(f"SELECT COUNT(*) FROM {table}"))
    finally:
        await connection.close()


async def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with (
            PostgresServer(work / "postgres", durable=True) as postgres,
            KafkaServer(work / "kafka") as kafka,
        ):
            for kind in ("heartbeats", "ledger"):
                await measure(kind, count, kafka, postgres)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else RECORDS))
