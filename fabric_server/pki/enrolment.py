"""Enrolment of nodes: a one-time invitation, then a certificate that is renewed for ever."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Awaitable, Callable
from time import time
from typing import NamedTuple, Protocol

import msgspec
from aiohttp import web

from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.pki.ca import BadRequest, public_key_sha256, read_request
from fabric_server.pki.certificates import Certificates
from fabric_server.storage.rows import InvitationRow, NodeRow, Redeemed
from protocol import join
from protocol.join import Enrol, Enrolled, Token
from runtime.errors import BackendError

log = logging.getLogger("fabric.enrolment")


class Store(Protocol):
    async def create_invitation(self, invitation: InvitationRow) -> None: ...
    async def invitation(self, secret_hash: bytes) -> InvitationRow | None: ...
    async def redeem_invitation(self, secret_hash: bytes, node: NodeRow, at: float) -> Redeemed: ...
    async def node(self, id: str) -> NodeRow | None: ...
    async def set_next_node_key(self, id: str, key_sha256: bytes) -> None: ...


class Invited(NamedTuple):
    token: str
    """The token that the node's owner pastes; shown once."""
    row: InvitationRow


class Enrolment:
    """Invites and enrols nodes, and renews their certificates.

    ``port`` returns the number of an open port by its name; ``lifetime`` is in seconds.
    """

    def __init__(
        self,
        store: Store,
        certificates: Certificates,
        *,
        host: str,
        port: Callable[[str], int],
        lifetime: float,
        clock: Callable[[], float] = time,
    ) -> None:
        self._store = store
        self._certificates = certificates
        self._host = host
        self._port = port
        self.lifetime = lifetime
        self._clock = clock

    @property
    def ca(self) -> str:
        """The CA certificate (PEM), whose hash is in the tokens."""
        return self._certificates.authority.pem

    async def invite(self, name: str | None, valid_for: float) -> Invited:
        """Create a token for one machine, valid for ``valid_for`` seconds.  Raises BackendError."""
        now = self._clock()
        secret = secrets.token_bytes(join.SECRET_BYTES)
        row = InvitationRow(
            id=f"inv_{secrets.token_hex(8)}",
            secret_hash=hashlib.sha256(secret).digest(),
            created_at=now,
            expires_at=now + valid_for,
            name=name,
        )
        await self._store.create_invitation(row)
        token = Token(self._host, self._port("api"), self._certificates.fingerprint, secret)
        return Invited(join.encode(token), row)

    async def enrol(self, enrol: Enrol) -> Enrolled:
        """Enrol the machine that presents an unused secret.

        Raises ``ApiError`` (invitation_unknown, invitation_used, invitation_expired, bad_csr).
        """
        try:
            secret = join.from_text(enrol.secret)
        except ValueError:
            raise _REFUSED[Redeemed.UNKNOWN]() from None
        digest = hashlib.sha256(secret).digest()
        invitation = await self._store.invitation(digest)
        if invitation is None:  # strangers make the server parse nothing and write nothing
            raise _REFUSED[Redeemed.UNKNOWN]()
        try:
            request = read_request(enrol.csr)
        except BadRequest as error:
            raise ApiError(400, "bad_csr", f"Invalid certificate request: {error}.") from None
        now = self._clock()
        invited_as = None if enrol.named else invitation.name
        node = NodeRow(
            id=_node_id(secret),
            name=invited_as if invited_as is not None and join.is_name(invited_as) else enrol.name,
            public_key_sha256=public_key_sha256(request),
            created_at=now,
            platform=enrol.platform,
            version=enrol.version,
        )
        redeemed = await self._store.redeem_invitation(digest, node, now)
        if redeemed is Redeemed.USED and await self._is_repeated(node):
            log.info("node enrolled again", extra={"node": node.id, "label": node.name})
        elif redeemed is Redeemed.OK:
            log.info("node enrolled", extra={"node": node.id, "label": node.name})
        else:
            raise _REFUSED[redeemed]()
        certificate = self._certificates.authority.sign_node(request, node.id, now, self.lifetime)
        return Enrolled(
            node.id,
            certificate,
            self.ca,
            self._port("control"),
            self._port("proxy"),
            node.name,
        )

    async def _is_repeated(self, node: NodeRow) -> bool:
        """Return whether the same machine repeats its request: the first answer was lost."""
        before = await self._store.node(node.id)
        return (
            before is not None
            and before.revoked_at is None
            and secrets.compare_digest(before.public_key_sha256, node.public_key_sha256)
        )

    async def renew(self, node_id: str, csr: str) -> str:
        """Sign a new certificate (PEM) for a node, for its key or for a new one.

        Both keys are good until the node registers with the new one.  Raises ``ApiError``.
        """
        try:
            request = read_request(csr)
        except BadRequest as error:
            raise ApiError(400, "bad_csr", f"Invalid certificate request: {error}.") from None
        row = await self._store.node(node_id)
        if row is None or row.revoked_at is not None:
            raise ApiError(403, "node_revoked", "This node was revoked.")
        if row.contested_at is not None:
            raise ApiError(403, "node_contested", "Two machines use this node's key.")
        key = public_key_sha256(request)
        if not secrets.compare_digest(key, row.public_key_sha256):
            await self._store.set_next_node_key(node_id, key)
        now = self._clock()
        return self._certificates.authority.sign_node(request, node_id, now, self.lifetime)


