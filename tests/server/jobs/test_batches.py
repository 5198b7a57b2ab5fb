"""``/v1/files`` and ``/v1/batches``, as the official client uses them, on a whole fabric."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch, FileObject

from fabric_server.jobs.batch_input import BatchInput
from fabric_server.jobs.batch_leases import BatchLeases
from fabric_server.jobs.batch_lines import BatchLines
from fabric_server.jobs.batch_output import BatchOutput, Usage
from fabric_server.jobs.batch_runner import BatchRunner
from fabric_server.jobs.files import Files
from fabric_server.jobs.retention import Retention
from fabric_server.jobs.webhooks import Webhooks
from fabric_server.storage.batches import BatchStore
from fabric_server.storage.files import FileStore
from fabric_server.storage.jobs import JobStore
from fabric_server.storage.webhooks import WebhookStore
from tests.engine import Plan, ScriptedEngine
from tests.fabric import Fabric
from tests.jobs import new_key

CHAT = "/v1/chat/completions"
PATIENCE = 40.0


@pytest.fixture
async def fabric(tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[Fabric]:
    async with Fabric(
        tmp_path, batch_at_once=4, file_limit=2**20, files_per_account=3 * 2**20
    ) as fabric:
        await fabric.join(engine.url, slots=2)
        yield fabric


@pytest.fixture
async def client(fabric: Fabric) -> AsyncIterator[openai.AsyncOpenAI]:
    async with fabric.openai() as client:
        yield client


def line(id: str, text: str = "Hi", *, url: str = CHAT, **body: Any) -> dict[str, Any]:
    asked = {"model": "tiny", "messages": [{"role": "user", "content": text}], **body}
    return {"custom_id": id, "method": "POST", "url": url, "body": asked}


async def upload(client: openai.AsyncOpenAI, lines: Sequence[Any]) -> FileObject:
    text = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
    return await client.files.create(file=("in.jsonl", text.encode()), purpose="batch")


async def submit(client: openai.AsyncOpenAI, lines: Sequence[Any], **more: Any) -> Batch:
    file = await upload(client, lines)
    return await client.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h", **more
    )


async def ended(client: openai.AsyncOpenAI, batch: Batch) -> Batch:
    async with asyncio.timeout(PATIENCE):
        while True:
            found = await client.batches.retrieve(batch.id)
            if found.status in ("completed", "failed", "expired", "cancelled"):
                return found
            await asyncio.sleep(0.05)  # there is no event for a user


async def rows(client: openai.AsyncOpenAI, file: str | None) -> list[dict[str, Any]]:
    assert file is not None
    content = await client.files.content(file)
    return [json.loads(one) for one in content.text.splitlines()]


async def test_a_batch_is_run_and_its_answers_are_in_a_file(
    client: openai.AsyncOpenAI, engine: ScriptedEngine, fabric: Fabric
) -> None:
    def reply(asked: dict[str, Any]) -> Plan:
        text = asked["messages"][0]["content"]
        return Plan(status=400) if text == "bad" else Plan(chunks=(f"{text}!",))

    engine.reply = reply
    lines = [line(f"id-{n}", f"q{n}") for n in range(20)]
    lines.insert(3, line("wrong", "bad"))
    batch = await submit(client, lines, metadata={"for": "test"})
    assert batch.object == "batch"
    assert batch.request_counts is not None
    done = await ended(client, batch)
    assert done.status == "completed"
    assert done.completed_at is not None and done.in_progress_at is not None
    counts = done.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (21, 20, 1)
    assert done.metadata == {"for": "test"}
    output = await rows(client, done.output_file_id)
    assert [row["custom_id"] for row in output] == [f"id-{n}" for n in range(20)]
    for n, row in enumerate(output):
        assert row["error"] is None
        assert row["response"]["status_code"] == 200
        assert row["response"]["body"]["choices"][0]["message"]["content"] == f"q{n}!"
    [failed] = await rows(client, done.error_file_id)
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("wrong", 400)
    assert len(engine.requests) == 21
    ledger = await fabric.ledger()
    assert {row["response"]["request_id"] for row in [*output, failed]} == {
        entry.request_id for entry in ledger
    }


async def test_lines_of_a_batch_let_everybody_else_go_first(
    client: openai.AsyncOpenAI, engine: ScriptedEngine, fabric: Fabric
) -> None:
    hold = asyncio.Event()
    engine.plan = Plan(hold=hold)
    batch = await submit(client, [line(f"{n}", "batch") for n in range(4)])
    for _ in range(2):
        await engine.started()
    asking = asyncio.create_task(
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "user"}])
    )
    async with asyncio.timeout(PATIENCE):
        while fabric.app.data_plane.admission.waiting != 3:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.01)
    hold.set()
    await asking
    await ended(client, batch)
    order = [request.json["messages"][0]["content"] for request in engine.requests]
    assert order[2] == "user"


async def test_wrong_lines_are_told_by_number_and_nothing_is_run(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    lines = [
        line("a"),
        "{no json",
        line("a"),
        "",
        line("b", url="/v1/embeddings"),
        line("c", stream=True),
        {"method": "POST", "url": CHAT, "body": {"model": "tiny"}},
        {"custom_id": "d", "method": "GET", "url": CHAT, "body": {"model": "tiny"}},
        {"custom_id": "e", "method": "POST", "url": CHAT, "body": {}},
    ]
    done = await ended(client, await submit(client, lines))
    assert done.status == "failed"
    assert done.errors is not None and done.errors.data is not None
    told = [(error.line, error.code) for error in done.errors.data]
    assert told == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
        (5, "mismatched_endpoint"),
        (6, "invalid_request"),
        (7, "invalid_request"),
        (8, "invalid_request"),
        (9, "invalid_request"),
    ]
    assert not engine.requests


async def test_an_empty_file_makes_no_batch(client: openai.AsyncOpenAI) -> None:
    done = await ended(client, await submit(client, [""]))
    assert done.errors is not None and done.errors.data is not None
    assert [error.code for error in done.errors.data] == ["empty_file"]


async def test_cancelling_a_batch_stops_its_engines_and_keeps_what_was_done(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    engine.plans.append(Plan())
    engine.plan = Plan(hold=asyncio.Event())
    batch = await submit(client, [line(f"{n}") for n in range(10)])
    requests = [await engine.started() for _ in range(3)]
    cancelling = await client.batches.cancel(batch.id)
    assert cancelling.status == "cancelling"
    for request in requests[1:]:
        await request.aborted(timeout=15)
    done = await ended(client, batch)
    assert done.status == "cancelled" and done.cancelled_at is not None
    assert len(await rows(client, done.output_file_id)) == 1
    dropped = await rows(client, done.error_file_id)
    assert {row["error"]["code"] for row in dropped} <= {"batch_cancelled", "cancelled"}
    assert len(dropped) == 9
    with pytest.raises(openai.ConflictError):
        await client.batches.cancel(batch.id)


async def test_a_batch_goes_on_after_a_restart_and_no_line_that_is_done_is_run_again(
    client: openai.AsyncOpenAI, engine: ScriptedEngine, fabric: Fabric
) -> None:
    hold = asyncio.Event()
    first = True

    def reply(asked: dict[str, Any]) -> Plan:
        number = int(asked["messages"][0]["content"])
        return Plan(chunks=(f"{number}",), hold=hold if first and number >= 5 else None)

    engine.reply = reply
    batch = await submit(client, [line(f"{n}", f"{n}") for n in range(12)])
    for _ in range(7):
        await engine.started()
    await fabric.restart()
    first = False
    async with fabric.openai() as client:
        done = await ended(client, batch)
        output = await rows(client, done.output_file_id)
    assert [row["response"]["body"]["choices"][0]["message"]["content"] for row in output] == [
        f"{n}" for n in range(12)
    ]
    asked = [request.json["messages"][0]["content"] for request in engine.requests]
    assert [asked.count(f"{n}") for n in range(5)] == [1] * 5


async def test_files_are_listed_read_and_deleted(client: openai.AsyncOpenAI) -> None:
    first = await upload(client, [line("a")])
    second = await upload(client, [line("b")])
    assert (first.filename, first.purpose, first.status) == ("in.jsonl", "batch", "processed")
    assert first.bytes == len(json.dumps(line("a")))
    assert [file.id async for file in client.files.list()] == [second.id, first.id]
    page = await client.files.list(limit=1)
    assert [file.id for file in page.data] == [second.id] and page.has_more
    assert [file.id async for file in client.files.list(limit=1, order="asc")] == [
        first.id,
        second.id,
    ]
    assert (await client.files.retrieve(first.id)).id == first.id
    assert (await client.files.content(first.id)).json() == line("a")
    assert (await client.files.delete(first.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(first.id)
    with pytest.raises(openai.NotFoundError):
        await client.batches.create(input_file_id=first.id, endpoint=CHAT, completion_window="24h")


async def test_a_large_file_comes_back_as_it_was_sent(
    client: openai.AsyncOpenAI, fabric: Fabric
) -> None:
    data = bytes(range(256)) * 4000 + b"\r\n--almost a boundary\r\n"
    file = await client.files.create(file=("data.bin", data), purpose="batch")
    assert (await client.files.content(file.id)).content == data
    with pytest.raises(openai.APIStatusError) as refused:
        await client.files.create(file=("big", b"x" * (2**20 + 1)), purpose="batch")
    assert refused.value.status_code == 413
    for _ in range(2):
        await client.files.create(file=("data.bin", data), purpose="batch")
    with pytest.raises(openai.APIStatusError) as full:
        await client.files.create(file=("data.bin", data), purpose="batch")
    assert full.value.code == "files_full"
    rows = await fabric.app.backends.store.database.fetch(
        "SELECT count(DISTINCT file_id) FROM file_chunks"
    )
    assert rows[0][0] == 3


async def test_a_file_may_be_larger_than_other_bodies(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with Fabric(tmp_path, body_limit=4096, file_limit=2**20) as fabric:
        await fabric.join(engine.url)
        async with fabric.openai() as client:
            file = await client.files.create(file=("x", b"x" * 500_000), purpose="batch")
            assert file.bytes == 500_000
            with pytest.raises(openai.APIStatusError) as refused:
                await client.chat.completions.create(
                    model="tiny", messages=[{"role": "user", "content": "x" * 5000}]
                )
            assert refused.value.status_code == 413


async def test_other_purposes_are_refused(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.files.create(file=("x", b"x"), purpose="fine-tune")
    assert refused.value.param == "purpose"
    assert "'fine-tune'" in str(refused.value)


async def test_a_file_expires_when_its_owner_says(client: openai.AsyncOpenAI) -> None:
    async def upload(seconds: int) -> Any:
        after: Any = {"anchor": "created_at", "seconds": seconds}
        return await client.files.create(
            file=("x.jsonl", b"{}"), purpose="batch", expires_after=after
        )

    file = await upload(7200)
    assert file.expires_at == file.created_at + 7200
    for seconds in (0, 60, 10**8):
        with pytest.raises(openai.BadRequestError) as refused:
            await upload(seconds)
        assert refused.value.param == "expires_after.seconds"


async def test_a_batch_tells_its_tokens_and_keeps_its_output_as_long_as_asked(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(usage=(7, 3))
    file = await upload(client, [line("a"), line("b")])
    after: Any = {"anchor": "created_at", "seconds": 7200}
    begun = await client.batches.create(
        input_file_id=file.id,
        endpoint=CHAT,
        completion_window="24h",
        output_expires_after=after,
    )
    assert begun.usage is None
    batch = await ended(client, begun)
    assert batch.usage is not None
    assert (batch.usage.input_tokens, batch.usage.output_tokens) == (14, 6)
    assert batch.usage.total_tokens == 20
    output = await client.files.retrieve(str(batch.output_file_id))
    assert output.expires_at == output.created_at + 7200
    with pytest.raises(openai.BadRequestError) as refused:
        await client.batches.create(
            input_file_id=file.id,
            endpoint=CHAT,
            completion_window="24h",
            output_expires_after={"anchor": "created_at", "seconds": 5},
        )
    assert "output_expires_after" in str(refused.value)


@pytest.mark.parametrize("answer", [None, [], {"usage": 5}, {"usage": {"prompt_tokens": "x"}}])
def test_an_answer_without_tokens_adds_none(answer: Any) -> None:
    usage = Usage()
    usage.add(answer)
    usage.add({"usage": {"input_tokens": 2, "output_tokens_details": {"reasoning_tokens": 1}}})
    told = json.loads(usage.encode())
    assert (told["input_tokens"], told["output_tokens_details"]["reasoning_tokens"]) == (2, 1)


async def test_an_account_sees_nothing_of_anothers_files_and_batches(
    client: openai.AsyncOpenAI, fabric: Fabric
) -> None:
    batch = await submit(client, [line("a")])
    done = await ended(client, batch)
    assert done.output_file_id is not None
    other = fabric.openai(api_key=(await new_key(fabric, "another")).text)
    async with other:
        assert (await other.files.list()).data == []
        assert (await other.batches.list()).data == []
        for asking in (
            other.files.retrieve(done.output_file_id),
            other.files.content(done.output_file_id),
            other.files.delete(done.output_file_id),
            other.batches.retrieve(batch.id),
            other.batches.cancel(batch.id),
            other.batches.create(
                input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h"
            ),
        ):
            with pytest.raises(openai.NotFoundError):
                await asking
    assert [one.id async for one in client.batches.list()] == [batch.id]


async def test_lines_of_a_key_with_limits_wait_for_them_and_leave_no_trace_of_it(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    key = await fabric.make_key(requests_per_minute=240)
    other = await new_key(fabric, "another")
    async with fabric.openai(api_key=key) as client, fabric.openai(api_key=other.text) as second:
        for _ in range(240 - 6):  # what is left in the first moment
            fabric.app.data_plane.gateway.limits.take(
                await fabric.app.data_plane.authenticator.authenticate(key)
            )
        limited = await submit(client, [line(f"{n}") for n in range(12)])
        free = await submit(second, [line(f"{n}", "free") for n in range(12)])
        assert (await ended(second, free)).status == "completed"
        done = await ended(client, limited)
    counts = done.request_counts
    assert counts is not None
    assert (counts.completed, counts.failed) == (12, 0)
    ledger = await fabric.ledger()
    assert [entry.outcome for entry in ledger] == ["ok"] * 24


async def test_a_batch_whose_key_is_disabled_ends_with_an_error_for_each_line_that_is_left(
    client: openai.AsyncOpenAI, engine: ScriptedEngine, fabric: Fabric
) -> None:
    engine.plan = Plan(chunks=("one", "more"), hold=asyncio.Event())
    batch = await submit(client, [line(f"{n}") for n in range(9)])
    await engine.started()
    disabled = await fabric.app.backends.store.set_key_enabled(fabric.key[:13], False)
    assert disabled is not None
    manager = await new_key(fabric, "tests")
    async with fabric.openai(api_key=manager.text) as other:  # of the same account
        done = await ended(other, batch)
        failed = await rows(other, done.error_file_id)
    assert (done.status, len(failed), done.output_file_id) == ("completed", 9, None)
    assert {row["response"]["status_code"] for row in failed} == {401}
    assert {row["response"]["body"]["error"]["code"] for row in failed} <= {
        "key_withdrawn",
        "invalid_api_key",
    }


async def test_once_the_answers_of_a_batch_are_too_many_bytes_the_rest_is_not_begun(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    many = 120  # their size is looked at every five seconds
    engine.reply = lambda asked: Plan(chunks=("x" * 10_000,), first_byte_delay=0.3)
    async with Fabric(tmp_path, batch_at_once=2, files_per_account=100_000) as fabric:
        await fabric.join(engine.url, slots=2)
        async with fabric.openai() as client:
            done = await ended(client, await submit(client, [line(f"{n}") for n in range(many)]))
            failed = await rows(client, done.error_file_id)
            output = await rows(client, done.output_file_id)
            assert len(output) + len(failed) == many
            assert {row["error"]["code"] for row in failed} == {"answers_too_large"}
            with pytest.raises(openai.APIStatusError) as full:
                await upload(client, [line("more")])
    assert done.status == "completed"
    assert full.value.status_code == 413


class Deleted(FileStore):
    """A file that its user deletes after it was read once."""

    reads = 0

    async def chunks(self, id: str) -> AsyncIterator[bytes]:
        self.reads += 1
        async for chunk in super().chunks(id):
            yield chunk if self.reads == 1 else chunk[: len(chunk) // 2]


async def test_a_file_that_is_deleted_while_its_batch_is_made_fails_that_batch_only(
    client: openai.AsyncOpenAI, fabric: Fabric
) -> None:
    fabric.app.data_plane.jobs.drain()  # what follows is done by another
    batch = await submit(client, [line(f"{n}") for n in range(3)])
    database = fabric.app.backends.store.database
    files = Deleted(database)
    batches = BatchStore(database)
    webhooks = Webhooks(WebhookStore(database), allow_http=False, allow_private=False)
    jobs = JobStore(database)
    kept = Files(files, max_bytes=1, max_account_bytes=1, days=1)

    async def known(model: str) -> bool:
        return True

    work = BatchRunner(
        BatchLeases(batches, webhooks, "another", time.time),
        BatchLines(jobs, max_response_bytes=99),
        BatchInput(files, known),
        BatchOutput(jobs, files, kept),
        Retention(jobs, batches, files, result_seconds=60.0, max_result_bytes=99),
    )
    working = asyncio.create_task(work.run())
    done = await ended(client, batch)
    assert not working.done()
    working.cancel()
    await asyncio.wait([working])
    assert done.status == "failed"
    assert done.errors is not None and done.errors.data is not None
    assert [one.code for one in done.errors.data] == ["file_not_found"]


async def test_a_server_that_leaves_gives_lines_back_that_wait_for_a_slot(
    client: openai.AsyncOpenAI, engine: ScriptedEngine, fabric: Fabric
) -> None:
    hold = asyncio.Event()
    engine.plan = Plan(hold=hold)
    await submit(client, [line(f"{n}") for n in range(4)])
    for _ in range(2):
        await engine.started()
    async with asyncio.timeout(PATIENCE):
        while fabric.app.data_plane.admission.waiting < 2:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.01)
        fabric.app.data_plane.jobs.drain()
        jobs = JobStore(fabric.app.backends.store.database)
        while fabric.app.data_plane.jobs.under_way["line"] > 2:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.01)
        assert await jobs.count_queued() == (0, 2)
    hold.set()
    async with asyncio.timeout(PATIENCE):
        while fabric.app.data_plane.jobs.under_way["line"]:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.01)
    assert fabric.app.data_plane.jobs.ended == {("line", "done"): 2}


async def test_lines_of_a_batch_run_on_the_weights_it_asked_for(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    digest = "42182419e950" * 5 + "abcd"
    async with ScriptedEngine(ollama=True, digest=digest) as wanted, Fabric(tmp_path) as fabric:
        await fabric.join(engine.url, name="other")
        await fabric.join(wanted.url, name="wanted")
        async with fabric.openai() as client:
            lines = [line(str(number)) for number in range(4)]
            headers = {"x-fabric-digest": f"sha256:{wanted.digest}"}
            done = await ended(client, await submit(client, lines, extra_headers=headers))
            assert (done.status, done.request_counts and done.request_counts.failed) == (
                *("completed", 0),
            )
            assert (len(wanted.requests), len(engine.requests)) == (4, 0)
            headers = {"x-fabric-quant": "Q8_0"}
            done = await ended(client, await submit(client, lines[:1], extra_headers=headers))
            assert done.status == "failed"
            assert done.errors is not None and done.errors.data is not None
            [problem] = done.errors.data
            assert (problem.code, problem.param) == ("variant_not_found", "body.model")
            with pytest.raises(openai.BadRequestError, match="x-fabric-quant"):
                await submit(client, lines, extra_headers={"x-fabric-quant": "a b"})
