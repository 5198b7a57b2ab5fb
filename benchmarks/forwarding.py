"""Cost of forwarding a request to the server that holds the node.

    python -m benchmarks.forwarding [--rounds 3] [--seconds 4] [--json]

Two servers are joined as workers of one machine are, one of them has the node.  The same load goes
to one and to the other in turn, in one run.  Counted is the processor time of both servers'
processes alone, per request and per event of a stream; on two shared cores rates measure who
competes for them, and are printed all the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import psutil
import uvloop

from benchmarks.canned import MODEL
from benchmarks.load import PATH, Tally, ask, request_bytes
from benchmarks.processes import Site
from fabric_server.app import App
from fabric_server.config import Config
from tests.keys import mint_with

EDGE, HOME = "edge", "home"
CONCURRENCY = 32
GOALS = {"request": 1.67, "event": 1.43}
_HEAD_END = b"\r\n\r\n"


async def serve(name: str, peer: str, fd: int, data: Path) -> None:
    """Run one of the servers until its input ends; print what the benchmark needs of it."""
    config = Config(
        data=data,
        host=("127.0.0.1",),
        address=("127.0.0.1",),
        control_port=0,
        proxy_port=0,
        public_port=0,
        api_port=0,
    )
    app = App(config, rng=Random())
    await app.start()
    key = mint_with("user", now=time.time(), account="benchmark")
    await app.backends.store.create_key(key.row)
    invitation = await app.control_plane.enrolment.invite("far", 3600.0)
    port = app.listeners["public"].port
    told = {"url": f"http://127.0.0.1:{port}", "key": key.text, "token": invitation.token}
    print(json.dumps(told), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    app.open_mesh(name, lambda lost: None).connect(peer, socket.socket(fileno=fd))
    await asyncio.to_thread(sys.stdin.read)
    await app.stop()


def start(site: Site) -> tuple[dict[str, psutil.Process], dict[str, Mapping[str, str]]]:
    """Start the engine, both servers and the node; return the servers' processes, and what they
    have told."""
    engine = [sys.executable, "-m", "benchmarks.mock_engine"]
    _, url = site.start_and_read(engine)
    ends = dict(zip((EDGE, HOME), socket.socketpair(), strict=True))
    processes, told = dict[str, psutil.Process](), dict[str, Mapping[str, str]]()
    servers = []
    for name, peer in ((EDGE, HOME), (HOME, EDGE)):
        fd, data = ends[name].fileno(), site.folder()
        words = ["--serve", name, peer, str(fd), str(data)]
        server = site.start(
            [sys.executable, "-m", "benchmarks.forwarding", *words],
            stdin=-1,
            stdout=-1,
            pass_fds=(fd,),
        )
        assert server.stdout is not None
        told[name] = json.loads(server.stdout.readline())
        processes[name] = psutil.Process(server.pid)
        ends[name].close()
        servers.append(server)
    for server in servers:
        assert server.stdin is not None
        server.stdin.write(b"both are ready\n")
        server.stdin.flush()
    node = site.folder() / "node"
    client = [sys.executable, "-m", "fabric_client"]
    site.run([*client, "join", told[HOME]["token"], "--data", node])
    site.start([*client, "run", "--data", node, "--engine", url, "--no-discover", "--slots", "256"])
    return processes, told


async def put(url: str, key: str, *, stream: bool, seconds: float) -> tuple[int, int]:
    """Put load on a server; return the requests that were answered, and their events."""
    host, _, port = url.removeprefix("http://").partition(":")
    request = request_bytes(url + PATH, ask(MODEL, stream), key)
    tally, until = Tally(), time.monotonic() + seconds

    async def one() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        while time.monotonic() < until:
            writer.write(request)
            head = await reader.readuntil(_HEAD_END)
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"{url} answered {head[:200]!r}")
            if b"content-length" in head.lower():
                length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))
            else:
                body = await reader.readuntil(b"\r\n0\r\n\r\n")
                tally.events += body.count(b"\ndata: ") + body.startswith(b"data: ")
                if b"[DONE]" not in body:
                    raise RuntimeError(f"{url} broke an answer off")
            tally.requests += 1
        writer.close()

    await asyncio.gather(*(one() for _ in range(CONCURRENCY)))
    return tally.requests, tally.events


def used(processes: Mapping[str, psutil.Process]) -> float:
    """Return the seconds of processor time of both servers so far."""
    times = [process.cpu_times() for process in processes.values()]
    return sum(one.user + one.system for one in times)


def measure(rounds: int, seconds: float) -> dict[str, Any]:
    costs: dict[tuple[str, str], list[float]] = {}
    with Site() as site:
        processes, told = start(site)
        for name, place in told.items():
            wait(place, name)
        for _ in range(rounds):
            for kind, stream in (("request", False), ("event", True)):
                for name in (HOME, EDGE):
                    place = told[name]
                    work = put(place["url"], place["key"], stream=stream, seconds=seconds)
                    before = used(processes)
                    requests, events = uvloop.run(work)
                    spent = used(processes) - before
                    count = events if stream else requests
                    total = costs.setdefault((kind, name), [0.0, 0.0, 0.0])
                    total[0] += spent
                    total[1] += count
                    total[2] += seconds
    figures: dict[str, Any] = {}
    for kind, goal in GOALS.items():
        own, forwarded = (costs[kind, name] for name in (HOME, EDGE))
        each = [total[0] / total[1] * 1e6 for total in (own, forwarded)]
        figures[kind] = {
            "own_us": round(each[0], 1),
            "forwarded_us": round(each[1], 1),
            "ratio": round(each[1] / each[0], 2),
            "goal": goal,
            "own_per_second": round(own[1] / own[2]),
            "forwarded_per_second": round(forwarded[1] / forwarded[2]),
        }
    return figures


def wait(place: Mapping[str, str], name: str) -> None:
    """Wait until a server answers for the node's model."""
    deadline = time.monotonic() + 30
    while True:
        try:
            uvloop.run(put(place["url"], place["key"], stream=False, seconds=0.1))
            return
        except (RuntimeError, OSError) as problem:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name} does not answer: {problem}") from problem
            time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.serve:
        name, peer, fd, data = flags.serve
        uvloop.run(serve(name, peer, int(fd), Path(data)))
        return
    figures = measure(flags.rounds, flags.seconds)
    if flags.json:
        print(json.dumps(figures))
        return
    for kind, figure in figures.items():
        print(
            f"{kind}: own {figure['own_us']} µs, forwarded {figure['forwarded_us']} µs, ratio"
            f" {figure['ratio']} (goal {figure['goal']}); {figure['own_per_second']} and"
            f" {figure['forwarded_per_second']} a second"
        )


if __name__ == "__main__":
    main()