def _node_id(secret: bytes) -> str:
    """Derive the id from the secret, so that a repeated request finds its node."""
    return f"node_{hashlib.sha256(b'fabric node id' + secret).hexdigest()[:16]}"


_REFUSED: dict[Redeemed, Callable[[], ApiError]] = {
    Redeemed.UNKNOWN: lambda: ApiError(403, "invitation_unknown", "Unknown invitation."),
    Redeemed.USED: lambda: ApiError(
        403, "invitation_used", "This invitation was already used: each is valid for one machine."
    ),
    Redeemed.EXPIRED: lambda: ApiError(403, "invitation_expired", "This invitation has expired."),
}


_decode_enrol = msgspec.json.Decoder(Enrol).decode


async def at_once(request: web.Request, error: ApiError) -> None:
    """Do nothing: the refusal may be answered."""


def routes(
    enrolment: Enrolment,
    hold: Callable[[web.Request, ApiError], Awaitable[None]] = at_once,
) -> list[web.RouteDef]:
    """Return the routes for machines that are not nodes yet; they need no key.

    ``hold`` is told of each refusal, and returns when it may be answered.
    """

    async def ca(request: web.Request) -> web.Response:
        return web.Response(text=enrolment.ca, content_type="application/x-pem-file")

    async def enrol(request: web.Request) -> web.Response:
        try:
            enrolled = await enrolment.enrol(await _read(request))
        except ApiError as error:
            await hold(request, error)
            return _refused(error)
        except BackendError:
            return _refused(errors.overloaded("The store is unavailable.", 5.0))
        return web.Response(body=msgspec.json.encode(enrolled), content_type="application/json")

    return [web.get(join.CA_PATH, ca), web.post(join.ENROL_PATH, enrol)]


async def _read(request: web.Request) -> Enrol:
    if (request.content_length or 0) > join.LONGEST_BODY:
        raise errors.body_too_large(join.LONGEST_BODY)
    body = await request.content.read(join.LONGEST_BODY + 1)
    while len(body) <= join.LONGEST_BODY and not request.content.at_eof():
        body += await request.content.read(join.LONGEST_BODY + 1 - len(body))
    if len(body) > join.LONGEST_BODY:
        raise errors.body_too_large(join.LONGEST_BODY)
    try:
        return _decode_enrol(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise errors.bad_json(str(error)) from None


def _refused(error: ApiError) -> web.Response:
    headers = {} if error.retry_after is None else {"retry-after": f"{error.retry_after:.0f}"}
    return web.Response(
        status=error.status,
        body=error.body(),
        content_type="application/json",
        headers=headers,
    )
