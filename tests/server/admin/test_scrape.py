"""The metrics of several processes in one text."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from fabric_server.admin.scrape import merge


def text(requests: int, *, ports: bool = True) -> str:
    registry = CollectorRegistry()
    Gauge("fabric_nodes", "Nodes with a link.", registry=registry).set(requests)
    counter = Counter("fabric_done", "Requests.", ["port"], registry=registry)
    if ports:
        counter.labels('a "port" {of} mine').inc(requests)
    return generate_latest(registry).decode()


def test_each_sample_gets_the_label_of_its_worker() -> None:
    merged = merge({"w0": text(2), "w1": text(3)})
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(merged)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    port = ("port", 'a "port" {of} mine')
    assert samples == {
        ("fabric_nodes", ("worker", "w0")): 2,
        ("fabric_nodes", ("worker", "w1")): 3,
        ("fabric_done_total", port, ("worker", "w0")): 2,
        ("fabric_done_total", port, ("worker", "w1")): 3,
    }


def test_the_samples_of_a_family_stand_together_behind_its_comments() -> None:
    lines = merge({"w0": text(1), "w1": text(1)}).splitlines()
    names = [line.split()[2] for line in lines if line.startswith("# HELP")]
    assert len(names) == len(set(names))
    begins = lines.index("# TYPE fabric_nodes gauge")
    assert lines[begins + 1 : begins + 3] == [
        'fabric_nodes{worker="w0"} 1.0',
        'fabric_nodes{worker="w1"} 1.0',
    ]


def test_a_family_may_have_no_samples_in_some() -> None:
    merged = merge({"w0": text(1, ports=False), "w1": text(1), "parent": ""})
    assert 'fabric_done_total{worker="w1",port="a \\"port\\" {of} mine"} 1.0' in merged
    assert merged.count("# HELP fabric_done_total") == 1
