"""Requests for some weights of a model: wherever they wait, and whoever fails."""

from __future__ import annotations

import json
from typing import Any

import pytest

from protocol.errors import Code
from protocol.messages import ModelReport
from tests.site import ASK, CHAT, DONE, STREAM, ScriptedNode, Site, ask, chunk, first_call, turns

SMALL, LARGE = "42182419e950" * 5 + "abcd", "9f438cb9cd58" * 5 + "0123"
Q4 = ModelReport("tiny", digest=SMALL, quantization="Q4_K_M")
Q8 = ModelReport("tiny", digest=LARGE, quantization="Q8_0")
UNTOLD = ModelReport("tiny")
OK = b"{}"
DIALECTS: list[tuple[str, Any]] = [
    (CHAT, ASK),
    ("/v1/completions", {"model": "tiny", "prompt": "Hi"}),
    ("/v1/embeddings", {"model": "tiny", "input": "Hi"}),
    ("/v1/responses", {"model": "tiny", "input": "Hi"}),
    ("/v1/messages", {**ASK, "max_tokens": 5}),
    ("/api/chat", {**ASK, "stream": False}),
    ("/api/generate", {"model": "tiny", "prompt": "Hi", "stream": False}),
    ("/api/embed", {"model": "tiny", "input": "Hi"}),
]
PATHS = [path for path, _ in DIALECTS]


def three(site: Site, **options: Any) -> tuple[ScriptedNode, ScriptedNode, ScriptedNode]:
    small, large, untold = (site.node([one], paths=PATHS, **options) for one in (Q4, Q8, UNTOLD))
    return small, large, untold


@pytest.mark.parametrize(("path", "body"), DIALECTS)
async def test_a_request_of_any_dialect_goes_to_the_weights_that_it_names(
    path: str, body: Any
) -> None:
    for header, value in (
        ("x-fabric-quant", "q8_0"),
        ("x-fabric-digest", LARGE[:12]),
        ("x-fabric-digest", f"sha256:{LARGE.upper()}"),
    ):
        site = Site()
        small, large, untold = three(site)
        for _ in range(3):
            user = ask(site, body, path, **{header: value})
            call = await large.call()
            assert not [name for name, _ in call.request.headers if name.startswith("x-fabric")]
            assert b"fabric" not in await call.whole_body()
            call.answer(200, OK)
            assert (await user.answer()).status == 200
        assert small.idle
        assert untold.idle


@pytest.mark.parametrize(("path", "body"), DIALECTS)
async def test_weights_that_nobody_has_are_an_error_at_once_that_names_those_there_are(
    path: str, body: Any
) -> None:
    site = Site()
    nodes = three(site)
    answer = await ask(site, body, path, **{"x-fabric-quant": "Q6_K"}).answer()
    assert answer.status == 404
    text = json.dumps(answer.json)
    for word in ("x-fabric-quant", "quantization q6_k", "Q4_K_M (digest 42182419e950)", "Q8_0"):
        assert word in text
    assert answer.headers["x-should-retry"] == "false"
    assert all(node.idle for node in nodes)
    entry = await site.entry()
    assert (entry.outcome, entry.error, entry.attempts) == ("refused", "variant_not_found", 0)


async def test_the_error_names_the_header_that_excludes_all() -> None:
    site = Site()
    three(site)
    for headers, param in (
        ({"x-fabric-quant": "Q8_0", "x-fabric-digest": SMALL}, "x-fabric-digest"),
        ({"x-fabric-quant": "Q6_K", "x-fabric-digest": SMALL}, "x-fabric-quant"),
        ({"x-fabric-digest": "0" * 64}, "x-fabric-digest"),
    ):
        answer = await ask(site, **headers).answer()
        assert (answer.status, answer.code) == (404, "variant_not_found")
        assert answer.error["param"] == param


@pytest.mark.parametrize(
    ("header", "value"),
    [
        *(("x-fabric-quant", value) for value in ("", "a b", "Q4/0", "Q4_K_M,Q8_0", "*", "q" * 65)),
        *(("x-fabric-quant", value) for value in ("é", "-Q4", "Q4;x", "\x1b[2J")),
        *(("x-fabric-digest", value) for value in ("", "sha256:", SMALL[:11], SMALL + "0")),
        *(("x-fabric-digest", value) for value in ("md5:" + SMALL, SMALL[:12] + "g", "0x" + SMALL)),
        *(("x-fabric-digest", value) for value in (SMALL[:12] + ",", "a" * 8000)),
    ],
)
async def test_a_header_that_makes_no_sense_is_refused(header: str, value: str) -> None:
    site = Site()
    nodes = three(site)
    answer = await ask(site, **{header: value}).answer()
    assert answer.status == 400
    if value != "\x1b[2J":  # which is no HTTP
        assert (answer.code, answer.error["param"]) == ("invalid_value", header)
    assert all(node.idle for node in nodes)


