"""The commands of ``fabric-client``, one module for each.

Imported by ``fabric_client.__main__`` alone; may import everything else of the node.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fabric_client.config import PREFIX, Config
from runtime.flags import takes_settings
from runtime.places import data_of_service

TOKEN = f"{PREFIX}TOKEN"
"""The environment variable that may hold a join token, which is not a setting."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def start_command(data: Path) -> str:
    """Return the command that starts the node in ``data``: as its service, if it is one."""
    is_service = data_of_service("fabric-client") == data.absolute()
    return f"fabric-client {'install-service' if is_service else 'run'}"


of_the_node = takes_settings(Config, PREFIX, not_settings=(TOKEN,))
