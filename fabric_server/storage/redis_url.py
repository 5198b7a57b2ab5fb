"""The URLs of a Redis, of its sentinels or of a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

SCHEMES = (
    *("redis", "rediss"),
    *("redis+sentinel", "rediss+sentinel"),
    *("redis+cluster", "rediss+cluster"),
)

_PORTS = {"": 6379, "sentinel": 26379, "cluster": 6379}


@dataclass(frozen=True)
class RedisUrl:
    """The parts of a URL."""

    kind: str
    """``""``, ``sentinel`` or ``cluster``: what the hosts are."""
    hosts: tuple[tuple[str, int], ...]
    user: str | None
    password: str | None
    service: str
    db: int
    tls: bool
    authorities: str | None
    """A file of CA certificates (PEM); None is this machine's usual ones."""

    def __repr__(self) -> str:
        return f"<RedisUrl {self.kind or 'redis'} {self.hosts}>"


def parse(url: str) -> RedisUrl:
    """Parse ``redis://``, ``rediss://`` (TLS, certificates verified), and each with ``+sentinel``
    (``redis+sentinel://host:port,host:port/service/db``) or ``+cluster`` (``host:port,…``).

    ``?ssl_ca_certs=path`` names the authorities to trust.  Special characters in user and password
    are percent-encoded.  Raises ``ValueError``, whose text repeats nothing that may be secret.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # its text may hold the password
        raise ValueError("percent-encode special characters in the user or password") from None
    scheme, _, kind = parts.scheme.partition("+")
    if parts.scheme not in SCHEMES or not url.startswith(f"{parts.scheme}://"):
        raise ValueError(f"the kinds are {', '.join(name + '://' for name in SCHEMES)}")
    if parts.fragment:
        raise ValueError("write '#' in a user or password as %23")
    login, at, hosts = parts.netloc.rpartition("@")
    user, colon, password = login.partition(":")
    if at and not (colon and password):
        raise ValueError("a password is missing before the '@': user:password@ or :password@")
    path = [unquote(piece) for piece in parts.path.split("/")[1:] if piece]
    service = ""
    if kind == "sentinel":
        if not path:
            raise ValueError("the master's name is missing; it follows the sentinels: /name")
        service = path.pop(0)
    if len(path) > 1 or (path and not path[0].isdecimal()):
        raise ValueError("the database must be a number")
    db = int(path[0]) if path else 0
    if kind == "cluster" and db:
        raise ValueError("a cluster has no numbered databases")
    tls = scheme == "rediss"
    return RedisUrl(
        kind=kind,
        hosts=_hosts(hosts, _PORTS[kind], several=bool(kind)),
        user=unquote(user) or None,
        password=unquote(password) or None,
        service=service,
        db=db,
        tls=tls,
        authorities=_authorities(parts.query, tls),
    )


def _hosts(text: str, default_port: int, *, several: bool) -> tuple[tuple[str, int], ...]:
    found = []
    for piece in text.split(","):
        try:
            one = urlsplit(f"//{piece}")
            port = one.port
        except ValueError:
            raise ValueError("a host is name, name:port or [address]:port") from None
        if not one.hostname:
            raise ValueError("the host is missing")
        found.append((one.hostname, default_port if port is None else port))
    if len(found) > 1 and not several:
        raise ValueError("several hosts need redis+sentinel:// or redis+cluster://")
    return tuple(found)


def _authorities(query: str, tls: bool) -> str | None:
    options = dict(parse_qsl(query, keep_blank_values=True))
    path = options.pop("ssl_ca_certs", None)
    if options:
        raise ValueError("the only option after '?' is ssl_ca_certs=path")
    if path is None:
        return None
    if not tls:
        raise ValueError("ssl_ca_certs needs rediss://")
    if not Path(path).is_file():
        raise ValueError(f"file not found: {path}")
    return path
