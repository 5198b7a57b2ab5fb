"""URLs of Kafka."""

from __future__ import annotations

import pytest

from consumer.kafka_source import KafkaSource
from fabric_server.storage.kafka import KafkaSink
from ledger.kafka_cluster import Cluster
from runtime.errors import BackendError


@pytest.mark.parametrize(
    ("url", "servers", "prefix"),
    [
        ("kafka://host", ["host:9092"], ""),
        ("kafka://a:1,b,c:65535", ["a:1", "b:9092", "c:65535"], ""),
        ("kafka://a, b:2/", ["a:9092", "b:2"], ""),
        ("kafka://[::1]:93,[fe80::2]", ["[::1]:93", "[fe80::2]:9092"], ""),
        ("kafka://host:1?prefix=blue.", ["host:1"], "blue."),
    ],
)
def test_addresses(url: str, servers: list[str], prefix: str) -> None:
    cluster = Cluster.parse(url)
    assert (cluster.servers, cluster.prefix) == (servers, prefix)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("kafka:host", "must begin with kafka://"),
        ("kafka://", "a host is missing"),
        ("kafka://a,,b", "a host is missing"),
        ("kafka://:9092", "a host is missing"),
        ("kafka://host:", "is not a port"),
        ("kafka://host:0", "is not a port"),
        ("kafka://host:65536", "is not a port"),
        ("kafka://host:x", "is not a port"),
        ("kafka://[::1", "is not host:port"),
        ("kafka://user:secret@host", "not supported yet"),
        ("kafka://host/topic", "'/topic'"),
        ("kafka://host?acks=0", "unknown option 'acks'"),
        ("kafka://host?prefix=a%20b", "prefix may have"),
    ],
)
async def test_addresses_that_are_wrong_are_said_to_be(url: str, said: str) -> None:
    for open in (KafkaSink.open, KafkaSource.open):
        with pytest.raises(BackendError, match=said) as told:
            await open(url, setting="bus")
        assert str(told.value).startswith("bus = 'kafka:")
        assert "secret" not in str(told.value)
