"""What the owner of a node can set.  The defaults find a local engine by themselves."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fabric_client.engines.addresses import AddressError, parse_address
from fabric_client.owner.schedule import ScheduleError, parse_schedule
from protocol.join import is_name
from protocol.regions import MAX_LENGTH, is_region
from runtime.settings import Conflict, about

PREFIX = "FABRIC_NODE_"


def host_name() -> str:
    name = socket.gethostname()
    return name if is_name(name) else "node"


_MAX_ENGINES = 16  # as many as a report may list
_MIN_UPLOAD = 16 * 1024  # with less, answers that share it come so slowly that they seem dead


@dataclass(frozen=True, kw_only=True)
class Config:
    """Made by ``runtime.settings.load`` with ``PREFIX``; raises ``Conflict`` for values
    that don't fit together."""

    data: Path = field(
        default_factory=lambda: Path.home() / ".fabric" / "node",
        metadata=about("Where this node's key and certificates live."),
    )
    name: str | None = field(
        default=None,
        metadata=about(
            "What people call this node; not set means as the invitation says, or else the host "
            "name."
        ),
    )
    region: str = field(
        default="",
        metadata=about(
            "Where it is, such as eu-west, for users who want their requests answered there; not "
            "set means that it does not say, and gets none of theirs."
        ),
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
    schedule: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "Hours in which it answers, local time, such as 22:00-08:00 or mon-fri 18:00-08:00, "
            "several with commas between them; not set means always."
        ),
    )
    pause_on_battery: bool = field(
        default=True, metadata=about("Answer nothing while the machine runs from its battery.")
    )
    pause_gpu_percent: float | None = field(
        default=None,
        metadata=about(
            "Answer nothing while other programs use the GPU more than this; not set means never "
            "mind them.",
            least=1,
            most=99,
        ),
    )
    pause_gpu_seconds: float = field(
        default=30.0,
        metadata=about(
            "How long they have to use it, or not to, until that counts.",
            unit="seconds",
            least=0,
            most=3600,
        ),
    )
    upload_limit: int | None = field(
        default=None,
        metadata=about(
            "Send at most so many bytes of answers in a second; not set means no limit.",
            unit="bytes",
            least=_MIN_UPLOAD,
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
        if self.name is not None and not is_name(self.name):
            raise Conflict("name must be 1 to 256 printable characters.", "name")
        if self.region and not is_region(self.region):
            raise Conflict(
                f"region must be 1 to {MAX_LENGTH} small letters, digits, '.', '_' or '-', "
                "such as eu-west.",
                "region",
            )
        if len(self.engine) > _MAX_ENGINES:
            raise Conflict(f"engine lists more than {_MAX_ENGINES}: leave some out.", "engine")
        try:
            parse_schedule(self.schedule)
        except ScheduleError as error:
            raise Conflict(str(error), "schedule") from None
        try:
            for text in self.engine:
                parse_address(text)
        except AddressError as error:
            raise Conflict(str(error), "engine") from None

    def called(self, joined_as: str = "") -> str:
        """The node's name; ``joined_as`` is what the server called it when it joined."""
        return self.name or joined_as or host_name()

    @property
    def discovers(self) -> bool:
        return not self.engine if self.discover is None else self.discover
