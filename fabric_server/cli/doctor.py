"""``fabric-server doctor``: why does this server not work, and what helps?"""

from __future__ import annotations

import asyncio

from fabric_server.cli import Json, checks
from fabric_server.config import PREFIX, Config
from runtime.doctor import show
from runtime.flags import takes_settings


@takes_settings(Config, PREFIX)
def doctor(settings: Config, json: Json = False) -> int:
    """Check what this server needs, and say what to do about what is wrong.

    Store, cache, bus, each port, names, certificates, clock, disk, open files, nodes. Works whether
    the server runs or not, and changes nothing. Exit code 1 if a check has failed, else 0.
    """
    return show(asyncio.run(checks.find(settings)), json=json)
