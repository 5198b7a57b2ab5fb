"""A node at home and a server far away, on one machine: network namespaces with NAT and delay.

    node 10.77.1.2 ──veth── 10.77.1.1 router 10.77.9.1 ══delay══ 10.77.9.2 server

The router masquerades what leaves the home and lets nothing in that was not asked for.

    with NatLab(delay_ms=25) as lab:                       # a round trip takes 50 ms
        server = lab.server_exec([sys.executable, "-m", "fabric_server", …])
        node = lab.node_exec([sys.executable, "-m", "fabric_client", …])

Everything is named after this process, so labs of several processes can stand side by side, and
whatever a killed one left is removed by the next.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NAME = "fabric-lab"
STOP_SECONDS = 5
RULES = """
table ip lab {
  chain leaving { type nat hook postrouting priority srcnat; oifname "wan" masquerade; }
  chain passing {
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    iifname "lan" accept
  }
}
"""
_numbers = itertools.count()


class NatLab:
    """Stands while entered; processes started by its methods end with it."""

    node_address = "10.77.1.2"
    router_address = "10.77.9.1"
    """What the server sees the node as."""
    server_address = "10.77.9.2"

    def __init__(self, delay_ms: float = 25, loss_percent: float = 0) -> None:
        """`delay_ms` and `loss_percent` are those of the long link, each way."""
        self.delay_ms = delay_ms
        self.loss_percent = loss_percent
        name = f"{NAME}-{os.getpid()}-{next(_numbers)}"
        self.node, self.router, self.server = (f"{name}-{w}" for w in ("node", "router", "server"))
        self._stack = ExitStack()

    @staticmethod
    @functools.cache
    def why_not() -> str | None:
        """Why labs cannot stand on this machine; None when they can.  Installs tools as root."""
        if sys.platform != "linux":
            return "network namespaces are Linux's"
        if os.geteuid() != 0:
            return "network namespaces need root"
        if missing := install_tools():
            return f"{missing} missing; install iproute2 and nftables"
        if not Path("/dev/net/tun").exists():
            return "/dev/net/tun is missing"
        try:
            with NatLab():
                return None
        except (OSError, RuntimeError) as problem:
            return str(problem)

    def node_exec(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Starts a program at the node's place; `options` are Popen's.  The pid is its own."""
        return self._start(in_namespace(self.node, command), **options)

    def server_exec(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Starts a program at the server's place; `options` are Popen's."""
        return self._start(in_namespace(self.server, command), **options)

    def node_run(self, command: Sequence[str], timeout: float = 60) -> str:
        """What a program prints at the node's place; RuntimeError when it fails."""
        return run(in_namespace(self.node, command), timeout=timeout)

    def server_run(self, command: Sequence[str], timeout: float = 60) -> str:
        """What a program prints at the server's place; RuntimeError when it fails."""
        return run(in_namespace(self.server, command), timeout=timeout)

    def __enter__(self) -> Self:
        remove_orphaned_spools()
        with self._stack:
            for namespace in (self.node, self.router, self.server):
                run(["ip", "netns", "add", namespace])
                self._stack.callback(run, ["ip", "netns", "del", namespace])
                run(["ip", "-n", namespace, "link", "set", "lo", "up"])
            self._connect_home()
            self._connect_far()
            run(in_namespace(self.router, ["nft", "-f", "-"]), input=RULES)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _connect_home(self) -> None:
        home = ["link", "add", "lan", "type", "veth", "peer", "name", "lan", "netns", self.router]
        run(["ip", "-n", self.node, *home])
        self._address(self.node, "lan", self.node_address)
        self._address(self.router, "lan", "10.77.1.1")
        run(["ip", "-n", self.node, "route", "add", "default", "via", "10.77.1.1"])
        forward = "echo 1 > /proc/sys/net/ipv4/ip_forward"
        run(in_namespace(self.router, ["sh", "-c", forward]))

    def _connect_far(self) -> None:
        link = [sys.executable, str(Path(__file__).with_name("delaylink.py"))]
        link += [f"{self.router}:wan", f"{self.server}:wan", "--delay-ms", str(self.delay_ms)]
        link += ["--loss-percent", str(self.loss_percent)]
        process = self._start(link, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError("the delay link did not start; the reason is above")
        self._address(self.router, "wan", self.router_address)
        self._address(self.server, "wan", self.server_address)

    def _address(self, namespace: str, device: str, address: str) -> None:
        run(["ip", "-n", namespace, "address", "add", f"{address}/24", "dev", device])
        run(["ip", "-n", namespace, "link", "set", device, "up"])

    def _start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = subprocess.Popen(command, **options)
        self._stack.callback(end, process)
        return process


def in_namespace(namespace: str, command: Sequence[str]) -> list[str]:
    return ["ip", "netns", "exec", namespace, *command]


def run(command: Sequence[str], *, input: str | None = None, timeout: float = 60) -> str:
    done = subprocess.run(command, input=input, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            pipe.close()


def remove_orphaned_spools() -> None:
    """Deletes the namespaces of labs whose process is no more."""
    for namespace, pid in re.findall(rf"^({NAME}-(\d+)-\S+)", run(["ip", "netns", "list"]), re.M):
        if not Path(f"/proc/{pid}").exists():
            run(["ip", "netns", "del", namespace])


def install_tools() -> str:
    """Names the tools that are missing and could not be installed."""
    tools = {"ip": "iproute2", "nft": "nftables"}
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing and shutil.which("apt-get"):
        install = ["apt-get", "install", "-qy", "--no-install-recommends"]
        for command in (["apt-get", "update", "-q"], install + [tools[t] for t in missing]):
            subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    return ", ".join(tool for tool in missing if not shutil.which(tool))
