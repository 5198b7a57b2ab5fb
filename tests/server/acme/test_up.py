"""``fabric-server up --acme`` as operators and users meet it: with Pebble, curl and commands."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.commands import FREE_PORTS, Program, Shell
from tests.lab.backends import free_port
from tests.lab.pebble import Pebble
from tests.server.cli.outcomes import refused

NAMES = ("gpu.fabric-test.org", "www.fabric-test.org")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def start(shell: Shell, ca: Pebble, *flags: str) -> Program:
    others = [flag for flag in FREE_PORTS if "public" not in flag]
    return shell.start(
        *("fabric-server", "up", *others, "--host=127.0.0.1", f"--address={NAMES[0]}"),
        *("--acme", "--acme-agree-terms", f"--acme-directory={ca.directory_url}"),
        *(f"--acme-ca={ca.trust}", f"--acme-http-port={ca.http_port}"),
        *(flags or (f"--public-port={free_port()}",)),
    )


def call(ca: Path, name: str, port: int, path: str, *flags: str) -> tuple[int, str]:
    """Return the exit code of curl, which trusts this CA alone, and what it printed."""
    there = ("--resolve", f"{name}:{port}:127.0.0.1", f"https://{name}:{port}{path}")
    done = subprocess.run(
        ["curl", "-s", "--cacert", str(ca), *flags, *there],
        capture_output=True,
        text=True,
        timeout=20,
    )
    return done.returncode, done.stdout


def curl(ca: Path, port: int, name: str = NAMES[0]) -> tuple[int, str]:
    """Return curl's exit code, and the status of ``/v1/models``."""
    return call(ca, name, port, "/v1/models", "-o", "/dev/null", "-w", "%{http_code}")


def asked(ca: Path, ready: Any, path: str, key: str = "") -> str:
    """Return what the API port says."""
    flag = f"Authorization: Bearer {key}"
    return call(ca, NAMES[0], ready["ports"]["api"], path, "-H", flag)[1]


@pytest.fixture
def root(pebble: Pebble, tmp_path: Path) -> Path:
    path = tmp_path / "root.pem"
    path.write_text(pebble.root())
    return path


def test_users_get_a_certificate_that_they_trust_while_the_server_runs(
    shell: Shell, pebble: Pebble, root: Path
) -> None:
    with start(shell, pebble) as server:
        ready = server.ready()
        path = shell.server_data / "acme" / "certificate.pem"
        assert ready["certificate"] == {"of": "acme", "path": str(path)}
        port = ready["ports"]["public"]
        server.logged("a certificate was issued")
        server.logged("certificates loaded")
        assert curl(root, port) == (0, "401")
        # Nodes, and who asks for their name, still get the fabric's.
        own = shell.server_data / "certs" / "ca.pem"
        assert curl(own, port)[0] == 60
        assert curl(own, port, "server.fabric") == (0, "401")
        shown = shell.json("fabric-server", "certs", "show")
        assert [one["use"] for one in shown if one["users"]] == ["server, for users"]
        assert shown[2]["names"] == [NAMES[0]]
        assert shown[2]["issuer"].startswith("CN=Pebble")
        assert {one["users_need"] for one in shown} == {None}
        text = shell.ok("fabric-server", "certs", "show")
        assert f"Users see the certificate of the ACME CA for {NAMES[0]}" in text
        assert "SSL_CERT_FILE" not in text
        doctor = json.loads(shell.call("fabric-server", "doctor", "--json").stdout)
        [found] = [one for one in doctor if one["check"] == "certificate for users"]
        assert (found["level"], found["code"]) == ("ok", None)


def test_a_name_more_is_certified_by_tls_alpn_while_users_are_served(
    shell: Shell, pebble: Pebble, root: Path
) -> None:
    port = f"--public-port={pebble.tls_port}"
    tls = ("--acme-challenge=tls-alpn-01", port)
    with start(shell, pebble, *tls) as server:
        server.ready()
        server.logged("a certificate was issued")
        server.signal(signal.SIGTERM)
        assert server.exit_code() == 0
    with start(shell, pebble, *tls, f"--acme-names={','.join(NAMES)}") as server:
        server.ready()
        assert server.logged("a certificate is ordered")["because"] == "the names are others"
        before = [curl(root, pebble.tls_port) for _ in range(20)]
        server.logged("a certificate was issued")
        server.logged("certificates loaded")
        assert set(before) == {(0, "401")}, "users notice nothing"
        assert curl(root, pebble.tls_port, NAMES[1]) == (0, "401")


def test_a_ca_that_fails_is_seen_everywhere_and_ends_nothing(shell: Shell, pebble: Pebble) -> None:
    pebble.no_dns(NAMES[0])
    try:
        with start(shell, pebble) as server:
            ready = server.ready()
            failed = server.logged("no certificate was issued; the one that is there stays in use")
            assert "check DNS" in failed["remedy"]
            own = shell.server_data / "certs" / "ca.pem"
            assert curl(own, ready["ports"]["public"]) == (0, "401")
            health = asked(own, ready, "/health/ready")
            assert json.loads(health)["status"] == "degraded"
            assert json.loads(health)["checks"]["certificate"] == "not_issued"
            text = shell.ok("fabric-server", "certs", "show")
            assert "has not issued one yet" in text
            assert "NODE_EXTRA_CA_CERTS" in text
            assert "FAIL  certificate for users: no certificate was issued in 1 try" in text
            assert max(map(len, text.splitlines())) <= 80 or "/" in text
            doctor = shell.call("fabric-server", "doctor", "--json")
            assert doctor.returncode == 1
            codes = {one["code"] for one in json.loads(doctor.stdout)}
            assert "acme_failed" in codes
            key = shell.ok("fabric-server", "keys", "create", "m", "--management").strip()
            metrics = asked(own, ready, "/metrics", key)
            assert 'fabric_acme_orders_total{result="failed"} 1.0' in metrics
            assert 'fabric_certificate_ends_timestamp_seconds{of="users"} ' in metrics
        # Whoever restarts it does not ask the CA again at once.
        with start(shell, pebble) as server:
            server.ready()
            server.signal(signal.SIGTERM)
            assert server.exit_code() == 0
            assert "a certificate is ordered" not in "".join(server.rest_of_log())
    finally:
        pebble.dns(NAMES[0])


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--acme-agree-terms",), "is an IP address"),
        (("--acme-agree-terms", "--address=localhost"), "local networks"),
        (("--address=gpu.example.org",), "acme_agree_terms"),
    ],
)
def test_what_no_ca_certifies_is_refused_before_anything_is_made(
    shell: Shell, flags: tuple[str, ...], why: str
) -> None:
    given = flags if "--address" in " ".join(flags) else (*flags, "--address=203.0.113.7")
    said = refused(shell, "up", *FREE_PORTS, "--acme", *given)
    assert why in " ".join(said.split())
    assert not shell.server_data.exists()


def test_the_servers_own_address_is_refused_too(shell: Shell) -> None:
    said = " ".join(refused(shell, "up", *FREE_PORTS, "--acme", "--acme-agree-terms").split())
    assert "--address, to the DNS names that users dial" in said
    assert not shell.server_data.exists()
