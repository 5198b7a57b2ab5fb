"""``fabric-server accounts``: create, list, disable and enable accounts."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from fabric_server.auth.keys import new_account
from fabric_server.cli import Json, store_command, with_store
from fabric_server.config import Config
from fabric_server.storage.rows import AccountRow
from runtime.output import Failure, commands, moment, say, say_json, say_table

app = commands("Create, list, disable and enable accounts.")

Named = Annotated[str, typer.Argument(metavar="NAME", help="Name of the account.")]


@app.command()
@store_command
def create(
    settings: Config,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the account, also in the ledger.")
    ],
    note: Annotated[
        str, typer.Option(metavar="TEXT", help="Note for operators, for example a contact.")
    ] = "",
    json: Json = False,
) -> None:
    """Create an account. 'keys create --account' creates a missing one, too."""
    try:
        row = new_account(name, now=time.time(), note=note)
    except ValueError as error:
        raise Failure(f"{error}.") from None
    if not with_store(settings, lambda store: store.create_account(row)):
        raise Failure(
            f"the account “{name}” exists already: 'fabric-server accounts list' shows all."
        )
    if json:
        say_json(_described(row))
    else:
        say(f"Created account “{name}”.")


@app.command("list")
@store_command
def list_(settings: Config, json: Json = False) -> None:
    """List all accounts, oldest first."""
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
@store_command
def disable(settings: Config, name: Named, json: Json = False) -> None:
    """Disable an account: all its keys are refused until it is enabled again.

    That includes management keys; these commands need none. A running server applies it within a
    second, and cancels the keys' running requests.
    """
    _set_enabled(settings, name, False, json)


@app.command()
@store_command
def enable(settings: Config, name: Named, json: Json = False) -> None:
    """Enable an account: its keys work again, except those disabled themselves."""
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
    """Describe an account; times are Unix seconds."""
    return {
        "name": account.name,
        "note": account.note,
        "created_at": account.created_at,
        "enabled": account.enabled,
    }
