"""Probes a port of a server as its clients use it: by name, at each of its addresses, with TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import NamedTuple

from runtime.doctor import in_thread
from runtime.findings import Finding, ok
from runtime.http_proxy import HttpProxy, ProxyError, open_streams

CONNECT_SECONDS = 6.0
ANSWER_SECONDS = 1.5
"""Time for an answer; where none is due, time for a refusal to arrive."""
MAX_ANSWER = 65_536


class Target(NamedTuple):
    """A port, and what to say to it."""

    check: str
    """Name in the findings, such as ``proxy port``."""
    port: int
    context: ssl.SSLContext | None
    """Its TLS; None only connects."""
    server_name: str | None = None
    """The name that its certificate must have."""
    request: bytes = b""
    expected: str = ""
    """OpenSSL's name of an alert that is the right answer, as to one without a certificate."""


class Probed(NamedTuple):
    """Results of a probe, by address."""

    reached: tuple[str, ...]
    failures: tuple[tuple[str, BaseException], ...]
    answer: bytes
    """What one of those that were reached said, at most ``MAX_ANSWER`` bytes."""


async def resolve(host: str) -> list[str]:
    """Return all addresses of a name.  Raises OSError."""
    found = await in_thread(lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    return list(dict.fromkeys(str(info[4][0]) for info in found))


async def probe(addresses: Sequence[str], target: Target, proxy: HttpProxy | None = None) -> Probed:
    """Connect to the port at all addresses at once; every failure is part of the result."""
    results = await asyncio.gather(
        *(_one(address, target, proxy) for address in addresses), return_exceptions=True
    )
    reached, failures, answer = [], [], b""
    for address, result in zip(addresses, results, strict=True):
        if isinstance(result, bytes):
            reached.append(address)
            answer = answer or result
        elif isinstance(result, OSError | TimeoutError):
            failures.append((address, result))
        else:
            raise result
    return Probed(tuple(reached), tuple(failures), answer)


async def _one(address: str, target: Target, proxy: HttpProxy | None) -> bytes:
    async with asyncio.timeout(CONNECT_SECONDS):
        reader, writer = await open_streams(
            (address, target.port),
            proxy=proxy,
            tls=target.context,
            server_hostname=target.server_name,
        )
    try:
        if target.context is None:
            return b""
        writer.write(target.request)
        answer = bytearray()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                while len(answer) < MAX_ANSWER and (part := await reader.read(MAX_ANSWER)):
                    answer += part
        except TimeoutError:
            if target.request and not answer:
                raise
            return bytes(answer)  # all that it had to say
        except ssl.SSLError as error:
            if not target.expected or error.reason != target.expected:
                raise
            return b""
        if not answer:
            raise ConnectionResetError("closed without a word")
        return bytes(answer)
    finally:
        writer.transport.abort()


def judge(host: str, target: Target, probed: Probed, explain: Callable[..., str]) -> Finding:
    """Return the finding of a port; ``explain`` says what an error of TLS means."""
    where = f"{host}, port {target.port}"
    if not probed.failures:
        return ok(target.check, f"{where}, answers")
    address, error = probed.failures[0]
    code, what, remedy = _explained(target.port, error, explain)
    if probed.reached:
        return Finding(
            target.check,
            "warn",
            f"{where}, answers at {probed.reached[0]}, but not at {address}: {what}",
            "port_partly_reachable",
            f"{remedy}; or remove this address from the name's DNS entries",
        )
    return Finding(target.check, "FAIL", f"{where}: {what}", code, remedy)


def _explained(
    port: int, error: BaseException, explain: Callable[..., str]
) -> tuple[str, str, str]:
    """Return the code, what happened, and what to do."""
    if isinstance(error, ProxyError):
        return error.code, error.what, error.remedy
    if isinstance(error, ConnectionRefusedError):
        remedy = (
            "nothing listens there: start the server, or correct the port; a router in front of "
            "the server must forward it"
        )
        return "port_refused", "connection refused", remedy
    if isinstance(error, ssl.SSLError):
        return "port_wrong", explain(error), "check the address, the port and the certificates"
    if isinstance(error, ConnectionError):
        remedy = "a firewall, a proxy or the server closes connections: allow this port in it"
        return "port_closed", "the connection was closed", remedy
    what = "no answer" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
    remedy = (
        f"a firewall drops it: allow TCP {port} in the firewalls of the server and its provider "
        f"(ufw allow {port}/tcp), and outgoing in the network of the node"
    )
    return "port_silent", what, remedy
