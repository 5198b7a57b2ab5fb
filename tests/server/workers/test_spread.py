"""Which worker has a connection: the least loaded one, or the one that a node names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from random import Random

import pytest

from fabric_server.net.client_hello import ClientHello
from fabric_server.workers.messages import Load
from fabric_server.workers.spread import connections, home, least_loaded
from protocol.names import CONTROL_ALPN, NAMED_ALPN, TUNNEL_ALPN, worker_name


class Seen:
    """A worker as the parent sees it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.loads: Mapping[str, Load] = {}
        self.handed: Counter[str] = Counter()

    def report(self, open: int) -> None:
        self.loads = {"public": Load(open, self.handed["public"])}


def test_a_burst_between_two_reports_is_spread_evenly() -> None:
    workers = [Seen(number) for number in range(3)]
    for _ in range(5000):
        worker = least_loaded(workers, "public")
        assert worker is not None
        worker.handed["public"] += 1
    counts = [one.handed["public"] for one in workers]
    assert max(counts) - min(counts) <= 1


def test_long_connections_do_not_pile_up_on_one_worker() -> None:
    rng = Random(7)
    workers = [Seen(number) for number in range(4)]
    open: dict[int, list[bool]] = {one.number: [] for one in workers}
    for turn in range(4000):
        worker = least_loaded(workers, "public")
        assert worker is not None
        worker.handed["public"] += 1
        open[worker.number].append(rng.random() < 0.1)  # one in ten stays
        if turn % 50 == 49:
            for one in workers:
                open[one.number] = [stays for stays in open[one.number] if stays]
                one.report(len(open[one.number]))
    counts = [connections(one, "public") for one in workers]
    assert max(counts) <= 1.2 * min(counts), counts


def test_without_workers_there_is_none() -> None:
    assert least_loaded(list[Seen](), "public") is None


@pytest.mark.parametrize(
    ("hello", "number"),
    [
        (None, 0),
        (ClientHello("", ()), 0),
        (ClientHello("server.fabric", (CONTROL_ALPN,)), 0),
        (ClientHello("server.fabric", (TUNNEL_ALPN,)), 0),
        (ClientHello("server.fabric", (CONTROL_ALPN, NAMED_ALPN)), None),
        (ClientHello(worker_name(3), (TUNNEL_ALPN,)), 3),
        (ClientHello("w3.server.fabric.example.org", (TUNNEL_ALPN,)), 0),
        (ClientHello("wx.server.fabric", (TUNNEL_ALPN,)), 0),
    ],
    ids=[
        "no TLS",
        "no name",
        "an older link",
        "an older tunnel",
        "a link",
        "a tunnel",
        "another domain",
        "no number",
    ],
)
def test_the_first_message_of_a_node_names_its_worker(
    hello: ClientHello | None, number: int | None
) -> None:
    assert home(hello) == number
