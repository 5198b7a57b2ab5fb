"""Reads as much of a request's body as is needed to know what it asks for."""

from __future__ import annotations

import math

from fabric_server.dialects.body import EarlyBody, ParsedBody, parse_body
from fabric_server.dialects.endpoints import Endpoint
from fabric_server.edge.request import Body, Request

WHOLE_BODY = 256 * 1024
"""Bytes up to which a body is read whole before anything is done; a larger one may flow through."""


async def read_body(request: Request, endpoint: Endpoint, *, to_end: bool) -> ParsedBody:
    """Read the body, or its beginning, into ``body.replay_buffer``, patched.

    ``to_end`` reads it whole, however large.  Raises ApiError when it can't be read.
    """
    body = request.body
    pieces = [body.take()]
    size = len(pieces[0])
    limit = math.inf if to_end else WHOLE_BODY
    while not body.complete and size < limit:
        await body.more()
        pieces.append(body.take())
        size += len(pieces[-1])
    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    if body.complete:
        parsed = parse_body(data, endpoint, request.headers.get(b"content-type", b""))
    else:
        parsed, data = await _read_early(body, endpoint, data)
    if parsed.patch is not None:
        start, stop, text = parsed.patch
        data = data[:start] + text + data[stop:]
    body.replay_buffer = data
    return parsed


async def _read_early(body: Body, endpoint: Endpoint, data: bytes) -> tuple[ParsedBody, bytes]:
    """Read on until model and options are known, before the body is whole."""
    early = EarlyBody(endpoint)
    parsed = early.feed(data)
    while parsed is None and not body.complete:
        await body.more()
        parsed = early.feed(body.take())
    text = early.text
    return parsed or parse_body(text, endpoint), text
