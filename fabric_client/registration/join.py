"""Joins a server: makes an identity from a join token."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import platform as machine
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from httptools import HttpParserError, HttpResponseParser

from fabric_client.config import host_name
from fabric_client.identity import (
    Facts,
    Identity,
    NotJoined,
    explain,
    remembered_models,
)
from fabric_client.key_files import KeyFiles, key_pem, request_for
from protocol import join as joining
from protocol.join import Enrol, Enrolled, Token
from protocol.names import SERVER_NAME
from runtime.files import write
from runtime.http_proxy import DIRECT, SECONDS, HttpProxy, Proxies, ProxyError, open_streams
from runtime.version import VERSION

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 20.0
MAX_ANSWER = 65_536
"""Maximum size of an answer with its headers, in bytes."""


class JoinError(Exception):
    """Joining failed; the message says why and what to do."""


async def join(
    text: str,
    directory: Path,
    *,
    name: str | None,
    models: Sequence[str] | None = None,
    replace: bool = False,
    proxies: Proxies = DIRECT,
) -> Identity:
    """Make a key pair here, have the server that the token names certify it, and store both.

    ``name`` is the owner's name for the node; None takes the invitation's.  ``models`` are the
    patterns of the models to offer, to be remembered.  ``replace`` gives up an identity that is
    there, but not its patterns.  ``proxies`` tell the way to the server.  Raises ``BadToken`` or
    ``JoinError``.
    """
    token = joining.parse(text)
    if (directory / "node.json").exists() and not replace:
        raise JoinError(
            f"This machine has already joined ({directory}): use --replace to join as a new node, "
            "or set --data to another directory for a second one."
        )
    way = _Way(token, proxies.for_host(token.host, token.api_port))
    ca = await _fetch_ca(way)
    key = ec.generate_private_key(ec.SECP256R1())
    enrolled = await _enrol(way, ca, key, name)
    try:
        facts = Facts(
            enrolled.node_id,
            token.host,
            token.api_port,
            enrolled.control_port,
            enrolled.proxy_port,
            enrolled.name or name or "",
            None if models is None else list(models),
        )
        _store(directory, facts, ca, key, enrolled.certificate)
        return Identity.load(directory)
    except OSError as error:
        raise JoinError(
            f"Can't write {error.filename or directory} ({error.strerror}), and the token is used "
            "up now. Ask for a new one, and set --data to a directory that is writable."
        ) from None
    except NotJoined as error:
        raise JoinError(f"The server's response is invalid. {error}") from None


def _store(
    directory: Path, facts: Facts, ca: str, key: ec.EllipticCurvePrivateKey, certificate: str
) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if facts.models is None:  # what its owner held back before is still held back
        facts = msgspec.structs.replace(facts, models=remembered_models(directory))
    KeyFiles(directory).drop_next()  # of the identity before
    write(directory / "node.key", key_pem(key), secret=True)
    write(directory / "node.pem", certificate)
    write(directory / "ca.pem", ca)
    write(directory / "node.json", msgspec.json.encode(facts).decode())


async def _fetch_ca(way: _Way) -> str:
    """Return the authority's certificate, trusted because the token has its hash."""
    token = way.token
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname = False
    anyone.verify_mode = ssl.CERT_NONE
    anyone.minimum_version = ssl.TLSVersion.TLSv1_3
    status, body = await way.request(anyone, "GET", joining.CA_PATH)
    try:
        der = ssl.PEM_cert_to_DER_cert(body.decode("ascii"))
    except ValueError:
        raise JoinError(
            f"{_address(token)} is no Fabric server (HTTP status {status}): check the address."
        ) from None
    if not hmac.compare_digest(hashlib.sha256(der).digest(), token.ca_sha256):
        raise JoinError(
            f"The server at {_address(token)} is not the one that made this token, or the "
            "connection is intercepted. Nothing was sent. Ask the operator for a new token."
        )
    # Only what was compared: the text may hold a second certificate, which the decoder skips and
    # OpenSSL would trust.
    return ssl.DER_cert_to_PEM_cert(der)


