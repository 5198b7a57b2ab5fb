"""``fabric-client doctor``: why does this node not work, and what helps?"""

from __future__ import annotations

import asyncio

from fabric_client.cli import Json, checks, of_the_node
from fabric_client.config import Config
from runtime.doctor import show


@of_the_node
def doctor(settings: Config, json: Json = False) -> int:
    """Check what this node needs, and say what to do about what is wrong.

    Engines, name, ports and certificates of the server, clock, disk, GPU. Works whether the node
    runs or not, and changes nothing. Exit code 1 if a check has failed, else 0.
    """
    return show(asyncio.run(checks.find(settings)), json=json)
