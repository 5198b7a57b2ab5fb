"""``fabric-server requests`` and ``usage``: what the ledger has, without a running server."""

from __future__ import annotations

import asyncio
import math
import re
import time
from datetime import datetime
from typing import Annotated

import typer

from fabric_server.cli import Json, store_command, with_store
from fabric_server.config import Config
from fabric_server.storage.store import SqlStore
from ledger.records import LedgerEntry, UsageRow
from ledger.reports import GROUPS, RequestFilter
from runtime.output import Failure, moment, note, say, say_json, say_table
from runtime.shown import one_line

FOLLOW_SECONDS = 1.0
FOLLOWED = 1000
"""Newest requests among which new ones are looked for: a long one is in the ledger after later
ones, because it is written at its end."""
MAX_ROWS = 10_000

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_AGO = re.compile(r"([0-9]{1,9})([smhd])")

KeyOption = Annotated[str | None, typer.Option(metavar="ID", help="Only those of this key.")]
AccountOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Only those of this account.")
]
NodeOption = Annotated[str | None, typer.Option(metavar="ID", help="Only those of this node.")]
ModelOption = Annotated[str | None, typer.Option(metavar="MODEL", help="Only for this model.")]
Failed = Annotated[bool, typer.Option("--failed", help="Only those that did not end well.")]
Limit = Annotated[
    int, typer.Option(metavar="NUMBER", min=1, max=MAX_ROWS, help="Show at most so many.")
]


@store_command
def requests(
    settings: Config,
    id: Annotated[
        str | None,
        typer.Argument(metavar="ID", help="Show all about one: its answer's x-request-id."),
    ] = None,
    key: KeyOption = None,
    account: AccountOption = None,
    node: NodeOption = None,
    model: ModelOption = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="Not before: 90m, 12h, 7d, or 2026-01-31T12:00."),
    ] = None,
    failed: Failed = False,
    limit: Limit = 50,
    before: Annotated[
        str | None, typer.Option(metavar="ID", help="Only those before this one: the next page.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with new ones, until Ctrl-C.")
    ] = False,
    json: Json = False,
) -> None:
    """List finished requests, oldest first: the newest ones that fit the options.

    A request is listed when it has ended, within about two seconds, with the time at which it
    arrived. Names that are too long for the list are cut; --json has everything.
    """
    if id is not None:
        _show(settings, id, json)
        return
    if follow and before is not None:
        raise Failure("--follow and --before exclude each other.")
    filter = _filter(key, account, node, model, since, failed)
    if follow:
        try:
            with_store(settings, lambda store: _follow(store, filter, limit, json))
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    async def read(store: SqlStore) -> list[LedgerEntry]:
        position = None
        if before is not None:
            last = await store.request(before)
            if last is None:
                raise Failure(f"--before: there is no request {before} in the ledger.")
            position = last.at, last.request_id
        return await store.requests(filter, limit=limit + 1, before=position)

    found = with_store(settings, read)
    shown = found[:limit][::-1]
    if json:
        say_json(shown)
    else:
        _say_entries(shown)
    if len(found) > limit:
        note(f"There are earlier ones: --before {shown[0].request_id}")
    elif not shown and not json:
        note("The ledger has none of these.")


@store_command
def usage(
    settings: Config,
    by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT", help=f"One of {', '.join(GROUPS)}; repeat for more. Default: account."
        ),
    ] = None,
    key: KeyOption = None,
    account: AccountOption = None,
    node: NodeOption = None,
    model: ModelOption = None,
    since: Annotated[
        str, typer.Option(metavar="WHEN", help="From: 90m, 12h, 7d, or 2026-01-31T12:00.")
    ] = "1d",
    failed: Failed = False,
    limit: Limit = 1000,
    json: Json = False,
) -> None:
    """Sum requests and tokens from the ledger."""
    filter = _filter(key, account, node, model, None, failed)
    groups = list(dict.fromkeys(by or ["account"]))
    for name in groups:
        if name not in GROUPS:
            raise Failure(f"--by {name} is not possible: use {', '.join(GROUPS)}.")
    begin, end = _since(since), time.time()

    async def read(store: SqlStore) -> list[UsageRow]:
        return await store.usage(begin, end, groups, limit=limit + 1, filter=filter)

    found = with_store(settings, read)
    rows = found[:limit]
    if json:
        say_json(rows)
    else:
        say_table(
            (*groups, "requests", "ok", "tokens in", "out"),
            [
                (
                    *(_group(name, row.group[name]) for name in groups),
                    *map(
                        str,
                        (row.requests, row.succeeded, row.prompt_tokens, row.completion_tokens),
                    ),
                )
                for row in rows
            ],
        )
    if len(found) > limit:
        note("There are more rows: raise --limit, or sum by less.")


