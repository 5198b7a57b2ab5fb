"""Client library for Python programs, without dependencies beyond this package.

    from fabric_client.sdk import Client, Node

    client = Client("https://fabric.example:18080", "sk-fab-…")
    print(client.infer("tiny", "Why is the sky blue?").text)

``docs/sdk.md`` has the rest.  ``Client`` talks to a server; ``Node`` reads the state of the node on
this machine.  Programs that use OpenAI's package need none of this.  May import ``config``,
``owner`` and ``sse`` of this package; of it, only ``fabric-client chat`` imports it.
"""

from fabric_client.sdk.client import Client
from fabric_client.sdk.errors import Broken, FabricError, Refused, Unreachable
from fabric_client.sdk.node import Node, Stats
from fabric_client.sdk.types import Answer, Job, Message, Piece

__all__ = [
    "Answer",
    "Broken",
    "Client",
    "FabricError",
    "Job",
    "Message",
    "Node",
    "Piece",
    "Refused",
    "Stats",
    "Unreachable",
]
