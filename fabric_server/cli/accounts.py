"""``fabric-server accounts``: whom keys belong to, and whose keys work."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from fabric_server.auth.keys import new_account
from fabric_server.cli import Json, of_the_store, with_store
from fabric_server.config import Config
from fabric_server.storage.rows import AccountRow
from runtime.output import Failure, commands, moment, say, say_json, say_table

app = commands("Accounts: create, list, disable, enable.")

Named = Annotated[str, typer.Argument(metavar="NAME", help="As 'accounts list' shows it.")]


@app.command()
@of_the_store
def create(
    settings: Config,
    name: Annotated[str, typer.Argument(metavar="NAME", help="As it will be in the ledger.")],
    note: Annotated[
        str, typer.Option(metavar="TEXT", help="For operators: whose it is, how to reach them.")
    ] = "",
    json: Json = False,
) -> None:
    """Make an account. 'keys create --account' makes one, too, when it is missing."""
    try:
        row = new_account(name, now=time.time(), note=note)
    except ValueError as error:
        raise Failure(f"{error}.") from None
    if not with_store(settings, lambda store: store.create_account(row)):
        raise Failure(f"there is an account “{name}” already: 'fabric-server accounts list'.")
    if json:
        say_json(_described(row))
    else:
        say(f"Made account “{name}”.")


@app.command("list")
@of_the_store
def list_(settings: Config, json: Json = False) -> None:
    """Show all accounts, oldest first."""
    accounts = with_store(settings, lambda store: store.accounts())
    if json:
        say_json([_described(account) for account in accounts])
        return
    say_table(
        ("name", "state", "created", "note"),
        [
            (
                account.name,
                "good" if account.enabled else "disabled",
                moment(account.created_at),
                account.note,
            )
            for account in accounts
        ],
    )


@app.command()
@of_the_store
def disable(settings: Config, name: Named, json: Json = False) -> None:
    """Make all its keys worthless until it is enabled again.

    Management keys, too: these commands work without. A running server knows within a second, and
    cuts what runs on them.
    """
    _set_enabled(settings, name, False, json)


@app.command()
@of_the_store
def enable(settings: Config, name: Named, json: Json = False) -> None:
    """Let its keys work again: those not disabled themselves."""
    _set_enabled(settings, name, True, json)


def _set_enabled(settings: Config, name: str, enabled: bool, json: bool) -> None:
    row = with_store(settings, lambda store: store.set_account_enabled(name, enabled))
    if row is None:
        raise Failure(f"there is no account “{name}”: 'fabric-server accounts list' shows all.")
    if json:
        say_json(_described(row))
    else:
        say(f"{'Enabled' if enabled else 'Disabled'} account “{name}”.")


def _described(account: AccountRow) -> dict[str, Any]:
    """Times are Unix seconds."""
    return {
        "name": account.name,
        "note": account.note,
        "created_at": account.created_at,
        "enabled": account.enabled,
    }
