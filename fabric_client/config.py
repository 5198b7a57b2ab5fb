"""What the owner of a node can set.  The defaults find a local engine by themselves."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fabric_client.addresses import AddressError, parse_address
from protocol.program.settings import Conflict, about

PREFIX = "FABRIC_NODE_"

_MOST_ENGINES = 16  # as many as a report may list


@dataclass(frozen=True, kw_only=True)
class Config:
    """Made by ``protocol.program.settings.load`` with ``PREFIX``; raises ``Conflict`` for values
    that don't fit together."""

    data: Path = field(
        default_factory=lambda: Path.home() / ".fabric" / "node",
        metadata=about("Where this node's key and certificates live."),
    )
    name: str = field(
        default_factory=lambda: socket.gethostname() or "node",
        metadata=about("What people call this node; the host name unless set."),
    )
    engine: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "Address of an engine, such as http://localhost:11434, or with its kind "
            "(ollama, vllm, llama-server, lm-studio, openai): vllm=http://10.0.0.5:8000. "
            "May be given several times."
        ),
    )
    discover: bool | None = field(
        default=None,
        metadata=about(
            "Look for engines on their usual ports of this machine; not set means only when no "
            "engine is given."
        ),
    )
    slots: int | None = field(
        default=None,
        metadata=about(
            "Requests each engine answers at once; not set means what the engine says.",
            least=1,
            most=4096,
        ),
    )
    log_level: Literal["debug", "info", "warning", "error"] = field(
        default="info", metadata=about("Least important lines to log.")
    )
    log_json: bool | None = field(
        default=None,
        metadata=about("Log JSON lines; not set means unless standard error is a terminal."),
    )

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= 256 or not self.name.isprintable():
            raise Conflict("name must be 1 to 256 printable characters.", "name")
        if len(self.engine) > _MOST_ENGINES:
            raise Conflict(f"engine lists more than {_MOST_ENGINES}: leave some out.", "engine")
        try:
            for text in self.engine:
                parse_address(text)
        except AddressError as error:
            raise Conflict(str(error), "engine") from None

    @property
    def discovers(self) -> bool:
        return not self.engine if self.discover is None else self.discover
