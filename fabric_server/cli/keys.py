"""``fabric-server keys``: who may ask, and who no longer may."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Annotated, Any, Literal

import typer
from msgspec import UNSET, UnsetType

from fabric_server.auth.keys import KeyPolicyUpdate, mint
from fabric_server.cli import Json, of_the_store, with_store
from fabric_server.config import Config
from fabric_server.storage.keys import AmbiguousKey
from fabric_server.storage.rows import KeyRow
from fabric_server.storage.store import SqlStore
from runtime.output import Failure, commands, moment, note, say, say_json, say_table

app = commands("API keys: create, list, set, disable, enable, revoke.")

DAY = 86_400.0

FailoverChoice = Literal["continue"]
ReasoningChoice = Literal["raw"]
Named = Annotated[
    str, typer.Argument(metavar="KEY", help="Its id, its visible beginning, or all of it.")
]


@app.command()
@of_the_store
def create(
    settings: Config,
    name: Annotated[str, typer.Argument(metavar="NAME", help="To recognise the key by.")],
    account: Annotated[
        str, typer.Option(metavar="NAME", help="Whose it is; made when there is no such account.")
    ] = "default",
    management: Annotated[
        bool, typer.Option("--management", help="For the api port; can't call models.")
    ] = False,
    expires: Annotated[
        float | None, typer.Option(metavar="DAYS", help="After so many days it is worth nothing.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="The only model it may call. May be given repeatedly."),
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="The most requests that it may make.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="The most tokens that it may use.")
    ] = None,
    failover: Annotated[
        FailoverChoice | None,
        typer.Option(help="continue: its streams go on at another node when theirs is lost."),
    ] = None,
    reasoning: Annotated[
        ReasoningChoice | None,
        typer.Option(help="raw: what engines say of their reasoning passes as it is."),
    ] = None,
    json: Json = False,
) -> None:
    """Make a key and print it: the only time it is shown."""
    now = time.time()
    try:
        new = mint(
            name,
            now=now,
            account=account,
            management=management,
            models=model or None,
            expires_at=None if expires is None else now + expires * DAY,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            failover=failover or "",
            reasoning=reasoning or "",
        )
    except ValueError as error:
        raise Failure(f"{error}.") from None
    row = with_store(settings, lambda store: store.create_key(new.row))
    if json:
        say_json({"text": new.text, "key": described(row, now)})
        return
    kind = "Management key" if management else "Key"
    note(f"{kind} {row.id}, “{name}”. Keep it: it is not shown again.")
    if not row.account_enabled:
        note(_waits_for_its_account(row))
    say(new.text)


@app.command("list")
@of_the_store
def list_(
    settings: Config,
    account: Annotated[str | None, typer.Option(metavar="NAME", help="Only its keys.")] = None,
    json: Json = False,
) -> None:
    """Show all keys, oldest first."""
    now = time.time()
    keys = with_store(settings, lambda store: store.keys(account=account))
    if json:
        say_json([described(key, now) for key in keys])
        return
    say_table(
        (
            "id",
            "begins",
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
                "management" if key.management else "user",
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
@of_the_store
def set_(
    settings: Config,
    key: Named,
    requests_per_minute: Annotated[
        str | None, typer.Option(metavar="NUMBER|none", help="The most requests it may make.")
    ] = None,
    tokens_per_minute: Annotated[
        str | None, typer.Option(metavar="NUMBER|none", help="The most tokens it may use.")
    ] = None,
    failover: Annotated[
        Literal["continue", "none"] | None,
        typer.Option(help="continue: its streams go on at another node when theirs is lost."),
    ] = None,
    reasoning: Annotated[
        Literal["raw", "none"] | None,
        typer.Option(help="raw: what engines say of their reasoning passes as it is."),
    ] = None,
    json: Json = False,
) -> None:
    """Change a key's limits and policies; what is not named stays as it is.

    A running server knows within a second.
    """
    terms = KeyPolicyUpdate(
        requests_per_minute=_limit("--requests-per-minute", requests_per_minute),
        tokens_per_minute=_limit("--tokens-per-minute", tokens_per_minute),
        failover=UNSET if failover is None else failover.removeprefix("none"),
        reasoning=UNSET if reasoning is None else reasoning.removeprefix("none"),
    )
    try:
        row = _change(settings, key, lambda store, name: store.set_key_policy(name, terms.of))
    except ValueError as error:
        raise Failure(f"{error}.") from None
    if row.revoked_at is not None:
        raise _was_revoked(row)
    if json:
        say_json(described(row, time.time()))
    else:
        say(f"{row.id}, “{row.name}”: {_policy(row) or 'no limits, no policies'}.")


@app.command()
@of_the_store
def disable(settings: Config, key: Named, json: Json = False) -> None:
    """Make a key worthless until it is enabled again.

    A running server knows within a second, and cuts what runs on it.
    """
    now = time.time()
    row = _change(settings, key, lambda store, name: store.set_key_enabled(name, False))
    if json:
        say_json(described(row, now))
    elif row.revoked_at is not None:
        say(f"{row.id}, “{row.name}”, was revoked already on {moment(row.revoked_at)}.")
    else:
        say(f"Disabled {row.id}, “{row.name}”.")


@app.command()
@of_the_store
def enable(settings: Config, key: Named, json: Json = False) -> None:
    """Let a key that was disabled work again."""
    now = time.time()
    row = _change(settings, key, lambda store, name: store.set_key_enabled(name, True))
    if row.revoked_at is not None:
        raise _was_revoked(row)
    if json:
        say_json(described(row, now))
        return
    say(f"Enabled {row.id}, “{row.name}”.")
    if row.state(now) == "expired":
        note(f"It is worth nothing all the same: it expired on {moment(row.expires_at)}.")
    elif not row.account_enabled:
        note(_waits_for_its_account(row))


@app.command()
@of_the_store
def revoke(settings: Config, key: Named, json: Json = False) -> None:
    """Make a key worthless for good.

    A running server knows within a second, and cuts what runs on it.
    """
    now = time.time()
    row = _change(settings, key, lambda store, name: store.revoke_key(name, now))
    if json:
        say_json(described(row, now))
    elif row.revoked_at == now:
        say(f"Revoked {row.id}, “{row.name}”.")
    else:
        say(f"{row.id}, “{row.name}”, was revoked already on {moment(row.revoked_at)}.")


def _change(
    settings: Config,
    key: str,
    change: Callable[[SqlStore, str], Awaitable[KeyRow | None]],
) -> KeyRow:
    """Does it to the key, whichever way that is named."""

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
        raise Failure(f"{option} is a number, or 'none'; not '{text}'.")
    return int(text)


def _was_revoked(row: KeyRow) -> Failure:
    return Failure(
        f"{row.id}, “{row.name}”, was revoked on {moment(row.revoked_at)}, which can't be"
        " taken back: make another with 'fabric-server keys create'."
    )


def _policy(row: KeyRow) -> str:
    """Limits and policies, as short as they can be understood."""
    limits = {"requests/min": row.requests_per_minute, "tokens/min": row.tokens_per_minute}
    said = [f"{limit} {unit}" for unit, limit in limits.items() if limit is not None]
    policies = {"failover": row.failover, "reasoning": row.reasoning}
    return ", ".join(said + [f"{name} {value}" for name, value in policies.items() if value])


def _waits_for_its_account(row: KeyRow) -> str:
    return f"It does not work while account “{row.account}” is disabled."


def described(key: KeyRow, now: float) -> dict[str, Any]:
    """All but the hash; times are Unix seconds."""
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
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "enabled": key.enabled,
        "state": key.state(now),
    }
