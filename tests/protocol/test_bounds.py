"""Whatever a peer sends is bounded where messages are decoded: each field of each message."""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random
from typing import Any, get_args

import msgspec
import pytest
from msgspec import inspect

from protocol import join, messages
from protocol.control.link import (
    FLOOD_BYTES,
    FLOOD_BYTES_PER_SECOND,
    LENGTH,
    MAX_MESSAGE,
    Link,
    LinkClosed,
)
from protocol.errors import Code
from protocol.messages import UNREADABLE, Message

LINK = get_args(Message)
ARRAYS = (
    messages.Hello,
    messages.RequestHead,
    messages.ResponseHead,
    messages.Figures,
    messages.Resume,
    messages.Drain,
)
HTTPS = (join.Token, join.Enrol, join.Enrolled)

HOSTILE_NUMBERS = (
    *(math.nan, math.inf, -math.inf, -1, -1e-9, -1e300, 1e300, 1e-9, 2**63, 2**64 - 1, -(2**63)),
    *(True, "1", b"1", [1], {"a": 1}),
)


def leaves(kind: inspect.Type, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the simple types inside a type, with the way to each."""
    match kind:
        case inspect.StructType():
            for field in kind.fields:
                yield from leaves(field.type, (*path, field.encode_name))
        case inspect.UnionType():
            for one in kind.types:
                yield from leaves(one, path)
        case inspect.Metadata():
            yield from leaves(kind.type, path)
        case inspect.ListType():
            yield path, kind
            yield from leaves(kind.item_type, (*path, "[]"))
        case inspect.TupleType():
            for one in kind.item_types:
                yield from leaves(one, (*path, "()"))
        case _:
            yield path, kind


FIELDS = [
    pytest.param(leaf, id=".".join((kind.__name__, *path)))
    for kind in (*LINK, *ARRAYS, *HTTPS)
    for path, leaf in leaves(inspect.type_info(kind), ())
]


@pytest.mark.parametrize("leaf", FIELDS)
def test_no_field_is_without_bounds(leaf: Any):
    match leaf:
        case inspect.IntType() | inspect.FloatType():
            assert leaf.le is not None or leaf.lt is not None
            assert leaf.ge is not None or leaf.gt is not None
            assert max(abs(leaf.le), abs(leaf.ge)) < 2**63
        case inspect.StrType() | inspect.BytesType() | inspect.ListType():
            assert leaf.max_length is not None
        case inspect.BoolType() | inspect.NoneType():
            pass
        case _:
            pytest.fail(f"a field of type {leaf} is new here: say how it is bounded")


def sample(kind: inspect.Type) -> Any:
    """A value that fits."""
    match kind:
        case inspect.StructType():
            fields = {field.encode_name: sample(field.type) for field in kind.fields}
            if kind.array_like:
                return list(fields.values())
            return fields | ({"type": kind.tag} if kind.tag else {})
        case inspect.Metadata():
            return sample(kind.type)
        case inspect.UnionType():
            return sample(kind.types[0])
        case inspect.ListType():
            return [sample(kind.item_type)]
        case inspect.TupleType():
            return [sample(one) for one in kind.item_types]
        case inspect.IntType() | inspect.FloatType():
            return max(1, kind.ge or 0)
        case inspect.StrType():
            return "a" * 12  # a digest, too
        case inspect.BytesType():
            return b"a"
        case inspect.BoolType():
            return True
        case _:
            return None


def places(value: Any, kind: inspect.Type) -> Iterator[tuple[Any, Any, Any]]:
    """Yield (container, key, type) of each number inside a sample."""
    match kind:
        case inspect.StructType():
            for at, field in enumerate(kind.fields):
                key = at if kind.array_like else field.encode_name
                inner = field.type.type if isinstance(field.type, inspect.Metadata) else field.type
                if isinstance(inner, inspect.UnionType):
                    inner = inner.types[0]
                if isinstance(inner, inspect.IntType | inspect.FloatType):
                    yield value, key, inner
                else:
                    yield from places(value[key], inner)
        case inspect.ListType():
            yield from places(value[0], kind.item_type)


def is_allowed(kind: Any, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    whole = isinstance(value, int)
    return bool((whole or isinstance(kind, inspect.FloatType)) and kind.ge <= value <= kind.le)


@pytest.mark.parametrize("kind", LINK, ids=lambda kind: kind.__name__)
def test_a_hostile_number_anywhere_ends_the_link_and_nothing_is_heard(kind: Any):
    info = inspect.type_info(kind)
    whole = sample(info)
    assert isinstance(msgspec.convert(whole, kind), kind)
    tried = 0
    for container, key, field in places(whole, info):
        before = container[key]
        for hostile in HOSTILE_NUMBERS:
            if is_allowed(field, hostile):
                continue
            container[key] = hostile
            link = Link(now=0.0, rng=Random(1))  # the same class reads on both sides
            payload = msgspec.msgpack.encode(whole)
            link.receive(LENGTH.pack(len(payload)) + payload, 0.0)
            (closed,) = link.events()
            assert isinstance(closed, LinkClosed), (key, hostile)
            assert closed.code == Code.PROTOCOL
            tried += 1
        container[key] = before
    assert tried or kind in (messages.Renew, messages.Renewed)


@pytest.mark.parametrize("kind", ARRAYS, ids=lambda kind: kind.__name__)
def test_a_hostile_number_anywhere_makes_a_frame_unreadable(kind: Any):
    info = inspect.type_info(kind)
    whole = sample(info)
    decode = messages.decoder(kind).decode
    assert isinstance(decode(msgspec.msgpack.encode(whole)), kind)
    for container, key, field in places(whole, info):
        before = container[key]
        for hostile in HOSTILE_NUMBERS:
            if is_allowed(field, hostile):
                continue
            container[key] = hostile
            with pytest.raises(UNREADABLE):
                decode(msgspec.msgpack.encode(whole))
        container[key] = before


@pytest.mark.parametrize("seconds", [1e-9, 0.0, -1.0, 0.05, 86_401.0, math.nan, math.inf])
def test_a_server_can_t_make_a_node_send_heartbeats_without_a_pause(seconds: float):
    link = Link(now=0.0, rng=Random(1))
    registered = messages.Registered("node_1", 1, b"s", 17001, 2, seconds)
    payload = messages.encode(registered)
    link.receive(LENGTH.pack(len(payload)) + payload, 0.0)
    (closed,) = link.events()
    assert isinstance(closed, LinkClosed)
    assert closed.code == Code.PROTOCOL
    assert not closed.by_peer  # so that the node tries again, ever more rarely


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("digest", value) for value in (None, 7, "a" * 11, "A" * 12, "g" * 12, "a" * 129)),
        *(("digest", value) for value in ("sha256:" + "a" * 64, "a" * 64 + "\n", "../" + "a" * 12)),
        *(
            (field, value)
            for field in ("quantization", "family", "parameter_size", "format")
            for value in (
                None,
                4,
                "q" * 65,
                "Q4\n",
                "\x1b[2J",
                "/models/tiny",
                "a b",
                "é",
                "-x",
                [],
            )
        ),
    ],
)
def test_a_digest_or_label_that_is_none_ends_the_link(field: str, value: Any):
    def closed_by(model: dict[str, Any]) -> bool:
        engine = {"name": "e", "kind": "ollama", "healthy": True, "slots": 1, "models": [model]}
        payload = messages.encode({"type": "engines", "engines": [engine]})
        link = Link(now=0.0, rng=Random(1))
        link.receive(LENGTH.pack(len(payload)) + payload, 0.0)
        return link.closed

    assert closed_by({"name": "m", field: value})
    assert not closed_by({"name": "m", "digest": "a" * 64, "quantization": "Q4_K_M"})


def test_reports_of_older_and_newer_peers_are_read():
    def read(model: dict[str, Any]) -> messages.ModelReport:
        engine = {"name": "e", "kind": "ollama", "healthy": True, "slots": 1, "models": [model]}
        decoded = messages.decoder(messages.Engines).decode(messages.encode(
            {"type": "engines", "engines": [engine]}
        ))  # fmt: skip
        return decoded.engines[0].models[0]

    assert read({"name": "m"}) == messages.ModelReport("m")
    assert read({"name": "m", "digest": "a" * 64, "merges": [1, 2]}).digest == "a" * 64
    assert b"digest" not in messages.encode(messages.ModelReport("m")), "as it was before"


def test_pauses_of_older_and_newer_nodes_are_read_and_bounded():
    plain = {"name": "e", "kind": "ollama", "healthy": False, "slots": 0, "models": []}

    def read(**more: Any) -> messages.EngineReport:
        payload = messages.encode({"type": "engines", "engines": [{**plain, **more}]})
        return messages.decoder(messages.Engines).decode(payload).engines[0]

    assert (read().paused, read().back_at) == (False, 0.0)
    assert read(paused=True, back_at=1_800_000_000, until_when="dusk").back_at == 1_800_000_000.0
    assert b"back_at" not in messages.encode(messages.EngineReport("e", "ollama", True, 1, []))
    for wrong in (-1.0, 1e18, float("nan"), float("inf"), "soon", None):
        with pytest.raises(messages.UNREADABLE):
            read(paused=True, back_at=wrong)


def test_a_peer_can_t_send_the_largest_messages_all_the_time():
    link, now, passed = Link(now=0.0, rng=Random(1)), 0.0, 0
    model = messages.ModelReport("m" * 250, capabilities=["c" * 250] * 32)
    engines = [messages.EngineReport("e", "openai", True, 1, [model] * 110)]
    payload = messages.encode(messages.Engines(engines))
    assert MAX_MESSAGE / 2 < len(payload) < MAX_MESSAGE
    while not link.closed and now < 60.0:
        link.receive(LENGTH.pack(len(payload)) + payload, now)
        passed += len(payload)
        now += 0.1
    assert link.closed
    assert passed <= FLOOD_BYTES + FLOOD_BYTES_PER_SECOND * now + len(payload)


def test_a_node_with_many_models_may_report_its_slots_ten_times_a_second():
    link, now = Link(now=0.0, rng=Random(1)), 0.0
    models = [
        messages.ModelReport(f"model-{n}", size=n, capabilities=["tools"]) for n in range(400)
    ]
    payload = messages.encode(
        messages.Engines([messages.EngineReport("e", "ollama", True, 1, models)])
    )
    for _ in range(600):
        link.receive(LENGTH.pack(len(payload)) + payload, now)
        now += 0.1
    assert not link.closed
