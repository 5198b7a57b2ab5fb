"""A Kafka cluster: its URL, the topics that it must have, and its errors in plain words.

aiokafka's errors are translated here, and its log lines suppressed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl

from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from ledger.records import DEAD_LETTERS, HEARTBEATS, LEDGER
from runtime.errors import BackendError, RecordError, StoreError, Unreachable
from runtime.shown import without_password

log = logging.getLogger("fabric.kafka")

DEFAULT_PORT = 9092
CONNECT_SECONDS = 3.0
OPEN_SECONDS = 6.0
"""Longest time until a connection is of use."""
REQUEST_SECONDS = 5.0
"""Longest time for a broker's answer, and for attempts to send a batch."""

PARTITIONS = 6
DAY_MS = 86_400_000
RETENTION_MS = {LEDGER: 30 * DAY_MS, HEARTBEATS: DAY_MS, DEAD_LETTERS: 90 * DAY_MS}
MIN_LEDGER_MS = 7 * DAY_MS
"""Shortest safe retention of requests: a consumer may be down over the holidays."""

_NAME = re.compile(r"[a-zA-Z0-9._-]*")

# When Kafka is away, ``problem`` and the errors raised here report it once; aiokafka logs an error
# for each attempt at each connection, several times a second, although it raises them as well.
_library_log = logging.getLogger("aiokafka")
if _library_log.level == logging.NOTSET:
    _library_log.setLevel(logging.CRITICAL)


class Cluster(NamedTuple):
    """The brokers, and the prefix of the names of this fabric's topics and groups there."""

    brokers: tuple[tuple[str, int], ...]
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Parse ``kafka://host:port,host:port?prefix=…``; a missing port is 9092.

        Raises ``ValueError``, which says what is wrong.
        """
        scheme, _, rest = url.partition("://")
        if scheme != "kafka":
            raise ValueError("the URL must begin with kafka://")
        rest, _, query = rest.partition("?")
        if "@" in rest:
            raise ValueError("user names and passwords for Kafka are not supported yet")
        rest = rest.removesuffix("/")
        if "/" in rest:
            raise ValueError(f"a path, '/{rest.partition('/')[2]}', has no meaning here")
        brokers = tuple(_broker(part.strip()) for part in rest.split(","))
        return cls(brokers, _prefix(query))

    def __str__(self) -> str:
        return "kafka://" + ",".join(self.servers)

    @property
    def servers(self) -> list[str]:
        return [
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.brokers
        ]

    def topic(self, name: str) -> str:
        return self.prefix + name

    def client_options(self, servers: list[str]) -> dict[str, Any]:
        """Return the options of every client."""
        return {
            "bootstrap_servers": servers,
            "client_id": "fabric",
            "request_timeout_ms": int(REQUEST_SECONDS * 1000),
            "retry_backoff_ms": 200,
            # Topics, partitions and brokers that are added are noticed after a minute, not five.
            "metadata_max_age_ms": 60_000,
        }

    async def reach(self) -> list[str]:
        """Return the servers that accept connections.  Raises ``Unreachable`` if none does."""
        found = await asyncio.gather(*(_connect(host, port) for host, port in self.brokers))
        servers = [
            server for server, problem in zip(self.servers, found, strict=True) if problem is None
        ]
        if not servers:
            reasons = ", ".join(dict.fromkeys(filter(None, found)))
            raise Unreachable(f"Kafka at {self} can't be reached ({reasons}): is it running?")
        return servers

    async def prepare(self, servers: list[str]) -> None:
        """Create missing topics; leave those that exist as they are."""
        admin = AIOKafkaAdminClient(**self.client_options(servers))
        try:
            await admin.start()
            # All of them: asked by name, a broker may create them, with settings of its own.
            there = set(await admin.list_topics())
            missing = [name for name in RETENTION_MS if self.topic(name) not in there]
            if missing:
                await self._create(admin, missing)
            if self.topic(LEDGER) in there:
                await self._check_ledger(admin)
        finally:
            await admin.close()

    async def _create(self, admin: AIOKafkaAdminClient, names: list[str]) -> None:
        copies = min(3, len((await admin.describe_cluster())["brokers"]))
        topics = []
        for name in names:
            settings = {
                "retention.ms": str(RETENTION_MS[name]),
                "min.insync.replicas": "2" if copies >= 3 else "1",
                "compression.type": "producer",
            }
            topics.append(NewTopic(self.topic(name), PARTITIONS, copies, topic_configs=settings))
        answer = await admin.create_topics(topics)
        for topic, code, *text in answer.topic_errors:
            error = kafka_errors.for_code(code)
            if error is kafka_errors.TopicAlreadyExistsError:  # the other end was faster
                continue
            if error is not kafka_errors.NoError:
                reason = (text[0] if text else None) or _text(error())
                raise StoreError(f"Kafka at {self}: can't create topic '{topic}': {reason}")
            created = {"topic": topic, "partitions": PARTITIONS, "copies": copies}
            log.info("topic created", extra=created)

    async def _check_ledger(self, admin: AIOKafkaAdminClient) -> None:
        topic = self.topic(LEDGER)
        query = ConfigResource(ConfigResourceType.TOPIC, topic, {"retention.ms": ""})
        (answer,) = await admin.describe_configs([query])
        for _, _, _, _, entries in answer.resources:
            for name, value, *_ in entries:  # none without permission to read them
                if name == "retention.ms" and 0 <= int(value) < MIN_LEDGER_MS:
                    days = f"{int(value) / DAY_MS:.3g}"
                    log.warning(
                        "retention of the ledger's topic is too short",
                        extra={"topic": topic, "days": days},
                    )

    @asynccontextmanager
    async def opening(self) -> AsyncIterator[list[str]]:
        """Yield ``servers``, and translate errors while connecting.  Raises ``StoreError``."""
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                yield await self.reach()
        except (TimeoutError, kafka_errors.KafkaConnectionError):
            raise Unreachable(
                f"Kafka at {self} accepts connections but does not answer:"
                " is it a Kafka broker, and does it run normally?"
            ) from None
        except kafka_errors.NodeNotReadyError:
            raise Unreachable(
                f"Kafka at {self} answers, but not at the address that it advertises:"
                " check the broker's advertised.listeners"
            ) from None
        except KafkaError as error:
            raise self.explain(error) from error

    def explain(self, error: BaseException, topic: str | None = None) -> BackendError:
        """Translate the library's error into one line."""
        where = f"Kafka at {self}"
        about = f": topic '{topic}'" if topic else ""
        match error:
            case kafka_errors.MessageSizeTooLargeError() | kafka_errors.RecordListTooLargeError():
                return RecordError(f"{where}{about}: the record is too large")
            case kafka_errors.UnknownTopicOrPartitionError():
                return StoreError(f"{where}{about or ': a topic'} does not exist")
            case kafka_errors.TopicAuthorizationFailedError():
                return StoreError(f"{where}{about or ': a topic'} may not be used by us")
            case (
                kafka_errors.NotEnoughReplicasError()
                | kafka_errors.NotEnoughReplicasAfterAppendError()
            ):
                return StoreError(f"{where}{about} has too few in-sync replicas")
            case (
                TimeoutError()
                | kafka_errors.KafkaTimeoutError()
                | kafka_errors.RequestTimedOutError()
            ):
                return Unreachable(f"{where} does not answer")
            case kafka_errors.KafkaConnectionError() | kafka_errors.NodeNotReadyError():
                return Unreachable(f"{where} can't be reached: is it running?")
            case _:
                return StoreError(f"{where}{about}: {_text(error)}")


