"""Addresses of engines: parses what people write."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple
from urllib.parse import urlsplit

KINDS = (
    *("ollama", "vllm", "llama-server", "lm-studio", "sglang", "koboldcpp", "localai", "tgi"),
    "openai",
)
"""The kinds of engines; ``probes.DIALECTS`` has what each is asked."""

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - people copy these from OLLAMA_HOST


class AddressError(ValueError):
    """The text is no engine's address; ``str()`` says why, and gives an example."""


class Address(NamedTuple):
    """An engine's address; made by ``parse_address``."""

    url: str
    """Base URL without a trailing slash and ``/v1``: paths such as ``/v1/models`` are appended."""
    host: str
    """The Host header to send.  Ollama on loopback responds with 403 to unknown names, so that a
    loopback address becomes localhost; any other is kept."""
    kind: str | None
    """The kind of engine; None if it is to be detected."""


def parse_address(text: str) -> Address:
    """Parse ``http://host:port/prefix``, ``host:port`` or ``kind=…``.  Raises ``AddressError``."""
    kind, equals, rest = text.strip().partition("=")
    if not equals or "/" in kind or ":" in kind:
        kind, rest = "", text.strip()
    elif kind not in KINDS:
        raise AddressError(f"'{kind}' is no kind of engine; known kinds are {', '.join(KINDS)}.")
    example = "write it like http://localhost:11434"
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
        raise AddressError(f"The engine address '{text}' has no host; {example}.")
    if parts.username is not None or parts.query or parts.fragment:
        # Don't quote it: the part before the @ may be a password.
        raise AddressError(f"An engine address has only a host, port and path prefix; {example}.")
    name = _ANY_ADDRESS.get(name, name)
    shown = f"[{name}]" if ":" in name else name
    at = "" if port is None else f":{port}"
    prefix = parts.path.rstrip("/")
    prefix = prefix.removesuffix("/v1")
    if "/v1/" in f"{prefix}/":
        raise AddressError(
            f"The engine address '{text}' is the address of one endpoint; {example}."
        )
    host = f"localhost{at}" if _is_loopback(name) else f"{shown}{at}"
    return Address(f"{parts.scheme}://{shown}{at}{prefix}", host, kind or None)


def local(port: int) -> Address:
    """Return the address of a port of this machine."""
    return parse_address(f"http://127.0.0.1:{port}")


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
