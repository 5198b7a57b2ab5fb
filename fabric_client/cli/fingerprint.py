"""``fabric-client fingerprint``: what the owner compares with what the operator sees."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path

from fabric_client.cli import Json
from fabric_client.cli.signal_node import of_the_directory
from fabric_client.config import Config
from fabric_client.identity import Identity
from runtime.output import Failure, say, say_json


@of_the_directory
def fingerprint(settings: Config, json: Json = False) -> None:
    """Show the fingerprint of the CA that this node trusts, and of its own certificate.

    The server is the one that this node joined if 'fabric-server certs show' has the same sha256
    for the CA of the fabric. Compare them by another way than through the server.
    """
    identity = Identity.load(settings.data)
    certificate, _ = identity.keys.pair
    shown = {
        "CA of the fabric": settings.data / "ca.pem",
        f"this node, {identity.node_id}": certificate,
    }
    facts = [
        {"use": use, "path": str(path.absolute()), "sha256": _sha256(path)}
        for use, path in shown.items()
    ]
    if json:
        say_json(facts)
        return
    for fact in facts:
        say(f"{fact['use']}: {fact['path']}")
        say(f"  sha256   {fact['sha256']}")


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(path.read_text().strip())).hexdigest()
    except (OSError, ValueError) as error:
        raise Failure(f"{path} can't be read as a certificate: {error}.") from None
