"""A server with the kernel's guard, and clients of several addresses: two namespaces and a veth.

with GuardLab() as lab:
    lab.install(rate=10, burst=20)
    flood = lab.flood(lab.attacker)
    alone = lab.connect(lab.victim, 50)     # seconds that each connection took, sorted
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from ipaddress import ip_network
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fabric_server.net.guard_rules import GuardRules, GuardStatus, install_text, parse_status
from fabric_server.net.kernel_guard import LIST
from tests.lab.netlab import NAME, NatLab, end, in_namespace, run

PORT = 18080
LISTEN = """
import socket, sys
listener = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, backlog=1024,
                                dualstack_ipv6=True)
print("ready", flush=True)
while True:
    listener.accept()[0].close()
"""
CONNECT = """
import json, socket, sys, time
server, port, source, count = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
patience = float(sys.argv[5])
took = []
for _ in range(count):
    begin = time.perf_counter()
    try:
        socket.create_connection((server, port), patience, (source, 0)).close()
    except OSError:
        took.append(-1.0)
        break
    took.append(time.perf_counter() - begin)
print(json.dumps(took))
"""
FLOOD = """
import socket, sys, time
server, port, source, rate = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
family = socket.AF_INET6 if ":" in source else socket.AF_INET
print("ready", flush=True)
while True:
    with socket.socket(family) as one:
        one.setblocking(False)
        one.bind((source, 0))
        one.connect_ex((server, port))
        time.sleep(1 / rate)
"""
_numbers = itertools.count()


class GuardLab:
    """Stands while entered; processes started by its methods end with it."""

    server_address, attacker, victim = "10.78.1.1", "10.78.1.2", "10.78.1.3"
    server_address6 = "fd78::1"
    attackers6 = ("fd78::1:0:0:0:2", "fd78::1:0:0:0:3")
    """Two of one /64."""
    victim6 = "fd78::2:0:0:0:2"

    def __init__(self) -> None:
        name = f"{NAME}-{os.getpid()}-guard{next(_numbers)}"
        self.server, self.clients = f"{name}-server", f"{name}-clients"
        self._stack = ExitStack()

    @staticmethod
    @functools.cache
    def why_not() -> str | None:
        """Return why labs cannot stand on this machine; None when they can."""
        return NatLab.why_not()

    def __enter__(self) -> Self:
        with self._stack:
            for namespace in (self.server, self.clients):
                run(["ip", "netns", "add", namespace])
                self._stack.callback(run, ["ip", "netns", "del", namespace])
                run(["ip", "-n", namespace, "link", "set", "lo", "up"])
            veth = ["link", "add", "api", "type", "veth", "peer", "name", "api", "netns"]
            run(["ip", "-n", self.server, *veth, self.clients])
            for namespace, *addresses in (
                (self.server, f"{self.server_address}/24", f"{self.server_address6}/32"),
                (
                    self.clients,
                    *(f"{one}/24" for one in (self.attacker, self.victim)),
                    *(f"{one}/32" for one in (*self.attackers6, self.victim6)),
                ),
            ):
                for one in addresses:
                    more = ["nodad"] if ":" in one else []
                    run(["ip", "-n", namespace, "address", "add", one, "dev", "api", *more])
                run(["ip", "-n", namespace, "link", "set", "api", "up"])
            self._begin(self.server, LISTEN, str(PORT))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stack.close()

    def install(self, *, rate: int = 50, burst: int = 250, trusted: Sequence[str] = ()) -> None:
        networks = tuple(map(ip_network, trusted))
        rules = GuardRules(ports=(PORT,), rate=rate, burst=burst, trusted=networks)
        self.on_server(["nft", "-f", "-"], install_text(rules))

    def status(self) -> GuardStatus:
        return parse_status(json.loads(self.on_server(LIST)))

    def guard(self, *words: str) -> Any:
        """Run ``fabric-server guard …`` at the server's place; return what it prints as JSON."""
        command = [sys.executable, "-m", "fabric_server", "guard", *words, "--json"]
        return json.loads(self.on_server(command))

    def on_server(self, command: Sequence[str], input: str | None = None) -> str:
        return run(in_namespace(self.server, command), input=input)

    def flood(self, source: str, rate: float = 1000) -> subprocess.Popen[bytes]:
        """Open connections from an address, one after the other, until the lab ends."""
        return self._begin(self.clients, FLOOD, self._to(source), str(PORT), source, str(rate))

    def connect(self, source: str, count: int, patience: float = 5.0) -> list[float]:
        """Return the seconds that connections from an address took, sorted; -1.0 is no answer."""
        words = [self._to(source), str(PORT), source, str(count), str(patience)]
        command = [sys.executable, "-c", CONNECT, *words]
        return sorted(json.loads(run(in_namespace(self.clients, command))))

    def is_dropped(self, source: str, count: int = 1) -> bool:
        """Return whether one of some connections from an address gets no answer."""
        return self.connect(source, count, 0.5)[0] < 0

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        end(process)

    def _to(self, source: str) -> str:
        return self.server_address6 if ":" in source else self.server_address

    def _begin(self, namespace: str, program: str, *words: str) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = subprocess.Popen(
            in_namespace(namespace, [sys.executable, "-c", program, *words]),
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        self._stack.callback(end, process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process


def p99(seconds: Sequence[float]) -> float:
    """Return the 99th percentile of sorted seconds; infinite if one got no answer."""
    if seconds[0] < 0:
        return float("inf")
    return seconds[min(len(seconds) - 1, int(len(seconds) * 0.99))]


def measure(count: int = 1000, rate: float = 2000) -> dict[str, float]:
    """Return a user's p99 of connecting alone and beside a flood from another address, in seconds,
    and how many connections of the flood the kernel has dropped."""
    with GuardLab() as lab:
        lab.install(rate=10, burst=20, trusted=[lab.victim])
        alone = p99(lab.connect(lab.victim, count))
        flood = lab.flood(lab.attacker, rate)
        beside = p99(lab.connect(lab.victim, count))
        lab.stop(flood)
        dropped = lab.status().dropped_over_rate
    return {"alone": alone, "beside": beside, "dropped": dropped}


if __name__ == "__main__":
    found = measure()
    print(json.dumps({**found, "factor": found["beside"] / found["alone"]}))
