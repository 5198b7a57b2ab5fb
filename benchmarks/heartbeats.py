"""What many idle nodes cost the server: links over TLS that heartbeat, each with a certificate.

    python -m benchmarks.heartbeats [NODES] [SECONDS]

With PostgreSQL, Redis and Kafka, as an operator with so many nodes would use.  The nodes are links
only, in one process: no engines, no tunnels.  The result is the server's CPU and memory once all
are registered.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from random import Random

import psutil
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from benchmarks.consumer import heartbeats
from benchmarks.processes import Site, raise_file_limit
from benchmarks.systems import FullStack
from fabric_server.pki.ca import key_pem, public_key_sha256, read_request
from fabric_server.pki.certificates import Certificates
from protocol.aio.link import LinkDriver
from protocol.aio.tls import dial
from protocol.control.link import LinkClosed
from protocol.messages import VERSION, Heartbeat, Message, Register, Registered
from protocol.names import CONTROL_ALPN
from sql.connect import open_database

NODES = 10_000
SECONDS = 60.0
BEAT_SECONDS = 15.0
AT_ONCE = 32


class IdleNode:
    """Registers, and from then on beats as the server asked."""

    def __init__(self, rng: Random, beat: Heartbeat) -> None:
        self.registered = asyncio.get_running_loop().create_future()
        self._rng = rng
        self._beat = beat
        self._seq = 0

    def on_message(self, link: LinkDriver, message: Message) -> None:
        if isinstance(message, Registered):
            self.registered.set_result(None)
            # Spread over the time, as those of nodes that were not started together are.
            first = self._rng.uniform(0, message.heartbeat_seconds)
            self._later(link, first, message.heartbeat_seconds)

    def on_closed(self, link: LinkDriver, closed: LinkClosed) -> None:
        if not self.registered.done():
            self.registered.set_exception(RuntimeError(f"refused: {closed.reason}"))

    def _later(self, link: LinkDriver, delay: float, every: float) -> None:
        asyncio.get_running_loop().call_later(delay, self._beats, link, every)

    def _beats(self, link: LinkDriver, every: float) -> None:
        if not link.link.closed:
            self._seq += 1
            link.send(Heartbeat(**{**self._fields(), "seq": self._seq, "at": time.time()}))
            self._later(link, every, every)

    def _fields(self) -> dict[str, object]:
        return {name: getattr(self._beat, name) for name in self._beat.__struct_fields__}


class Identities:
    """Certificates that the server's own CA signed, all for one key: what differs is the name."""

    def __init__(self, data: Path, folder: Path) -> None:
        self._authority = Certificates.open(data / "certs", now=time.time()).authority
        self._key = ec.generate_private_key(ec.SECP256R1())
        request = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(
            self._key, hashes.SHA256()
        )
        self._request = read_request(request.public_bytes(Encoding.PEM).decode())
        self.key_sha256 = public_key_sha256(self._request)
        self._ca = data / "certs" / "ca.pem"
        self._key_file = folder / "key.pem"
        self._key_file.write_text(key_pem(self._key))
        self._certificate_file = folder / "cert.pem"

    def context(self, node: str) -> ssl.SSLContext:
        text = self._authority.sign_node(self._request, node, time.time(), 86_400.0)
        self._certificate_file.write_text(text)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(self._ca)
        context.load_cert_chain(self._certificate_file, self._key_file)
        context.set_alpn_protocols([CONTROL_ALPN])
        return context


async def make_nodes(url: str, count: int, key_sha256: bytes) -> None:
    database = await open_database(url)
    async with database.transaction() as session:
        await session.execute(
            "INSERT INTO nodes (id, name, public_key_sha256, created_at, epoch, platform, version,"
            " revision) SELECT 'node_' || lpad(to_hex(n), 16, '0'), 'bench', $1, 0, 0, '', '',"
            f" 0 FROM generate_series(0, {count - 1}) AS n",
            key_sha256,
        )
    await database.close()


async def join_all(identities: Identities, port: int, count: int) -> None:
    rng = Random(1)
    (record,) = heartbeats(1, time.time())
    numbers = iter(range(count))
    loop = asyncio.get_running_loop()

    async def join_some() -> None:
        for number in numbers:
            node = IdleNode(rng, record.heartbeat)
            context = identities.context(f"node_{number:016x}")
            link = await dial(
                lambda node=node: LinkDriver(node, loop, rng=rng), "127.0.0.1", port, context
            )
            link.send(Register(VERSION, "0", "bench", "bench", []))
            await node.registered

    await asyncio.gather(*(join_some() for _ in range(AT_ONCE)))


def main(count: int, seconds: float) -> None:
    raise_file_limit()
    with Site() as site:
        stack = FullStack()
        environ = stack.environ(site)
        server = psutil.Process(stack.start_server(site, environ).pid)
        uvloop.run(measure(environ, server, count, seconds))


async def measure(
    environ: Mapping[str, str], server: psutil.Process, count: int, seconds: float
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        identities = Identities(Path(environ["FABRIC_SERVER_DATA"]), Path(folder))
        await make_nodes(environ["FABRIC_SERVER_STORE"], count, identities.key_sha256)
        bare = server.memory_info().rss
        began = time.perf_counter()
        await join_all(identities, int(environ["FABRIC_SERVER_CONTROL_PORT"]), count)
        joined = time.perf_counter() - began
        await asyncio.sleep(BEAT_SECONDS)  # each has beaten once
        before, at = server.cpu_times(), time.perf_counter()
        await asyncio.sleep(seconds)
        after, spent = server.cpu_times(), time.perf_counter() - at
        cpu = (after.user + after.system - before.user - before.system) / spent
        grown = server.memory_info().rss - bare
        print(
            f"{count:,} nodes, a heartbeat in {BEAT_SECONDS:g} s: {cpu:.1%} of a core,"
            f" {cpu / count * BEAT_SECONDS * 1e6:.0f} µs for one,"
            f" {grown / count / 1024:.0f} KiB a node; all joined in {joined:.0f} s"
        )


if __name__ == "__main__":
    os.environ.setdefault("FABRIC_SERVER_HEARTBEAT_SECONDS", str(BEAT_SECONDS))
    given = [float(word) for word in sys.argv[1:]]
    main(int(given[0]) if given else NODES, given[1] if len(given) > 1 else SECONDS)
