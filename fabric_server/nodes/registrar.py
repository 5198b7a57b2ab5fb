"""Decides whether a node that presents its certificate may register."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Callable
from time import monotonic, time
from typing import Any, NamedTuple, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fabric_server.nodes.key_holders import KeyHolders
from fabric_server.storage.rows import NodeRow
from protocol import messages
from protocol.aio.tls import has_expired
from protocol.errors import Code
from protocol.messages import Register

log = logging.getLogger("fabric.links")

EXPIRED = (
    "this node's certificate has expired, because it was offline for too long: if the server's "
    "clock is right, ask the operator for a new invitation and join again with --replace"
)
"""Sent to a node, which tries again: the server's clock may be wrong for a while."""
CONTESTED = (
    "two machines use this node's key, and the server serves neither until its operator decides: "
    "if you copied this node's directory or disk, remove one of the copies and tell the operator "
    "('fabric-server nodes settle'); if you did not, tell the operator that the key was stolen "
    "('fabric-server nodes revoke', and a new invitation)"
)
"""Sent to a node, which tries again: it is admitted once the operator has decided."""
REPLACED = (
    "this node's key was replaced by a newer one: if an old backup of its directory was restored, "
    "ask the operator for a new invitation and join again with --replace; if not, tell the "
    "operator that the key was copied"
)
UNKNOWN = "this node is unknown to the server: join it again with a new invitation"
REVOKED = "this node was revoked"


class Store(Protocol):
    async def node(self, id: str) -> NodeRow | None: ...
    async def next_epoch(self, node_id: str) -> int | None: ...
    async def confirm_node_key(self, id: str, key_sha256: bytes) -> None: ...
    async def contest_node(self, id: str, at: float, addresses: str) -> None: ...


class Presented(NamedTuple):
    """A node's certificate, which TLS has verified, and its address."""

    node_id: str
    certificate: dict[str, Any]
    """In the form of ``getpeercert()``."""
    key_sha256: bytes
    """SHA-256 of the certificate's SubjectPublicKeyInfo (DER)."""
    address: str
    """The IP address that the node connects from."""


class Admitted(NamedTuple):
    row: NodeRow
    epoch: int


class Refusal(NamedTuple):
    code: Code
    reason: str
    again: bool = True


OnRegistered = Callable[[str, int, str, str], None]
"""Takes a node's id, its epoch, its instance and its address."""


class Registrar:
    """Admits nodes: the known ones, not too often, and one holder of each key."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], float] = time,
        now: Callable[[], float] = monotonic,
    ) -> None:
        """``clock`` gives Unix seconds, ``now`` monotonic ones."""
        self.conflicts = 0
        """Times that two holders of one key were noticed."""
        self.replaced_keys = 0
        """Registrations with keys that were replaced by newer ones."""
        self.on_registered: OnRegistered = lambda node_id, epoch, instance, address: None
        """Called for each node that has registered."""
        self._store = store
        self._holders = KeyHolders()
        self._clock = clock
        self._now = now

    async def admit(self, presented: Presented, register: Register) -> Admitted | Refusal:
        """Decide, and give the registration its epoch.  Raises BackendError."""
        if register.version != messages.VERSION:
            return Refusal(
                Code.OBSOLETE,
                f"protocol version {register.version} is not supported, only {messages.VERSION}:"
                " update fabric-client",
                again=False,
            )
        node_id = presented.node_id
        if node_id and (wait := self._holders.wait(node_id, self._now())):
            return Refusal(Code.CALM, f"this node registers too often: try again in {wait:.0f} s")
        row = await self._store.node(node_id) if node_id else None
        if has_expired(presented.certificate, self._clock()):
            return Refusal(Code.UNAUTHORISED, EXPIRED)
        if row is None:
            return Refusal(Code.UNAUTHORISED, UNKNOWN, again=False)
        if row.revoked_at is not None:
            return Refusal(Code.UNAUTHORISED, REVOKED, again=False)
        if row.contested_at is not None or await self._is_contested(row, presented, register):
            return Refusal(Code.UNAUTHORISED, CONTESTED)
        if not await self._is_current(row, presented):
            self.replaced_keys += 1
            log.warning(
                "a node came with a key that was replaced by a newer one",
                extra={"node": node_id, "label": row.name, "address": presented.address},
            )
            return Refusal(Code.UNAUTHORISED, REPLACED, again=False)
        epoch = await self._store.next_epoch(node_id)
        if epoch is None:
            return Refusal(Code.UNAUTHORISED, REVOKED, again=False)
        return Admitted(row, epoch)

    def note_elsewhere(self, node_id: str, instance: str, address: str) -> None:
        """Remember a registration with another worker, which has decided on it."""
        self._holders.register(node_id, instance, address, self._now())

    def forget(self, node_id: str) -> None:
        """Begin anew with a node for whose key two holders were noticed."""
        self._holders.forget(node_id)

    async def _is_contested(self, row: NodeRow, presented: Presented, register: Register) -> bool:
        addresses = self._holders.register(
            row.id, register.instance, presented.address, self._now()
        )
        if addresses is None:
            return False
        self.conflicts += 1
        text = " and ".join(dict.fromkeys(addresses))
        log.error(
            "two machines use the key of one node: neither gets requests until you decide, with "
            "'fabric-server nodes revoke' if the key was stolen, else with 'nodes settle'",
            extra={"node": row.id, "label": row.name, "addresses": text},
        )
        await self._store.contest_node(row.id, self._clock(), text)
        return True

    async def _is_current(self, row: NodeRow, presented: Presented) -> bool:
        """Return whether the key is the node's; the next one replaces the one before by its use."""
        key = presented.key_sha256
        if secrets.compare_digest(key, row.public_key_sha256):
            return True
        if row.next_key_sha256 is None or not secrets.compare_digest(key, row.next_key_sha256):
            return False
        await self._store.confirm_node_key(row.id, key)
        log.info("node key replaced", extra={"node": row.id, "label": row.name})
        return True


def node_id_of(certificate: dict[str, Any]) -> str:
    """Return the common name of a verified peer certificate; empty when there is none."""
    for part in certificate.get("subject", ()):
        for name, value in part:
            if name == "commonName":
                return str(value)
    return ""


def key_sha256_of(certificate: bytes) -> bytes:
    """Return the hash of the public key of a verified certificate (DER); empty without one."""
    if not certificate:
        return b""
    key = x509.load_der_x509_certificate(certificate).public_key()
    return hashlib.sha256(
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).digest()
