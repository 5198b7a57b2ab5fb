"""A real ACME CA for tests: Pebble, which Let's Encrypt's makers test clients with.

    with Pebble(tmp_path) as ca:
        ca.directory_url, ca.trust         # for the client; `trust` is the CA of its own HTTPS
        ca.http_port, ca.tls_port          # where it checks names, instead of 80 and 443
        ca.root()                          # what signs the certificates that it issues

Every name leads to 127.0.0.1, unless `no_dns` says otherwise.  The first use on a machine builds
it; see pebble_server.sh.
"""

from __future__ import annotations

import functools
import json
import os
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fabric_server.pki.ca import Authority
from tests.lab.backends import Daemon, answers, free_port
from tests.trust import server_papers


class _Names(Daemon):
    """The DNS server that Pebble asks."""

    name = "pebble-challtestsrv"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.management = free_port()

    def _command(self) -> Sequence[str]:
        off = (f"-{one}=" for one in ("http01", "https01", "tlsalpn01", "doh", "defaultIPv6"))
        where = f"127.0.0.1:{self.management}"
        dns = f"127.0.0.1:{self.port}"
        return [str(programs() / self.name), *off, f"-dnsserver={dns}", f"-management={where}"]

    def _ready(self) -> bool:
        return answers(self.management) and answers(self.port)


class Pebble(Daemon):
    name = "pebble"

    def __init__(
        self, directory: Path, *, valid_seconds: int = 90 * 86_400, bad_nonces: int = 5
    ) -> None:
        """`bad_nonces` is the percentage of good nonces that it refuses, at random."""
        super().__init__(directory)
        self._bad_nonces = bad_nonces
        self.http_port, self.tls_port = free_port(), free_port()
        self.trust = directory / "authority.pem"
        self._management = free_port()
        self._valid_seconds = valid_seconds
        self._names = _Names(directory)

    @property
    def directory_url(self) -> str:
        return f"https://127.0.0.1:{self.port}/dir"

    def root(self) -> str:
        """Return the root of the certificates, in PEM; each start has another."""
        context = ssl.create_default_context(cafile=str(self.trust))
        url = f"https://127.0.0.1:{self._management}/roots/0"
        with urllib.request.urlopen(url, timeout=5, context=context) as answer:
            return str(answer.read().decode())

    def no_dns(self, name: str) -> None:
        """Have the DNS fail for a name, until ``dns``."""
        self._tell("set-servfail", host=name)

    def dns(self, name: str) -> None:
        self._tell("clear-servfail", host=name)

    def start(self) -> None:
        self._names.start()
        super().start()

    def stop(self) -> None:
        super().stop()
        self._names.stop()

    def _tell(self, what: str, **words: str) -> None:
        url = f"http://127.0.0.1:{self._names.management}/{what}"
        urllib.request.urlopen(url, json.dumps(words).encode(), timeout=5).close()

    def _prepare(self) -> None:
        now = time.time()
        authority = Authority.make(now)
        papers = server_papers(authority, self.directory / "https", "127.0.0.1", now=now)
        self.trust.write_text(authority.pem)
        settings = {
            "listenAddress": f"127.0.0.1:{self.port}",
            "managementListenAddress": f"127.0.0.1:{self._management}",
            "certificate": str(papers.certificate),
            "privateKey": str(papers.key),
            "httpPort": self.http_port,
            "tlsPort": self.tls_port,
            "retryAfter": {"authz": 1, "order": 1},
            "profiles": {"default": {"description": "", "validityPeriod": self._valid_seconds}},
        }
        (self.directory / "pebble.json").write_text(json.dumps({"pebble": settings}))

    def _command(self) -> Sequence[str]:
        config = str(self.directory / "pebble.json")
        dns = f"127.0.0.1:{self._names.port}"
        return [str(programs() / self.name), f"-config={config}", f"-dnsserver={dns}"]

    def _spawn(self, **options: Any) -> subprocess.Popen[bytes]:
        # Without its pauses, and with a check of every name in each order.
        settings = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_AUTHZREUSE": "0"}
        settings["PEBBLE_WFE_NONCEREJECT"] = str(self._bad_nonces)
        return super()._spawn(env={**os.environ, **settings}, **options)

    def _ready(self) -> bool:
        try:
            self.root()
        except (urllib.error.URLError, ConnectionError):
            return False  # not listening yet
        return True


@functools.cache
def programs() -> Path:
    """The folder of both programs, built if need be; RuntimeError when that does not succeed."""
    script = Path(__file__).with_name("pebble_server.sh")
    done = subprocess.run(
        [script], env={**os.environ, "PYTHON": sys.executable}, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise RuntimeError("Pebble could not be built; the reason is above")
    return Path(done.stdout.strip())
