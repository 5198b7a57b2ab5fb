"""``fabric-server status``: what runs with a data directory."""

from __future__ import annotations

import time

import msgspec

from fabric_server.cli import Json, data_command
from fabric_server.cli.endpoints import last_start
from fabric_server.config import Config
from fabric_server.net.takeover import running_server
from runtime.output import Failure, duration, moment, say, say_json, say_table


@data_command
def status(settings: Config, json: Json = False) -> None:
    """Show the server that runs with the data directory, and its workers.

    The exit code is 2 when none runs. For its parts and their problems see 'doctor', for nodes
    'nodes list'.
    """
    running = running_server(settings.data)
    if running is None:
        raise Failure(
            f"no server runs with {settings.data}: start it with 'fabric-server up', or set --data "
            "as it has it."
        )
    last = last_start(settings.data)
    if json:
        say_json({**msgspec.to_builtins(running), "started": msgspec.to_builtins(last)})
        return
    about = f"The server runs: process {running.pid or 'unknown'}"
    if last is not None and running.pid in (0, last.pid):
        about += f", Fabric {last.version}, since {moment(last.at)}, {last.public_url}"
    say(f"{about}.")
    if not running.workers:
        return
    say()
    now = time.time()
    say_table(
        ("worker", "process", "state", "for", "restarts", "nodes", "clients"),
        [
            (
                one.name,
                str(one.pid),
                one.state,
                duration(max(now - one.since, 0)),
                str(one.restarts),
                str(one.nodes),
                str(one.connections.get("public", 0)),
            )
            for one in running.workers
        ],
    )
