"""The commands of ``fabric-client``, one module for each.

Imported by ``fabric_client.__main__`` alone; may import everything else of the node.
"""

from __future__ import annotations

from typing import Annotated

import typer

from fabric_client.config import PREFIX, Config
from runtime.flags import takes_settings

TOKEN = f"{PREFIX}TOKEN"
"""The environment variable that may hold a join token, which is not a setting."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

of_the_node = takes_settings(Config, PREFIX, not_settings=(TOKEN,))
