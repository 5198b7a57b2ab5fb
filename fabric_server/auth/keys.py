"""API keys and accounts as values: how they are made, checked and changed."""

from __future__ import annotations

import re
import secrets
from hashlib import sha256
from typing import NamedTuple, get_args

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import asdict, replace

from fabric_server.storage.rows import (
    AccountRow,
    Failover,
    KeyRow,
    PriorityName,
    Reasoning,
    Scope,
)

KEY_PATTERN = re.compile(r"[sm]k-fab-[A-Za-z0-9_-]{43}")
KEY_LENGTH = len("sk-fab-") + 43
_PREFIX_LENGTH = len("sk-fab-") + 6
_MAX_NAME = 256
_MAX_NOTE = 1000
_MAX_LIMIT = 10**12


class Key(Struct, frozen=True):
    """A key that was usable when it was looked up."""

    id: str
    account: str
    name: str
    prefix: str
    management: bool
    """The key may manage the fabric, and may not call models."""
    models: frozenset[str] | None
    """Allowed models, without ``:latest``; None is all."""
    requests_per_minute: int | None = None
    """None is unlimited, for tokens as well."""
    tokens_per_minute: int | None = None
    failover: str = ""
    """Policy as in ``KeyRow``, like ``reasoning``."""
    reasoning: str = ""
    scopes: frozenset[str] | None = None
    """The only things that a management key may do; None is everything."""
    priority: str = "medium"
    """The highest that its requests may have, as in ``KeyRow``."""
    requests_at_once: int | None = None
    """None is unlimited."""

    @property
    def limited(self) -> bool:
        return (
            self.requests_per_minute is not None
            or self.tokens_per_minute is not None
            or self.requests_at_once is not None
        )

    def may(self, scope: Scope | None) -> bool:
        """Return whether a management key may use an operation of this scope.

        Operations without a scope are only for keys that may do everything.
        """
        return self.management and (self.scopes is None or scope in self.scopes)

    def allows(self, model: str) -> bool:
        """Return whether the key may use this model; ``name`` and ``name:latest`` are the same."""
        return self.models is None or _plain(model) in self.models


def new_account(name: str, *, now: float, note: str = "") -> AccountRow:
    """Make an account for ``store.create_account``.  Raises ``ValueError``."""
    _check_account(name, "an account's name")
    if len(note) > _MAX_NOTE or (note and not note.isprintable()):
        raise ValueError(f"an account's note may have at most {_MAX_NOTE} printable characters")
    return AccountRow(name, note, now)


class NewKey(NamedTuple):
    text: str
    """The key itself, to be shown once: it is not stored."""
    row: KeyRow


class KeyPolicy(Struct, frozen=True, kw_only=True):
    """Restrictions and policies of a new key; the defaults restrict nothing but high priority."""

    models: list[str] | None = None
    """Allowed models; None is all."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    failover: Failover = ""
    reasoning: Reasoning = ""
    scopes: list[str] | None = None
    """The only things that a management key may do; None is everything."""
    priority: PriorityName = "medium"
    """The highest that its requests may have."""
    requests_at_once: int | None = None


UNRESTRICTED = KeyPolicy()


def mint(
    name: str,
    *,
    now: float,
    account: str = "default",
    management: bool = False,
    expires_at: float | None = None,
    policy: KeyPolicy = UNRESTRICTED,
) -> NewKey:
    """Make a key with 256 random bits, for ``store.create_key(new.row)``.

    Times are Unix seconds.  Raises ``ValueError`` that says which property is wrong.
    """
    models = policy.models
    _check_name(name, "a key's name")
    _check_account(account, "a key's account")
    if expires_at is not None and expires_at <= now:
        raise ValueError("the expiry lies in the past")
    if models is not None and (management or not models or not all(models)):
        raise ValueError("a list of models needs at least one name, and is not for management keys")
    text = ("mk-fab-" if management else "sk-fab-") + secrets.token_urlsafe(32)
    row = KeyRow(
        id=f"key_{secrets.token_hex(8)}",
        account=account,
        name=name,
        prefix=text[:_PREFIX_LENGTH],
        hash=sha256(text.encode()).digest(),
        management=management,
        created_at=now,
        expires_at=expires_at,
        models=models,
        requests_per_minute=policy.requests_per_minute,
        tokens_per_minute=policy.tokens_per_minute,
        failover=policy.failover,
        reasoning=policy.reasoning,
        scopes=policy.scopes,
        priority=policy.priority,
        requests_at_once=policy.requests_at_once,
    )
    _check_policy(row)
    _check_scopes(row)
    return NewKey(text, row)


class KeyPolicyUpdate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Changes to a key's limits and policies; unset fields stay as they are."""

    requests_per_minute: int | UnsetType | None = UNSET
    tokens_per_minute: int | UnsetType | None = UNSET
    failover: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    priority: str | UnsetType = UNSET
    requests_at_once: int | UnsetType | None = UNSET

    def apply_to(self, row: KeyRow) -> KeyRow:
        """Return the changed key.  Raises ``ValueError`` that says which field is wrong."""
        given = {name: value for name, value in asdict(self).items() if value is not UNSET}
        if not given:
            raise ValueError("nothing to change")
        changed = replace(row, **given)
        _check_policy(changed)
        return changed