async def test_a_model_that_nobody_has_is_still_not_found() -> None:
    site = Site()
    three(site)
    answer = await ask(site, {**ASK, "model": "huge"}, **{"x-fabric-quant": "Q8_0"}).answer()
    assert (answer.status, answer.code) == (404, "model_not_found")


async def test_weights_whose_node_is_down_are_a_lack_of_capacity_that_names_them() -> None:
    site = Site()
    _, large, _ = three(site)
    large.engine.healthy = False
    answer = await ask(site, **{"x-fabric-quant": "Q8_0"}).answer()
    assert (answer.status, answer.code) == (503, "no_capacity")
    assert "with quantization q8_0" in answer.error["message"]


async def test_a_path_that_only_other_weights_can_be_asked_is_no_path_here() -> None:
    site = Site()
    site.node([Q4], paths=[CHAT])
    site.node([Q8], paths=[CHAT, "/v1/responses"])
    body = {"model": "tiny", "input": "Hi"}
    answer = await ask(site, body, "/v1/responses", **{"x-fabric-quant": "Q4_K_M"}).answer()
    assert (answer.status, answer.code) == (404, "variant_not_found")
    assert "Served: Q8_0 (digest 9f438cb9cd58)." in answer.error["message"]


async def test_an_alias_means_the_model_that_has_the_weights() -> None:
    site = Site(aliases={"fast": ("tiny", "small")})
    site.node([Q4])
    other = site.node([ModelReport("small", digest=LARGE, quantization="Q8_0")])
    user = ask(site, {**ASK, "model": "fast"}, **{"x-fabric-quant": "Q8_0"})
    call = await other.call()
    assert b'"small"' in await call.whole_body()
    call.answer(200, OK)
    assert (await user.answer()).status == 200


async def test_ollamas_latest_may_be_left_out() -> None:
    site = Site()
    node = site.node([ModelReport("tiny:latest", digest=SMALL)], kind="ollama")
    user = ask(site, **{"x-fabric-digest": SMALL[:12]})
    (await node.call()).answer(200, OK)
    assert (await user.answer()).status == 200


async def test_a_second_attempt_has_the_same_weights() -> None:
    site = Site()
    small = [site.node([Q4]) for _ in range(2)]
    large = site.node([Q8])
    for node in small:
        node.refuses = Code.ENGINE_DOWN
    answer = await ask(site, **{"x-fabric-quant": "Q4_K_M"}).answer()
    assert answer.status == 502
    assert large.idle
    assert (await site.entry()).attempts == 2


async def test_who_waits_for_weights_is_served_by_no_others_and_holds_nobody_up() -> None:
    site = Site()
    small, large = site.node([Q4], slots=1), site.node([Q8], slots=1)
    users = [ask(site, **{"x-fabric-quant": name}) for name in ("Q4_K_M", "Q8_0")]
    running, other = await small.call(), await large.call()
    users.append(ask(site, **{"x-fabric-digest": SMALL[:20]}))
    await turns()
    assert site.admission.waiting == 1
    users.append(ask(site))
    await turns()
    other.answer(200, OK)  # a slot that the first in line may not have
    (await large.call()).answer(200, OK)
    await turns(20)
    assert site.admission.waiting == 1
    running.answer(200, OK)
    (await small.call()).answer(200, OK)
    for user in users:
        assert (await user.answer()).status == 200


async def test_a_report_of_other_weights_takes_effect_at_once() -> None:
    site = Site()
    node = site.node([Q4])
    site.registry.report(node.node, [node.report([Q8])])
    answer = await ask(site, **{"x-fabric-quant": "Q4_K_M"}).answer()
    assert answer.code == "variant_not_found"
    user = ask(site, **{"x-fabric-quant": "Q8_0"})
    (await node.call()).answer(200, OK)
    assert (await user.answer()).status == 200


# ── continuing ────────────────────────────────────────────────────────────────────────────────


async def broken(site: Site, node: ScriptedNode, **headers: str) -> Any:
    """A user whose stream has broken off at this node, which was the only one."""
    user = ask(site, STREAM, **{"x-fabric-failover": "continue", **headers})
    call = await node.call()
    call.begin_stream()
    call.data(chunk("Hel"))
    await user.until(b"Hel")
    return user, call


