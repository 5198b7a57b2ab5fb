"""What a management key with scopes may do: nothing but what they allow."""

from __future__ import annotations

import re

import msgspec
import pytest

from fabric_server.auth.keys import KeyPolicy, mint
from fabric_server.storage.rows import KeyRow
from tests.contracts.samples import NOON
from tests.server.admin.server import Server


async def make(server: Server, **changes: object) -> str:
    """Create a management key for metrics, with these fields of its row."""
    new = mint("monitor", now=NOON, management=True, policy=KeyPolicy(scopes=["metrics"]))
    row: KeyRow = msgspec.structs.replace(new.row, **changes)
    await server.app.backends.store.create_key(row)
    return new.text


async def allowed(server: Server, key: str) -> set[str]:
    """Try every operation that needs a key; return those that are not refused."""
    found = set()
    for path, operations in server.description["paths"].items():
        for method, operation in operations.items():
            if operation.get("security") == []:
                continue
            for verb in (method.upper(), *(("HEAD",) if method == "get" else ())):
                answer = await server.ask(verb, re.sub(r"{\w+}", "x", path), key=key)
                refused = answer.status == 403
                if refused and verb != "HEAD":
                    assert answer.code == "out_of_scope"
                if not refused:
                    found.add(f"{verb} {path}")
    return found


async def test_a_key_for_metrics_reads_metrics_and_nothing_else(server: Server) -> None:
    key = await make(server)
    assert await allowed(server, key) == {"GET /metrics", "HEAD /metrics"}
    assert (await server.get("/health/ready", key=key)).status == 200
    answer = await server.get("/api/v1/nodes", key=key)
    assert "only do what its scopes allow: metrics" in answer.message
    assert await server.public("/v1/models", key) == 403


@pytest.mark.parametrize("scopes", [[], ["later"], ["Metrics"]])
async def test_scopes_that_this_release_does_not_know_allow_nothing(
    server: Server, scopes: list[str]
) -> None:
    assert await allowed(server, await make(server, scopes=scopes)) == set()


async def test_a_scope_makes_no_management_key_of_a_user_s(server: Server) -> None:
    key = await make(server, management=False)
    answer = await server.get("/metrics", key=key)
    assert (answer.status, answer.code) == (403, "wrong_key_kind")


async def test_a_key_with_scopes_is_made_and_listed(server: Server) -> None:
    wanted = {"name": "prometheus", "management": True, "scopes": ["metrics"]}
    made = await server.post("/api/v1/keys", wanted)
    assert (made.status, made.body["key"]["scopes"]) == (201, ["metrics"])
    listed = (await server.get("/api/v1/keys")).body["data"]
    assert [one["scopes"] for one in listed] == [None, None, ["metrics"]]
    assert (await server.get("/metrics", key=made.body["text"])).status == 200


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"management": False}, "scopes are for management keys only"),
        ({"scopes": ["admin"]}, "metrics"),
        ({"scopes": []}, "scopes"),
    ],
)
async def test_scopes_that_make_no_sense_are_refused(
    server: Server, changes: dict[str, object], said: str
) -> None:
    wanted = {"name": "prometheus", "management": True, "scopes": ["metrics"], **changes}
    answer = await server.post("/api/v1/keys", wanted)
    assert (answer.status, answer.code) == (400, "invalid_value")
    assert said in answer.message.lower()
