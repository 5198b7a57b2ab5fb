"""Settings of the consumer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from runtime.settings import Conflict, about

PREFIX = "FABRIC_CONSUMER_"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Made by ``runtime.settings.load`` with ``PREFIX``; raises ``Conflict`` for values that
    contradict each other."""

    store: str = field(
        metadata=about("Where records go: postgresql://user:password@host/database, as on the "
                       "server."),
    )  # fmt: skip
    bus: str = field(
        metadata=about("Where records come from: kafka://host:port,…, as on the server."),
    )
    group: str = field(
        default="fabric-consumer",
        metadata=about("Consumers of one group share the records; each group gets all of them."),
    )
    batch_size: int = field(
        default=500,
        metadata=about("Write a batch as soon as so many records wait.", least=1),
    )
    batch_timeout: float = field(
        default=1.0,
        metadata=about("Write a smaller batch after this time.", unit="seconds", least=0.01),
    )
    batch_most: int = field(
        default=5000,
        metadata=about("Most records of each kind in one transaction.", least=1),
    )
    keep_heartbeats_days: float = field(
        default=7.0,
        metadata=about("Delete heartbeats after so many days.", least=0.01),
    )
    offline_seconds: float = field(
        default=60.0,
        metadata=about(
            "Mark a node offline after so long without a heartbeat: several intervals.",
            unit="seconds",
            least=1,
        ),
    )
    host: str = field(
        default="127.0.0.1",
        metadata=about("Address for /metrics and /health, which need no key."),
    )
    port: int = field(
        default=18082,
        metadata=about("Port for /metrics and /health; 0 takes any free one.", least=0, most=65535),
    )
    wait_for_backends: bool = field(
        default=False,
        metadata=about("Wait for store and bus to come up, instead of exiting if they are down."),
    )
    log_level: Literal["debug", "info", "warning", "error"] = field(
        default="info", metadata=about("Lowest level to log.")
    )
    log_json: bool | None = field(
        default=None,
        metadata=about("Log JSON lines; default: unless standard error is a terminal."),
    )

    def __post_init__(self) -> None:
        if self.batch_most < self.batch_size:
            raise Conflict(
                f"batch_most is {self.batch_most}, less than batch_size, {self.batch_size}: "
                "raise it to at least that.",
                "batch_most",
                "batch_size",
            )
