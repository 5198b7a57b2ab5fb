"""Nodes with a region, and a client that asks for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from fabric_client.config import Config
from runtime.settings import Conflict
from tests.engine import ScriptedEngine
from tests.fabric import Fabric

MESSAGES: Any = [{"role": "user", "content": "Hi"}]
REGION = "x-fabric-region"


async def test_requests_stay_in_the_region_that_their_header_names(tmp_path: Path) -> None:
    async with (
        ScriptedEngine() as west,
        ScriptedEngine() as east,
        Fabric(tmp_path) as fabric,
        fabric.openai() as client,
    ):
        await fabric.join(east.url, name="east", region="us-east")

        async def ask(regions: str) -> None:
            await client.chat.completions.create(
                model="tiny", messages=MESSAGES, extra_headers={REGION: regions}
            )

        with pytest.raises(openai.InternalServerError, match=REGION) as caught:
            await ask("eu-west")
        assert (caught.value.status_code, caught.value.code) == (503, "no_capacity")
        await fabric.join(west.url, name="west", region="eu-west")
        for _ in range(4):
            await ask("eu-west, eu-north")
        assert (len(west.requests), len(east.requests)) == (4, 0)
        await ask("us-east")
        assert (len(west.requests), len(east.requests)) == (4, 1)
        rows = await fabric.app.backends.store.nodes()
        assert {row.name: row.region for row in rows} == {"east": "us-east", "west": "eu-west"}


@pytest.mark.parametrize("path", ["/inference", "/v1/batches"])
async def test_jobs_and_batches_refuse_what_they_would_not_keep(tmp_path: Path, path: str) -> None:
    async with Fabric(tmp_path) as fabric, fabric.user() as user:
        body = {"model": "tiny", "prompt": "Hi"}
        async with user.post(path, json=body, headers={REGION: "eu-west"}) as answer:
            error = (await answer.json())["error"]
            assert (answer.status, error["param"]) == (400, REGION)


def test_a_node_s_region_is_a_short_plain_name() -> None:
    assert Config(region="eu-west.2_b").region == "eu-west.2_b"
    for wrong in ("EU", "eu west", "eu,us", "eu\n", "e" * 65, "é"):
        with pytest.raises(Conflict, match="region must be 1 to 64 lowercase letters"):
            Config(region=wrong)
