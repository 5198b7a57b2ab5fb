"""Takes what is the owner's own business out of an engine's error texts.

places      /home/joe/models/tiny.gguf -> tiny: paths, such as the engine's names for models
held back   names of models that are not offered, in lists of what an engine has
addresses   http://127.0.0.1:11434/x, 192.168.1.5:8000, localhost, joes-pc.local
key         the one that the node sends to the engine, which may repeat it
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from fabric_client.offer.names import public_name
from fabric_client.translation.lenient_json import decode_object
from runtime.private_places import hide_places

INSTEAD = "(not offered)"
_KEY = "(the engine's key)"
_LEFT = r"(?<![\w./:-])"
_RIGHT = r"(?![\w/-]|[.:]\w)"


class PrivateText:
    """Hides an engine's places, the names of models that are held back, and the engine's key."""

    def __init__(
        self, renamed: Mapping[str, str], hidden: Collection[str], secret: str = ""
    ) -> None:
        """``renamed`` has the public names by the engine's, ``hidden`` names to leave out;
        ``secret`` is the engine's key, if it wants one."""
        self._secret = secret
        self._renamed = sorted(renamed.items(), key=lambda one: -len(one[0]))
        names = sorted({form for name in hidden for form in _forms(name)}, key=len, reverse=True)
        spelled = "|".join(map(re.escape, names))
        self._hidden = re.compile(f"{_LEFT}(?:{spelled}){_RIGHT}", re.IGNORECASE) if names else None

    def hide(self, text: str) -> str:
        """Return the text without them."""
        if self._secret:
            text = text.replace(self._secret, _KEY)
        if self._hidden is not None:
            text = self._hidden.sub(INSTEAD, text)
        for own, public in self._renamed:
            text = text.replace(own, public)
        return hide_places(text, _shorten)

    def hide_in(self, body: bytes) -> bytes:
        """Return an engine's document, or its text, without them; the same if it has none."""
        document = decode_object(body)
        if document is None:
            text = body.decode("utf-8", "replace")
            hidden = self.hide(text)
            return body if hidden == text else hidden.encode()
        changed = self._walk(document, 0)
        return body if changed == document else msgspec.json.encode(changed)

    def _walk(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self.hide(value)
        if depth > 64:
            return None
        if isinstance(value, list):
            return [self._walk(one, depth + 1) for one in value]
        if isinstance(value, dict):
            return {self.hide(key): self._walk(one, depth + 1) for key, one in value.items()}
        return value


def _forms(name: str) -> set[str]:
    return {name, name.removesuffix(":latest")}


def _shorten(place: str) -> str:
    return public_name(place, "") or ""
