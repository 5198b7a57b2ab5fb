"""``fabric-client reload``: have the running node read its settings again."""

from __future__ import annotations

from fabric_client.cli import Json
from fabric_client.cli.signal_node import await_response, of_the_directory, send
from fabric_client.config import Config
from fabric_client.identity import Identity
from fabric_client.owner.process_lock import is_running
from runtime.output import Failure, say, say_json


@of_the_directory
def reload(settings: Config, json: Json = False) -> None:
    """Have the running node read its settings again.

    It reads its settings file. Its flags and environment are those it was started with. If the file
    has an error, nothing changes, and the exit code is 2. No request is interrupted. The node also
    notices by itself within two seconds when its file has changed.
    """
    Identity.load(settings.data)
    if not is_running(settings.data):
        raise Failure("the node is not running.")
    now = await_response(settings.data, send(settings.data, reload=True))
    result = None if now is None else now.reloaded
    if result is None:
        raise Failure("the node has stopped before it read its settings.")
    if result.error:
        raise Failure(f"no setting was changed: {result.error}")
    if json:
        say_json({"applied": result.applied, "needs_restart": result.needs_restart})
        return
    if result.applied:
        say(f"Applied: {', '.join(result.applied)}.")
    elif not result.needs_restart:
        say("No setting has changed.")
    if result.needs_restart:
        say(f"Needs a restart: {', '.join(result.needs_restart)}.")
