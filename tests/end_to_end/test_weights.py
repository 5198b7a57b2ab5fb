"""Two nodes with different weights under one name, and clients that choose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from tests.engine import ScriptedEngine
from tests.fabric import Fabric

MESSAGES: Any = [{"role": "user", "content": "Hi"}]
SMALL, LARGE = "42182419e950" * 5 + "abcd", "9f438cb9cd58" * 5 + "0123"


async def test_a_client_gets_the_weights_that_it_names(tmp_path: Path) -> None:
    async with (
        ScriptedEngine(ollama=True, digest=SMALL) as small,
        ScriptedEngine(ollama=True, digest=LARGE) as large,
        Fabric(tmp_path) as fabric,
        fabric.openai() as client,
    ):

        async def ask(digest: str) -> None:
            await client.chat.completions.create(
                model="tiny", messages=MESSAGES, extra_headers={"x-fabric-digest": digest}
            )

        await fabric.join(small.url, name="small")
        [card] = (await client.models.list()).data
        assert (card.model_extra or {})["digest"] == SMALL
        with pytest.raises(openai.NotFoundError, match=SMALL[:12]) as caught:
            await ask(LARGE)
        assert caught.value.code == "variant_not_found"
        await fabric.join(large.url, name="large")
        [card] = (await client.models.list()).data
        told = card.model_extra or {}
        assert "digest" not in told
        assert {one["digest"] for one in told["variants"]} == {SMALL, LARGE}
        for _ in range(3):
            await ask(LARGE[:12])
        assert (len(small.requests), len(large.requests)) == (0, 3)
        await ask(f"sha256:{SMALL}")
        assert (len(small.requests), len(large.requests)) == (1, 3)
        rows = await fabric.app.backends.store.nodes()
        ids = {row.name: row.id for row in rows}
        [served] = await fabric.app.backends.store.served_models(ids["small"])
        assert (served.model, served.digest) == ("tiny", SMALL)
