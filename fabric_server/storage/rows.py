"""What the store remembers, row by row.  Times are Unix seconds; None means never or not yet."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Literal

from msgspec import Struct

KeyState = Literal["good", "revoked", "expired", "disabled", "account_disabled"]
Failover = Literal["", "continue"]
Reasoning = Literal["", "raw"]
NodeState = Literal["good", "revoked", "draining"]


class AccountRow(Struct, frozen=True):
    name: str
    note: str
    """For operators: whose it is, how to reach them."""
    created_at: float
    enabled: bool = True


class KeyRow(Struct, frozen=True):
    id: str
    """``key_…``"""
    account: str
    name: str
    prefix: str
    """The first characters of the key's text, to recognise it by."""
    hash: bytes
    """SHA-256 of the key's text."""
    management: bool
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    models: list[str] | None = None
    """The only models it may use; None is all of them."""
    enabled: bool = True
    """The key's own; it works only while its account is enabled, too."""
    account_enabled: bool = True
    requests_per_minute: int | None = None
    """None is any number; so for tokens."""
    tokens_per_minute: int | None = None
    failover: str = ""
    """``continue``: its streams go on at another node when theirs is lost; empty: they do not."""
    reasoning: str = ""
    """``raw``: what engines say of their reasoning passes as it is; empty: as the server does."""

    @property
    def usable(self) -> bool:
        """Whether nobody has revoked or disabled it or its account.  It may have expired."""
        return self.revoked_at is None and self.enabled and self.account_enabled

    def state(self, now: float) -> KeyState:
        """Why it does not work, what lasts longest first; or "good"."""
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
    """As far as the store knows; the server that has its link knows better."""
    draining: bool = False
    """The operator wants it to finish what runs, and to be given nothing new."""
    problem: str = ""
    """Why its engines are asked nothing, as it last said."""
    region: str = ""
    """Where it last said it is."""

    @property
    def state(self) -> NodeState:
        """What the operator has made of it, what lasts longest first."""
        if self.revoked_at is not None:
            return "revoked"
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
    """What became of an attempt to use an invitation.  The values are the API's error codes."""

    OK = "ok"
    UNKNOWN = "invitation_unknown"
    USED = "invitation_used"
    EXPIRED = "invitation_expired"


class Changes(Struct, frozen=True):
    """What has changed since a revision.  A row may be told twice."""

    revision: int
    """Ask from here the next time."""
    everything: bool
    """The store is not the one known before (put back from a backup): forget all that is kept.
    ``keys`` and ``nodes`` are then all of them."""
    keys: Sequence[KeyRow] = ()
    nodes: Sequence[NodeRow] = ()
