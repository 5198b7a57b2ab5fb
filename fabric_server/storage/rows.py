"""Rows of accounts, keys, nodes and invitations.  Times are Unix seconds; None: not (yet)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Literal

from msgspec import Struct

KeyState = Literal["good", "revoked", "expired", "disabled", "account_disabled"]
Failover = Literal["", "continue"]
Reasoning = Literal["", "raw"]
PriorityName = Literal["high", "medium", "low"]
Scope = Literal["metrics"]
"""What a management key may do if not everything; ``metrics``: read ``/metrics``."""
NodeState = Literal["good", "revoked", "contested", "draining"]


class AccountRow(Struct, frozen=True):
    name: str
    note: str
    """A note for operators: the owner, and how to reach them."""
    created_at: float
    enabled: bool = True


class KeyRow(Struct, frozen=True):
    id: str
    """``key_…``"""
    account: str
    name: str
    prefix: str
    """The first characters of the key's text, to recognise it."""
    hash: bytes
    """SHA-256 of the key's text."""
    management: bool
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    models: list[str] | None = None
    """The only models it may use; None is all of them."""
    enabled: bool = True
    """The key's own flag; its account must be enabled, too."""
    account_enabled: bool = True
    requests_per_minute: int | None = None
    """None: no limit; so for tokens."""
    tokens_per_minute: int | None = None
    failover: str = ""
    """``continue``: a stream whose node is lost continues on another node; empty: it ends."""
    reasoning: str = ""
    """``raw``: reasoning passes as the engine sends it; empty: as the server is set."""
    scopes: list[str] | None = None
    """The only things a management key may do, of ``Scope``; None is everything.  A name that
    this program does not know allows nothing."""
    priority: str = "medium"
    """The highest that its requests may have, a ``PriorityName``.  One that this program does not
    know is medium."""
    requests_at_once: int | None = None
    """None: no limit."""

    @property
    def usable(self) -> bool:
        """True unless the key or its account was revoked or disabled; it may have expired."""
        return self.revoked_at is None and self.enabled and self.account_enabled

    def state(self, now: float) -> KeyState:
        """Return the most lasting reason why the key does not work, or "good"."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return "expired"
        if not self.enabled:
            return "disabled"
        return "good" if self.account_enabled else "account_disabled"


class NodeRow(Struct, frozen=True):
    id: str
    """``node_…``"""
    name: str
    public_key_sha256: bytes
    created_at: float
    revoked_at: float | None = None
    epoch: int = 0
    """Registrations so far."""
    last_seen_at: float | None = None
    platform: str = ""
    version: str = ""
    online: bool = False
    """As of the last heartbeat stored; the server that has its link knows better."""
    draining: bool = False
    """Set by the operator: it finishes running requests and gets no new ones."""
    problem: str = ""
    """Why its engines get no requests, as last reported."""
    region: str = ""
    """Its region, as last reported."""
    contested_at: float | None = None
    """When two machines were noticed that use its key; None once the operator has settled it."""
    contested_by: str = ""
    """The addresses of these machines."""
    next_key_sha256: bytes | None = None
    """The key of a certificate that was issued to it, and that it has not used yet."""

    @property
    def state(self) -> NodeState:
        """Return the most lasting state that it is in by the operator's decision, or for lack of
        one: ``contested``."""
        if self.revoked_at is not None:
            return "revoked"
        if self.contested_at is not None:
            return "contested"
        return "draining" if self.draining else "good"


class InvitationRow(Struct, frozen=True):
    id: str
    """``inv_…``"""
    secret_hash: bytes
    """SHA-256 of the secret in the join token."""
    created_at: float
    expires_at: float
    used_at: float | None = None
    node_id: str | None = None
    name: str | None = None


class Redeemed(StrEnum):
    """The result of an attempt to use an invitation; the values are the API's error codes."""

    OK = "ok"
    UNKNOWN = "invitation_unknown"
    USED = "invitation_used"
    EXPIRED = "invitation_expired"


class Changes(Struct, frozen=True):
    """The changes since a revision.  A row may be reported twice."""

    revision: int
    """Pass it as ``since`` the next time."""
    everything: bool
    """The store was put back from a backup: drop all cached rows.

    ``keys`` and ``nodes`` are then all of them.
    """
    keys: Sequence[KeyRow] = ()
    nodes: Sequence[NodeRow] = ()


class ServedRow(Struct, frozen=True):
    """A model that a node serves, or has served."""

    model: str
    quantization: str
    """Several, joined by commas, where the node's engines differ; empty when none is known."""
    digest: str
    since: float
    """Unix seconds at which the node began to serve these weights."""
