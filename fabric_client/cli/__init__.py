"""What the owner of a node types: one module for each ``fabric-client`` command."""

from __future__ import annotations

from typing import Annotated

import typer

from fabric_client.config import PREFIX, Config
from runtime.flags import takes_settings

TOKEN = f"{PREFIX}TOKEN"
"""The variable that may hold a join token; it is no setting."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

of_the_node = takes_settings(Config, PREFIX, not_settings=(TOKEN,))
