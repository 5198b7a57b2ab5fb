"""Prepares requests whose body is read whole: translation, and the filters of the answer.  Pure."""

from __future__ import annotations

import re
from collections.abc import Callable

from fabric_client.offer.admission import admit, with_model
from fabric_client.offer.name_filter import NameFilter, ShowFilter
from fabric_client.offer.offered import Offered
from fabric_client.proxy.prepared import Prepared
from fabric_client.reasoning import HEADER, RAW
from fabric_client.translation import (
    FilterChain,
    Headers,
    LocalReply,
    RequestTranslator,
    ResponseFilter,
    TranslatedRequest,
    TranslationError,
)
from fabric_client.translation.local_reply import error_reply
from fabric_client.translation.media_guard import refuse_links
from protocol.messages import RequestHead

Prepare = Callable[[bytes], TranslatedRequest | LocalReply]
"""Takes the whole body; returns the engine's request, or a response of the node's own.  Raises
``offer.admission.NotOffered``."""

MakeReasoning = Callable[[bool | None], ResponseFilter]
"""Takes whether a stream was asked for; None: a translation sees to the answer's form."""

_CHAT = "/v1/chat/completions"
_STREAM = b'"stream"'
_TRUE = re.compile(rb"\s*:\s*true").match

OFF_LOOP = 128 * 1024
"""Bytes of a body or an answer up to which it is read on the event loop, in some 10 ms at most;
``Workers`` read what is larger."""
_OPTIONS = b'"stream_options"'
_USAGE = re.compile(rb'"stream_options"\s*:\s*\{\s*"include_usage"\s*:\s*true\s*\}\s*')
ASKED_OTHERWISE = (0, 0)
"""A body has ``stream_options`` of the user's own."""


def prepare_whole(prepare: Prepare, with_usage: bool, body: bytes) -> tuple[Prepared, bytes]:
    """Prepare a request, and return it and the engine's body; ``runtime.workers`` may call it.

    ``with_usage``: look for what asks for usage.  Raises ``NotOffered``.
    """
    prepared = prepare(body)
    if isinstance(prepared, LocalReply):
        return Prepared(prepared), b""
    body = prepared.body
    usage = find_usage(body) if with_usage else None
    return Prepared(None, prepared.path, prepared.response_filter, usage), body


def asks_stream(body: bytes) -> bool:
    """Return whether a chat's body asks for a stream.

    A key of that name deeper inside counts, too; it is hardly ever there, and costs a look at the
    answer's first bytes only.
    """
    at = len(body)
    while (at := body.rfind(_STREAM, 0, at)) >= 0:  # within a string its quotes would be escaped
        if _TRUE(body, at + len(_STREAM)):
            return True
    return False


def find_usage(body: bytes) -> tuple[int, int] | None:
    """Return the range of a body to take out, so that it asks for no usage in a stream.

    None if it has no ``stream_options``, ``ASKED_OTHERWISE`` if they are not what the server or a
    translation puts in.
    """
    if body.rfind(_OPTIONS) < 0:  # within a string its quotes would be escaped
        return None
    found = _USAGE.search(body, body.find(_OPTIONS))
    if found is None:
        return ASKED_OTHERWISE
    start, stop = found.span()
    if body[stop : stop + 1] == b",":
        return start, stop + 1
    before = body[:start].rstrip()
    return len(before) - before.endswith(b","), stop


def end_filter(response: ResponseFilter, _: bytes) -> tuple[tuple[int, Headers] | None, bytes]:
    """End a filter that holds a large answer; return what it decides and the rest.

    For ``runtime.workers``.
    """
    rest = response.end()
    return response.decided, rest


def prepare_offered(
    offered: Offered,
    translate: RequestTranslator,
    make_reasoning: MakeReasoning | None,
    head: RequestHead,
    body: bytes,
) -> TranslatedRequest | LocalReply:
    """Prepare a request if its model is offered, with the engine's own name for it.

    Raises ``NotOffered``.
    """
    try:
        admitted = admit(offered, head.path, head.headers, body)
    except TranslationError as error:
        return error_reply(head.path, 400, error.message, error.param)
    prepared = prepare(translate, make_reasoning, head, admitted.body)
    if isinstance(prepared, LocalReply):
        return prepared
    path, body, filters = prepared.path, prepared.body, prepared.response_filter
    own, asked = admitted.own, admitted.asked
    if own != asked and not admitted.is_form:
        body = with_model(body, own)
    if own != asked or offered.restricted:
        filters = _chain(NameFilter(offered.private, own, asked), filters)
        if path == "/api/show":
            filters = FilterChain(filters, ShowFilter(offered.private))
    return TranslatedRequest(path, body, filters)


def _chain(first: ResponseFilter, then: ResponseFilter | None) -> ResponseFilter:
    return first if then is None else FilterChain(first, then)


def prepare(
    translate: RequestTranslator,
    make_reasoning: MakeReasoning | None,
    head: RequestHead,
    body: bytes,
) -> TranslatedRequest | LocalReply:
    """Translate a request; every chat answer goes through ``make_reasoning`` first.

    A client that sends ``x-fabric-reasoning: raw`` gets the engine's reasoning unchanged.
    """
    try:
        prepared = translate(body)
        if isinstance(prepared, TranslatedRequest):
            refuse_links(prepared.body)
    except TranslationError as error:
        return error_reply(head.path, 400, error.message, error.param)
    if isinstance(prepared, LocalReply) or make_reasoning is None or prepared.path != _CHAT:
        return prepared
    for name, value in head.headers:
        if name == HEADER and value.strip().lower() == RAW:
            return prepared
    body, translated = prepared.body, prepared.response_filter
    if translated is None:
        return TranslatedRequest(_CHAT, body, make_reasoning(asks_stream(body)))
    return TranslatedRequest(_CHAT, body, FilterChain(make_reasoning(None), translated))
