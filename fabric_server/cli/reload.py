"""``fabric-server reload``: have the server that runs load its settings and certificates again."""

from __future__ import annotations

import asyncio

from fabric_server.cli import Json, of_the_directory
from fabric_server.config import Config
from fabric_server.net.takeover import ask_to_reload
from runtime.output import Failure, say, say_json


@of_the_directory
def reload(settings: Config, json: Json = False) -> None:
    """Have the running server load its settings and certificates again, dropping no stream.

    Settings come from where it was told to look when it was started: its file is read again.  What
    is wrong there is refused whole, exit code 2, and the old settings stay.
    """
    result = asyncio.run(ask_to_reload(settings.data))
    if result["error"] is not None:
        raise Failure(f"nothing was changed: {result['error']}")
    if not result["certificates"]:
        raise Failure("settings were loaded, certificates were not: see the server's log.")
    if json:
        say_json(result)
        return
    say(f"Applied: {', '.join(result['applied']) or 'nothing has changed'}.")
    if result["needs_restart"]:
        say(f"Needs a restart (fabric-server up --takeover): {', '.join(result['needs_restart'])}.")
