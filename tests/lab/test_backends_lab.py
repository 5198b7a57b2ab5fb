"""The real back ends of the lab start, die, come back with their data, and fall silent."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis.asyncio as aioredis
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.cluster import RedisCluster as ClusterClient
from redis.asyncio.sentinel import Sentinel as SentinelClient

from tests.lab import backends
from tests.lab.backends import Daemon, Given, MissingProgram, given, provide, until
from tests.lab.kafka_server import KafkaServer
from tests.lab.postgres_server import GivenPostgres, PostgresServer
from tests.lab.redis_server import RedisCluster, RedisSentinel, RedisServer

SILENCE = 0.3
HOLDER = """
import sys
from pathlib import Path
from tests.lab.{module} import {server}
server = {server}(Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
sys.stdin.read()
"""
ROOT = Path(__file__).parents[2]


async def ask(url: str, question: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(question)
    finally:
        await connection.close()


def address(kafka: KafkaServer | Given) -> str:
    return kafka.url.removeprefix("kafka://")


async def new_topic(kafka: KafkaServer | Given, name: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=address(kafka))
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, num_partitions=1, replication_factor=1)])
    finally:
        await admin.close()


async def exists(kafka: KafkaServer | Given, topic: str) -> bool:
    """Asks for it by its name, which can make a topic."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address(kafka))
    await admin.start()
    try:
        (found,) = await admin.describe_topics([topic])
        return bool(found["error_code"] == 0)
    finally:
        await admin.close()


async def send(kafka: KafkaServer | Given, topic: str, value: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=address(kafka), acks="all") as producer:
        await producer.send_and_wait(topic, value)


async def receive(kafka: KafkaServer | Given, topic: str) -> bytes:
    """The first record of the topic."""
    async with AIOKafkaConsumer(
        topic, bootstrap_servers=address(kafka), auto_offset_reset="earliest"
    ) as consumer:
        return bytes((await consumer.getone()).value)


# ── the fixtures ────────────────────────────────────────────────────────────────────────────────


async def test_postgres_gives_each_test_a_database_of_its_own(
    postgres: PostgresServer | GivenPostgres,
) -> None:
    one, other = postgres.new_database(), postgres.new_database()
    await ask(one, "CREATE TABLE things (thing text)")
    assert await ask(one, "SELECT count(*) FROM things") == 0
    assert await ask(other, "SELECT to_regclass('things')") is None


async def test_a_given_postgres_is_left_as_it_was(
    postgres: PostgresServer | GivenPostgres,
) -> None:
    with GivenPostgres(postgres.url) as borrowed:
        url = borrowed.new_database()
        assert await ask(url, "SELECT 1") == 1
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await ask(url, "SELECT 1")


async def test_redis_answers(redis_server: RedisServer | Given) -> None:
    async with aioredis.from_url(redis_server.url) as client:
        await client.set("lab:answers", "yes", ex=60)
        assert await client.get("lab:answers") == b"yes"


async def test_kafka_keeps_what_it_is_told(kafka: KafkaServer | Given) -> None:
    await new_topic(kafka, "lab-answers")
    await send(kafka, "lab-answers", b"yes")
    assert await receive(kafka, "lab-answers") == b"yes"


# ── PostgreSQL ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with PostgresServer(tmp_path_factory.mktemp("own-postgres")) as server:
        yield server


async def test_postgres_comes_back_with_what_was_committed(own_postgres: PostgresServer) -> None:
    url = own_postgres.new_database()
    await ask(url, "CREATE TABLE things AS SELECT 'kept' AS thing")
    connection = await asyncpg.connect(url)
    own_postgres.kill()
    with pytest.raises((ConnectionError, asyncpg.PostgresConnectionError)):
        await connection.fetchval("SELECT 1")
    with pytest.raises(ConnectionRefusedError):
        await ask(url, "SELECT 1")
    own_postgres.start()
    assert await ask(url, "SELECT thing FROM things") == "kept"


async def test_postgres_falls_silent(own_postgres: PostgresServer) -> None:
    connection = await asyncpg.connect(own_postgres.url)
    own_postgres.pause()
    asking = asyncio.create_task(connection.fetchval("SELECT 'late'"))
    assert await asyncio.wait([asking], timeout=SILENCE) == (set(), {asking})
    own_postgres.resume()
    assert await asking == "late"
    await connection.close()


async def test_postgres_can_be_made_read_only(own_postgres: PostgresServer) -> None:
    url = own_postgres.new_database()
    own_postgres.read_only(True)
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await ask(url, "CREATE TABLE things (thing text)")
    assert own_postgres.new_database()
    own_postgres.read_only(False)
    await ask(url, "CREATE TABLE things (thing text)")


async def test_postgres_can_wait_for_the_disk(tmp_path: Path) -> None:
    with PostgresServer(tmp_path, durable=True) as postgres:
        assert await ask(postgres.url, "SHOW fsync") == "on"


# ── Redis ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tls", [False, True])
async def test_redis_comes_back_with_what_it_was_told(tmp_path: Path, tls: bool) -> None:
    with RedisServer(tmp_path, tls=tls) as server:
        trust = {"ssl_ca_certs": str(server.ca)} if tls else {}
        async with aioredis.from_url(server.url, **trust) as client:
            await client.set("thing", "kept")
            server.kill()
            with pytest.raises(aioredis.ConnectionError):
                await client.get("thing")
            server.start()
            assert await client.get("thing") == b"kept"


async def test_redis_falls_silent(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with aioredis.from_url(server.url, socket_timeout=None) as client:
            await client.ping()
            server.pause()
            asking = asyncio.ensure_future(client.ping())
            assert await asyncio.wait([asking], timeout=SILENCE) == (set(), {asking})
            server.resume()
            assert await asking


async def test_redis_forgets_or_refuses_what_is_too_much(tmp_path: Path) -> None:
    big = b"x" * 500_000
    for policy in ("noeviction", "allkeys-lru"):
        with RedisServer(tmp_path / policy, maxmemory="3mb", policy=policy) as server:
            async with aioredis.from_url(server.url) as client:
                if policy == "noeviction":
                    with pytest.raises(aioredis.ResponseError, match="maxmemory"):
                        for n in range(20):
                            await client.set(f"big-{n}", big)
                else:
                    for n in range(20):
                        await client.set(f"big-{n}", big)
                assert 0 < await client.dbsize() < 20


async def test_a_sentinel_makes_the_replica_master(tmp_path: Path) -> None:
    with RedisSentinel(tmp_path) as group:
        sentinel = SentinelClient([group.address])
        async with sentinel.master_for(group.group) as client:
            await client.set("thing", "kept")
            await client.wait(1, 5000)
        group.master.kill()
        await asyncio.to_thread(
            until, lambda: group.master_port() == group.replica.port, 20, "nobody took over"
        )
        async with sentinel.master_for(group.group) as client:
            assert await client.get("thing") == b"kept"
        for watcher in sentinel.sentinels:
            await watcher.aclose()


async def test_a_cluster_has_three_masters_and_outlives_one(tmp_path: Path) -> None:
    with RedisCluster(tmp_path) as cluster:
        nodes = [ClusterNode(*address) for address in cluster.addresses]
        async with ClusterClient(startup_nodes=nodes) as client:
            for n in range(30):
                await client.set(f"thing-{n}", n)
            sizes = [server.ask("DBSIZE") for server in cluster.servers]
            assert min(sizes) > 0
            assert sum(sizes) == 30
        cluster.servers[0].kill()
        cluster.start()
        async with ClusterClient(startup_nodes=nodes) as client:
            assert [await client.get(f"thing-{n}") for n in range(3)] == [b"0", b"1", b"2"]


# ── Kafka ───────────────────────────────────────────────────────────────────────────────────────


async def test_kafka_comes_back_with_what_it_acknowledged_and_falls_silent(tmp_path: Path) -> None:
    with KafkaServer(tmp_path) as kafka:
        await new_topic(kafka, "things")
        await send(kafka, "things", b"kept")
        kafka.kill()
        assert not backends.answers(kafka.port)
        kafka.start()
        assert await receive(kafka, "things") == b"kept"
        kafka.pause()
        receiving = asyncio.create_task(receive(kafka, "things"))
        assert await asyncio.wait([receiving], timeout=SILENCE) == (set(), {receiving})
        kafka.resume()
        assert await receiving == b"kept"
        assert not await exists(kafka, "never-made")


# ── all of them ─────────────────────────────────────────────────────────────────────────────────


class Broken(Daemon):
    """Print a line and exit, or stay and never get ready."""

    name = "broken"
    start_seconds = 0.5

    def __init__(self, directory: Path, script: str) -> None:
        super().__init__(directory)
        self._script = script

    def _command(self) -> list[str]:
        return ["sh", "-c", self._script]

    def _ready(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("script", "how"),
    [("echo oh dear; exit 3", "ended with 3"), ("echo oh dear; exec sleep 60", "in 0.5 s")],
)
def test_a_server_that_does_not_start_says_why(tmp_path: Path, script: str, how: str) -> None:
    server = Broken(tmp_path, script)
    for _ in range(2):  # the first failure is not in the way of another try
        with pytest.raises(RuntimeError, match=rf"{how}; its output:\noh dear\n$"):
            server.start()
    server.stop()


def test_kafka_shows_its_log_when_its_port_is_taken(tmp_path: Path) -> None:
    server = KafkaServer(tmp_path)
    with (
        socket.create_server(("127.0.0.1", server.port)),
        pytest.raises(RuntimeError, match="Address already in use"),
    ):
        server.start()


@pytest.mark.parametrize(
    ("module", "server"), [("postgres_server", "PostgresServer"), ("redis_server", "RedisServer")]
)
def test_servers_end_with_tests_that_are_killed(tmp_path: Path, module: str, server: str) -> None:
    script = HOLDER.format(module=module, server=server)
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as holder:
        assert holder.stdout is not None
        server_process = psutil.Process(int(holder.stdout.readline()))
        family = [server_process, *server_process.children(recursive=True)]
        server_process.suspend()  # not even that saves it
        holder.kill()
    until(lambda: not any(map(backends.alive, family)), 10, f"{family} outlived the tests")


def test_a_given_server_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FABRIC_TEST_REDIS_URL", "redis://elsewhere:6379/3")
    monkeypatch.setenv("FABRIC_TEST_KAFKA_URL", "")
    assert given("redis") == "redis://elsewhere:6379/3"
    assert given("kafka") is None


def test_what_cannot_be_had_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingProgram, match=r"FABRIC_TEST_REDIS_URL .*apt install a-redis"):
        provide("redis", "Redis", lambda: None, "a-redis")
