"""A node whose engine refuses every request at once, beside a good one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fabric import Fabric
from tests.fake_engines import FakeEngine, fake_vllm

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {
    "model": "Qwen/Qwen3-8B",
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 5,
}
ANSWER = {
    "object": "chat.completion",
    "model": ASK["model"],
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 10**12, "completion_tokens": 10**12},
}


@pytest.mark.parametrize("status", [401, 404, 429])
async def test_it_gets_little_and_its_status_reaches_nobody(tmp_path: Path, status: int) -> None:
    bad, good = fake_vllm(), fake_vllm()
    bad.answers[CHAT] = (status, {"detail": "the engine's own words"})
    good.answers[CHAT] = ANSWER
    bad.takes_posts = good.takes_posts = True
    await bad.start()
    await good.start()
    try:
        async with Fabric(tmp_path) as fabric, fabric.user() as user:
            await fabric.join(bad.url, name="bad")

            async def ask() -> tuple[int, bytes]:
                async with user.post(CHAT, json=ASK) as answer:
                    return answer.status, await answer.read()

            if status == 401:  # the model's only engine is asked, whatever it did
                for _ in range(5):
                    told, body = await ask()
                    assert (told, b"own words" in body) == (502, False)
                assert _asked(bad) == 5
            await fabric.join(good.url, name="good")
            before = _asked(bad)
            for _ in range(30):
                assert (await ask())[0] == 200
            assert _asked(bad) - before <= 4
            await fabric.app.backends.writer.flush()
            entry = (await fabric.app.backends.store.requests(limit=1))[0]
            assert entry.usage_implausible
            assert entry.completion_tokens == 5
    finally:
        await bad.stop()
        await good.stop()


def _asked(engine: FakeEngine) -> int:
    return engine.asked.count(CHAT)
