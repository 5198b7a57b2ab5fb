# ruff: noqa: E501 - inputs are longer than lines
"""One function per reader: it makes its case from a ``Random`` and raises what it finds wrong."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from random import Random
from typing import NamedTuple

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fabric_server.backup.age import Encryption
from fabric_server.backup.age_keys import PublicKey
from fabric_server.backup.archive import About, ArchiveWriter, Counts
from fabric_server.storage.spool.frames import encode_frame
from protocol import join, messages
from protocol.control.link import Link, LinkClosed
from protocol.tunnel.base import Role
from protocol.tunnel.events import (
    ConnectionClosed,
    DataReceived,
    ResetConfirmed,
    StreamEnded,
    StreamOpened,
    StreamReset,
    StreamResumed,
)
from protocol.tunnel.node import NodeConnection
from protocol.tunnel.resume import ResumeTable
from protocol.tunnel.server import ServerConnection
from tests.contracts.samples import entry
from tests.fuzz import node_readers, server_readers
from tests.fuzz.traffic import broken, pieces_of, some_traffic
from tests.pump import ANSWER, FIGURES, HEAD, SESSION, SIDES, frames_in

LINK_MESSAGES = [
    messages.encode(message)
    for message in (
        messages.Register(1, "0.1.0", "den", "linux", []),
        messages.Registered("node_1", 1, b"s", 17001, 2, 15.0),
        messages.Tunnels(3),
        messages.Engines(
            [messages.EngineReport("e", "openai", True, 1, [messages.ModelReport("m", size=3)])]
        ),
        messages.Leaving("restarting", 1.0),
        messages.Refused(13, "revoked", False),
        messages.Renew("-----BEGIN"),
        messages.Ping(1),
        messages.Pong(2**63),
    )
]

CLIENT_HELLO = bytes.fromhex(
    "16030100550100005103030000000000000000000000000000000000000000000000000000000000000000"
    "00000213010100002600000012001000000d7365727665722e666162726963"
    "0010000c000a09666162726963782f31"
)


def same_in_any_pieces(rng: Random) -> None:
    """Both roles: whole or cut, the same bytes give the same events, answer and state."""
    role, data = rng.choice(list(Role)), some_traffic(rng)
    numbered = rng.random() < 0.5
    whole, cut = (_a_connection(role, numbered) for _ in range(2))
    whole.receive(data, 1.0)
    for piece in pieces_of(rng, data):
        cut.receive(piece, 1.0)
    assert whole.events() == cut.events()
    answers = [b"".join(side.data_to_send()) for side in (whole, cut)]
    assert answers[0] == answers[1]
    assert repr(whole) == repr(cut)
    assert "CLOSE" not in [frame.type for frame in frames_in(answers[0])][:-1]


def living_with_a_stranger(rng: Random) -> None:
    """An owner that does its part, a peer that does anything, and time that passes."""
    role = rng.choice(list(Role))
    connection = _a_connection(role, rng.random() < 0.5)
    now, gone, over = 0.0, set[int](), False
    carried = set[int]()

    def listen() -> None:
        nonlocal over
        ended = set[int]()  # by us; what happened before is still told
        for event in connection.events():
            assert not over, f"{event} behind the end"
            stream_id = getattr(event, "stream_id", None)
            assert stream_id not in gone, f"{event} behind the stream's end"
            match event:
                case ConnectionClosed():
                    over = True
                case DataReceived(id, data):
                    if rng.random() < 0.7:
                        connection.consumed(id, len(data))
                case StreamOpened(id):
                    carried.add(id)
                    connection.set_owner(id, "somebody")
                    connection.send_head(id, ANSWER)
                    connection.send_data(id, bytes(rng.choice([0, 10, 100_000, 300_000])))
                    if rng.random() < 0.5:
                        connection.end_stream(id, FIGURES)
                        ended.add(id)
                case StreamResumed(id):  # the one that went on has left its old id
                    for former in set(carried) - {id}:
                        if connection.owner(former) is None:
                            gone.add(former)
                    if connection.owner(id) is not None:
                        carried.add(id)
                case StreamReset(id):
                    gone.add(id)
                    if role is Role.NODE:
                        connection.confirm_reset(id)
                case StreamEnded(id) | ResetConfirmed(id):
                    gone.add(id)
        gone.update(ended)

    for _ in range(rng.randint(1, 5)):
        for piece in pieces_of(rng, some_traffic(rng)):
            connection.receive(piece, now)
            listen()
            if rng.random() < 0.1:
                now += rng.choice([0.0, 1.0, 5.0, 20.0])
                connection.handle_timer(now)
                assert connection.deadline > now
                listen()
            if rng.random() < 0.5:
                list(frames_in(b"".join(connection.data_to_send())))
                listen()
        if role is Role.SERVER and connection.usable:
            id = connection.open_stream(HEAD, now=now)
            if rng.random() < 0.5:
                connection.send_data(id, bytes(rng.choice([1, 300_000])), ended=True)
            if rng.random() < 0.2:
                connection.reset(id, 1)
        listen()
    connection.lost("cut")
    listen()
    assert over
    over = False  # what it has suspended ends now
    connection.abandon("nobody came")
    listen()
    assert connection.active == 0
    assert not connection.has_output() or connection.data_to_send()


def link(rng: Random) -> None:
    data = b""
    for _ in range(rng.randint(1, 8)):
        payload = rng.choice(LINK_MESSAGES)
        if rng.random() < 0.4:
            payload = broken(rng, payload)
        data += len(payload).to_bytes(4, "big") + payload
    if rng.random() < 0.2:
        data = broken(rng, data)
    whole, cut = (Link(now=0.0, rng=Random(1)) for _ in range(2))
    whole.receive(data, 1.0)
    for piece in pieces_of(rng, data):
        cut.receive(piece, 1.0)
    events = whole.events()
    assert events == cut.events()
    assert b"".join(whole.data_to_send()) == b"".join(cut.data_to_send())
    assert not any(isinstance(event, LinkClosed) for event in events[:-1])


def _a_connection(role: Role, numbered: bool) -> ServerConnection | NodeConnection:
    """``numbered``: one whose streams may go on elsewhere, or come from itself."""
    if not numbered:
        connection = SIDES[role](now=0.0, rng=Random(1))
    elif role is Role.SERVER:
        connection = ServerConnection(now=0.0, rng=Random(1), resumes=True)
    else:
        connection = NodeConnection(now=0.0, rng=Random(1), number=7, resume_table=ResumeTable())
    if role is Role.NODE:
        connection.hello(SESSION)
    return connection


def make_csr() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def make_backup() -> bytes:
    file = BytesIO()
    about = About(1, "1.2.3", 1.0, "sqlite", [], ["a.org"], [], [])
    writer = ArchiveWriter(file, about, lambda _: None)
    writer.add_bytes("data/certs/ca.key", b"-----BEGIN")
    writer.finish(Counts(1, 1))
    return file.getvalue()


def encrypted(data: bytes) -> bytes:
    file = BytesIO()
    encryption = Encryption(file, [PublicKey(server_readers.BACKUP_KEY)])
    encryption.write(data)
    encryption.finish()
    return file.getvalue()


class Target(NamedTuple):
    """A reader.  It raises what is wrong; its results differ where it took another way."""

    run: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    numbered: bool = False
    """The input is a number, from which the case is made."""


def _numbered(run: Callable[[Random], None]) -> Target:
    return Target(lambda data: run(Random(int(data))), (), numbered=True)


STREAM = (
    b'data: {"id":"x","model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"<think>'
    b'Hm"}}]}\n\ndata: {"choices":[{"index":0,"delta":{"content":"</think>Hi","tool_calls":[{"index":'
    b'0,"id":"c","function":{"name":"f","arguments":"{}"}}]},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
)
ANTHROPIC = (
    b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":3}}}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":4}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)
RESPONSES = (
    b'event: response.completed\ndata: {"type":"response.completed","response":{"usage":{'
    b'"input_tokens":3,"output_tokens":4}}}\n\n'
)
LINES = (
    b'{"model":"m","message":{"role":"assistant","content":"Hi"},"done":false}\n'
    b'{"model":"m","done":true,"done_reason":"stop","prompt_eval_count":7,"eval_count":2}\n'
)
WHOLE = (
    b'{"id":"x","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":2}}'
)
ANSWERS = (STREAM, ANTHROPIC, RESPONSES, LINES, WHOLE, b'{"error":{"message":"odd","code":500}}')
QUESTIONS = (
    b'{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user",'
    b'"content":[{"type":"text","text":"Hi"},{"type":"image_url","image_url":{"url":"https://a.org/'
    b'x.png"}}]}],"tools":[{"type":"function","function":{"name":"f","parameters":{}}}]}',
    b'{"model":"m","max_tokens":9,"system":"s","messages":[{"role":"user","content":[{"type":"image",'
    b'"source":{"type":"base64","media_type":"image/png","data":"aGk="}}]}]}',
    b'{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"Hi"}]}]}',
    b'{"model":"m","prompt":"Hi","options":{"num_predict":3},"images":["aGk="],"format":"json"}',
)
FORM = (
    b'--xx\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n--xx\r\ncontent-disposition: '
    b'form-data; name="file"; filename="a.wav"\r\ncontent-type: audio/wav\r\n\r\nRIFF\r\n--xx--\r\n'
)
HTTP = (
    b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc",
    b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"POST /early HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\nx",
)
BATCH_LINE = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}'
TOKEN = join.encode(join.Token("a.org", 18081, bytes(32), bytes(32))).encode()
CSR = make_csr()
FRAMES = encode_frame(b'{"a":1}') + encode_frame(b'{"b":2}')

BACKUPS = (make_backup(), encrypted(make_backup()))

TARGETS: dict[str, Target] = {
    "pieces": _numbered(same_in_any_pieces),
    "stranger": _numbered(living_with_a_stranger),
    "link": _numbered(link),
    "acme_requests": Target(
        server_readers.acme_requests,
        (b"GET /.well-known/acme-challenge/ab-_9 HTTP/1.1\r\nHost: a.org\r\n\r\n",),
    ),
    "answers": Target(node_readers.answers, ANSWERS),
    "backups": Target(server_readers.backups, BACKUPS),
    "batch_lines": Target(server_readers.batch_lines, (BATCH_LINE,)),
    "bodies": Target(server_readers.bodies, QUESTIONS),
    "cached_keys": Target(
        server_readers.cached_keys, (msgspec.msgpack.encode([None, 1, 2.0, 9e9]),)
    ),
    "certificate_requests": Target(server_readers.certificate_requests, (CSR,)),
    "client_hellos": Target(server_readers.client_hellos, (CLIENT_HELLO,)),
    "control_messages": Target(node_readers.control_messages, tuple(LINK_MESSAGES)),
    "documents": Target(
        node_readers.documents,
        (b'{"version":"0.13.5","chat_template_caps":{},"paths":{"/v1/completions":{"post":{}}}}',),
    ),
    "edge": Target(server_readers.edge, HTTP),
    "error_texts": Target(server_readers.error_texts, (b"There is no model 'x'.",)),
    "forms": Target(server_readers.forms, (FORM,)),
    "forwarded_for": Target(server_readers.forwarded_for, (b"1.2.3.4, 10.0.0.2", b"[::1]:80")),
    "framers": Target(node_readers.framers, ANSWERS),
    "join_tokens": Target(node_readers.join_tokens, (TOKEN,)),
    "ledger_records": Target(server_readers.ledger_records, (msgspec.json.encode(entry(1)),)),
    "media": Target(server_readers.media, QUESTIONS),
    "meters": Target(server_readers.meters, ANSWERS),
    "multipart": Target(server_readers.multipart, (FORM,)),
    "node_files": Target(node_readers.node_files, (b'{"at":1.0,"paused":true,"until":2.0}',)),
    "proxy_answers": Target(
        node_readers.proxy_answers,
        (
            b"HTTP/1.1 200 Connection established\r\n\r\n",
            b"HTTP/1.1 407 x\r\nProxy-Authenticate: NTLM\r\n\r\n",
        ),
    ),
    "queries": Target(server_readers.queries, (b"limit=5&since=2026-01-01&by=key,model",)),
    "reasoning": Target(node_readers.reasoning, ANSWERS),
    "redis_urls": Target(server_readers.redis_urls, (b":password@host:6379/0",)),
    "settings": Target(
        server_readers.settings, (b'public_port = 1\naddress = ["a"]\nlog_level = "info"\n',)
    ),
    "spool_frames": Target(server_readers.spool_frames, (FRAMES,)),
    "translations": Target(node_readers.translations, QUESTIONS),
    "urls": Target(
        server_readers.urls, (b"https://a.org:8443/x?y", b"http://[::1]/", b"http://1.2.3.4")
    ),
}