async def _enrol(way: _Way, ca: str, key: ec.EllipticCurvePrivateKey, name: str | None) -> Enrolled:
    token = way.token
    verified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    verified.minimum_version = ssl.TLSVersion.TLSv1_3
    verified.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python does itself from 3.13 on
    try:
        verified.load_verify_locations(cadata=ca)
    except ssl.SSLError as error:
        raise JoinError(
            f"The CA certificate of {_address(token)} is invalid ({error.reason})."
        ) from None
    enrol = Enrol(
        secret=joining.to_text(token.secret),
        csr=request_for(key),
        name=name or host_name(),
        named=name is not None,
        platform=f"{machine.system()} {machine.machine()}",
        version=VERSION,
    )
    body = msgspec.json.encode(enrol)
    try:
        status, answer = await way.request(verified, "POST", joining.ENROL_PATH, body)
    except _Lost:
        # The invitation may be used up by now, but it can be used again with the same key.
        status, answer = await way.request(verified, "POST", joining.ENROL_PATH, body)
    if status != 200:
        raise JoinError(_explain_refusal(token, status, answer))
    try:
        return msgspec.json.decode(answer, type=Enrolled)
    except (ValueError, RecursionError) as error:
        raise JoinError(f"The server's response is invalid ({error}).") from None


class _Lost(JoinError):
    """The connection ended before the answer was complete."""


class _Way(NamedTuple):
    """The server of a token, and the proxy on the way to it."""

    token: Token
    proxy: HttpProxy | None

    async def request(
        self, context: ssl.SSLContext, method: str, path: str, body: bytes = b""
    ) -> tuple[int, bytes]:
        """Send one request over a connection of its own; return the status and the body."""
        where = _address(self.token)
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: {SERVER_NAME}\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        async with self._connected(context, where) as (reader, writer):
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    writer.write(head.encode("ascii") + body)
                    return await _Answer().read(reader)
            except (OSError, EOFError, TimeoutError, HttpParserError) as error:
                reason = str(error) or "timed out"
                raise _Lost(f"The connection to {where} was lost: {reason}. Try again.") from None

    @asynccontextmanager
    async def _connected(
        self, context: ssl.SSLContext, where: str
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        address = self.token.host, self.token.api_port
        try:
            async with asyncio.timeout(CONNECT_SECONDS + (0.0 if self.proxy is None else SECONDS)):
                reader, writer = await open_streams(
                    address, proxy=self.proxy, tls=context, server_hostname=SERVER_NAME
                )
        except ProxyError as error:
            raise JoinError(f"The server can't be reached at {where}: {error}.") from None
        except ssl.SSLError as error:
            raise JoinError(f"{where}: {explain(error)}.") from None
        except TimeoutError:
            raise JoinError(
                f"The server can't be reached at {where}: timed out. A firewall or router may "
                "block its api_port."
            ) from None
        except (OSError, UnicodeError) as error:
            raise JoinError(
                f"The server can't be reached at {where}: {explain(error)}. The address is the "
                "token's; the server must be running, and its api_port open to this machine."
            ) from None
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


class _Answer:
    """One answer of HTTP/1.1, as its parser tells it."""

    def __init__(self) -> None:
        self._parser = HttpResponseParser(self)
        self._body = bytearray()
        self._done = False

    async def read(self, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        """Return the status and the body.  Raises OSError, EOFError or HttpParserError."""
        total = 0
        # One byte over the limit makes what is too long unreadable rather than cut.
        while not self._done and len(self._body) <= joining.LONGEST_BODY:
            data = await reader.read(65_536)
            total += len(data)
            if not data or total > MAX_ANSWER:
                raise EOFError("it closed the connection" if not data else "too long an answer")
            self._parser.feed_data(data)
        return self._parser.get_status_code(), bytes(self._body)

    def on_body(self, data: bytes) -> None:
        self._body += data[: joining.LONGEST_BODY + 1 - len(self._body)]

    def on_message_complete(self) -> None:
        self._done = True


def _address(token: Token) -> str:
    host = f"[{token.host}]" if ":" in token.host else token.host
    return f"{host}:{token.api_port}"


def _explain_refusal(token: Token, status: int, body: bytes) -> str:
    try:
        error = msgspec.json.decode(body)["error"]
        message, code = str(error["message"]), str(error["code"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return f"{_address(token)} is no Fabric server (HTTP status {status})."
    if code.startswith("invitation_"):
        return f"{message} Ask the operator for a new one ('fabric-server nodes invite')."
    return message
