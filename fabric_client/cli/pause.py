"""``fabric-client pause`` and ``resume``: the owner wants the machine for himself, and gives it
back."""

from __future__ import annotations

import re
import time
from typing import Annotated

import typer

from fabric_client.cli import Json
from fabric_client.cli.signal_node import heard, of_the_directory, tell
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
        typer.Option("--for", metavar="TIME", help="Such as 90m, 2h or 1d; else until 'resume'."),
    ] = None,
    json: Json = False,
) -> None:
    """Answer nothing new for a while.  What runs finishes, and the node stays connected.

    It lasts over a restart of the node.
    """
    Identity.load(settings.data)
    until = None if for_ is None else time.time() + _seconds(for_)
    said = tell(settings.data, paused=True, until=until)
    now = heard(settings.data, said)
    if json:
        say_json(_described(now, until))
        return
    words = "until 'fabric-client resume'" if until is None else f"until {moment(until)}"
    if now is None:
        say(f"It is not running; when it is, it pauses {words}.")
    else:
        say(f"Paused {words}.{_running(now)}")


@of_the_directory
def resume(settings: Config, json: Json = False) -> None:
    """Take back 'pause'.  Hours, battery and GPU still count."""
    Identity.load(settings.data)
    now = heard(settings.data, tell(settings.data, paused=False))
    if json:
        say_json(_described(now, None))
    elif now is None:
        say("It is not running; when it is, it answers.")
    elif now.paused:
        say(f"Resumed, but it is still paused: {now.paused}.")
    else:
        say("Resumed.")


def _described(now: State | None, until: float | None) -> dict[str, object]:
    """Times are Unix seconds."""
    return {
        "running": now is not None,
        "paused": now.paused or None if now is not None else None,
        "until": until,
        "active": 0 if now is None else now.active,
    }


def _running(now: State) -> str:
    return f" {now.active} still running." if now.active else ""


def _seconds(text: str) -> float:
    match = _DURATION.fullmatch(text.strip().lower())
    seconds = 0.0 if match is None else float(match[1]) * _UNITS[match[2]]
    if not 0 < seconds <= _LONGEST:
        raise Failure(f"--for is '{text}', but it must be a time such as 90m, 2h or 1d.")
    return seconds
