"""What the server reads of users, nodes, operators and its own disk."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote_from_bytes

import msgspec
from aiohttp.test_utils import make_mocked_request

import fabric_client.config
import fabric_server.config
from fabric_server.acme.http_port import asked_token
from fabric_server.admin.keys import KeyQuery
from fabric_server.admin.node_views import HeartbeatQuery, NodeQuery
from fabric_server.admin.parameters import read_query
from fabric_server.admin.reports import RequestQuery, UsageQuery
from fabric_server.auth.authenticator import DEFAULT_TIMES
from fabric_server.backup.age_keys import SecretKeys
from fabric_server.backup.archive import is_safe, open_archive
from fabric_server.backup.problem import BackupProblem
from fabric_server.dialects.body import parse_body
from fabric_server.dialects.endpoints import CHAT, ENDPOINTS
from fabric_server.dialects.error_formats import Dialect
from fabric_server.dialects.errors import ApiError, bad_request, unknown_path
from fabric_server.dialects.forms import read_form
from fabric_server.dialects.large_body import LargeBody
from fabric_server.dialects.media_scanner import MediaScanner
from fabric_server.dialects.media_values import Policy
from fabric_server.jobs.batch_input import LineProblem, read_line
from fabric_server.jobs.multipart import FileBegun, Multipart, MultipartError
from fabric_server.metering.estimate import prompt_tokens, streamed_tokens, whole_tokens
from fabric_server.metering.events import AudioMeter, MessagesMeter, ResponsesMeter
from fabric_server.metering.ollama import LinesMeter
from fabric_server.metering.ollama_show import ShowMeter
from fabric_server.metering.openai import BodyMeter, Meter, StreamMeter
from fabric_server.net.client_hello import HEADER_SIZE, MAX_LENGTH, BadHello, record_size
from fabric_server.net.client_hello import read as read_hello
from fabric_server.net.egress import Forbidden, parse_target
from fabric_server.net.special_addresses import is_public
from fabric_server.net.trusted_proxies import TrustedProxies
from fabric_server.pki.ca import BadRequest, read_request
from fabric_server.storage import redis_url
from fabric_server.storage.batches import BatchRow
from fabric_server.storage.cached_keys import CachedKeys
from fabric_server.storage.spool.frames import scan
from ledger.records import HeartbeatRecord, LedgerEntry
from runtime.errors import BackendError
from runtime.settings import SettingsError, load
from tests.fuzz.corpus import cut
from tests.server.edge.port import Port

BACKUP_KEY = "age1tsc6x6r2692wcrl7zvlq52f50h0at3xz926attmsmtrh7mt4kpsqts8ck4"
BACKUP_SECRET = (
    "AGE-SECRET-KEY-1S4LUT038U0QS9H5H64YGEKGLR0G68PE8KMUG7JX95R2RJ8XHW4PQG72ZG9"  # of no other file
)
PATHS = tuple(ENDPOINTS.values())


def backups(data: bytes) -> object:
    """A file that is no backup, or none any more, is refused; parts have names that are safe."""
    try:
        archive, _ = open_archive(
            BytesIO(data), lambda: SecretKeys(BACKUP_SECRET, ""), lambda _: None
        )
        for part in archive.parts():
            assert is_safe(part.name)
    except BackupProblem as problem:
        return str(problem)
    return repr(archive.about)


def edge(data: bytes) -> object:
    """Whole or cut, the same requests are answered in the same way, and nothing stays open."""
    whole, pieces = (asyncio.run(_statuses(some)) for some in ([data], cut(data)))
    assert whole == pieces, (whole, pieces)
    return whole


async def _statuses(pieces: list[bytes]) -> tuple[bytes, ...]:
    problems: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, said: problems.append(said))
    port = Port()
    user = port.user()
    for piece in pieces:
        if user.closed:
            break
        user.send(piece)
        for _ in range(30):
            await asyncio.sleep(0)
    for seconds in (0, 11, 61, 100, 1000):
        port.wait(seconds)
        for _ in range(10):
            await asyncio.sleep(0)
    assert user.closed and not port.edge.connections and not problems, problems
    return tuple(re.findall(rb"^HTTP/1.1 (\d+) ", user.received, re.MULTILINE))


def bodies(data: bytes) -> object:
    """A body is read or refused; the model that is billed is the one that the engine reads."""
    assert prompt_tokens(data) >= 0
    results = []
    for endpoint in PATHS:
        try:
            results.append(parse_body(data, endpoint).stream)
        except ApiError as error:
            results.append(error.code)
    body, sent = LargeBody(CHAT), b""
    try:
        for piece in cut(data):
            body.feed(piece)
            if body.can_flow and not body.flows:
                body.begin_flow(announced=False)
            if body.flows:
                sent += body.take()
        parsed = body.end()
        sent += body.take()
    except ApiError as error:
        return (*results, error.code, body.flows)
    with contextlib.suppress(ValueError, RecursionError):
        read = json.loads(sent)
        assert read["model"] == parsed.model, (read, parsed)
        assert bool(read.get("stream")) == parsed.stream
    return (*results, body.flows)


def media(data: bytes) -> object:
    """Media in a body: whole or cut, the same places are found, or it is refused."""

    def look(pieces: list[bytes]) -> object:
        scanner = MediaScanner(Policy())
        try:
            for piece in pieces:
                scanner.feed(piece)
            scanner.feed(b"", last=True)
        except ApiError as error:
            return error.code
        return len(scanner.references)

    whole, pieces = look([data]), look(cut(data))
    assert whole == pieces, (whole, pieces)
    return whole


def forms(data: bytes) -> object:
    boundary = b"multipart/form-data; boundary=xx"
    try:
        fields = tuple(sorted(read_form(data, boundary, frozenset({"model", "stream"}))))
    except ApiError as error:
        return error.code
    return fields


def multipart(data: bytes) -> object:
    """Uploads: whole or cut, the files and fields are the same."""

    def read(pieces: list[bytes]) -> object:
        parser, files = Multipart(b"xx"), list[tuple[str, bytes]]()
        try:
            for piece in pieces:
                for event in parser.feed(piece):
                    if isinstance(event, FileBegun):
                        files.append((event.filename, b""))
                    else:
                        name, content = files.pop()
                        files.append((name, content + event))
        except MultipartError as error:
            return str(error)
        return files, parser.fields, parser.complete

    whole, pieces = read([data]), read(cut(data))
    if not isinstance(whole, str):
        assert whole == pieces
    return repr(whole)[:40]


METERS: tuple[Callable[[], Meter], ...] = (
    lambda: StreamMeter(True),
    lambda: StreamMeter(False),
    LinesMeter,
    ResponsesMeter,
    MessagesMeter,
    AudioMeter,
    BodyMeter,
)


def meters(data: bytes) -> object:
    """Meters never raise, and take the same tokens from a whole answer and from its pieces."""
    results = []
    for make in METERS:
        whole, pieces = make(), make()
        out = [whole.feed(data) + whole.end()]
        out.append(b"".join(map(pieces.feed, cut(data))) + pieces.end())
        assert out[0] == out[1], make
        assert (whole.usage, whole.failed) == (pieces.usage, pieces.failed), make
        for one in (whole, pieces):
            assert streamed_tokens(len(data), one.events, one.sample) >= one.events >= 0, make
        assert whole_tokens(len(data), whole.sample) >= 0
        results.append((whole.complete, whole.failed, whole.usage.completion_tokens is None))
    show = ShowMeter()
    json.loads(show.feed(data) + show.end() or b"{}")
    return tuple(results)


def error_texts(data: bytes) -> object:
    """An error that quotes anything is JSON in every dialect."""
    text = data.decode("utf-8", "surrogateescape").encode("utf-8", "replace").decode()
    for error in (bad_request(text), unknown_path(text)):
        for dialect in Dialect:
            assert isinstance(json.loads(error.body(dialect, "req_1")), dict)
            error.event(dialect, "req_1", data)
    return len(data) // 1000


def queries(data: bytes) -> object:
    """The admin API reads a query, or refuses it with a 400."""
    results = []
    query = quote_from_bytes(data, safe="=&,")
    request = make_mocked_request("GET", f"/?{query}")
    for kind in (KeyQuery, NodeQuery, HeartbeatQuery, RequestQuery, UsageQuery):
        try:
            results.append(type(read_query(request, kind)).__name__)
        except ApiError as error:
            assert error.status == 400
            results.append(error.code)
    return tuple(results)


def batch_lines(data: bytes) -> object:
    batch = BatchRow(
        id="batch_1", account="a", key_id="k", endpoint="/v1/chat/completions", input_file="f",
        created_at=0.0, expires_at=1.0,
    )  # fmt: skip
    try:
        return read_line(batch, 1, data).priority
    except LineProblem as problem:
        return problem.view(1)["code"]


def urls(data: bytes) -> object:
    """A URL that passes names no special address."""
    text = data.decode("utf-8", "replace")
    try:
        target = parse_target(text, allow_http=True)
    except Forbidden as error:
        return str(error)[:30]
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(target.host.strip("[]"))
        assert address.is_global and is_public(str(address)), text
    return "passes"


def client_hellos(data: bytes) -> object:
    """Names and protocols are short, and no first message is longer than a record."""
    try:
        hello = read_hello(data)
    except BadHello as error:
        return str(error)[:12]
    assert len(hello.protocols) <= 32
    assert len(hello.server_name) + sum(map(len, hello.protocols)) <= len(data)
    assert HEADER_SIZE <= record_size(data) <= HEADER_SIZE + MAX_LENGTH
    return bool(hello.server_name), len(hello.protocols)


def forwarded_for(data: bytes) -> object:
    proxies = TrustedProxies(["10.0.0.0/8"])
    peer = ipaddress.ip_address("10.0.0.1")
    client = proxies.client(peer, data)
    assert proxies.client(ipaddress.ip_address("192.0.2.1"), data) != client or client != peer
    return client == peer, client.version


def certificate_requests(data: bytes) -> object:
    try:
        read_request(data.decode("utf-8", "replace"))
    except BadRequest as error:
        return str(error)
    return "read"


def settings(data: bytes) -> object:
    """Settings files: read, or one sentence."""
    results = []
    with TemporaryDirectory() as directory:
        file = Path(directory, "fabric.toml")
        file.write_bytes(data)
        for cls in (fabric_server.config.Config, fabric_client.config.Config):
            try:
                load(cls, file=file, environ={}, flags={}, prefix="FABRIC_")
                results.append("read")
            except SettingsError as error:
                results.append(str(error).rpartition("but ")[2][:20])
    return tuple(results)


def acme_requests(data: bytes) -> object:
    """Requests to the port that answers a CA: a token of its alphabet, or nothing."""
    token = asked_token(data)
    assert token is None or (0 < len(token) <= 256 and token.isascii())
    return token is None


def redis_urls(data: bytes) -> object:
    try:
        return redis_url.parse("redis://" + data.decode("utf-8", "replace")).tls
    except (ValueError, BackendError) as error:
        return type(error).__name__


class _Empty:
    revision_at_open = 1

    async def key_by_hash(self, digest: bytes) -> None:
        return None


class _Poisoned:
    """A cache that says the same of every key."""

    def __init__(self, value: bytes) -> None:
        self._value = value

    async def get(self, name: str) -> bytes | None:
        return self._value

    async def set(self, name: str, value: bytes, seconds: float) -> None: ...


def cached_keys(data: bytes) -> object:
    """Whatever the cache says, no key comes of it but one with the same hash."""
    keys = CachedKeys(
        _Empty(), _Poisoned(data), times=DEFAULT_TIMES, revision=lambda: 1, clock=lambda: 100.0
    )
    row = asyncio.run(keys.find(bytes(32)))
    assert row is None or row.hash == bytes(32)
    return row is None


def ledger_records(data: bytes) -> object:
    """What the consumer reads from Kafka, and the server from its spool."""
    results = []
    for kind in (LedgerEntry, HeartbeatRecord):
        try:
            msgspec.json.decode(data, type=kind)
            results.append("read")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            results.append(type(error).__name__)
    return tuple(results)


def spool_frames(data: bytes) -> object:
    """Frames lie in order within the file, whatever is damaged."""
    found = scan(data)
    at = 0
    for span in sorted([*found.frames, *found.damaged]):
        assert at <= span.begin < span.end <= len(data)
        at = span.end
    return len(found.frames), len(found.damaged)
