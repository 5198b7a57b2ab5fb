"""The SDK as its users run it: a blocking thread, TLS, a real server and node."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from fabric_client.sdk import Broken, Client, FabricError, Node, Refused, Unreachable
from tests.engine import Plan, ScriptedEngine
from tests.fabric import Fabric
from tests.programs import running

DOCUMENT = Path(__file__).parents[2] / "docs" / "sdk.md"


@pytest.fixture
async def fabric(tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[Fabric]:
    async with Fabric(tmp_path) as fabric:
        await fabric.join(engine.url, slots=4)
        yield fabric


@pytest.fixture
def client(fabric: Fabric) -> Iterator[Client]:
    with Client(fabric.public, fabric.key, ca=str(fabric.app.tls.certificates.ca)) as client:
        yield client


async def do(work: Any, *args: Any, **kwargs: Any) -> Any:
    """Run it in a thread, since the client blocks."""
    return await asyncio.wait_for(asyncio.to_thread(work, *args, **kwargs), 30)


async def test_an_answer_comes_whole_with_its_figures(client: Client) -> None:
    answer = await do(client.infer, "tiny", "Hi", system="Be kind.", max_tokens=5)
    assert str(answer) == answer.text == "Hello, world"
    assert (answer.finish_reason, answer.model) == ("stop", "tiny")
    assert (answer.prompt_tokens, answer.completion_tokens) == (7, 3)
    assert answer.request_id


async def test_the_engine_is_asked_what_was_said(client: Client, engine: ScriptedEngine) -> None:
    await do(client.infer, "tiny", "Hi", system="Be kind.", max_tokens=5, top_k=3)
    asked = (await engine.started()).json
    assert asked["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
    ]
    assert (asked["max_tokens"], asked["top_k"]) == (5, 3)


async def test_a_stream_comes_piece_by_piece(client: Client, engine: ScriptedEngine) -> None:
    more = asyncio.Event()
    engine.plan = Plan(chunks=("Hel", more, "lo"))
    stream = await do(client.stream, "tiny", "Hi")
    assert (await do(next, stream)).text == "Hel"
    more.set()
    assert (await do(next, stream)).text == "lo"
    assert await do(next, stream, None) is None
    assert stream.answer.text == "Hello"
    assert (stream.answer.finish_reason, stream.answer.completion_tokens) == ("stop", 2)


async def test_leaving_a_stream_stops_the_engine(client: Client, engine: ScriptedEngine) -> None:
    engine.plan = Plan(chunks=("a", asyncio.Event(), "b"))
    stream = await do(client.stream, "tiny", "Hi")
    await do(next, stream)
    stream.close()
    await (await engine.started()).aborted()


async def test_a_broken_stream_says_so_and_keeps_what_came(
    client: Client, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(chunks=("Hel", "lo"), cut_after=2)
    stream = await do(client.stream, "tiny", "Hi")
    with pytest.raises(Broken) as caught:
        await do(list, stream)
    assert caught.value.text == stream.answer.text
    assert caught.value.request_id


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_error_has_its_code_and_the_requests_id(client: Client, streamed: bool) -> None:
    ask = client.stream if streamed else client.infer
    with pytest.raises(Refused) as caught:
        await do(ask, "nobody", "Hi")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    assert "nobody" in str(caught.value)
    assert caught.value.request_id


async def test_a_wrong_key_is_refused_at_once(fabric: Fabric) -> None:
    with (
        Client(fabric.public, "sk-fab-wrong", ca=str(fabric.app.tls.certificates.ca)) as client,
        pytest.raises(Refused, match="API key") as caught,
    ):
        await do(client.models)
    assert caught.value.status == 401


async def test_the_models_are_listed(client: Client) -> None:
    assert await do(client.models) == ["tiny"]


async def test_a_warm_connection_is_used_again_also_after_an_error(
    client: Client, fabric: Fabric
) -> None:
    await do(client.models)
    with pytest.raises(Refused):
        await do(client.infer, "nobody", "Hi")
    await do(client.infer, "tiny", "Hi")
    assert fabric.app.data_plane.edge.connections == 1


async def test_a_connection_that_the_server_closed_meanwhile_is_no_error(
    client: Client, fabric: Fabric
) -> None:
    await do(client.models)
    await fabric.restart()
    assert await do(client.models) == []  # the node is on its way back


async def test_an_unknown_certificate_and_a_closed_port_are_told_apart(fabric: Fabric) -> None:
    with (
        Client(fabric.public, fabric.key, retries=0) as stranger,
        pytest.raises(Unreachable, match="certificate"),
    ):
        await do(stranger.models)
    with Client("http://127.0.0.1:9", "k", retries=0) as client, pytest.raises(Unreachable):
        await do(client.models)


async def test_a_busy_server_is_asked_again(client: Client, engine: ScriptedEngine) -> None:
    engine.plans.extend([Plan(status=429, headers={"retry-after": "0"}), Plan()])
    assert (await do(client.infer, "tiny", "Hi")).text == "Hello, world"
    assert len(engine.requests) == 2


def test_a_key_that_can_t_be_sent_is_not_shown_and_a_wrong_ca_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="invalid characters") as caught:
        Client("https://fabric.example", "sk-fab-schlüssel")
    assert "schl" not in str(caught.value)
    text = tmp_path / "ca.pem"
    for wrong in (text, tmp_path):
        text.write_text("no certificate")
        with pytest.raises(ValueError, match=re.escape(repr(str(wrong)))):
            Client("https://fabric.example", "sk-fab-key\n", ca=str(wrong))


def test_what_is_no_url_and_a_missing_key_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FABRIC_API_KEY", raising=False)
    with pytest.raises(ValueError, match=r"fabric\.example"):
        Client("fabric", "k")
    with pytest.raises(ValueError, match="FABRIC_API_KEY"):
        Client("https://fabric.example")
    monkeypatch.setenv("FABRIC_API_KEY", "k")
    Client("https://fabric.example/v1")


async def test_a_job_is_handed_in_twice_and_done_once(
    client: Client, engine: ScriptedEngine
) -> None:
    first = await do(client.submit, "tiny", "Hi", id="one")
    again = await do(client.submit, "tiny", "Hi", id="one")
    assert first.id == again.id == "one"
    job = await do(client.wait, first)
    assert (job.status, job.response, job.error) == ("completed", "Hello, world", None)
    assert len(engine.requests) == 1


async def test_a_job_that_is_not_over_in_time_goes_on(
    client: Client, engine: ScriptedEngine
) -> None:
    hold = asyncio.Event()
    engine.plan = Plan(hold=hold)
    job = await do(client.submit, "tiny", "Hi")
    await engine.started()
    with pytest.raises(FabricError, match="still"):
        await do(client.wait, job, timeout=0.05)
    hold.set()
    assert (await do(client.wait, job)).response == "Hello, world"


async def test_a_cancelled_job_stops_at_the_engine(client: Client, engine: ScriptedEngine) -> None:
    engine.plan = Plan(hold=asyncio.Event())
    job = await do(client.submit, "tiny", "Hi")
    request = await engine.started()
    assert (await do(client.cancel, job)).status == "cancelled"
    await request.aborted()
    assert (await do(client.job, job.id)).status == "cancelled"


async def test_a_node_tells_its_owner_how_fast_it_is(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with Fabric(tmp_path) as fabric:
        data = await fabric.enrol()
        client = Client(fabric.public, fabric.key, ca=str(fabric.app.tls.certificates.ca))
        command = [sys.executable, "-m", "fabric_client", "run", "--data", str(data)]
        with running([*command, "--engine", engine.url, "--no-pause-on-battery"]), client:
            await fabric.routed((await fabric.app.backends.store.nodes())[0].id)
            await do(client.infer, "tiny", "Hi")
            await do(list, await do(client.stream, "tiny", "Hi"))
            async with asyncio.timeout(20):
                while (stats := Node(data).stats()).tokens < 6:  # noqa: ASYNC110 - a file
                    await asyncio.sleep(0.05)
    assert stats.running
    assert stats.linked
    assert (stats.served, stats.active, stats.tokens, stats.models) == (2, 0, 6, ["tiny"])
    assert stats.tokens_per_second > 0


def test_a_node_that_does_not_run_has_zeros(tmp_path: Path) -> None:
    stats = Node(tmp_path).stats()
    assert not stats.running
    assert (stats.tokens_per_second, stats.models) == (0.0, [])
    assert Node(tmp_path).engines() == []


async def test_the_examples_of_the_document_run(
    fabric: Fabric, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len(blocks) == 6
    code = "\n".join(blocks)
    for words, real in (
        ("https://fabric.example:18080", fabric.public),
        ("sk-fab-…", fabric.key),
        ("ca.pem", str(fabric.app.tls.certificates.ca)),
        ("Node()", f"Node({str(fabric.nodes[0].config.data)!r})"),
    ):
        assert words in code
        code = code.replace(words, real)
    names: dict[str, Any] = {}
    await do(exec, compile(code, str(DOCUMENT), "exec"), names)
    names["client"].close()
    said = capsys.readouterr().out
    assert said.count("Hello, world") == 3
    assert "404 model_not_found The model 'no-such-model' does not exist." in said
    assert "completed Hello, world" in said
