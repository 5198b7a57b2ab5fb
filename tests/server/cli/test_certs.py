"""``fabric-server certs``."""

from __future__ import annotations

import time

from tests.commands import Shell
from tests.server.cli.outcomes import refused


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
