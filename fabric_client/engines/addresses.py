"""Where an engine is: reading and tidying the addresses that people give."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple
from urllib.parse import urlsplit

from fabric_client.engines.probes import DIALECTS

_NOWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what people copy from OLLAMA_HOST


class AddressError(ValueError):
    """What was given as an engine's address is none; ``str()`` says why and what would be."""


class Address(NamedTuple):
    """Where an engine is; made by ``parse_address``."""

    url: str
    """Without trailing slash and without ``/v1``: paths such as ``/v1/models`` are appended."""
    host: str
    """The Host header to send.  Ollama on loopback answers 403 to names it does not know, so a
    loopback address is called localhost; any other keeps its own name."""
    kind: str | None
    """None: to be found out."""


def parse_address(text: str) -> Address:
    """Read ``http://host:port/prefix``, ``host:port`` or ``kind=…``; raises ``AddressError``."""
    kind, equals, rest = text.strip().partition("=")
    if not equals or "/" in kind or ":" in kind:
        kind, rest = "", text.strip()
    elif kind not in DIALECTS:
        raise AddressError(f"'{kind}' is no kind of engine; known are {', '.join(DIALECTS)}.")
    example = "give it like http://localhost:11434"
    if "://" not in rest:
        rest = f"http://{rest}"
    try:
        parts = urlsplit(rest)
        name, port = parts.hostname, parts.port
    except ValueError as error:
        raise AddressError(f"'{text}' is no engine address ({error}); {example}.") from None
    if parts.scheme not in ("http", "https"):
        raise AddressError(f"The engine address '{text}' is neither http nor https; {example}.")
    if not name or name.isdigit() or parts.netloc.endswith(":") or port == 0 or " " in rest:
        raise AddressError(f"The engine address '{text}' names no host; {example}.")
    if parts.username is not None or parts.query or parts.fragment:
        # Not quoting it: what stands before the @ may be a password.
        raise AddressError(f"An engine address is only a host, port and path prefix; {example}.")
    name = _NOWHERE.get(name, name)
    shown = f"[{name}]" if ":" in name else name
    at = "" if port is None else f":{port}"
    prefix = parts.path.rstrip("/")
    prefix = prefix.removesuffix("/v1")
    if "/v1/" in f"{prefix}/":
        raise AddressError(f"The engine address '{text}' is that of one endpoint; {example}.")
    host = f"localhost{at}" if _is_loopback(name) else f"{shown}{at}"
    return Address(f"{parts.scheme}://{shown}{at}{prefix}", host, kind or None)


def local(port: int) -> Address:
    return parse_address(f"http://127.0.0.1:{port}")


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
