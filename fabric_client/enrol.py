"""Joining: from a token to an identity."""

from __future__ import annotations

import hashlib
import hmac
import platform as machine
import ssl
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fabric_client.identity import Facts, Identity, explain, request_for, write
from protocol import join as joining
from protocol.join import Enrol, Enrolled, Token
from protocol.names import SERVER_NAME

PATIENCE = aiohttp.ClientTimeout(total=20.0)


class JoinProblem(Exception):
    """Joining did not work; the message says why and what to do."""


async def join(text: str, directory: Path, *, name: str, replace: bool = False) -> Identity:
    """Make a key pair here, have it certified by the server that the token names, and keep both.

    Raises ``BadToken`` or ``JoinProblem``; nothing is written then.
    """
    token = joining.parse(text)
    if (directory / "node.json").exists() and not replace:
        raise JoinProblem(
            f"This machine has joined already ({directory}): "
            "use --replace to join as a new node, or --data for a second one."
        )
    ca = await _fetch_ca(token)
    key = ec.generate_private_key(ec.SECP256R1())
    enrolled = await _enrol(token, ca, key, name)
    _keep(directory, token, ca, key, enrolled)
    return Identity.load(directory)


def _keep(
    directory: Path, token: Token, ca: str, key: ec.EllipticCurvePrivateKey, enrolled: Enrolled
) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    facts = Facts(
        enrolled.node_id, token.host, token.api_port, enrolled.control_port, enrolled.proxy_port
    )
    write(directory / "node.key", pem.decode("ascii"), secret=True)
    write(directory / "node.pem", enrolled.certificate)
    write(directory / "ca.pem", ca)
    write(directory / "node.json", msgspec.json.encode(facts).decode("ascii"))


async def _fetch_ca(token: Token) -> str:
    """The authority's certificate, believed because the token has its hash."""
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname = False
    anyone.verify_mode = ssl.CERT_NONE
    anyone.minimum_version = ssl.TLSVersion.TLSv1_3
    status, body = await _ask(token, anyone, "GET", joining.CA_PATH)
    ca = body.decode("ascii", "replace")
    try:
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(ca)).digest()
    except ValueError:
        where = _where(token)
        raise JoinProblem(
            f"What answers at {where} ({status}) is no Fabric server: check the address."
        ) from None
    if not hmac.compare_digest(digest, token.ca_sha256):
        raise JoinProblem(
            f"The server at {_where(token)} is not the one that made this token, or someone is in "
            "between. Nothing was sent to it. Ask its operator for a new token."
        )
    return ca


async def _enrol(token: Token, ca: str, key: ec.EllipticCurvePrivateKey, name: str) -> Enrolled:
    verified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    verified.minimum_version = ssl.TLSVersion.TLSv1_3
    verified.load_verify_locations(cadata=ca)
    enrol = Enrol(
        secret=joining.to_text(token.secret),
        csr=request_for(key),
        name=name,
        platform=f"{machine.system()} {machine.machine()}",
        version=version("fabric"),
    )
    status, body = await _ask(
        token, verified, "POST", joining.ENROL_PATH, data=msgspec.json.encode(enrol)
    )
    if status != 200:
        raise JoinProblem(_refusal(status, body))
    try:
        return msgspec.json.decode(body, type=Enrolled)
    except msgspec.MsgspecError as error:
        raise JoinProblem(f"The server's answer can't be read ({error}).") from None


async def _ask(
    token: Token, context: ssl.SSLContext, method: str, path: str, **more: Any
) -> tuple[int, bytes]:
    host = f"[{token.host}]" if ":" in token.host else token.host
    url = f"https://{host}:{token.api_port}{path}"
    try:
        async with (
            aiohttp.ClientSession(timeout=PATIENCE) as session,
            session.request(
                method, url, ssl=context, server_hostname=SERVER_NAME, **more
            ) as answer,
        ):
            return answer.status, await answer.content.read(joining.LONGEST_BODY)
    except aiohttp.ClientConnectorCertificateError as error:
        raise JoinProblem(f"{_where(token)}: {explain(error.certificate_error)}.") from None
    except aiohttp.ClientConnectorError as error:
        raise JoinProblem(
            f"The server can't be reached at {_where(token)}: {explain(error.os_error)}."
        ) from None
    except (aiohttp.ClientError, TimeoutError) as error:
        words = str(error) or "no answer in time"
        raise JoinProblem(f"The server at {_where(token)} did not answer: {words}.") from None


def _where(token: Token) -> str:
    return f"{token.host}:{token.api_port}"


def _refusal(status: int, body: bytes) -> str:
    try:
        error = msgspec.json.decode(body)["error"]
        message, code = str(error["message"]), str(error["code"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return f"The server refused ({status})."
    if code.startswith("invitation_"):
        return f"{message} Ask the operator for a new one ('fabric-server nodes invite')."
    return message
