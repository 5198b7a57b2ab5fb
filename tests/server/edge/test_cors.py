"""Pages that may use the public port, by the setting."""

from __future__ import annotations

import pytest

from fabric_server.edge.cors import Cors, parse_origins
from tests.server.edge.port import Port

PAGE = "https://chat.example.org"


async def headers(allowed: list[str], method: str, origin: str) -> dict[str, str]:
    port = Port()
    port.edge.cors = Cors(allowed)
    answer = await port.user().ask(method, "/", origin=origin)
    return {name: value for name, value in answer.headers.items() if name[:6] in ("access", "vary")}


@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
async def test_only_the_pages_of_the_setting_may_read_answers(method: str) -> None:
    everybody = await headers(["*"], method, "https://anywhere.test")
    assert everybody["access-control-allow-origin"] == "*"
    allowed = await headers([PAGE], method, PAGE.upper().replace("HTTPS", "https"))
    assert allowed["access-control-allow-origin"].lower() == PAGE
    assert allowed["vary"] == "origin"
    assert ("access-control-allow-methods" in allowed) == (method == "OPTIONS")
    for stranger in ("https://evil.test", PAGE + ".evil.test", "http://chat.example.org", "null"):
        assert await headers([PAGE], method, stranger) == {"vary": "origin"}
        assert await headers(["none"], method, stranger) == {"vary": "origin"}


@pytest.mark.parametrize(
    "origins", [[PAGE + "/"], ["chat.example.org"], ["*", PAGE], ["none", PAGE], ["ftp://a"], [""]]
)
def test_what_is_no_origin_is_refused(origins: list[str]) -> None:
    with pytest.raises(ValueError, match=r"origin|stand alone"):
        parse_origins(origins)
