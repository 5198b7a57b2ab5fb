"""What an operator can set on the server.  The defaults run on a laptop."""

from __future__ import annotations

import socket
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fabric_server.routing.aliases import parse_aliases
from fabric_server.routing.weights import parse_weights
from runtime.settings import Conflict, about

PREFIX = "FABRIC_SERVER_"

_PORTS = ("control_port", "proxy_port", "public_port", "api_port")
_SCHEMES = {
    "store": ("sqlite", "postgresql"),
    "cache": (
        *("memory", "redis", "rediss"),
        *("redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"),
    ),
    "bus": ("memory", "spool", "kafka"),
}


def _port(help: str) -> dict[str, object]:
    return dict(about(f"{help}; 0 takes any free one.", least=0, most=65535))


def _seconds(help: str) -> dict[str, object]:
    return dict(about(help, unit="seconds", least=0.001))


@dataclass(frozen=True, kw_only=True)
class Config:
    """Made by ``runtime.settings.load`` with ``PREFIX``; raises ``Conflict`` for values
    that don't fit together."""

    data: Path = field(
        default_factory=lambda: Path.home() / ".fabric" / "server",
        metadata=about("Where certificates, keys and the SQLite store live."),
    )

    host: tuple[str, ...] = field(
        default=("::", "0.0.0.0"),  # noqa: S104 - a server on a public address is what this is
        metadata=about("Addresses to listen on, for all four ports."),
    )
    control_port: int = field(default=17000, metadata=_port("Port of the nodes' links"))
    proxy_port: int = field(default=17001, metadata=_port("Port of the nodes' tunnels"))
    public_port: int = field(default=18080, metadata=_port("Port of the OpenAI-compatible API"))
    api_port: int = field(
        default=18081, metadata=_port("Port for operators, monitoring and enrolment")
    )
    address: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "Public names or addresses of this server: the first goes into invitations, all go "
            "into its certificate. Empty means this machine's own address."
        ),
    )
    public_certificate: Path | None = field(
        default=None,
        metadata=about(
            "Certificate chain (PEM) for the public and api ports, instead of the fabric's own."
        ),
    )
    public_key: Path | None = field(
        default=None, metadata=about("Private key (PEM) of public_certificate.")
    )

    store: str = field(
        default="",
        metadata=about(
            "Where keys, nodes and the ledger are kept: sqlite:///path or postgresql://…. "
            "Empty means fabric.sqlite in data."
        ),
    )
    cache: str = field(
        default="memory://", metadata=about("Where keys are cached: memory:// or redis://….")
    )
    bus: str = field(
        default="spool://",
        metadata=about(
            "How the ledger reaches the store: spool:// (through files in data, so that a killed "
            "server loses nothing), memory:// (which may lose a second) or kafka://host:port,… "
            "with fabric-consumer."
        ),
    )
    spool_limit: int = field(
        default=2**30,
        metadata=about(
            "Most that the files in data/spool may hold while the bus is away. Heartbeats are "
            "dropped first; full of ledger entries, the server takes no requests.",
            unit="bytes",
            least=2**20,
        ),
    )
    wait_for_backends: bool = field(
        default=False,
        metadata=about("Wait for store, cache and bus to come up, instead of ending when away."),
    )

    body_limit: int = field(
        default=32 * 2**20,
        metadata=about("Largest request body.", unit="bytes", least=1024),
    )
    headers_limit: int = field(
        default=32 * 2**10,
        metadata=about("Largest request head, all headers together.", unit="bytes", least=1024),
    )
    headers_count: int = field(default=100, metadata=about("Most headers in a request.", least=1))
    header_timeout: float = field(
        default=10.0, metadata=_seconds("A request's head must have come within this time.")
    )
    body_rate: int = field(
        default=1024,
        metadata=about(
            "Slowest request body, bytes per second, measured once it has been coming for 10 s.",
            unit="bytes",
            least=1,
        ),
    )
    keepalive_timeout: float = field(
        default=60.0, metadata=_seconds("An idle connection of a user is closed after this time.")
    )
    first_byte_timeout: float = field(
        default=300.0,
        metadata=_seconds("An engine must begin its answer within this time; it may be loading."),
    )
    stall_timeout: float = field(
        default=30.0,
        metadata=_seconds(
            "After so long without the first byte another node is asked, if one has room."
        ),
    )
    idle_timeout: float = field(
        default=120.0, metadata=_seconds("Longest silence of an engine in mid-answer.")
    )
    slow_reader_timeout: float = field(
        default=30.0, metadata=_seconds("A user who reads nothing for this long is cut off.")
    )
    stream_limit: float = field(
        default=7200.0, metadata=_seconds("Longest time any one answer may take.")
    )
    hedge: Literal["off", "p95"] = field(
        default="off",
        metadata=about(
            "p95: ask a second node with a free slot when the first takes longer to begin than 95 "
            "of 100 answers of the model did; the quicker one answers."
        ),
    )
    queue_length: int = field(
        default=512, metadata=about("Most requests waiting for one model's free slots.", least=0)
    )
    queue_length_per_key: int = field(
        default=128,
        metadata=about(
            "Most of these that one key may have, so that there is room for others'.", least=0
        ),
    )
    queue_timeout: float = field(default=60.0, metadata=_seconds("Longest wait for a free slot."))

    aliases: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "Public names for models, as public=real|other: the first of these models that has a "
            "free slot answers."
        ),
    )
    weights: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "Nodes to prefer, or to spare, by id, name or region, as node=2 or region:eu-west=2: "
            "counts as twice as fast."
        ),
    )

    jobs_at_once: int = field(
        default=64, metadata=about("Jobs of /inference that this server runs at once.", least=0)
    )
    batch_at_once: int = field(
        default=8, metadata=about("Lines of batches that this server runs at once.", least=0)
    )
    jobs_per_account: int = field(
        default=1000, metadata=about("Most unfinished jobs of one account.", least=0)
    )
    results_hours: float = field(
        default=24.0, metadata=about("How long a job's result is kept.", least=0.01)
    )
    file_limit: int = field(
        default=100 * 2**20,
        metadata=about("Largest file that a user may upload.", unit="bytes", least=1024),
    )
    files_per_account: int = field(
        default=2**30,
        metadata=about("Most that an account's files may have.", unit="bytes", least=1024),
    )
    files_days: float = field(
        default=30.0, metadata=about("How long a user's file is kept.", least=0.01)
    )
    webhook_http: bool = field(
        default=False, metadata=about("Let users name http:// URLs to be told at, too.")
    )
    webhook_private: bool = field(
        default=False,
        metadata=about(
            "Let users name URLs within this server's own networks: only if all users may reach "
            "everything there that this server can."
        ),
    )

    heartbeat_seconds: float = field(
        default=15.0, metadata=_seconds("How often a node reports how it is.")
    )
    tunnels: int = field(default=2, metadata=about("Tunnels a node keeps open.", least=1, most=16))
    tunnels_most: int = field(
        default=4, metadata=about("Tunnels a node may be asked for under load.", least=1, most=16)
    )
    node_certificate_days: float = field(
        default=30.0,
        metadata=about("Lifetime of a node's certificate; renewed at a third of it.", least=0.01),
    )
    drain_seconds: float = field(
        default=60.0,
        metadata=about(
            "How long running answers may finish when the server is told to stop.",
            unit="seconds",
            least=0,
        ),
    )

    takeover: bool = field(
        default=False,
        metadata=about(
            "Take over from the server that runs with the same data, losing no request: it hands "
            "its ports over, and ends when what it has begun is finished."
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
        if not self.host:
            raise Conflict("host is empty: name at least one address to listen on.", "host")
        users: defaultdict[int, list[str]] = defaultdict(list)
        for name in _PORTS:
            users[getattr(self, name)].append(name)
        for port, names in users.items():
            if port and len(names) > 1:
                both = " and ".join(names)
                raise Conflict(f"{both} are both {port}: give each its own port.", *names)
        if self.tunnels_most < self.tunnels:
            raise Conflict(
                f"tunnels_most is {self.tunnels_most}, less than tunnels, {self.tunnels}: "
                f"raise it to at least that.",
                "tunnels_most",
                "tunnels",
            )
        if (self.public_certificate is None) != (self.public_key is None):
            raise Conflict(
                "public_certificate and public_key go together: set both or neither.",
                "public_certificate",
                "public_key",
            )
        for setting, parse in (("aliases", parse_aliases), ("weights", parse_weights)):
            try:
                parse(getattr(self, setting))
            except ValueError as error:
                raise Conflict(f"{setting}: {error}.", setting) from None
        for name, schemes in _SCHEMES.items():
            url: str = getattr(self, name)
            scheme, colon, _ = url.partition("://")
            if url and not (colon and scheme in schemes):
                # The URL itself may hold a password.
                options = " or ".join(f"{one}://…" for one in schemes)
                raise Conflict(f"{name} is no URL of a kind known here: use {options}.", name)

    @property
    def store_url(self) -> str:
        return self.store or f"sqlite:///{(self.data / 'fabric.sqlite').as_posix()}"

    def names(self) -> tuple[str, ...]:
        """``address``, or what other machines most likely reach this one by; never empty."""
        return self.address or (_own_address() or socket.gethostname(),)


def _own_address() -> str | None:
    """The address this machine would send from; connecting a UDP socket sends nothing."""
    # Addresses reserved for documentation (RFC 5737, RFC 3849): routed like any other.
    for family, anywhere in (
        (socket.AF_INET, "192.0.2.1"),
        (socket.AF_INET6, "2001:db8::1"),
    ):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((anywhere, 9))
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return None