@pytest.mark.parametrize(
    ("begun", "others", "joins"),
    [
        (("ollama", Q4), [("ollama", Q8)], False),
        (("ollama", Q4), [("ollama", UNTOLD)], False),
        (("ollama", UNTOLD), [("ollama", Q4)], False),
        (("vllm", UNTOLD), [("llama-server", UNTOLD), ("ollama", UNTOLD)], False),
        (("ollama", Q4), [("ollama", Q8), ("ollama", Q4)], True),
        (("ollama", Q4), [("ollama", Q8), ("llama-server", Q4)], True),
        (("ollama", Q4), [("ollama", Q8), ("openai", Q4)], False),
        (("vllm", UNTOLD), [("vllm", UNTOLD)], True),
        (("ollama", UNTOLD), [("ollama", Q8), ("ollama", UNTOLD)], True),
    ],
)
async def test_an_answer_is_never_continued_by_other_weights(
    begun: tuple[str, ModelReport], others: list[tuple[str, ModelReport]], joins: bool
) -> None:
    site = Site()
    first = site.node([begun[1]], kind=begun[0])
    user, call = await broken(site, first)
    nodes = [site.node([report], kind=kind) for kind, report in others]
    call.fail(Code.LOST)
    if joins:
        rest = await nodes[-1].call()
        rest.stream_all(chunk("lo"), chunk(None), DONE)
        assert (await user.answer()).body.endswith(DONE)
        nodes = nodes[:-1]
    else:
        assert b'"upstream_lost"' in (await user.answer()).body
    assert all(node.idle for node in nodes)
    assert (await site.entry()).continued == joins


async def test_what_is_continued_twice_has_the_weights_of_its_beginning() -> None:
    site = Site()
    first = site.node([Q4], kind="ollama")
    user, call = await broken(site, first)
    second, other = site.node([Q4], kind="ollama"), site.node([Q8], kind="ollama")
    call.fail(Code.LOST)
    rest = await second.call()
    rest.begin_stream()
    rest.data(chunk("lo"))
    await user.until(b'"lo"')
    rest.fail(Code.LOST)
    assert b'"upstream_lost"' in (await user.answer()).body
    assert other.idle
    assert (await site.entry()).continued == 1


async def test_weights_that_were_replaced_meanwhile_are_not_known_to_have_written_it() -> None:
    site = Site()
    first = site.node([Q4], kind="ollama")
    user, call = await broken(site, first)
    nodes = [site.node([one], kind="ollama") for one in (Q4, Q8)]
    site.registry.report(first.node, [first.report([Q8])])
    call.fail(Code.LOST)
    assert b'"upstream_lost"' in (await user.answer()).body
    assert all(node.idle for node in nodes)


async def test_an_answer_without_text_yet_is_asked_anew_of_any_weights() -> None:
    site = Site()
    first = site.node([Q4], kind="ollama")
    user = ask(site, STREAM, **{"x-fabric-failover": "continue"})
    call = await first.call()
    call.begin_stream()
    call.data(chunk(""))
    await user.until(b'"delta"')
    other = site.node([Q8], kind="ollama")
    call.fail(Code.LOST)
    rest = await other.call()
    assert json.loads(await rest.whole_body())["messages"] == STREAM["messages"]
    rest.stream_all(chunk("Hello"), chunk(None), DONE)
    assert (await user.answer()).body.endswith(DONE)


async def test_weights_that_were_asked_for_are_kept_when_an_answer_is_asked_anew() -> None:
    site = Site()
    first = site.node([Q4], kind="ollama")
    user = ask(
        site, STREAM, **{"x-fabric-failover": "continue", "x-fabric-quant": "Q4_K_M"}
    )  # fmt: skip
    call = await first.call()
    call.begin_stream()
    call.data(chunk(""))
    await user.until(b'"delta"')
    other = site.node([Q8], kind="ollama")
    call.fail(Code.LOST)
    assert b'"upstream_lost"' in (await user.answer()).body
    assert other.idle


async def test_a_first_attempt_that_failed_is_made_again_by_any_weights() -> None:
    site = Site()
    small, large = site.node([Q4], kind="ollama"), site.node([Q8], kind="ollama")
    user = ask(site, STREAM)
    call, chosen = await first_call([small, large])
    call.fail(Code.ENGINE_DOWN)
    other = large if chosen is small else small
    (await other.call()).stream_all(chunk("Hello"), chunk(None), DONE)
    assert (await user.answer()).body.endswith(DONE)
