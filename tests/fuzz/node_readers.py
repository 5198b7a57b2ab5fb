"""What a node reads of engines, users, its server and its own disk."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from tempfile import TemporaryDirectory

from fabric_client.engines.echo import MODEL
from fabric_client.engines.probes import DIALECTS
from fabric_client.owner import control, state
from fabric_client.reasoning.response_filter import ReasoningFilter
from fabric_client.sse import EventFramer, EventTooLong, decode_events, split_events
from fabric_client.translation import LocalReply, ResponseFilter, TranslationError
from fabric_client.translation.paths import PUBLIC_PATHS, native_paths, path_handlers
from protocol import join, messages
from runtime.http_proxy import ConnectAnswer, ProxyError, check_answer, parse
from tests.fuzz.corpus import cut

KINDS = tuple(DIALECTS)
CHAT = "/v1/chat/completions"
BASIC = {CHAT, "/v1/completions", "/v1/embeddings", "/tokenize"}
HANDLERS = [
    (path, translate)
    for kind, native in (("vllm", BASIC), ("vllm", PUBLIC_PATHS), ("ollama", PUBLIC_PATHS))
    for path, translate in sorted(path_handlers(kind, native, lambda: 0).items())
    if translate is not None
]
PROXY = parse("http://proxy:3128", "proxy")
MESSAGES = [{"role": "user", "content": "Hi"}]
QUESTIONS = [
    {"model": MODEL, "max_tokens": 9, "stream": stream, **asked}
    for stream in (True, False)
    for asked in ({"messages": MESSAGES}, {"input": "Hi"}, {"prompt": "Hi"})
]
TYPES = ("text/event-stream", "application/json", "application/x-ndjson", "")


def translations(data: bytes) -> object:
    """A request is translated, answered here, or refused by name, in every dialect."""
    results = []
    for path, translate in HANDLERS:
        try:
            done = translate(data)
            results.append(type(done).__name__)
            if not isinstance(done, LocalReply):
                _feed(done.response_filter, data, 0)
        except TranslationError as error:
            results.append(error.param)
        assert path
    return tuple(results)


def answers(data: bytes) -> object:
    """An engine's answer never raises, whatever the dialect; its status is decided at the end."""
    results: list[object] = []
    for _, translate in HANDLERS:
        for question in QUESTIONS:
            for kind in range(len(TYPES)):
                try:
                    done = translate(json.dumps(question).encode())
                except TranslationError:
                    break
                if not isinstance(done, LocalReply) and done.response_filter is not None:
                    results.append(_feed(done.response_filter, data, kind))
    return hash(tuple(results))


def reasoning(data: bytes) -> object:
    return tuple(
        _feed(ReasoningFilter(stream), data, kind)
        for stream in (True, False, None)
        for kind in range(len(TYPES))
    )


def _feed(response: ResponseFilter | None, data: bytes, kind: int) -> object:
    if response is None:
        return None
    head = response.head(200, [("content-type", TYPES[kind])])
    out = b"".join(map(response.feed, cut(data))) + response.end()
    head = head or response.decided
    assert head is not None, "nothing has decided the status"
    return head[0], bool(out)


def framers(data: bytes) -> object:
    """Events: whole or cut, all bytes come out, in order."""

    def read(pieces: list[bytes]) -> bytes | None:
        framer = EventFramer()
        try:
            return b"".join(map(framer.feed, pieces)) + framer.end()
        except EventTooLong:
            return None

    whole = read([data])
    assert whole == read(cut(data))
    return len(list(split_events(data))), len(decode_events(data))


def documents(data: bytes) -> object:
    """What an engine tells about itself."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    names = ("/openapi.json", "/api/version", "/props", "/api/v1/models")
    return tuple(len(native_paths(kind, {n: document for n in names}, [])) for kind in KINDS)


def control_messages(data: bytes) -> object:
    results = []
    for kind in (messages.Message, messages.RequestHead, messages.ResponseHead, messages.Figures):
        try:
            results.append(type(messages.decoder(kind).decode(data)).__name__)
        except messages.UNREADABLE as error:
            results.append(type(error).__name__)
    return tuple(results)


def proxy_answers(data: bytes) -> object:
    """Whole or cut, the same answer of a proxy opens the way, or is refused for the same reason."""

    def outcome(pieces: list[bytes]) -> str:
        loop = asyncio.new_event_loop()
        try:
            answer = ConnectAnswer(loop.create_future())
            for piece in pieces:
                answer.data_received(piece)
            if not answer.done.done():
                return "more"
            head, rest = answer.done.result()
            check_answer(PROXY, head, b"", "example.org:443")
            return "open" if not rest else "open, and more"
        except ProxyError as error:
            return error.code
        finally:
            loop.close()

    whole, pieces = outcome([data]), outcome(cut(data))
    assert whole.partition(",")[0] == pieces.partition(",")[0], (whole, pieces)
    return whole


def join_tokens(data: bytes) -> object:
    text = data.decode("utf-8", "replace")
    try:
        token = join.parse(text)
    except join.BadToken as error:
        return str(error)[:30]
    assert join.parse(join.encode(token)) == token
    return "read"


def node_files(data: bytes) -> object:
    """The files that commands and a running node leave for each other."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        for module in (state, control):
            path = module.path_in(directory)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        try:
            done = control.read(directory).drain != ""
        except control.Unreadable:
            done = None
        return state.read(directory) is None, done
