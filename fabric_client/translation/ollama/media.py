"""What Ollama's users put into ``images``: base64 without a word about what it is."""

from __future__ import annotations

import base64
import binascii

from fabric_client.translation import TranslationError
from fabric_client.translation.lenient_json import Json

_IMAGES = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"), (b"BM", "bmp"))
_SOUNDS = ((b"ID3", "mp3"), (b"\xff\xfb", "mp3"), (b"fLaC", "flac"), (b"OggS", "ogg"))


def parts(words: str, images: object, where: str) -> str | list[Json]:
    """A message's content: plain while there is nothing but words."""
    if images is None or images == []:
        return words
    if not isinstance(images, list):
        raise TranslationError(where, f"{where} must be a list of base64 strings")
    media = [_part(image, f"{where}[{index}]") for index, image in enumerate(images)]
    return [{"type": "text", "text": words}, *media] if words else media


def _part(image: object, where: str) -> Json:
    if not isinstance(image, str):
        raise TranslationError(where, f"{where} must be a base64 string")
    try:
        # The engine reads the rest, and says what it thinks of it.
        first = base64.b64decode(image[:16], validate=True)
    except (binascii.Error, ValueError):
        raise TranslationError(where, f"{where} is no base64") from None
    for start, kind in _IMAGES:
        if first.startswith(start):
            return _image(kind, image)
    if first.startswith(b"RIFF"):
        return _image("webp", image) if first[8:12] == b"WEBP" else _sound("wav", image)
    for start, kind in _SOUNDS:
        if first.startswith(start):
            return _sound(kind, image)
    raise TranslationError(
        where, f"{where} is neither a PNG, JPEG, GIF, WebP or BMP image nor a sound"
    )


def _image(kind: str, data: str) -> Json:
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}}


def _sound(kind: str, data: str) -> Json:
    return {"type": "input_audio", "input_audio": {"data": data, "format": kind}}