async def _follow(store: SqlStore, filter: RequestFilter, limit: int, json: bool) -> None:
    """Print the newest requests, then each new one, until cancelled."""
    seen: set[str] | None = None
    while True:
        found = await store.requests(filter, limit=max(FOLLOWED, limit))
        new = [one for one in found if seen is None or one.request_id not in seen]
        for entry in reversed(new[:limit] if seen is None else new):
            if json:
                say_json(entry, line=True)
            else:
                say(_line(entry))
        seen = {one.request_id for one in found}
        await asyncio.sleep(FOLLOW_SECONDS)


def _show(settings: Config, id: str, json: bool) -> None:
    entry = with_store(settings, lambda store: store.request(id))
    if entry is None:
        raise Failure(
            f"there is no request {id} in the ledger; one that runs still is not there, nor one "
            "that is older than keep_ledger_months."
        )
    if json:
        say_json(entry)
        return
    values = {name: getattr(entry, name) for name in entry.__struct_fields__}
    values["at"] = f"{moment(entry.at)} ({entry.at!r})"
    say_table(
        ("property", "value"),
        [(name, "-" if value is None else str(value)) for name, value in values.items()],
    )


_WIDTHS = (14, 24, 12, 17, 5)
_HEADER = ("arrived", "answer", "account", "model", "s")


def _say_entries(entries: list[LedgerEntry]) -> None:
    if entries:
        say(_columns(_HEADER))
    for entry in entries:
        say(_line(entry))


def _line(entry: LedgerEntry) -> str:
    """Return one line of at most 80 columns."""
    arrived = datetime.fromtimestamp(entry.at).strftime("%m-%d %H:%M:%S")
    why = entry.error or entry.outcome
    seconds = f"{entry.total_ms / 1000:.3g}"
    return _columns((arrived, f"{entry.status} {why}", entry.account, entry.model, seconds))


def _columns(values: tuple[str, ...]) -> str:
    cells = [_cut(value, width) for value, width in zip(values, _WIDTHS, strict=True)]
    return "  ".join(cells).rstrip()


def _cut(text: str, width: int) -> str:
    """Escape what is not printable, then fill or cut the text to the width."""
    text = one_line(text)
    return text.ljust(width) if len(text) <= width else f"{text[: width - 1]}…"


def _group(name: str, value: str | int | None) -> str:
    if name in ("hour", "day") and value is not None:
        return moment(float(value))
    return "-" if value is None else str(value)


def _filter(
    key: str | None,
    account: str | None,
    node: str | None,
    model: str | None,
    since: str | None,
    failed: bool,
) -> RequestFilter:
    return RequestFilter(
        key_id=key,
        account=account,
        node_id=node,
        model=model,
        since=None if since is None else _since(since),
        failed=failed,
    )


def _since(text: str) -> float:
    """Return the time that ``90m`` or an ISO 8601 time means, in Unix seconds."""
    if ago := _AGO.fullmatch(text):
        return time.time() - int(ago[1]) * _UNITS[ago[2]]
    try:
        at = datetime.fromisoformat(text).timestamp()  # without a zone: local, as it is printed
    except (ValueError, OverflowError, OSError):
        at = math.nan
    if not math.isfinite(at):
        raise Failure(
            f"--since {text} is no time: give 90m, 12h, 7d, or a time such as 2026-01-31T12:00."
        )
    return at
