"""``Request.client_address``: one place for the address that a request is from."""

from __future__ import annotations

from functools import partial

from fabric_server.net.addresses import parse
from fabric_server.net.connection_budget import Peer
from fabric_server.net.trusted_proxies import TrustedProxies
from tests.server.edge.port import Port
from tests.users import MemoryUser, request


async def test_a_request_has_the_address_of_its_connection_whatever_it_claims() -> None:
    port = Port()
    port.user().send(request("GET", "/", **{"X-Forwarded-For": "198.51.100.1"}))
    await port.entered.wait()
    assert port.asked[0].client_address == "192.0.2.7"


async def test_behind_a_trusted_proxy_it_is_the_clients_also_with_two_headers() -> None:
    port = Port()
    peer = Peer(parse("192.0.2.7"), TrustedProxies(["192.0.2.0/24"]))
    spoofed = b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 198.51.100.1\r\n"
    user = MemoryUser(partial(port.edge, peer))
    user.send(spoofed + b"X-Forwarded-For: ::ffff:203.0.113.5\r\n\r\n")
    await port.entered.wait()
    assert port.asked[0].client_address == "203.0.113.5"
