"""Reads as much of a request's body as is needed to know what it asks for."""

from __future__ import annotations

import asyncio

from fabric_server.dialects.body import parse_body
from fabric_server.dialects.endpoints import CHAT
from fabric_server.dialects.fields import ParsedBody
from fabric_server.dialects.large_body import LargeBody, LargeForm, PlaceFinder
from fabric_server.edge.request import Body, Request
from fabric_server.edge.slices import feed_slices
from fabric_server.gateway.media import Media
from fabric_server.routing.aliases import rename

WHOLE_BODY = 256 * 1024
"""Bytes up to which a body is read whole before anything is done; a larger one may flow through."""
_MAX_JOINED = 4 * 2**20
"""Bytes that are joined on the event loop; more are joined in a thread."""


async def read_body(
    request: Request, media: Media, *, to_end: bool
) -> tuple[ParsedBody, LargeBody | None]:
    """Read the body, or its beginning, into ``body.replay_buffer``, patched.

    ``to_end`` reads it whole, however large.  JSON over ``WHOLE_BODY`` has a reader, which is
    returned; it is ``body.flowing`` if there is more to read.  Raises ApiError when the body can't
    be read.
    """
    body, endpoint = request.body, request.endpoint or CHAT
    data = body.take()
    if not body.complete and len(data) <= WHOLE_BODY:
        data = await _read_beginning(body, data)
    if len(data) > WHOLE_BODY:
        body.put_back(data)
        if endpoint.form:
            del data  # as long as this waits, it would be held twice
            return await _read_large_form(request), None
        large = body.reader = LargeBody(endpoint, media.scanner(endpoint))
        # What replaces URLs has room in a whole body only.
        to_end = to_end or media.concerns(data[:WHOLE_BODY], endpoint)
        del data
        return await _read_large(body, large, to_end=to_end), large
    parsed = parse_body(data, endpoint, request.headers.get(b"content-type", b""))
    if parsed.options is not None:
        start, stop = (await _find_places(data))["stream_options"]
        data = data[:start] + parsed.options + data[stop:]
    elif parsed.patch is not None:
        start, stop, text = parsed.patch
        data = data[:start] + text + data[stop:]
    body.replay_buffer = data
    return parsed, None


async def _read_beginning(body: Body, data: bytes) -> bytes:
    """Read on to the end, or until the body is a large one."""
    more = bytearray(data)  # not a list: a piece may be one byte
    while not body.complete and len(more) <= WHOLE_BODY:
        await body.more()
        more += body.take()
    return bytes(more)


async def _read_large(body: Body, large: LargeBody, *, to_end: bool) -> ParsedBody:
    """Read JSON until it can flow, or to its end if it must not."""
    complete = await _read_more(body, large)
    while not complete:
        if large.can_flow and not (to_end or large.stores or large.has_references):
            parsed = large.begin_flow(announced=body.length is not None)
            body.replay_buffer = large.take()
            return parsed
        complete = await _read_more(body, large)
    parsed = large.end()
    await _take(body, large)
    return parsed


async def _read_large_form(request: Request) -> ParsedBody:
    body = request.body
    form = body.reader = LargeForm(request.headers.get(b"content-type", b""))
    complete = await _read_more(body, form)
    while not complete:
        complete = await _read_more(body, form)
    parsed = form.end()
    await _take(body, form)
    return parsed


async def _read_more(body: Body, large: LargeBody | LargeForm) -> bool:
    """Read the next piece; return whether it was the last."""
    await body.more()
    complete = body.complete  # more may come while this is read
    await feed_slices(large, body.take())
    return complete


async def _take(body: Body, large: LargeBody | LargeForm) -> None:
    """Take the whole body."""
    joined = body.received <= _MAX_JOINED
    body.replay_buffer = large.take() if joined else await asyncio.to_thread(large.take)


async def rename_model(request: Request, parsed: ParsedBody, model: str) -> int:
    """Put another model's name into the body; return by how many bytes that makes it longer."""
    body, endpoint = request.body, request.endpoint
    place = parsed.place or (await _find_places(body.replay_buffer))["model"]
    size = len(body.replay_buffer)
    form = endpoint is not None and endpoint.form
    body.replay_buffer = rename(body.replay_buffer, place, model, form=form)
    return len(body.replay_buffer) - size


async def _find_places(body: bytes) -> dict[str, tuple[int, int]]:
    finder = PlaceFinder()
    await feed_slices(finder, body)
    return finder.places
