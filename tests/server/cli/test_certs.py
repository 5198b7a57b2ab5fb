"""``fabric-server certs``."""

from __future__ import annotations

import time
from pathlib import Path

from fabric_server.pki.ca import Authority
from tests.commands import Shell
from tests.server.cli.outcomes import refused
from tests.trust import server_papers


def test_certificates_are_shown_once_there_are_some(shell: Shell) -> None:
    assert "no certificates" in refused(shell, "certs", "show")
    shell.ok("fabric-server", "init", "--address=fabric.example.org")
    authority, own = shell.json("fabric-server", "certs", "show")
    assert authority["path"] == str(shell.server_data / "certs" / "ca.pem")
    assert "fabric.example.org" in own["names"]
    assert own["issuer"] == authority["subject"]
    assert own["ends"] > time.time()
    text = shell.ok("fabric-server", "certs", "show")
    assert f"sha256   {authority['sha256']}" in text


def test_it_says_which_certificate_users_see_and_what_they_need(
    shell: Shell, tmp_path: Path
) -> None:
    shell.ok("fabric-server", "init", "--address=fabric.example.org")
    ca = shell.server_data / "certs" / "ca.pem"
    authority, own = shell.json("fabric-server", "certs", "show")
    assert (authority["users"], authority["users_need"]) == (False, None)
    assert (own["users"], own["users_need"]) == (True, str(ca))
    text = shell.ok("fabric-server", "certs", "show")
    assert "Users see the fabric's own certificate, until 20" in text
    assert f"  {ca}\n" in text
    for way in ("--cacert ca.pem", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE"):
        assert way in text
    assert "browsers" in text
    long = [line for line in text.splitlines() if len(line) > 80 and str(tmp_path) not in line]
    assert long == []
    users = server_papers(Authority.make(time.time()), tmp_path, "users.example", now=time.time())
    given = (f"--public-certificate={users.certificate}", f"--public-key={users.key}")
    *nodes, theirs = shell.json("fabric-server", "certs", "show", *given)
    assert [one["users"] for one in nodes] == [False, False]
    assert (theirs["users"], theirs["users_need"]) == (True, None)
    text = shell.ok("fabric-server", "certs", "show", *given)
    assert "Users see the certificate of public_certificate for users.example, until" in text
    assert "SSL_CERT_FILE" not in text


def test_it_knows_the_flags_of_the_last_start(shell: Shell, tmp_path: Path) -> None:
    users = server_papers(Authority.make(time.time()), tmp_path, "users.example", now=time.time())
    given = (f"--public-certificate={users.certificate}", f"--public-key={users.key}")
    with shell.server(*given) as server:
        assert server.ready()["certificate"] == {"of": "file", "path": str(users.certificate)}
        shown = shell.json("fabric-server", "certs", "show")
        assert [one["use"] for one in shown if one["users"]] == ["server, for users"]


def test_names_of_any_length_and_kind_stay_in_their_columns(shell: Shell) -> None:
    names = [f"a-rather-long-name-{number}.fabric.example.org" for number in range(9)]
    shell.ok("fabric-server", "init", f"--address={','.join(names)}")
    lines = shell.ok("fabric-server", "certs", "show").splitlines()
    inside = [line for line in lines if "example.org" in line]
    assert max(map(len, inside)) <= 80
    assert all(any(name in line for line in inside) for name in names), "none is broken"