def _check_policy(row: KeyRow) -> None:
    for limit in (row.requests_per_minute, row.tokens_per_minute):
        if limit is not None and (row.management or not 0 < limit <= _MAX_LIMIT):
            raise ValueError(
                f"a limit per minute is 1 to {_MAX_LIMIT}, and not for management keys"
            )
    at_once = row.requests_at_once
    if at_once is not None and (row.management or not 0 < at_once <= _MAX_LIMIT):
        raise ValueError(
            f"a limit of requests at once is 1 to {_MAX_LIMIT}, and not for management keys"
        )
    known = get_args(PriorityName)
    if row.priority not in known:
        raise ValueError(f"a key's priority is one of {', '.join(known)}, not '{row.priority}'")
    if row.failover not in get_args(Failover):
        raise ValueError(f"a key's failover is 'continue' or empty, not '{row.failover}'")
    if row.reasoning not in get_args(Reasoning):
        raise ValueError(f"a key's reasoning is 'raw' or empty, not '{row.reasoning}'")
    if row.management and (row.failover or row.reasoning or row.priority != "medium"):
        raise ValueError(
            "management keys call no models: no failover, reasoning or priority policy"
        )


def _check_scopes(row: KeyRow) -> None:
    if row.scopes is None:
        return
    if not row.management:
        raise ValueError("scopes are for management keys only")
    known = get_args(Scope)
    if not row.scopes:
        raise ValueError(f"a list of scopes needs at least one of: {', '.join(known)}")
    for scope in row.scopes:
        if scope not in known:
            raise ValueError(f"there is no scope '{scope}', only: {', '.join(known)}")


def _check_account(name: str, what: str) -> None:
    _check_name(name, what)
    if name in (".", ".."):  # these change the path of a URL, even percent-encoded
        raise ValueError(f"{what} can't be “{name}”")


def _check_name(name: str, what: str) -> None:
    if not name.strip() or len(name) > _MAX_NAME or not name.isprintable():
        raise ValueError(f"{what} must have 1 to {_MAX_NAME} printable characters")


def key_of(row: KeyRow) -> Key:
    """Convert a row; whether the key is usable is for the caller to check: ``KeyRow.state``."""
    models = None if row.models is None else frozenset(map(_plain, row.models))
    return Key(
        id=row.id,
        account=row.account,
        name=row.name,
        prefix=row.prefix,
        management=row.management,
        models=models,
        failover=row.failover,
        reasoning=row.reasoning,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        scopes=None if row.scopes is None else frozenset(row.scopes),
        priority=row.priority,
        requests_at_once=row.requests_at_once,
    )


def _plain(model: str) -> str:
    return model.removesuffix(":latest")