def cluster_at(url: str, setting: str) -> Cluster:
    """Parse a URL.  Raises ``BackendError``; the text names ``setting``."""
    try:
        return Cluster.parse(url)
    except ValueError as error:
        raise BackendError(f"{setting} = '{without_password(url)}': {error}") from error


def _broker(text: str) -> tuple[str, int]:
    if text.startswith("["):
        host, mark, rest = text[1:].partition("]")
        if not mark or (rest and not rest.startswith(":")):
            raise ValueError(f"'{text}' is not host:port")
        port = rest[1:] if rest else str(DEFAULT_PORT)
    else:
        host, mark, port = text.partition(":")
        port = port if mark else str(DEFAULT_PORT)
    if not host:
        raise ValueError("a host is missing: kafka://host:port,host:port")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError(f"'{port}' is not a port (host {host}): a number up to 65535")
    return host, int(port)


def _prefix(query: str) -> str:
    given = dict(parse_qsl(query, keep_blank_values=True))
    prefix = given.pop("prefix", "")
    if given:
        raise ValueError(f"unknown option '{next(iter(given))}': only ?prefix= is known")
    if len(prefix) > 100 or not _NAME.fullmatch(prefix):
        raise ValueError("prefix may have up to 100 letters, digits, '.', '_' and '-'")
    return prefix


async def _connect(host: str, port: int) -> str | None:
    """Return why a connection fails; None if it does not."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return "no answer"
    except socket.gaierror as error:
        return f"{host}: {(error.strerror or str(error)).lower()}"
    except OSError as error:
        return os.strerror(error.errno).lower() if error.errno else str(error)
    writer.close()
    return None


def _text(error: BaseException) -> str:
    described = getattr(error, "description", None)
    return str(described or str(error) or type(error).__name__).rstrip(".")
