"""Figures for Prometheus: its own parser reads them, and what users send never becomes a label."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from fabric_server.proxy.metrics import SECONDS, Histogram, Metrics
from tests.site import ASK, CHAT, Site
from tests.users import request


def read(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    registry = CollectorRegistry()
    registry.register(metrics)
    text = generate_latest(registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@settings(deadline=None)
@given(st.lists(st.floats(0, 1000), max_size=50))
def test_every_observation_is_in_one_bucket_and_in_all_larger_ones(times: list[float]) -> None:
    histogram = Histogram()
    for seconds in times:
        histogram.observe(seconds)
    samples = {
        sample.labels.get("le", sample.name): sample.value
        for sample in histogram.family("x", "y").samples
    }
    for bound in SECONDS:
        assert samples[str(bound)] == sum(seconds <= bound for seconds in times)
    assert samples["+Inf"] == samples["x_count"] == len(times)
    assert abs(samples["x_sum"] - sum(times)) < 1e-6


def test_what_was_counted_is_what_is_shown() -> None:
    metrics = Metrics()
    metrics.requests[CHAT, "ok"] += 3
    metrics.errors["invalid_api_key"] += 2
    metrics.prompt_tokens += 40
    metrics.retries += 1
    metrics.hedged += 3
    metrics.hedges_won += 2
    metrics.first_byte.observe(0.2)
    shown = read(metrics)
    assert shown["fabric_requests_total", (("endpoint", CHAT), ("outcome", "ok"))] == 3
    assert shown["fabric_refusals_total", (("code", "invalid_api_key"),)] == 2
    assert shown["fabric_tokens_total", (("kind", "prompt"),)] == 40
    assert shown["fabric_retries_total", ()] == 1
    assert shown["fabric_hedged_total", ()] == 3
    assert shown["fabric_hedges_won_total", ()] == 2
    assert shown["fabric_first_byte_seconds_count", ()] == 1
    assert shown["fabric_first_byte_seconds_bucket", (("le", "0.25"),)] == 1


async def test_labels_are_of_a_few_kinds_whatever_users_and_nodes_send() -> None:
    site = Site()
    node = site.node()
    user = site.user()
    for number in range(30):
        await user.ask("GET", f"/{number}")
        await user.ask("POST", f"/v1/models/{number}")
        await user.ask("POST", CHAT, {**ASK, "model": f"m{number}"}, **site.key)
        await user.ask("POST", CHAT + "/" * number, ASK, authorization=f"Bearer {number}")
        node.refuses = 100 + number
        await user.ask("POST", CHAT + "/" * number, ASK, **site.key)
    labels = {labels for _, labels in read(site.metrics)}
    assert len(labels) < 40
    assert {dict(one)["endpoint"] for one in labels if "endpoint" in dict(one)} == {CHAT}


async def test_a_request_is_counted_once_with_its_tokens_and_times() -> None:
    site = Site()
    node = site.node()
    user = site.user()
    user.send(request("POST", CHAT, ASK, **site.key))
    call = await node.call()
    call.answer(200, b'{"usage":{"prompt_tokens":5,"completion_tokens":7}}')
    await user.answer()
    await site.entry()
    shown = read(site.metrics)
    assert shown["fabric_requests_total", (("endpoint", CHAT), ("outcome", "ok"))] == 1
    assert shown["fabric_tokens_total", (("kind", "prompt"),)] == 5
    assert shown["fabric_tokens_total", (("kind", "completion"),)] == 7
    assert shown["fabric_request_seconds_count", ()] == 1
    assert shown["fabric_first_byte_seconds_count", ()] == 1
