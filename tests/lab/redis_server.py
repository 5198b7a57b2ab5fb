"""A real Redis for tests, started within a tenth of a second; alone, watched over, or in a cluster.

    with RedisServer(tmp_path, tls=True) as redis:
        redis.url, redis.ca                # rediss://127.0.0.1:…/0, and what to trust

    with RedisSentinel(tmp_path) as redis:
        redis.master.kill()                # the sentinel, redis.address, makes redis.replica master

    with RedisCluster(tmp_path) as redis:
        redis.addresses                    # three masters, each with a third of the slots

What was answered survives a kill.
"""

from __future__ import annotations

import datetime
import functools
import ipaddress
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.lab.backends import Daemon, free_port, provide, until

SLOTS = 16384
CLUSTER_BUS = 10000
"""How far from a node's port it speaks to the other ones."""
SETTLE_SECONDS = 20
DOWN_MS = 2000
"""A sentinel asks once a second, or once in this time if that is shorter; then the pause between
two questions is enough to call a server gone that is well (seen with 500, Redis 7.0)."""


class RedisServer(Daemon):
    name = "redis"

    def __init__(
        self,
        directory: Path,
        *,
        tls: bool = False,
        maxmemory: str = "0",
        policy: str = "noeviction",
        more: Sequence[str] = (),
    ) -> None:
        """`maxmemory` as in redis.conf, like ``2mb``; what is beyond goes as `policy` says.  `more`
        are options as on the command line."""
        super().__init__(directory)
        self.tls = tls
        self._options = ["--maxmemory", maxmemory, "--maxmemory-policy", policy, *more]

    @property
    def url(self) -> str:
        return f"redis{'s' if self.tls else ''}://127.0.0.1:{self.port}/0"

    @property
    def ca(self) -> Path:
        """The certificate to trust, with ``tls``; made by the first start."""
        return self.directory / "ca.pem"

    def ask(self, *words: str | int) -> Any:
        """What it answers to a command, as text that nothing was made of."""
        options: dict[str, Any] = {"ssl_ca_certs": str(self.ca)} if self.tls else {}
        options |= {"socket_timeout": 5, "decode_responses": True, "protocol": 2}
        with redis.Redis.from_url(self.url, **options) as client:
            client.response_callbacks.clear()
            return client.execute_command(*words)

    def full(self, on: bool) -> None:
        """Have it refuse whatever needs memory.  One that was filled takes some small keys still,
        since its memory shrinks and grows by itself."""
        self.ask("CONFIG", "SET", "maxmemory", 1 if on else 0)

    def _prepare(self) -> None:
        if self.tls and not self.ca.exists():
            write_certificates(self.directory)

    def _command(self) -> Sequence[str]:
        command = [program(), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        # With ``everysec`` the server may hold back what it has answered already, while it waits
        # for the disk; with ``no`` it is the kernel's at once, and safe from kill.
        command += ["--appendonly", "yes", "--appendfsync", "no", "--save", ""]
        if self.tls:
            command += ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
            for option, file in (("cert", "certificate"), ("key", "key"), ("ca-cert", "ca")):
                command += [f"--tls-{option}-file", str(self.directory / f"{file}.pem")]
        else:
            command += ["--port", str(self.port)]
        return [*command, *self._options]

    def _ready(self) -> bool:
        try:
            return bool(self.ask("PING"))
        except (redis.ConnectionError, redis.TimeoutError):
            return False  # not listening yet, or loading its data, which is an error


class Sentinel(RedisServer):
    """Watches `master`, and makes its replica the master two or three seconds after it went.

    The old one becomes the replica some ten seconds after it came back.
    """

    name = "sentinel"

    def __init__(self, directory: Path, group: str, master: RedisServer) -> None:
        super().__init__(directory)
        self.group = group
        self._master = master

    def _prepare(self) -> None:
        config = self.directory / "sentinel.conf"
        if not config.exists():  # it keeps there what it learns
            config.write_text(
                f"port {self.port}\n"
                "bind 127.0.0.1\n"
                f"dir {self.directory}\n"
                f"sentinel monitor {self.group} 127.0.0.1 {self._master.port} 1\n"
                f"sentinel down-after-milliseconds {self.group} {DOWN_MS}\n"
                f"sentinel failover-timeout {self.group} 3000\n"
            )

    def _command(self) -> Sequence[str]:
        return [program(), str(self.directory / "sentinel.conf"), "--sentinel"]


class Group:
    """Several servers that run while entered; `start` starts those that don't run."""

    def __init__(self, *servers: RedisServer) -> None:
        self.servers = servers

    def start(self) -> None:
        with ExitStack() as stack:
            for server in self.servers:
                if not server.running:
                    stack.enter_context(server)
            self._settle()
            stack.pop_all()

    def stop(self) -> None:
        for server in reversed(self.servers):
            server.stop()

    def _settle(self) -> None:
        """Returns when they have found each other."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.stop()


class RedisSentinel(Group):
    """A master, its replica, and a sentinel that calls them `group`."""

    group = "fabric"

    def __init__(self, directory: Path) -> None:
        # The master waits no 5 s for more replicas before it sends the first one its data.
        prompt = ("--repl-diskless-sync-delay", "0")
        self.master = RedisServer(directory / "master", more=prompt)
        of = ("--replicaof", f"127.0.0.1 {self.master.port}")
        self.replica = RedisServer(directory / "replica", more=(*prompt, *of))
        self.sentinel = Sentinel(directory / "sentinel", self.group, self.master)
        super().__init__(self.master, self.replica, self.sentinel)

    @property
    def address(self) -> tuple[str, int]:
        """The sentinel's, to ask for the master's."""
        return ("127.0.0.1", self.sentinel.port)

    def master_port(self) -> int:
        """The port that the sentinel gives clients now."""
        state = as_dict(self.sentinel.ask("SENTINEL", "MASTER", self.group))
        return int(state["port"])

    def _settle(self) -> None:
        until(self._is_watched, SETTLE_SECONDS, f"{self.sentinel!r} does not see the replica")

    def _is_watched(self) -> bool:
        replicas = self.sentinel.ask("SENTINEL", "REPLICAS", self.group)
        return [as_dict(one).get("master-link-status") for one in replicas] == ["ok"]


class RedisCluster(Group):
    """Three masters without replicas.  While one is gone, its slots are, and the others answer."""

    def __init__(self, directory: Path) -> None:
        more = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]
        more += ["--cluster-require-full-coverage", "no"]
        super().__init__(*(ClusterNode(directory / f"node{n}", more=more) for n in range(3)))

    @property
    def addresses(self) -> list[tuple[str, int]]:
        return [("127.0.0.1", server.port) for server in self.servers]

    def _settle(self) -> None:
        first, *others = self.servers
        if "cluster_slots_assigned:0\r\n" in first.ask("CLUSTER", "INFO"):
            each = SLOTS // len(self.servers) + 1
            for n, server in enumerate(self.servers):
                server.ask("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
                slots = range(n * each, min((n + 1) * each, SLOTS))
                server.ask("CLUSTER", "ADDSLOTS", *slots)
            for other in others:
                first.ask("CLUSTER", "MEET", "127.0.0.1", other.port)
        until(self._is_one, SETTLE_SECONDS, f"{self.servers} do not become a cluster")

    def _is_one(self) -> bool:
        infos = [server.ask("CLUSTER", "INFO") for server in self.servers]
        signs = ("cluster_state:ok\r\n", f"cluster_slots_ok:{SLOTS}\r\n")
        return all(sign in info for sign in signs for info in infos)


class ClusterNode(RedisServer):
    def __init__(self, directory: Path, *, more: Sequence[str]) -> None:
        super().__init__(directory, more=more)
        self.port = free_port(CLUSTER_BUS)


def as_dict(words: Sequence[str]) -> dict[str, str]:
    """Parse a sentinel's reply: names and values in turn."""
    return dict(zip(words[::2], words[1::2], strict=True))


def program() -> str:
    """The path of redis-server, which is the sentinel too."""
    find = functools.partial(shutil.which, "redis-server")
    return provide("redis", "Redis (redis-server)", find, "redis-server")


def write_certificates(directory: Path) -> None:
    """An authority in ca.pem, and certificate.pem and key.pem for 127.0.0.1 and localhost."""
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name, name = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in ("lab CA", "redis")
    )
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)

    def sign(
        subject: x509.Name, key: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType
    ) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
        )
        ids = (
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
        )
        for extension in (*ids, *extensions):
            critical = isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
            builder = builder.add_extension(extension, critical)
        return builder.sign(ca_key, SHA256()).public_bytes(Encoding.PEM)

    signs = x509.KeyUsage(
        key_cert_sign=True,
        crl_sign=True,
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    names = x509.SubjectAlternativeName([address, x509.DNSName("localhost")])
    ca = sign(ca_name, ca_key, x509.BasicConstraints(ca=True, path_length=0), signs)
    leaf = sign(name, key, x509.BasicConstraints(ca=False, path_length=None), names)
    (directory / "certificate.pem").write_bytes(leaf)
    (directory / "key.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    (directory / "ca.pem").write_bytes(ca)
