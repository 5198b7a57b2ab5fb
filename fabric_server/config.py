"""The settings of the server.  The defaults run on a laptop."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fabric_server.config_checks import MAX_WORKERS, check, default_ports, opened_ports
from fabric_server.config_place import PlaceConfig
from fabric_server.net.machine_memory import memory_limit
from fabric_server.net.memory_budget import BudgetLimits
from protocol.messages import MAX_HEARTBEAT_SECONDS, MAX_SECONDS, MIN_HEARTBEAT_SECONDS
from runtime.settings import about

PREFIX = "FABRIC_SERVER_"


def _months(help: str) -> dict[str, object]:
    return dict(about(f"{help}, beside the current month; 0: for ever.", least=0, most=1200))


def _days(help: str) -> dict[str, object]:
    return dict(about(f"{help}, in days; 0: for ever.", least=0))


def _seconds(help: str) -> dict[str, object]:
    return dict(about(help, unit="seconds", least=0.001))


@dataclass(frozen=True, kw_only=True)
class Config(PlaceConfig):
    """The settings, loaded by ``runtime.settings.load`` with ``PREFIX``.

    Raises ``Conflict`` for values that don't fit together.
    """

    connections: int | None = field(
        default=None,
        metadata=about(
            "Maximum number of connections to the public port. When it is reached, connections "
            "that have sent no valid key are closed for new ones, the oldest first. Default: from "
            "the limit of open files (ulimit -n).",
            least=1,
        ),
    )
    connections_per_address: int | None = field(
        default=None,
        metadata=about(
            "The same from one IPv4 address or one /64 of IPv6; neither this machine nor trusted "
            "proxies have this limit. Default: a quarter of connections.",
            least=1,
        ),
    )
    api_connections: int | None = field(
        default=None,
        metadata=about(
            "Maximum number of connections to the API port. Default: from ulimit -n.", least=1
        ),
    )
    node_connections: int | None = field(
        default=None,
        metadata=about(
            "Maximum number of nodes' links and tunnels, together. Default: from ulimit -n.",
            least=4,
        ),
    )
    trusted_proxies: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "Addresses or networks (10.0.0.0/8) of proxies whose X-Forwarded-For and PROXY "
            "protocol headers are believed."
        ),
    )
    proxy_protocol: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "Ports (control, proxy, public, api, one) on which every connection has to begin with "
            "a header of the PROXY protocol, version 2, from a trusted proxy."
        ),
    )
    plaintext_from_proxies: bool = field(
        default=False,
        metadata=about("Allow trusted proxies plain HTTP on the public port, not on the API port."),
    )
    cors_origins: tuple[str, ...] = field(
        default=("*",),
        metadata=about(
            "Origins of web pages that may use the public port, such as https://chat.example.org; "
            "* for all, none for no page. Keys are needed all the same."
        ),
    )

    store: str = field(
        default="",
        metadata=about(
            "Database of keys, nodes, jobs and the ledger: sqlite:///path or postgresql://…. "
            "Default: fabric.sqlite in data."
        ),
    )
    cache: str = field(
        default="memory://", metadata=about("Cache of keys: memory:// or redis://….")
    )
    bus: str = field(
        default="spool://",
        metadata=about(
            "How ledger entries reach the store: spool:// (through files in data; a killed server "
            "loses none), memory:// (a killed server may lose a second of them) or "
            "kafka://host:port,… (with fabric-consumer)."
        ),
    )
    spool_limit: int = field(
        default=2**30,
        metadata=about(
            "Maximum size of the spool, which grows while the store or Kafka is away. Heartbeats "
            "are dropped first; when it is full of ledger entries, requests are refused.",
            unit="bytes",
            least=2**20,
        ),
    )
    wait_for_backends: bool = field(
        default=False,
        metadata=about("At the start, wait for store, cache and bus instead of failing."),
    )

    body_limit: int = field(
        default=32 * 2**20,
        metadata=about("Maximum size of a request body.", unit="bytes", least=1024),
    )
    memory_limit: int | None = field(
        default=None,
        metadata=about(
            "Memory that the server may use. New requests are refused above 90 % of it, until it "
            "is below 80 %. Default: the limit of its container, or three quarters of the "
            "machine's memory.",
            unit="bytes",
            least=128 * 2**20,
        ),
    )
    bodies_limit: int | None = field(
        default=None,
        metadata=about(
            "Maximum size of what requests under way hold in memory, together: bodies, and answers "
            "that clients do not read. Default: a quarter of memory_limit.",
            unit="bytes",
            least=2**20,
        ),
    )
    bodies_limit_per_key: int | None = field(
        default=None,
        metadata=about(
            "The same for one key. Default: a quarter of bodies_limit, and room for two bodies of "
            "body_limit.",
            unit="bytes",
            least=2**20,
        ),
    )
    headers_limit: int = field(
        default=32 * 2**10,
        metadata=about("Maximum size of a request's headers, together.", unit="bytes", least=1024),
    )
    headers_count: int = field(
        default=100, metadata=about("Maximum number of headers in a request.", least=1)
    )
    header_timeout: float = field(
        default=10.0, metadata=_seconds("Timeout for receiving a request's headers.")
    )
    body_rate: int = field(
        default=1024,
        metadata=about(
            "Minimum speed of a request body, in bytes per second, after its first 10 s.",
            unit="bytes",
            least=1,
        ),
    )
    keepalive_timeout: float = field(
        default=75.0,
        metadata=_seconds(
            "How long a client's idle connection is kept open; longer than a proxy in front does."
        ),
    )
    first_byte_timeout: float = field(
        default=300.0,
        metadata=_seconds("Timeout for an engine's first byte; it may have to load the model."),
    )
    stall_timeout: float = field(
        default=30.0,
        metadata=_seconds(
            "Without a first byte after this time, ask another node with a free slot, too."
        ),
    )
    idle_timeout: float = field(
        default=120.0, metadata=_seconds("Timeout between two chunks of an engine's response.")
    )
    slow_reader_timeout: float = field(
        default=30.0, metadata=_seconds("Disconnect a client that reads nothing for this long.")
    )
    stream_limit: float = field(
        default=7200.0, metadata=_seconds("Maximum duration of a response.")
    )
    hedge: Literal["off", "p95"] = field(
        default="off",
        metadata=about(
            "p95: try a second node with a free slot when the first byte takes longer than it did "
            "for 95 % of the model's recent requests; the faster node's response is used."
        ),
    )
    queue_length: int = field(
        default=512, metadata=about("Maximum number of requests in one model's queue.", least=0)
    )
    queue_length_per_key: int = field(
        default=128,
        metadata=about("Maximum number of one key's requests in a model's queue.", least=0),
    )
    queue_timeout: float = field(default=60.0, metadata=_seconds("Maximum time in the queue."))

    aliases: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "Public names of models, as public=real|other, or gpt-*=real for all names that fit: "
            "the first of the real models with a free slot is used."
        ),
    )
    weights: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "Weights of nodes, by id, name or region, as node=2 or region:eu-west=2: a node of "
            "weight 2 is treated as twice as fast."
        ),
    )

    jobs_at_once: int = field(
        default=64,
        metadata=about(
            "Maximum number of jobs (/inference) that this server runs at once.", least=0
        ),
    )
    batch_at_once: int = field(
        default=8,
        metadata=about("Maximum number of batch lines that this server runs at once.", least=0),
    )
    jobs_per_account: int = field(
        default=1000, metadata=about("Maximum number of one account's unfinished jobs.", least=0)
    )
    results_hours: float = field(
        default=24.0, metadata=about("How long a job's result is kept, in hours.", least=0.01)
    )
    file_limit: int = field(
        default=100 * 2**20,
        metadata=about("Maximum size of an uploaded file.", unit="bytes", least=1024),
    )
    files_per_account: int = field(
        default=2**30,
        metadata=about("Maximum size of one account's files, together.", unit="bytes", least=1024),
    )
    files_days: float = field(
        default=30.0, metadata=about("How long a file is kept, in days.", least=0.01)
    )
    stored_days: float = field(
        default=0.0,
        metadata=about(
            "How long responses and chat completions are kept whose requests have store: true, in "
            "days; 0: none is stored.",
            least=0,
        ),
    )
    stored_per_account: int = field(
        default=64 * 2**20,
        metadata=about(
            "Maximum size of one account's stored responses and chat completions, together; the "
            "oldest are dropped for new ones.",
            unit="bytes",
            least=2**20,
        ),
    )
    media: Literal["fetch", "data", "off"] = field(
        default="fetch",
        metadata=about(
            "What is done with URLs of images, sounds, videos and files in requests. fetch: the "
            "server fetches them, so that engines get data and open no URL; data: only data: URLs "
            "and base64 are taken; off: no media are taken."
        ),
    )
    media_private: bool = field(
        default=False,
        metadata=about(
            "Allow URLs of media in this server's own networks: only if every client may read "
            "the media that this server can reach there."
        ),
    )
    webhook_http: bool = field(default=False, metadata=about("Allow http:// URLs for webhooks."))
    webhook_private: bool = field(
        default=False,
        metadata=about(
            "Allow webhook URLs in this server's own networks: only if every client may reach "
            "whatever this server can reach there."
        ),
    )

    keep_ledger_months: int = field(
        default=3, metadata=_months("Months for which single requests stay in the ledger")
    )
    ledger_archive: Path | None = field(
        default=None,
        metadata=about(
            "Directory for compressed files of the ledger's months, which are written before they "
            "are deleted. Default: none are written."
        ),
    )
    keep_hourly_months: int = field(
        default=3,
        metadata=_months(
            "Months for which usage is kept by hour, and no fewer than requests; then by day"
        ),
    )
    keep_daily_months: int = field(
        default=13, metadata=_months("Months for which usage is kept by day, then by month")
    )
    keep_monthly_months: int = field(
        default=120,
        metadata=_months("Months for which usage is kept by month, then as one sum by account"),
    )
    keep_heartbeats_days: float = field(
        default=7.0,
        metadata=about("How long heartbeats are kept, in days, but with Kafka.", least=0.01),
    )
    keep_nodes_days: float = field(
        default=30.0,
        metadata=_days("How long nodes that are away are listed and, once they can't return, kept"),
    )
    keep_ended_days: float = field(
        default=400.0, metadata=_days("How long revoked and expired keys and nodes are kept")
    )

    heartbeat_seconds: float = field(
        default=15.0,
        metadata=about(
            "Interval of the nodes' heartbeats.",
            unit="seconds",
            least=MIN_HEARTBEAT_SECONDS,
            most=MAX_HEARTBEAT_SECONDS,
        ),
    )
    tunnels: int = field(
        default=2,
        metadata=about(
            "Number of a node's tunnels. A node with many slots opens one for every 192 of them.",
            least=1,
            most=16,
        ),
    )
    tunnels_most: int = field(
        default=4,
        metadata=about(
            "Maximum number of a node's tunnels under load, unless its slots need more.",
            least=1,
            most=16,
        ),
    )
    node_certificate_days: float = field(
        default=30.0,
        metadata=about("Lifetime of a node's certificate, in days.", least=0.01),
    )
    drain_seconds: float = field(
        default=60.0,
        metadata=about(
            "How long running requests may take to finish when the server stops.",
            unit="seconds",
            least=0,
            most=MAX_SECONDS,
        ),
    )

    workers: str = field(
        default="1",
        metadata=about(
            "Number of processes that share the work, each on a core of its own, or auto: one for "
            "each core (Linux). Nodes and connections are spread over them."
        ),
    )

    takeover: bool = field(
        default=False,
        metadata=about(
            "Take over the ports of the server that runs with the same data; that one finishes "
            "its requests and exits. No request is lost."
        ),
    )

    log_level: Literal["debug", "info", "warning", "error"] = field(
        default="info", metadata=about("Minimum level of log lines.")
    )
    log_json: bool | None = field(
        default=None,
        metadata=about("Log as JSON lines. Default: unless standard error is a terminal."),
    )

    def __post_init__(self) -> None:
        for name, number in default_ports(self).items():
            object.__setattr__(self, name, number)
        check(self)

    def ports(self) -> dict[str, int]:
        """Return the numbers of the ports that are opened, by their names; 0 is any free one."""
        return opened_ports(self)

    @property
    def store_url(self) -> str:
        """The URL of the store, also when ``store`` is empty."""
        return self.store or f"sqlite:///{(self.data / 'fabric.sqlite').as_posix()}"

    def worker_count(self) -> int:
        """Return how many processes share the work; 1: this one does all of it."""
        if self.workers != "auto":
            return int(self.workers)
        if sys.platform != "linux":
            return 1
        return min(len(os.sched_getaffinity(0)), MAX_WORKERS)

    def memory(self) -> int:
        """Return ``memory_limit``, or what this machine or container has."""
        return self.memory_limit or memory_limit()

    def budget_limits(self) -> BudgetLimits:
        """Return the bounds of what requests hold; each key may send two of the largest bodies."""
        in_all = self.bodies_limit or self.memory() // 4
        per_key = self.bodies_limit_per_key or max(in_all // 4, 2 * self.body_limit)
        return BudgetLimits(in_all, min(per_key, in_all))
