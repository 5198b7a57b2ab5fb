"""``fabric-client pause`` and ``resume``: the owner needs the machine, and gives it back."""

from __future__ import annotations

import re
import time
from typing import Annotated

import typer

from fabric_client.cli import Json
from fabric_client.cli.signal_node import await_response, of_the_directory, send
from fabric_client.config import Config
from fabric_client.identity import Identity
from fabric_client.owner.state import State
from runtime.output import Failure, moment, say, say_json

_DURATION = re.compile(r"(\d+(?:\.\d+)?) *(s|min|m|h|d|)")
_UNITS = {"s": 1.0, "": 60.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_LONGEST = 366 * 86_400.0


@of_the_directory
def pause(
    settings: Config,
    for_: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="TIME",
            help="How long, such as 90m, 2h or 1d (default: until 'resume').",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Stop taking new requests for a while.

    Running requests finish, and the node stays connected. The pause outlasts a restart of the node.
    """
    Identity.load(settings.data)
    until = None if for_ is None else time.time() + _seconds(for_)
    now = await_response(settings.data, send(settings.data, paused=True, until=until))
    if json:
        say_json(_described(now, until))
        return
    end = "'fabric-client resume'" if until is None else moment(until)
    if now is None:
        say(f"The node is not running. Once started, it stays paused until {end}.")
    else:
        say(f"Paused until {end}.{_still_running(now)}")


@of_the_directory
def resume(settings: Config, json: Json = False) -> None:
    """Resume serving.

    The settings for hours, battery and GPU still apply.
    """
    Identity.load(settings.data)
    now = await_response(settings.data, send(settings.data, paused=False))
    if json:
        say_json(_described(now, None))
    elif now is None:
        say("The node is not running. Once started, it serves requests.")
    elif now.paused:
        say(f"Resumed, but the node is still paused: {now.paused}.")
    else:
        say("Resumed.")


def _described(now: State | None, until: float | None) -> dict[str, object]:
    """Return what ``--json`` prints; ``until`` is in Unix seconds."""
    return {
        "running": now is not None,
        "paused": now.paused or None if now is not None else None,
        "until": until,
        "active": 0 if now is None else now.active,
    }


def _still_running(now: State) -> str:
    return f" Still running: {now.active}." if now.active else ""


def _seconds(text: str) -> float:
    match = _DURATION.fullmatch(text.strip().lower())
    seconds = 0.0 if match is None else float(match[1]) * _UNITS[match[2]]
    if not 0 < seconds <= _LONGEST:
        raise Failure(f"--for: '{text}' is not a time such as 90m, 2h or 1d.")
    return seconds
