"""``fabric-server init``: make a server's data without starting it."""

from __future__ import annotations

import asyncio
import time

from fabric_server.cli import Json
from fabric_server.cli.endpoints import last_start
from fabric_server.config import PREFIX, Config
from fabric_server.data_directory import (
    has_authority,
    remember_addresses,
    remembered_addresses,
)
from fabric_server.net.addresses import own_address
from fabric_server.pki.certificates import Certificates
from fabric_server.storage.connect import open_store
from runtime.flags import takes_settings
from runtime.output import make_directory, say, say_json


@takes_settings(Config, PREFIX, only=("data", "store", "address"))
def init(settings: Config, json: Json = False) -> None:
    """Make a server's data: its CA, its certificate and the tables of its store.

    'up' does so, too. What exists is kept. The addresses are remembered: a later 'up' or 'init'
    needs none, and one with other addresses replaces them.
    """
    existed = has_authority(settings.data)
    initialise(settings)
    data, addresses = settings.data.absolute(), settings.names()
    if json:
        say_json({"data": data, "addresses": addresses, "created": not existed})
        return
    done = "There is a server's data in" if existed else "Made a server's data in"
    say(f"{done} {data}, for {', '.join(addresses)}.")


def initialise(settings: Config) -> None:
    """Make what is missing.  Raises ``BackendError``, ``CertificateProblem`` or ``Failure``."""
    make_directory(settings.data)
    asyncio.run(_make_store(settings.store_url))  # first, because it may be away
    remember(settings)
    Certificates.open(settings.data / "certs", settings.names(), now=time.time())


async def _make_store(url: str) -> None:
    await (await open_store(url)).close()


def remember(settings: Config) -> None:
    """Remember the addresses in the settings, for later starts without.  Raises ``SettingsError``.

    An earlier release remembered none: at the first start after it, those of its last start are
    kept, unless they are what this machine has anyway.
    """
    before = remembered_addresses(settings.data)
    addresses = settings.address
    if not addresses and before is None and (last := last_start(settings.data)) is not None:
        addresses = tuple(one for one in last.addresses if one != own_address())
    if before is None or (addresses and addresses != before):
        remember_addresses(settings.data, addresses)
