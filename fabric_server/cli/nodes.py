"""``fabric-server nodes``: invite, list, show, drain, undrain, settle and revoke nodes."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from fabric_server.cli import Json, require_data, store_command, with_store
from fabric_server.cli.endpoints import last_start
from fabric_server.config import PREFIX, Config
from fabric_server.data_directory import remembered_addresses
from fabric_server.pki.ca import DAY
from fabric_server.pki.certificates import Certificates
from fabric_server.pki.enrolment import Enrolment
from fabric_server.storage.rows import NodeRow, ServedRow
from fabric_server.storage.store import SqlStore
from protocol import join
from runtime.flags import takes_settings
from runtime.output import (
    Failure,
    commands,
    duration,
    moment,
    note,
    say,
    say_json,
    say_table,
)
from runtime.settings import describe

app = commands("Invite, list, show, drain, undrain, settle and revoke nodes.")

HOUR = 3600.0


@app.command()
@takes_settings(Config, PREFIX, only=("data", "store", "address", "one_port", "api_port"))
def invite(
    settings: Config,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the node, unless its owner names it."),
    ] = None,
    valid: Annotated[float, typer.Option(metavar="HOURS", help="Expire after HOURS.")] = 24.0,
    json: Json = False,
) -> None:
    """Create a join token, with which one machine can join once, and print it.

    The token has this server's address: the setting, or that of the last start with this data.
    """
    if valid <= 0:
        raise Failure("--valid must be more than 0 hours.")
    if name is not None and not join.is_name(name):
        raise Failure("--name must be 1 to 256 printable characters.")
    require_data(settings)
    invited = with_store(
        settings, lambda store: _enrolment(settings, store).invite(name, valid * HOUR)
    )
    invitation, token = invited.row, join.parse(invited.token)
    if json:
        say_json(
            {
                "id": invitation.id,
                "token": invited.token,
                "name": name,
                "host": token.host,
                "api_port": token.api_port,
                "ca_sha256": token.ca_sha256.hex(),
                "expires_at": invitation.expires_at,
            }
        )
        return
    note(f"For one machine, until {moment(invitation.expires_at)}. Run: fabric-client join TOKEN")
    note(f"The machine will connect to this server at {token.host}, port {token.api_port}.")
    say(invited.token)


@app.command("list")
@takes_settings(Config, PREFIX, only=("data", "store", "keep_nodes_days"))
def list_(
    settings: Config,
    all: Annotated[
        bool, typer.Option("--all", help="List those that are away for keep_nodes_days, too.")
    ] = False,
    json: Json = False,
) -> None:
    """List the nodes, oldest first."""
    days = settings.keep_nodes_days
    since = None if all or not days else time.time() - days * DAY
    nodes = with_store(settings, lambda store: store.nodes(since))
    if json:
        say_json([_described(node) for node in nodes])
        return
    now = time.time()
    say_table(
        ("id", "name", "state", "last seen", "joined", "platform", "region", "version", "problem"),
        [
            (
                node.id,
                node.name,
                node.state,
                "never"
                if node.last_seen_at is None
                else f"{duration(now - node.last_seen_at)} ago",
                moment(node.created_at),
                node.platform,
                node.region,
                node.version,
                _problem(node),
            )
            for node in nodes
        ],
    )


@app.command()
@store_command
def show(
    settings: Config,
    id: Annotated[str, typer.Argument(metavar="ID", help="Id of the node.")],
    json: Json = False,
) -> None:
    """Show a node, and the models that it serves or has served, with their weights."""

    async def read(store: SqlStore) -> tuple[NodeRow | None, list[ServedRow]]:
        return await store.node(id), await store.served_models(id)

    node, models = with_store(settings, read)
    if node is None:
        raise Failure(f"there is no node {id}: 'fabric-server nodes list' shows all.")
    if json:
        say_json({**_described(node), "models": [_described_model(one) for one in models]})
        return
    say_table(("property", "value"), [(key, str(text)) for key, text in _described(node).items()])
    say_table(
        ("model", "quantization", "digest", "since"),
        [
            (one.model, one.quantization or "unknown", one.digest or "unknown", moment(one.since))
            for one in models
        ],
    )


@app.command()
@store_command
def drain(
    settings: Config,
    id: Annotated[str, typer.Argument(metavar="ID", help="Id of the node.")],
    json: Json = False,
) -> None:
    """Send a node no new requests; running ones finish.

    A running server applies it within a second. The node stays drained until 'nodes undrain',
    also across restarts.
    """
    _set_draining(settings, id, True, json)


@app.command()
@store_command
def undrain(
    settings: Config,
    id: Annotated[str, typer.Argument(metavar="ID", help="Id of the node.")],
    json: Json = False,
) -> None:
    """Send requests to a drained node again."""
    _set_draining(settings, id, False, json)


def _set_draining(settings: Config, id: str, draining: bool, json: bool) -> None:
    node = with_store(settings, lambda store: store.set_node_draining(id, draining))
    if node is None:
        raise Failure(f"there is no node {id}: 'fabric-server nodes list' shows all.")
    if json:
        say_json(_described(node))
    else:
        effect = "gets no new requests" if draining else "gets requests again"
        say(f"{node.id}, “{node.name}”, {effect}.")


@app.command()
@store_command
def settle(
    settings: Config,
    id: Annotated[str, typer.Argument(metavar="ID", help="Id of the node.")],
    json: Json = False,
) -> None:
    """Admit a contested node again: two machines used its key, and one of them is gone.

    If you don't know the other machine, the key was stolen: revoke the node, and let its owner join
    again with a new invitation.
    """
    node = with_store(settings, lambda store: store.settle_node(id))
    if node is None:
        raise Failure(f"there is no node {id}: 'fabric-server nodes list' shows all.")
    if json:
        say_json(_described(node))
    else:
        say(f"{node.id}, “{node.name}”, may register again.")


@app.command()
@store_command
def revoke(
    settings: Config,
    id: Annotated[str, typer.Argument(metavar="ID", help="Id of the node.")],
    json: Json = False,
) -> None:
    """Revoke a node for good; a running server disconnects it within a second."""
    now = time.time()
    node = with_store(settings, lambda store: store.revoke_node(id, now))
    if node is None:
        raise Failure(f"there is no node {id}: 'fabric-server nodes list' shows all.")
    if json:
        say_json(_described(node))
    elif node.revoked_at == now:
        say(f"Revoked {node.id}, “{node.name}”.")
    else:
        say(f"{node.id}, “{node.name}”, was already revoked on {moment(node.revoked_at)}.")


def _enrolment(settings: Config, store: SqlStore) -> Enrolment:
    """Make the ``Enrolment`` that the server has.  Raises ``CertificateProblem``."""
    sources = {name: source for name, _, source in describe(settings)}
    last = last_start(settings.data)
    host, name = settings.names()[0], "api" if settings.one_port is None else "one"
    port = settings.ports()[name]
    chosen = sources["address"] != "default" or remembered_addresses(settings.data)
    if last is not None and not chosen:
        host = last.addresses[0]
    if last is not None and (sources[f"{name}_port"] == "default" or port == 0):
        port = last.ports.one or last.ports.api
    if port == 0:
        raise Failure(
            f"{name}_port is 0 (any free port): start the server first, or give --{name}-port."
        )
    return Enrolment(
        store,
        Certificates.of_server(settings.data / "certs"),
        host=host,
        port=lambda name: port,
        lifetime=settings.node_certificate_days * DAY,
    )


def _problem(node: NodeRow) -> str:
    """Return why the node gets no requests, as far as the store knows; '' for no reason."""
    if node.state == "contested":
        return f"two machines use its key ({node.contested_by}): settle or revoke it"
    if node.state != "good":
        return ""  # the state says it
    return node.problem if node.online else "offline"


def _described_model(model: ServedRow) -> dict[str, Any]:
    return {
        "name": model.model,
        "quantization": model.quantization or None,
        "digest": model.digest or None,
        "since": model.since,
    }


def _described(node: NodeRow) -> dict[str, Any]:
    """Describe a node; times are Unix seconds."""
    return {
        "id": node.id,
        "name": node.name,
        "created_at": node.created_at,
        "last_seen_at": node.last_seen_at,
        "revoked_at": node.revoked_at,
        "platform": node.platform,
        "region": node.region or None,
        "version": node.version,
        "epoch": node.epoch,
        "public_key_sha256": node.public_key_sha256.hex(),
        "state": node.state,
        "contested_at": node.contested_at,
        "contested_by": node.contested_by or None,
        "online": node.online,
        "problem": _problem(node) or None,
    }
