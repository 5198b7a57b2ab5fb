"""What the API port checks of a request: its key, query and body."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from fabric_server.net.failure_throttle import ThrottleLimits
from tests.server.admin.server import NOBODY, Server


async def test_everything_else_needs_a_management_key(server: Server) -> None:
    server.app.data_plane.throttle.limits = ThrottleLimits(burst=1000.0)  # or 76 s
    asked = 0
    for path, operations in server.description["paths"].items():
        for method, operation in operations.items():
            if operation.get("security") == []:
                continue
            asked += 1
            url = path.replace("{id}", "some")
            nobody = await server.ask(method.upper(), url, key=NOBODY)
            assert (nobody.status, nobody.code) == (401, "invalid_api_key"), path
            assert nobody.headers["WWW-Authenticate"].startswith("Bearer")
            wrong = await server.ask(method.upper(), url, key="mk-fab-" + "A" * 43)
            assert (wrong.status, wrong.code) == (401, "invalid_api_key"), path
            user = await server.ask(method.upper(), url, key=server.user)
            assert (user.status, user.code) == (403, "wrong_key_kind"), path
    assert asked >= 12


@pytest.mark.parametrize(
    ("query", "param", "words"),
    [
        ("limit=0", "limit", ">= 1"),
        ("limit=1001", "limit", "<= 1000"),
        ("limit=many", "limit", "int"),
        ("limit=1&limit=2", "limit", "twice"),
        ("outcome=bad", "outcome", "Possible values: cancelled, engine_error"),
        ("modle=x", "modle", "There is no field 'modle'. Known fields: account, key, node, model"),
        ("before=yesterday", "before", "'next'"),
        ("before=nan,req_1", "before", "'next'"),
    ],
)
async def test_a_wrong_query_is_told_which_and_why(
    server: Server, query: str, param: str, words: str
) -> None:
    wrong = await server.get(f"/api/v1/requests?{query}")
    assert (wrong.status, wrong.code, wrong.body["error"]["param"]) == (400, "invalid_value", param)
    assert words in wrong.message


@pytest.mark.parametrize(
    ("query", "param", "words"),
    [
        ("since=soon", "since", "neither Unix seconds nor a time"),
        ("since=inf", "since", "neither"),
        ("until=2026-13-01", "until", "neither"),
        ("since=20&until=10", "since", "later than until"),
        ("by=key,colour", "by[1]", "account, day, engine"),
    ],
)
async def test_a_wrong_time_or_group_is_told(
    server: Server, query: str, param: str, words: str
) -> None:
    wrong = await server.get(f"/api/v1/usage?{query}")
    assert (wrong.status, wrong.body["error"]["param"]) == (400, param)
    assert words in wrong.message


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b'{"name": "x",,}', "invalid_json", "byte 13"),
        (b'{"name": "\xff"}', "invalid_json", "not valid JSON"),
        (b"", "invalid_value", "missing required field `name`"),
        (b"[]", "invalid_value", "array"),
        (b'{"name": 5}', "invalid_value", "name: Expected `str`, got `int`"),
        (b'{"name": "x", "managment": true}', "invalid_value", "no field 'managment'"),
        (b'{"name": "x", "valid_seconds": -1}', "invalid_value", "valid_seconds"),
        (b'{"name": "x", "valid_seconds": 1e300}', "invalid_value", "valid_seconds"),
        (b'{"name": "x", "management": true, "models": ["m"]}', "invalid_value", "management"),
        (b'{"name": "x", "failover": "always"}', "invalid_value", "failover"),
        (
            b'{"name": "x", "management": true, "failover": "continue"}',
            "invalid_value",
            "call no models",
        ),
        (b'{"name": "  "}', "invalid_value", "printable"),
        (b'{"name": "\\ud800"}', "invalid_json", "not valid JSON"),
    ],
)
async def test_a_wrong_body_is_told_where_and_why(
    server: Server, body: bytes, code: str, words: str
) -> None:
    wrong = await server.ask("POST", "/api/v1/keys", data=body)
    assert (wrong.status, wrong.code) == (400, code)
    assert words in wrong.message
    assert len((await server.get("/api/v1/keys")).body["data"]) == 2


async def test_a_body_that_is_too_large_is_refused_before_or_while_it_comes(
    server: Server,
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 8192

    for body in (b" " * 65_537, endless()):
        refused = await server.ask("POST", "/api/v1/keys", data=body)
        assert (refused.status, refused.code) == (413, "body_too_large")
    assert (await server.ask("POST", "/api/v1/keys", data=b" " * 65_536)).status == 400


async def test_a_compressed_body_is_not_inflated(server: Server) -> None:
    session = aiohttp.ClientSession()
    headers = {"Authorization": f"Bearer {server.management}"}
    async with (
        session,
        session.post(
            f"{server.base}/api/v1/keys", data=b'{"name": "x"}', headers=headers, compress="gzip"
        ) as answer,
    ):
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, "invalid_json")
