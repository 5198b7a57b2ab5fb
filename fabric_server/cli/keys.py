"""``fabric-server keys``: create, list, change, disable, enable and revoke keys."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Annotated, Any, Literal

import typer
from msgspec import UNSET, UnsetType

from fabric_server.auth.keys import KeyPolicy, KeyPolicyUpdate, mint
from fabric_server.cli import Json, store_command, with_store
from fabric_server.config import Config
from fabric_server.storage.keys import AmbiguousKey
from fabric_server.storage.rows import KeyRow, PriorityName
from fabric_server.storage.store import SqlStore
from runtime.output import Failure, commands, moment, note, say, say_json, say_table

app = commands("Create, list, set, disable, enable and revoke keys.")

DAY = 86_400.0

FailoverChoice = Literal["continue"]
ReasoningChoice = Literal["raw"]
Named = Annotated[
    str, typer.Argument(metavar="KEY", help="Id of the key, its prefix, or the key itself.")
]


@app.command()
@store_command
def create(
    settings: Config,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the key.")],
    account: Annotated[
        str, typer.Option(metavar="NAME", help="Account of the key; created if missing.")
    ] = "default",
    management: Annotated[
        bool, typer.Option("--management", help="For the API port; can't call models.")
    ] = False,
    expires: Annotated[
        float | None, typer.Option(metavar="DAYS", help="Expire after DAYS.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="Allow only this model. Repeat for more."),
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="Limit of requests per minute.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="Limit of tokens per minute.")
    ] = None,
    failover: Annotated[
        FailoverChoice | None,
        typer.Option(help="continue: resume streams on another node if theirs is lost."),
    ] = None,
    reasoning: Annotated[
        ReasoningChoice | None,
        typer.Option(help="raw: pass reasoning on as the engine wrote it."),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCOPE",
            help="A management key may do only this. metrics: read /metrics. Repeat for more.",
        ),
    ] = None,
    priority: Annotated[
        PriorityName, typer.Option(help="The highest priority that its requests may have.")
    ] = "medium",
    requests_at_once: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="Limit of requests under way at once.")
    ] = None,
    json: Json = False,
) -> None:
    """Create a key and print it. It is not shown again."""
    now = time.time()
    try:
        new = mint(
            name,
            now=now,
            account=account,
            management=management,
            expires_at=None if expires is None else now + expires * DAY,
            policy=KeyPolicy(
                models=model or None,
                requests_per_minute=requests_per_minute,
                tokens_per_minute=tokens_per_minute,
                failover=failover or "",
                reasoning=reasoning or "",
                scopes=scope or None,
                priority=priority,
                requests_at_once=requests_at_once,
            ),
        )
    except ValueError as error:
        raise Failure(f"{error}.") from None
    row = with_store(settings, lambda store: store.create_key(new.row))
    if json:
        say_json({"text": new.text, "key": _described(row, now)})
        return
    kind = "Management key" if management else "Key"
    note(f"{kind} {row.id}, “{name}”. Store it now: it is not shown again.")
    if not row.account_enabled:
        note(_account_disabled(row))
    say(new.text)


@app.command("list")
@store_command
def list_(
    settings: Config,
    account: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only keys of this account.")
    ] = None,
    json: Json = False,
) -> None:
    """List all keys, oldest first."""
    now = time.time()
    keys = with_store(settings, lambda store: store.keys(account=account))
    if json:
        say_json([_described(key, now) for key in keys])
        return
    say_table(
        (
            "id",
            "prefix",
            "name",
            "account",
            "kind",
            "models",
            "policy",
            "created",
            "expires",
            "state",
        ),
        [
            (
                key.id,
                key.prefix,
                key.name,
                key.account,
                _kind(key),
                "all" if key.models is None else ", ".join(key.models),
                _policy(key),
                moment(key.created_at),
                moment(key.expires_at),
                key.state(now).replace("_", " "),
            )
            for key in keys
        ],
    )


@app.command("set")
@store_command
def set_(
    settings: Config,
    key: Named,
    requests_per_minute: Annotated[
        str | None, typer.Option(metavar="NUMBER|none", help="Limit of requests per minute.")
    ] = None,
    tokens_per_minute: Annotated[
        str | None, typer.Option(metavar="NUMBER|none", help="Limit of tokens per minute.")
    ] = None,
    failover: Annotated[
        Literal["continue", "none"] | None,
        typer.Option(help="continue: resume streams on another node if theirs is lost."),
    ] = None,
    reasoning: Annotated[
        Literal["raw", "none"] | None,
        typer.Option(help="raw: pass reasoning on as the engine wrote it."),
    ] = None,
    priority: Annotated[
        PriorityName | None, typer.Option(help="The highest priority that its requests may have.")
    ] = None,
    requests_at_once: Annotated[
        str | None,
        typer.Option(metavar="NUMBER|none", help="Limit of requests under way at once."),
    ] = None,
    json: Json = False,
) -> None:
    """Change a key's limits and policies; those not given keep their values.

    A running server applies it within a second.
    """
    update = KeyPolicyUpdate(
        requests_per_minute=_limit("--requests-per-minute", requests_per_minute),
        tokens_per_minute=_limit("--tokens-per-minute", tokens_per_minute),
        failover=UNSET if failover is None else failover.removeprefix("none"),
        reasoning=UNSET if reasoning is None else reasoning.removeprefix("none"),
        priority=UNSET if priority is None else priority,
        requests_at_once=_limit("--requests-at-once", requests_at_once),
    )
    try:
        row = _change(
            settings, key, lambda store, name: store.set_key_policy(name, update.apply_to)
        )
    except ValueError as error:
        raise Failure(f"{error}.") from None
    if row.revoked_at is not None:
        raise _was_revoked(row)
    if json:
        say_json(_described(row, time.time()))
    else:
        say(f"{row.id}, “{row.name}”: {_policy(row) or 'no limits, no policies'}.")


@app.command()
@store_command
def disable(settings: Config, key: Named, json: Json = False) -> None:
    """Disable a key: it is refused until it is enabled again.

    A running server applies it within a second, and cancels the key's running requests.
    """
    now = time.time()
    row = _change(settings, key, lambda store, name: store.set_key_enabled(name, False))
    if json:
        say_json(_described(row, now))
    elif row.revoked_at is not None:
        say(f"{row.id}, “{row.name}”, was already revoked on {moment(row.revoked_at)}.")
    else:
        say(f"Disabled {row.id}, “{row.name}”.")


@app.command()
@store_command
def enable(settings: Config, key: Named, json: Json = False) -> None:
    """Enable a disabled key."""
    now = time.time()
    row = _change(settings, key, lambda store, name: store.set_key_enabled(name, True))
    if row.revoked_at is not None:
        raise _was_revoked(row)
    if json:
        say_json(_described(row, now))
        return
    say(f"Enabled {row.id}, “{row.name}”.")
    if row.state(now) == "expired":
        note(f"It is refused all the same: it expired on {moment(row.expires_at)}.")
    elif not row.account_enabled:
        note(_account_disabled(row))


@app.command()
@store_command
def revoke(settings: Config, key: Named, json: Json = False) -> None:
    """Revoke a key: it is refused for good.

    A running server applies it within a second, and cancels the key's running requests.
    """
    now = time.time()
    row = _change(settings, key, lambda store, name: store.revoke_key(name, now))
    if json:
        say_json(_described(row, now))
    elif row.revoked_at == now:
        say(f"Revoked {row.id}, “{row.name}”.")
    else:
        say(f"{row.id}, “{row.name}”, was already revoked on {moment(row.revoked_at)}.")


def _change(
    settings: Config,
    key: str,
    change: Callable[[SqlStore, str], Awaitable[KeyRow | None]],
) -> KeyRow:
    """Change the key with this id, prefix or text, and return it.  Raises ``Failure``."""

    async def work(store: SqlStore) -> KeyRow | None:
        whole = await store.key_by_hash(sha256(key.encode("utf-8", "replace")).digest())
        return await change(store, whole.id if whole else key)

    try:
        row = with_store(settings, work)
    except AmbiguousKey as error:
        raise Failure(f"{error}.") from None
    if row is None:
        raise Failure("there is no such key: 'fabric-server keys list' shows all.")
    return row


def _limit(option: str, text: str | None) -> int | UnsetType | None:
    if text is None:
        return UNSET
    if text == "none":
        return None
    if not (text.isascii() and text.isdigit()):
        raise Failure(f"{option} must be a number or 'none', not '{text}'.")
    return int(text)


def _was_revoked(row: KeyRow) -> Failure:
    return Failure(
        f"{row.id}, “{row.name}”, was revoked for good on {moment(row.revoked_at)}: create a new"
        " key with 'fabric-server keys create'."
    )


def _kind(row: KeyRow) -> str:
    """Name the key's kind, with its scopes: ``management: metrics``."""
    if not row.management:
        return "user"
    return "management" if row.scopes is None else f"management: {', '.join(row.scopes)}"


def _policy(row: KeyRow) -> str:
    """Describe limits and policies in one phrase; '' for none."""
    limits = {
        "requests/min": row.requests_per_minute,
        "tokens/min": row.tokens_per_minute,
        "at once": row.requests_at_once,
    }
    parts = [f"{limit} {unit}" for unit, limit in limits.items() if limit is not None]
    policies = {
        "priority": "" if row.priority == "medium" else row.priority,
        "failover": row.failover,
        "reasoning": row.reasoning,
    }
    return ", ".join(parts + [f"{name} {value}" for name, value in policies.items() if value])


def _account_disabled(row: KeyRow) -> str:
    return f"It is refused while the account “{row.account}” is disabled."


def _described(key: KeyRow, now: float) -> dict[str, Any]:
    """Describe a key without its hash; times are Unix seconds."""
    return {
        "id": key.id,
        "name": key.name,
        "account": key.account,
        "prefix": key.prefix,
        "management": key.management,
        "models": key.models,
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "failover": key.failover,
        "reasoning": key.reasoning,
        "scopes": key.scopes,
        "priority": key.priority,
        "requests_at_once": key.requests_at_once,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "enabled": key.enabled,
        "state": key.state(now),
    }
