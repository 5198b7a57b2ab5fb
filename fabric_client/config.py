"""The settings of a node.  The defaults find a local engine by themselves."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fabric_client.engines.addresses import AddressError, parse_address
from fabric_client.offer.patterns import Offer, PatternError
from fabric_client.owner.schedule import ScheduleError, parse_schedule
from protocol.join import is_name
from protocol.regions import MAX_LENGTH, is_region
from runtime.http_proxy import NONE, Proxies
from runtime.places import data_of_service
from runtime.settings import Conflict, SettingsError, about

PREFIX = "FABRIC_NODE_"


def host_name() -> str:
    """Return this machine's name, ``node`` if it can't be a node's name."""
    name = socket.gethostname()
    return name if is_name(name) else "node"


_MAX_ENGINES = 16  # the most that a report may list
_MIN_UPLOAD = 16 * 1024  # with less, concurrent answers are so slow that they seem dead


@dataclass(frozen=True, kw_only=True)
class Config:
    """Made by ``runtime.settings.load`` with ``PREFIX``.

    Raises ``Conflict`` for values that are wrong or don't fit together.
    """

    data: Path = field(
        default_factory=lambda: (
            data_of_service("fabric-client") or Path.home() / ".fabric" / "node"
        ),
        metadata=about(
            "Directory of this node's key, certificates and settings (default: that of the "
            "installed service, or ~/.fabric/node)."
        ),
    )
    name: str | None = field(
        default=None,
        metadata=about("Name of this node (default: the one in the invitation, or the host name)."),
    )
    region: str = field(
        default="",
        metadata=about(
            "Region of this node, such as eu-west, for users whose requests must be served there "
            "(default: none, so that it gets no such requests)."
        ),
    )
    engine: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "Address of an engine, such as http://localhost:11434, or with its kind "
            "(ollama, vllm, llama-server, lm-studio, sglang, koboldcpp, localai, tgi, openai): "
            "vllm=http://10.0.0.5:8000. Repeat it for several engines."
        ),
    )
    engine_key_file: tuple[Path, ...] = field(
        default=(),
        metadata=about(
            "File with the API key that an engine wants, readable by you alone. With several "
            "engines the first file is for the first one, and so on (default: no key is sent)."
        ),
    )
    discover: bool | None = field(
        default=None,
        metadata=about(
            "Look for engines on their usual ports of this machine (default: only if no engine is "
            "set)."
        ),
    )
    slots: int | None = field(
        default=None,
        metadata=about(
            "Concurrent requests per engine (default: as the engine reports).",
            least=1,
            most=4096,
        ),
    )
    max_num_ctx: int | None = field(
        default=None,
        metadata=about(
            "Largest context that users of an Ollama may ask for with num_ctx, in tokens (default: "
            "none; Ollama loads models as you have set it up).",
            least=1,
            most=2**31 - 1,
        ),
    )
    models: tuple[str, ...] | None = field(
        default=None,
        metadata=about(
            "Models that are offered to others: patterns such as 'llama3*' and '!*-private', "
            "separated by commas; the last that matches decides (default: all, or as joined).",
            empty=True,
        ),
    )
    schedule: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "Hours in which the node serves, local time, such as 22:00-08:00 or "
            "mon-fri 18:00-08:00; separate several by commas (default: always)."
        ),
    )
    pause_on_battery: bool = field(
        default=True, metadata=about("Pause while the machine runs on battery (default: yes).")
    )
    pause_gpu_percent: float | None = field(
        default=None,
        metadata=about(
            "Pause while other programs use more than this percentage of the GPU (default: never "
            "pause for them).",
            least=1,
            most=99,
        ),
    )
    pause_gpu_seconds: float = field(
        default=30.0,
        metadata=about(
            "Time for which GPU use must stay above or below that limit to count.",
            unit="seconds",
            least=0,
            most=3600,
        ),
    )
    upload_limit: int | None = field(
        default=None,
        metadata=about(
            "Most bytes of responses sent per second (default: no limit).",
            unit="bytes",
            least=_MIN_UPLOAD,
        ),
    )
    proxy: str = field(
        default="",
        metadata=about(
            "HTTP proxy by which the server is reached, such as http://user:password@proxy:3128; "
            "none for no proxy (default: HTTPS_PROXY, unless NO_PROXY has the server). Engines "
            "are always reached directly."
        ),
    )
    log_level: Literal["debug", "info", "warning", "error"] = field(
        default="info", metadata=about("Log messages of this level and above.")
    )
    log_json: bool | None = field(
        default=None,
        metadata=about("Log JSON lines (default: unless standard error is a terminal)."),
    )

    def __post_init__(self) -> None:
        if self.name is not None and not is_name(self.name):
            raise Conflict("name must be 1 to 256 printable characters.", "name")
        if self.region and not is_region(self.region):
            raise Conflict(
                f"region must be 1 to {MAX_LENGTH} lowercase letters, digits, '.', '_' or '-', "
                "such as eu-west.",
                "region",
            )
        if len(self.engine) > _MAX_ENGINES:
            raise Conflict(f"engine lists more than {_MAX_ENGINES} engines.", "engine")
        if len(self.engine_key_file) > len(self.engine):
            raise Conflict(
                "engine_key_file lists more files than engine lists engines: name the engine that "
                "each key is for.",
                "engine_key_file",
                "engine",
            )
        try:
            Offer(self.models)
        except PatternError as error:
            raise Conflict(f"models: {error}", "models") from None
        try:
            parse_schedule(self.schedule)
        except ScheduleError as error:
            raise Conflict(str(error), "schedule") from None
        try:
            # Without "://" its password would not be recognised where settings are shown.
            bare = self.proxy not in ("", NONE) and "://" not in self.proxy
            Proxies.of(f"?://{self.proxy}" if bare else self.proxy, {})
        except ValueError as error:
            raise Conflict(f"{error}, or none.", "proxy") from None
        try:
            for text in self.engine:
                parse_address(text)
        except AddressError as error:
            raise Conflict(str(error), "engine") from None

    def proxies(self) -> Proxies:
        """Return the way to the server.  Raises ``SettingsError`` for a wrong HTTPS_PROXY."""
        try:
            return Proxies.of(self.proxy, os.environ)
        except ValueError as error:
            raise SettingsError(f"{error}, or set proxy to none.") from None

    def called(self, joined_as: str = "") -> str:
        """Return the node's name; ``joined_as`` is the one that the server gave it."""
        return self.name or joined_as or host_name()

    def offers(self, joined_with: Sequence[str] | None = None) -> Offer:
        """Return what is offered; ``joined_with`` are the patterns that ``join`` was given."""
        return Offer(joined_with if self.models is None else self.models)

    @property
    def discovers(self) -> bool:
        """True if engines are to be looked for."""
        return not self.engine if self.discover is None else self.discover
