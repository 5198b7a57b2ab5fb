"""``fabric-server keys``: who may ask, and who no longer may."""

from __future__ import annotations

import time
from hashlib import sha256
from typing import Annotated, Any

import typer

from fabric_server.accounts import mint
from fabric_server.backends.rows import KeyRow
from fabric_server.backends.store import AmbiguousKey, SqlStore
from fabric_server.commands import Json, of_the_store, with_store
from fabric_server.config import Config
from protocol.program.output import Failure, commands, moment, note, say, say_json, say_table

app = commands("API keys: create, list, revoke.")

DAY = 86_400.0


@app.command()
@of_the_store
def create(
    settings: Config,
    name: Annotated[str, typer.Argument(metavar="NAME", help="To recognise the key by.")],
    account: Annotated[
        str, typer.Option(metavar="NAME", help="Whose requests it makes, in the ledger.")
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
        )
    except ValueError as error:
        raise Failure(f"{error}.") from None
    with_store(settings, lambda store: store.create_key(new.row))
    if json:
        say_json({"text": new.text, "key": _described(new.row, now)})
        return
    kind = "Management key" if management else "Key"
    note(f"{kind} {new.row.id}, “{name}”. Keep it: it is not shown again.")
    say(new.text)


@app.command("list")
@of_the_store
def list_(settings: Config, json: Json = False) -> None:
    """Show all keys, oldest first."""
    now = time.time()
    keys = with_store(settings, lambda store: store.keys())
    if json:
        say_json([_described(key, now) for key in keys])
        return
    say_table(
        ("id", "begins", "name", "account", "kind", "models", "created", "expires", "state"),
        [
            (
                key.id,
                key.prefix,
                key.name,
                key.account,
                "management" if key.management else "user",
                "all" if key.models is None else ", ".join(key.models),
                moment(key.created_at),
                moment(key.expires_at),
                _state(key, now),
            )
            for key in keys
        ],
    )


@app.command()
@of_the_store
def revoke(
    settings: Config,
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="Its id, its visible beginning, or all of it.")
    ],
    json: Json = False,
) -> None:
    """Make a key worthless, in a running server within a second."""
    now = time.time()

    async def work(store: SqlStore) -> KeyRow | None:
        whole = await store.key_by_hash(sha256(key.encode()).digest())
        return await store.revoke_key(whole.id if whole else key, now)

    try:
        row = with_store(settings, work)
    except AmbiguousKey as error:
        raise Failure(f"{error}.") from None
    if row is None:
        raise Failure("there is no such key: 'fabric-server keys list' shows all.")
    if json:
        say_json(_described(row, now))
    elif row.revoked_at == now:
        say(f"Revoked {row.id}, “{row.name}”.")
    else:
        say(f"{row.id}, “{row.name}”, was revoked already on {moment(row.revoked_at)}.")


def _state(key: KeyRow, now: float) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "good"


def _described(key: KeyRow, now: float) -> dict[str, Any]:
    """All but the hash; times are Unix seconds."""
    return {
        "id": key.id,
        "name": key.name,
        "account": key.account,
        "prefix": key.prefix,
        "management": key.management,
        "models": key.models,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "state": _state(key, now),
    }
