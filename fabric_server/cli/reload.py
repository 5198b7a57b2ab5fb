"""``fabric-server reload``: reload the running server's settings and certificates."""

from __future__ import annotations

import asyncio

from fabric_server.cli import Json, data_command
from fabric_server.config import Config
from fabric_server.net.takeover import ask_to_reload
from runtime.output import Failure, say, say_json


@data_command
def reload(settings: Config, json: Json = False) -> None:
    """Reload the running server's settings and certificates.

    The server reads its settings file again. Its flags and environment are those it was started
    with. If the file has an error, nothing changes, and the exit code is 2. No request is
    interrupted.
    """
    result = asyncio.run(ask_to_reload(settings.data))
    if result["error"] is not None:
        raise Failure(f"no setting was changed: {result['error']}")
    if not result["certificates"]:
        raise Failure(
            "the settings were loaded, but the certificates were not: see the server's log."
        )
    if json:
        say_json(result)
        return
    if result["applied"]:
        say(f"Applied: {', '.join(result['applied'])}.")
    elif not result["needs_restart"]:
        say("No setting has changed.")
    if result["needs_restart"]:
        say(f"Needs a restart (fabric-server up --takeover): {', '.join(result['needs_restart'])}.")
