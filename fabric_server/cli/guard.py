"""``fabric-server guard``: limits in the kernel, in an nftables table of the fabric's own."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import sys
from ipaddress import ip_network
from typing import Annotated, Any

import typer

from fabric_server.cli import Json, require_data
from fabric_server.config import PREFIX, Config
from fabric_server.net.guard_rules import (
    GuardRules,
    GuardStatus,
    Network,
    install_text,
    interfaces_text,
    remove_text,
)
from fabric_server.net.kernel_guard import GuardProblem, read_status, run_program
from runtime.flags import takes_settings
from runtime.output import Failure, commands, say, say_json, say_table
from runtime.settings import describe

app = commands("Drop floods of connections in the kernel (Linux, as root).")

RATE, BURST = 50, 250
_PORTS = ("one_port", "public_port", "api_port")
_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}")

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done; do nothing.")]


@app.command()
@takes_settings(Config, PREFIX, only=("data", *_PORTS, "trusted_proxies"))
def install(
    settings: Config,
    rate: Annotated[
        int, typer.Option(metavar="N", min=1, max=100_000, help="New connections per second.")
    ] = RATE,
    burst: Annotated[
        int, typer.Option(metavar="N", min=1, max=100_000, help="New connections at once.")
    ] = BURST,
    trust: Annotated[
        list[str] | None,
        typer.Option(metavar="NETWORK", help="Never drop connections from here; repeatable."),
    ] = None,
    xdp: Annotated[
        str | None,
        typer.Option(metavar="INTERFACE", help="Drop blocked IPv4 addresses there by XDP, too."),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Install the rules, or replace those that are there without a gap.

    Each address, and each IPv6 /64, may open so many connections to the public and the API port,
    or to the one port; more are dropped. Addresses that the server blocks are dropped for a while.
    Connections that exist go on. No other rule of this machine is touched.

    XDP (xdp-filter of xdp-tools) drops earlier and costs less, but all traffic of an address.
    """
    sources = {name: source for name, _, source in describe(settings)}
    given = [name for name in _PORTS if sources[name] != "default"]
    if "one_port" not in given and len(given) < len(_PORTS) - 1:
        # The ports may be in this directory's settings file, or no server's.
        require_data(settings, ", or give both --public-port and --api-port, or --one-port")
    trusted = [*settings.trusted_proxies, *(trust or [])]
    text = install_text(_rules(settings, rate, burst, trusted))
    if xdp is not None and not _INTERFACE.fullmatch(xdp):
        raise Failure("--xdp must be the name of a network interface.")
    if dry_run:
        _show(text, [] if xdp is None else [_load(xdp)], json)
        return
    _change(_install(text, xdp))
    _tell(_change(read_status()), json)


@app.command()
def status(json: Json = False) -> None:
    """Show the rules, the blocked addresses, and what was dropped."""
    _tell(_change(read_status()), json)


@app.command()
def remove(dry_run: DryRun = False, json: Json = False) -> None:
    """Remove the rules and the blocked addresses; nothing else is touched."""
    if dry_run:
        _show(remove_text(), [], json)
        return
    _change(_remove())
    _tell(None, json)


def _rules(settings: Config, rate: int, burst: int, trust: list[str]) -> GuardRules:
    opened = settings.ports()
    ports = tuple(opened[name] for name in ("one", "public", "api") if name in opened)
    if 0 in ports:
        raise Failure("a port is 0, any free one, which is not known beforehand: set its number.")
    networks: list[Network] = []
    for one in trust:
        try:
            networks.append(ip_network(one))
        except ValueError as error:
            raise Failure(f"--trust must be an address or a network: {error}.") from None
    return GuardRules(ports=ports, rate=rate, burst=burst, trusted=tuple(networks))


async def _install(text: str, xdp: str | None) -> None:
    await run_program(("nft", "-f", "-"), text)
    if xdp is None:
        return
    try:
        await run_program(_load(xdp))
    except GuardProblem:  # the driver has no XDP: the kernel's generic one
        try:
            await run_program(_load(xdp, "skb"))
        except GuardProblem as problem:
            raise GuardProblem(f"the rules are installed, but without XDP: {problem}") from None
    await run_program(("nft", "-f", "-"), interfaces_text([xdp]))


async def _remove() -> None:
    found = await read_status()
    for interface in () if found is None else found.interfaces:
        await run_program(("xdp-filter", "unload", interface))
    await run_program(("nft", "-f", "-"), remove_text())


def _load(interface: str, mode: str = "native") -> tuple[str, ...]:
    return ("xdp-filter", "load", interface, "-m", mode, "-p", "allow", "-f", "ipv4")


def _change(work: Any) -> Any:
    """Run a coroutine that needs the right to change the kernel's rules."""
    if sys.platform != "linux" or os.geteuid() != 0:
        work.close()
        raise Failure("'guard' needs root, on Linux.")
    try:
        return asyncio.run(work)
    except GuardProblem as problem:
        raise Failure(f"{problem}. It takes nftables (and xdp-tools for --xdp).") from None


def _show(text: str, programs: list[tuple[str, ...]], json: bool) -> None:
    lines = [" ".join(program) for program in programs]
    if json:
        say_json({"rules": text, "commands": lines})
        return
    for line in (*text.splitlines(), *lines):
        say(line)


def _tell(found: GuardStatus | None, json: bool) -> None:
    if json:
        fields = {} if found is None else dataclasses.asdict(found)
        say_json({"installed": found is not None, **fields})
        return
    if found is None:
        say("The guard is not installed.")
        return
    rows = [
        ("ports", ", ".join(map(str, found.ports))),
        ("rate", f"{found.rate} connections a second, {found.burst} at once"),
        ("trusted", ", ".join(found.trusted) or "-"),
        ("dropped above the rate", str(found.dropped_over_rate)),
        ("dropped as blocked", str(found.dropped_blocked)),
        ("XDP", ", ".join(found.interfaces) or "-"),
        ("blocked", str(len(found.blocked))),
    ]
    say_table(("guard", ""), rows)
    if found.blocked:
        blocked = sorted(found.blocked.items(), key=lambda one: -one[1])
        say_table(("address", "seconds"), [(one, str(left)) for one, left in blocked])
